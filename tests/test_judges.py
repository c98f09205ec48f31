"""Answers judged by a rubric, by one judge or several, and the judges judged by what they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from server import lines, published, write_seeds

from kdgen.errors import Rejected, UserError
from kdgen.export import Evaluator
from kdgen.judging import Grade, Judging, Verdict
from kdgen.record import Record, digest
from kdgen.resources import builtins
from kdgen.rubrics import load_rubric
from kdgen.stages.base import Ask
from kdgen.stages.judged import read

RUBRIC = """about: x
source: x
task: You judge an answer.
aspects:
  - {name: right, asks: "Is it right?", scale: {1: No., 5: Yes.}}
  - {name: clear, asks: "Is it clear?", scale: {1: No., 5: Yes.}}
overall: {asks: "Is it good?", scale: {1: No., 10: Yes.}}
"""


def grades(right: Any, clear: Any, overall: Any) -> str:
    made = {"right": right, "clear": clear, "overall": overall}
    return json.dumps({name: {"reason": f"{name} so", "score": score} for name, score in made.items()})


@pytest.fixture
def judged(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A run of `stage` over seeds, every role on the same scripted rules."""
    (tmp_path / "rubric.yaml").write_text(RUBRIC)

    def run(
        rules: dict[str, list[dict[str, Any]]] | list[dict[str, Any]],
        stage: dict[str, Any],
        seeds: list[dict[str, Any]],
        *first: dict[str, Any],
        **more: Any,
    ) -> Any:
        made = {"stage": "feedback", "method": "judge", "prompt": "feedback/judge", "rubric": "./rubric.yaml", **stage}
        asked = [stage.get("judges", ["teacher"]), *(each.get("among", ["teacher"]) for each in first)]
        teachers = {}
        for name in sorted({role for roles in asked for role in roles}):
            own = rules[name] if isinstance(rules, dict) else rules
            path = tmp_path / f"{digest(own)}.jsonl"
            path.write_text("".join(json.dumps(rule) + "\n" for rule in own))
            teachers[name] = {"provider": "scripted", "path": path.name, "model": name}
        write_seeds(tmp_path / "s.jsonl", seeds)
        recipe = {"name": "judged", "teachers": teachers, "stages": [*first, made, *more.pop("after", ())], **more}
        (tmp_path / "j.yaml").write_text(json.dumps(recipe))
        ledger = f"{digest(rules)}.db"
        return kdgen("run", "./j.yaml", "--seeds", "s.jsonl", "-o", "out", "--ledger", ledger, "--json")

    return run


def rows(count: int = 1, output: str = "an answer") -> list[dict[str, Any]]:
    return [{"id": f"s{number}", "instruction": f"task{number}", "output": output} for number in range(count)]


def only(folder: Path) -> dict[str, Any]:
    (row,) = lines(folder / "out/records.jsonl")
    return row


def test_a_ten_that_is_a_one_is_no_grade(judged: Callable[..., Any], tmp_path: Path) -> None:
    said = judged([{"reply": grades(1, 2, 10)}], {}, rows())
    assert said.code == 0, said.err
    meta = only(tmp_path)["meta"]
    assert meta["scores"] == {"right": 1, "clear": 2, "overall": None} and meta["score"] == 1.5
    assert meta["unscored"] == ["teacher: an overall grade of 10 does not follow from the aspects (1, 2)"]
    assert json.loads(said.out)["judges"]["feedback/judge"]["teacher"]["unscored"] == round(1 / 3, 4)
    judged([{"reply": grades(1, 2, 10)}], {"within": 1}, rows())
    assert only(tmp_path)["meta"]["scores"]["overall"] == 10
    judged([{"reply": grades(1, 2, 10)}], {"score": "overall"}, rows())
    assert only(tmp_path)["meta"]["score"] is None
    judged([{"reply": grades(4, 5, 8)}], {"score": "overall"}, rows())
    assert only(tmp_path)["meta"]["score"] == 8 and "unscored" not in only(tmp_path)["meta"]


@pytest.mark.parametrize(
    "reply",
    [
        "Score: 5",
        grades(5, 5, 11),
        grades(0, 5, 5),
        grades("5", 5, "five"),
        grades(None, 5, 9),
        grades(4.5, 5, 9),
        grades(True, 5, 9).replace('"reason": "right so", ', ""),
        '{"right": 5, "clear": 5, "overall": 10}',
    ],
)
def test_what_cannot_be_read_is_never_a_number(judged: Callable[..., Any], tmp_path: Path, reply: str) -> None:
    said = judged([{"reply": reply}], {}, rows())
    assert said.code == 0, said.err
    row = only(tmp_path)
    assert row["meta"]["score"] is None and set(row["meta"]["scores"].values()) == {None}
    assert row["meta"]["unscored"][0].startswith("teacher: invalid_output")
    assert json.loads(said.out)["judges"]["feedback/judge"]["teacher"]["distribution"] == {}


