"""Loops: each iteration a dataset, made of those before; what ends them; what going on costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import ACK, write_seeds

from kdgen.loops import Bounds, Measures, drifted, measured

SEEDS = [{"id": name, "instruction": f"Tell me of {name}."} for name in ("amber", "basil", "cedar")]
ANSWER = {"stage": "label", "method": "answer", "prompt": "label/plain"}


@pytest.fixture
def loop(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run a recipe with a loop; the exit code, what was said, and the manifests of the iterations there are."""

    def run(tree: dict[str, Any], rules: list[dict[str, Any]], *options: str) -> Any:
        name = f"r{len(list(tmp_path.glob('r*.jsonl')))}.jsonl"
        (tmp_path / name).write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", SEEDS)
        whole = {"name": "loop", "seeds": "s.jsonl", "teachers": {"teacher": {"provider": "scripted", "path": name}}}
        (tmp_path / "loop.yaml").write_text(json.dumps({**whole, "stages": [ANSWER], **tree}))
        said = kdgen("run", "./loop.yaml", "-o", "out", "--ledger", "l.db", *options)
        folders = sorted((tmp_path / "out").glob("M*"))
        there = [each for each in folders if (each / "manifest.json").exists()]
        return said, [json.loads((each / "manifest.json").read_text()) for each in there]

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


TEMPERATURES = {"iterations": [{}, {"teachers.teacher.temperature": 0.5}]}


def test_each_iteration_is_a_dataset_and_what_is_made_costs_nothing_again(
    loop: Callable[..., Any], tmp_path: Path
) -> None:
    rules = [{"reply": "It is a thing of nature."}]
    said, made = loop({"loop": TEMPERATURES}, rules, "--set", "teachers.teacher.path=r0.jsonl")
    assert said.code == 0 and "M1: 3 rows" in said.err and "next: train the student on" in said.err
    assert [each["requests"]["sent"] for each in made] == [3, 3]
    assert made[1]["teachers"]["teacher"]["params"]["temperature"] == 0.5
    assert made[1]["loop"]["earlier"] == {"M1": (tmp_path / "out/M1/.current").resolve().name}
    _, again = loop({"loop": TEMPERATURES}, rules, "--set", "teachers.teacher.path=r0.jsonl")
    assert [each["requests"]["sent"] for each in again] == [0, 0]
    one, _ = loop({"loop": {"iterations": [{}]}}, rules, "--set", "teachers.teacher.path=r0.jsonl")
    assert "M2 is of an iteration that the recipe no longer has" in one.err
    three = {"iterations": [*TEMPERATURES["iterations"], {"teachers.teacher.top_p": 0.9}]}
    _, more = loop({"loop": three}, rules, "--set", "teachers.teacher.path=r0.jsonl")
    assert [each["requests"]["sent"] for each in more] == [0, 0, 3]
    assert more[2]["teachers"]["teacher"]["params"] == {"temperature": 0.5, "top_p": 0.9}  # a change stays


def test_the_rows_of_an_iteration_are_the_seeds_of_the_next(loop: Callable[..., Any], tmp_path: Path) -> None:
    rules = [{"contains": "amber", "reply": "", "refusal": "No."}, {"reply": "It is a thing of nature."}]
    said, made = loop({"loop": {**TEMPERATURES, "reads": "rows"}}, rules)
    assert said.code == 0, said.err
    assert [each["counts"]["seeds"] for each in made] == [3, 2]
    first, second = rows(tmp_path / "out/M1"), rows(tmp_path / "out/M2")
    assert [row["seeds"] for row in second] == [[row["id"]] for row in first]
    assert [row["meta"]["gold"] for row in second] == ["It is a thing of nature."] * 2
    assert all(len(row["calls"]) == 1 for row in second)  # its own; the others stand in M1