def test_a_refused_or_cut_grade_is_unscored_and_a_bound_rejects_it(judged: Callable[..., Any], tmp_path: Path) -> None:
    rules = [
        {"contains": "task0", "reply": grades(5, 4, 9)},
        {"contains": "task1", "reply": "no", "finish": "length"},
        {"contains": "task2", "refusal": "I will not."},
        {"reply": grades(2, 2, 4)},
    ]
    said = judged(rules, {"at_least": 4.5}, [*rows(4), {"id": "n", "instruction": "task"}])
    lost = {row["seeds"][0]: (row["reason"], row["detail"]) for row in lines(tmp_path / "out/rejects.jsonl")}
    assert only(tmp_path)["seeds"] == ["s0"] and only(tmp_path)["writers"] == {"scores": "scripted:teacher"}
    assert {seed: reason for seed, (reason, _) in lost.items()} == {
        "s1": "unscored",
        "s2": "unscored",
        "s3": "low_score",
        "n": "no_answer",
    }
    assert lost["s1"][1].startswith("teacher: cut") and lost["s2"][1].startswith("teacher: refused"), said.err


def test_several_grades_and_several_judges_make_a_mean_and_an_agreement(
    judged: Callable[..., Any], tmp_path: Path
) -> None:
    rules = [{"nth": 0, "reply": grades(5, 5, 10)}, {"nth": 1, "reply": grades(4, 5, 9)}, {"reply": "nothing"}]
    made = json.loads(judged(rules, {"times": 3}, rows()).out)
    meta = only(tmp_path)["meta"]
    assert meta["scores"] == {"right": 4.5, "clear": 5, "overall": 9.5}
    assert meta["grades"]["right"] == [5, 4, None] and len(only(tmp_path)["calls"]) == 3
    assert made["agreement"]["feedback/judge"]["units"] == 3 and made["agreement"]["feedback/judge"]["ratings"] == 6
    jury = {"a": [{"reply": grades(4, 4, 8)}], "b": [{"reply": grades(2, 4, 6)}], "c": [{"reply": "nothing"}]}
    made = json.loads(judged(jury, {"judges": ["a", "b", "c"], "times": 2}, rows(2)).out)
    for row in lines(tmp_path / "out/records.jsonl"):
        assert row["meta"]["scores"] == {"right": 3, "clear": 4, "overall": 7} and row["meta"]["score"] == 3.5
        assert row["meta"]["judge"] == row["writers"]["scores"] == "scripted:a, scripted:b"
    reports = made["judges"]["feedback/judge"]
    assert [reports[role]["unscored"] for role in "abc"] == [0, 0, 1]
    # Of each unit's four grades two pairs of six agree where the judges differ, and all do where they do not.
    assert made["agreement"]["feedback/judge"]["observed"] == round((2 / 6 + 1 + 2 / 6) / 3, 4)


def test_candidates_are_graded_and_ranked_each_with_its_reasons(judged: Callable[..., Any], tmp_path: Path) -> None:
    first = {"stage": "feedback", "method": "candidates", "prompt": "label/brief", "n": 3, "among": ["a", "b"]}
    rules = [
        {"regex": "(?s)You judge.*judge:\nsame", "reply": grades(4, 4, 8)},
        {"regex": "(?s)You judge.*judge:\nbad", "reply": "unreadable"},
        {"contains": "You judge", "reply": grades(5, 4, 9)},
        {"nth": 1, "reply": "bad"},
        {"reply": "same {digest}"},
    ]
    judged(rules, {"judges": ["a"]}, rows(1), first, export={"format": "ranked"})
    row = only(tmp_path)
    assert [each["rank"] for each in row["candidates"]] == [1, 1, None]
    assert [each["score"] for each in row["candidates"]] == [4, 4, None] and row["output"] == ""
    assert row["candidates"][0]["notes"]["reasons"]["right"] == "right so"
    for each in row["candidates"]:
        assert set(each["calls"]) <= set(row["calls"]) and len(each["calls"]) == 2
    assert row["meta"] == {"gold": "an answer"}