POOL = {
    "stages": [
        {
            "stage": "expand", "method": "self-instruct", "prompt": "expand/fuse", "form": "task", "human": 1,
            "machine": 1, "calls": 2, "rounds": 1, "novelty": 0.7,
        },
        ANSWER,
    ],
    "dedupe": [{"method": "exact", "fields": ["instruction"]}],
}  # fmt: skip


def test_a_pool_goes_on_from_the_rows_before(loop: Callable[..., Any]) -> None:
    rules = [
        {"contains": "Write", "reply": "Describe how river boats were built long ago."},
        {"reply": "Of planks of oak, laid over one another."},
    ]
    _, made = loop({**POOL, "loop": {"iterations": [{}, {}], "reads": "seeds"}}, rules)
    assert [each["counts"]["rows"] for each in made] == [1, 1]  # the same task again
    said, _ = loop({**POOL, "loop": {"iterations": [{}, {}], "reads": "pool"}}, rules)
    assert said.code == 5 and "near_duplicate" in said.err, said.err


def test_drift_stops_the_loop_before_anything_of_it_is_published(loop: Callable[..., Any], tmp_path: Path) -> None:
    rules = [
        {
            "regex": "(?s)System two.*",
            "reply": "It is a thing of nature, and of much more that I shall now tell at length to you.",
        },
        {"reply": "It is a thing."},
    ]
    prompts = {"iterations": [{}, {"stages.0.prompt": str(tmp_path / "two.md")}, {}]}
    (tmp_path / "two.md").write_text(
        "---\nabout: x\nvariables: {instruction: the task}\n---\n[[user]]\nSystem two {{ instruction }}\n"
    )
    said, made = loop({"loop": prompts}, rules, "--json")
    assert said.code == 5 and len(made) == len(json.loads(said.out)) == 1, said.err
    assert "M2 drifts: an answer has 19 words, 4.75 times as many (bounds.longer is 2)" in said.err
    said, made = loop(
        {"loop": {**prompts, "bounds": {"longer": None}}}, rules, "--set", "teachers.teacher.path=r0.jsonl"
    )
    assert said.code == 0 and len(made) == 3 and made[0]["requests"]["sent"] == made[1]["requests"]["sent"] == 0


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"loop": {"iterations": []}}, "loop.iterations"),
        ({"loop": {"iterations": [{}], "reads": "pool"}}, "no stage grows a pool"),
        ({"loop": {"iterations": [{"stages.7.prompt": "label/plain"}]}}, "loop.yaml:1: stages has 1 items"),
        ({"loop": {"iterations": [{"name": "other"}]}}, "an iteration cannot change name"),
        ({"loop": {"iterations": [{}, {"teachers.student.model": "m"}]}}, "teachers.student"),
        ({"loop": {"iterations": [{}], "bounds": {"longer": 0.5}}}, "loop.bounds.longer"),
    ],
)
def test_a_loop_that_cannot_work_is_an_error_before_anything_is_sent(
    loop: Callable[..., Any], tree: dict[str, Any], said: str
) -> None:
    found, made = loop(tree, [{"reply": "x"}])
    assert found.code == 2 and said in found.err and not made, found.err


def test_a_budget_is_of_all_iterations(loop: Callable[..., Any]) -> None:
    rules = [{"reply": "It is a thing of nature."}]
    caps = ("--budget-tokens", "130", "--set", "teachers.teacher.max_tokens=20")
    said, made = loop({"loop": TEMPERATURES}, rules, *caps)
    assert said.code == 4 and len(made) == 1, said.err
    spent = made[0]["tokens"]["input"] + made[0]["tokens"]["output"]
    assert 0 < spent <= 130


def test_a_judge_that_finds_all_equally_good_ends_the_loop(loop: Callable[..., Any]) -> None:
    grade = {"stage": "feedback", "method": "judge", "prompt": "feedback/judge", "rubric": "accuracy", "times": 7}
    rules = [
        {"contains": "check rows", "reply": '{"accuracy": {"reason": "Right.", "score": 5}}'},
        {"reply": "It is so."},
    ]
    tree = {"stages": [ANSWER, grade], "loop": {"iterations": [{}]}}
    said, made = loop(tree, rules)
    assert said.code == 5 and not made, said.err
    assert "M1 drifts: 1.00 of a judge's grades are one and the same (bounds.same_score is 0.95)" in said.err
    away = {"stages": [ANSWER, grade], "loop": {"iterations": [{}], "bounds": {"same_score": None}}}
    said, made = loop(away, rules, "--set", "teachers.teacher.path=r0.jsonl")
    assert said.code == 0 and made[0]["loop"]["measures"]["same_score"] == 1.0
    assert made[0]["requests"]["sent"] == 0  # to look away costs nothing


def test_measures() -> None:
    def row(output: str, score: float | None = None) -> dict[str, Any]:
        return {"output": output, "reasoning": "", "candidates": [], "meta": {} if score is None else {"score": score}}

    same = measured([row("a b a b", 5), row("a b c d", 5), row("e f", 4)])
    assert (same.rows, same.words, same.score) == (3, 10 / 3, 14 / 3)
    assert same.distinct == pytest.approx(5 / 7)
    again = measured([row(" ".join(f"w{n} v{n}" for n in range(2000)))] * 3)
    assert again.distinct == 1.0  # of windows, so that a large dataset does not look poor
    assert measured([row("x")]).same_score is None
    assert measured([row("x") | {"reasoning": "since y is so"}]).words == 5
    known = {"own": {"grades": 20}, "others": {"grades": 20}, "self_preference": 0.4}
    reports = [{"grades": 40, "most_given": 1.0, **known}, {"pairs": 3}, {"grades": 40, "most_given": None}]
    judged = measured([row("x")], reports)
    assert (judged.same_score, judged.self_preference) == (1.0, 0.4)
    few = [{"grades": 19, "most_given": 1.0, **known, "own": {"grades": 3}}]
    assert measured([row("x")], few)[-2:] == (None, None)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({}, ""),
        ({"words": 201}, "bounds.longer"),
        ({"words": 49}, "bounds.shorter"),
        ({"distinct": 0.39}, "bounds.distinct"),
        ({"same_score": 0.96}, "bounds.same_score"),
        ({"self_preference": 0.31}, "bounds.self_preference"),
    ],
)
def test_drift_is_told_by_name(now: dict[str, float], told: str) -> None:
    before = Measures(10, 100.0, 0.8, 5.0, 0.5, 0.0)
    found = drifted(Bounds(), before._replace(**now), before)
    assert told in found if told else not found
    off = Bounds(longer=None, shorter=None, distinct=None, same_score=None, self_preference=None)
    assert not drifted(off, before._replace(**now), before)


def test_what_a_later_iteration_lacks_is_known_before_anything_is_paid(
    loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    later = {"teachers.teacher": {"provider": "openai", "model": "Qwen3-8B"}}
    said, made = loop({"loop": {"iterations": [{}, later]}}, [{"reply": "It is so."}], "--ack-terms", ACK[1])
    assert said.code == 2 and "OPENAI_API_KEY is not set" in said.err and not made


def test_a_dataset_is_no_folder_for_a_loop(loop: Callable[..., Any], tmp_path: Path) -> None:
    rules = [{"reply": "It is so."}]
    assert loop({}, rules)[0].code == 0
    said, made = loop({"loop": TEMPERATURES}, rules)
    assert said.code == 2 and "the folder is a dataset, and a loop makes several" in said.err and not made


def test_check_says_what_a_later_iteration_lacks(
    kdgen: Callable[..., Any], loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    later = {"teachers.teacher": {"provider": "openai", "model": "gpt-6-luna"}}
    loop({"loop": {"iterations": [{}, later]}}, [{"reply": "It is so."}])
    said = kdgen("check", "./loop.yaml")
    assert said.code == 0 and "2 iterations" in said.out and "OPENAI_API_KEY is not set" in said.out
    assert "its terms are restricted; a run needs --ack-terms openai.api@" in said.out