def test_a_judge_that_always_says_ten_is_caught(judged: Callable[..., Any], tmp_path: Path) -> None:
    said = judged([{"reply": grades(5, 5, 10)}], {}, rows(30))
    made = json.loads(said.out)
    report = made["judges"]["feedback/judge"]["teacher"]
    assert (report["top_share"], report["entropy"], report["grades"]) == (1.0, 0.0, 90)
    assert report["distribution"]["overall"] == {"10": 30}
    (notice,) = made["notices"]
    assert notice == (
        "feedback/judge, judge teacher: 100% of its grades for clear, overall, right are the highest there is: "
        "they hardly tell answers apart"
    )
    assert f"note: {notice}" in said.err and notice in (tmp_path / "out/README.md").read_text()
    rules = [
        {"regex": rf"task{digit}\b|task\d{digit}\b", "reply": grades(1 + digit // 2, 1 + digit % 5, 1 + digit)}
        for digit in range(10)
    ]
    assert not json.loads(judged(rules, {"within": 1}, rows(30)).out)["notices"]


def test_a_second_run_sends_nothing_and_a_changed_answer_is_graded_alone(
    judged: Callable[..., Any], tmp_path: Path
) -> None:
    rules = [{"reply": grades(5, 4, 9)}]
    judged(rules, {"times": 2}, rows(6))
    before = published(tmp_path / "out")
    said = json.loads(judged(rules, {"times": 2}, rows(6)).out)
    assert said["requests"]["sent"] == 0 and published(tmp_path / "out") == before
    changed = [*rows(5), {**rows(6)[5], "output": "another"}]
    assert json.loads(judged(rules, {"times": 2}, changed).out)["requests"]["sent"] == 2


@pytest.mark.parametrize(
    ("stage", "complaint"),
    [
        ({"score": "rihgt"}, "has no 'rihgt'"),
        ({"rubric": "additive", "within": 0.5}, "within has no effect"),
        ({"judges": ["a", "a"]}, "stands twice"),
        ({"judges": ["a"], "to": "a"}, "to has no effect"),
    ],
)
def test_settings_without_effect(judged: Callable[..., Any], stage: dict[str, Any], complaint: str) -> None:
    said = judged([{"reply": ""}], stage, rows())
    assert said.code == 2 and complaint in said.err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (RUBRIC.replace("clear,", "right,"), "stands twice"),
        (RUBRIC.replace("clear,", "overall,"), "no aspect can be named 'overall'"),
        (
            RUBRIC.replace('right?", scale: {1', 'right?", scale: {0'),
            "from 0 to 5",
        ),
        (RUBRIC.replace("{1: No., 10: Yes.}", "{1: No.}"), "at least 2"),
        (RUBRIC.replace("source: x\n", ""), "source"),
        (RUBRIC.replace("name: right", "name: Right one"), "aspects.0.name"),
    ],
)
def test_a_rubric_that_is_none(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_rubric(tmp_path / "bad.yaml")
    assert complaint in f"{error.value.where} {error.value.cause} {error.value.hint}"


@pytest.mark.parametrize("name", sorted(builtins("rubrics")))
def test_the_rubrics_that_ship(name: str) -> None:
    rubric = load_rubric(builtins("rubrics")[name])
    assert all(grade in range(each.ends[0], each.ends[1] + 1) for each in rubric.aspects for grade in each.scale)
    properties = rubric.schema_of_grades.model_json_schema()
    assert list(properties["properties"]) == list(rubric.names)
    assert all(list(each["properties"]) == ["reason", "score"] for each in properties["$defs"].values())


def test_rows_that_teach_a_judge(judged: Callable[..., Any], tmp_path: Path) -> None:
    form = {"format": "evaluator", "rubric": "./rubric.yaml", "aspect": "clear"}
    rules = [{"contains": "task1", "reply": "unreadable"}, {"reply": grades(5, 1, 5)}]
    said = judged(rules, {}, rows(2), export=form)
    assert said.code == 0 and json.loads(said.out)["counts"]["rejects"] == {"no_place_in_format": 1}
    (row,) = lines(tmp_path / "out/data.jsonl")
    asked, said_ = row.pop("messages")
    assert said_ == {"role": "assistant", "content": "clear so\n[RESULT] 1"}
    assert all(part in asked["content"] for part in ("task0", "an answer", "Is it clear?", "1 = No.", "from 1 to 5"))
    assert row == {
        "orig_instruction": "task0",
        "orig_response": "an answer",
        "orig_reference_answer": "",
        "orig_criteria": "Is it clear?",
        "orig_feedback": "clear so",
        "orig_score": 1,
        "orig_score1_description": "No.",
        "orig_score5_description": "Yes.",
    }
    # What another stage graded is no grade of this judge.
    record = Record.model_validate_json((tmp_path / "out/records.jsonl").read_text())
    record = record.model_copy(update={"meta": {**record.meta, "grades": {"good": {"reason": "x", "score": 2}}}})
    assert Evaluator(rubric=load_rubric(tmp_path / "rubric.yaml"), aspect="clear").row(record)
    # Of candidates, one row each; a mean between two grades has no feedback of its own.
    first = {"stage": "feedback", "method": "candidates", "prompt": "label/brief", "n": 2}
    each = {"stage": "feedback", "method": "each"}
    # The mean of 2 and 4 is a grade, and not the one that either gave its reason for.
    for second, times, count in ((3, 1, 2), (3, 2, 0), (4, 2, 0), (2, 2, 2)):
        rules = [
            {"contains": "You judge", "nth": 0, "reply": grades(5, 2, 7)},
            {"contains": "You judge", "reply": grades(5, second, 7)},
        ]
        said = judged(
            [*rules, {"reply": "an answer {digest}"}], {"times": times}, rows(1), first, after=[each], export=form
        )
        assert said.code == (0 if count else 5)
        if count:
            assert json.loads(said.out)["counts"]["rows"] == count
            told = lines(tmp_path / "out/data.jsonl")[0]
            assert (
                "known to be right" in told["messages"][0]["content"] and told["orig_reference_answer"] == "an answer"
            )


@pytest.mark.parametrize(("second", "count"), [(2, 2), (4, 0)])
def test_a_listing_teaches_a_judge_what_it_gave_its_reason_for(
    judged: Callable[..., Any], tmp_path: Path, second: int, count: int
) -> None:
    def ratings(score: int) -> str:
        return json.dumps({"ratings": [{"answer": place, "reason": "so", "score": score} for place in (1, 2)]})

    first = {"stage": "feedback", "method": "candidates", "prompt": "label/brief", "n": 2}
    rules = [
        {"regex": r"(?s)Answer 1:\s+alpha.*Answer 2", "reply": ratings(2)},
        {"regex": r"(?s)Answer 1:\s+beta.*Answer 2", "reply": ratings(second)},
        {"nth": 0, "reply": "alpha"},
        {"reply": "beta"},
    ]
    stage = {"method": "rank", "prompt": "feedback/rank", "times": 2}
    form = {"format": "evaluator", "rubric": "./rubric.yaml", "aspect": "clear"}
    each = {"stage": "feedback", "method": "each"}
    said = judged(rules, stage, [{"id": "s", "instruction": "task"}], first, after=[each], export=form)
    assert said.code == (0 if count else 5), said.err
    assert not count or len(lines(tmp_path / "out/data.jsonl")) == count


@pytest.mark.parametrize("reason", ["budget_reached", "prompt_failed", "empty_prompt"])
def test_what_was_never_asked_is_not_unscored(reason: str) -> None:
    async def asked(fate: str) -> Any:
        raise Rejected(fate, "why")

    with pytest.raises(Rejected):
        asyncio.run(read(cast(Ask, None), asked(reason)))
    assert isinstance(asyncio.run(read(cast(Ask, None), asked("cut"))), Rejected)


def test_a_judge_that_prefers_its_own_is_caught() -> None:
    judging = Judging()
    for number in range(40):
        own = number % 2 == 0
        judging.add(Grade("j", "x", 5 if own else 3, 1, 5, own))
        judging.add(Verdict("j", 0.9 if own else 0.1, 0.1 if own else 0.9, own=1 if own else 2))
    report = judging.data()["j"]
    assert report["self_preference"] == 0.5 and report["own_wins"] == 0.9 and report["swap_consistency"] == 1.0
    assert [each.split(": ")[1] for each in judging.notices("s")] == [
        "it grades its own model's answers 50% of the scale over others'",
        "its own model's answers win 90% of their comparisons",
    ]


def test_one_aspect_that_is_always_ten_is_caught_among_others() -> None:
    judging = Judging()
    for number in range(40):
        judging.add(Grade("j", "x", 1 + number % 5, 1, 5))
        judging.add(Grade("j", "overall", 10, 1, 10))
        judging.add(Grade("j", "flat", 3, 1, 5))
    assert [each.split(": ")[1] for each in judging.notices("s")] == [
        "100% of its grades for overall are the highest there is",
        "100% of its grades for flat are the same",
    ]


def test_few_verdicts_say_nothing_of_a_judge() -> None:
    judging = Judging()
    judging.add(Grade("j", "x", 5, 1, 5))
    judging.add(Verdict("j", 1.0, 1.0))
    assert not judging.notices("s") and judging.data()["j"]["swap_consistency"] == 0.0
