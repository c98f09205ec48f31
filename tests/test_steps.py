"""Labels of steps: where a step ends, what a judge and rollouts say of it, where labelling stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import outcome, published, write_seeds

from kdgen.export import Stepwise
from kdgen.record import Record, digest
from kdgen.solutions import solution
from kdgen.stages.steps import gold_of, split_steps

SOLVED = {
    "id": "a",
    "instruction": "What is 3 + 4, doubled?",
    "output": "3 + 4 = 7.\n7 * 2 = 15.\nAnswer: 15",
    "final": "14",
}
JUDGE = "{stage: feedback, method: steps, prompt: feedback/steps/judge%s}"
ROLL = "{stage: feedback, method: steps, prompt: feedback/steps/complete, by: rollouts, n: 4, gold: final%s}"


@pytest.fixture
def steps(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen feedback --method steps` with the stage given: the manifest, the rows, the rejects, the data."""

    def run(stage: str, rules: list[dict[str, Any]], *seeds: dict[str, Any], code: int = 0, sets: str = "") -> Any:
        sets = sets or ("teachers.teacher.repairs=0" if "rollouts" in stage else "seed=0")
        script = f"{digest(rules)}.jsonl"  # rules and replies are kept by the name of the file
        (tmp_path / script).write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", list(seeds) or [SOLVED])
        said = kdgen("feedback", "s.jsonl", "-m", "steps", "-t", f"scripted:{script}", "--ledger", f"{script}.db",
                     "-o", "out", "--set", f"stages=[{stage}]", "--set", sets, "--json", "-q")  # fmt: skip
        return outcome(said, tmp_path / "out", code, "records", "rejects", "data")

    return run


def verdicts(*said: str) -> str:
    return json.dumps({"steps": [{"reason": f"r{at}", "verdict": each} for at, each in enumerate(said)]})


@pytest.mark.parametrize(
    ("text", "by", "steps"),
    [
        ("a\n\nb\n c ", "lines", ["a", "b", "c"]),
        ("Then:\n2 + 2\n---\nSo 4.", "lines", ["Then:\n2 + 2\n---", "So 4."]),
        ("a\n\\[\nx = 1\n\\]\nb", "lines", ["a", "\\[\nx = 1\n\\]", "b"]),
        ("a\n$$\nx\n$$\nb", "lines", ["a", "$$\nx\n$$", "b"]),
        ("```py\nx\n\ny\n```\n\nend\nof it", "paragraphs", ["```py\nx\n\ny\n```", "end\nof it"]),
        ("It is 2.5 kg. Then 3! $x$ is so. and on", "sentences", ["It is 2.5 kg.", "Then 3!", "$x$ is so. and on"]),
        ("never closed $$\nx\ny", "lines", ["never closed $$\nx\ny"]),
        ("Only:", "lines", ["Only:"]),
        (" \n ", "lines", []),
    ],
)
def test_where_a_step_ends(text: str, by: str, steps: list[str]) -> None:
    assert split_steps(text, by) == steps


@given(st.text("ab1 \n.:$`\\[]", max_size=60), st.sampled_from(["lines", "paragraphs", "sentences"]))
def test_steps_are_the_solution(text: str, by: str) -> None:
    assert "".join("".join(split_steps(text, by)).split()) == "".join(text.split())


def test_a_judge_labels_all_in_one_call_up_to_the_first_wrong_step(steps: Callable[..., Any]) -> None:
    rules = [{"reply": verdicts("right", "wrong", "right")}]
    made, (row,), _, (data,) = steps(JUDGE % "", rules)
    assert made["requests"]["sent"] == 1 and row["parents"] == ["a"] and len(row["calls"]) == 1
    assert row["meta"]["steps"]["of"] == 3 and row["output"] == SOLVED["output"] and row["writers"] == {}
    assert [(each["label"], each["reason"]) for each in row["meta"]["steps"]["labelled"]] == [
        (True, "r0"),
        (False, "r1"),
    ]
    assert data == {
        "prompt": SOLVED["instruction"],
        "completions": ["3 + 4 = 7.", "7 * 2 = 15."],
        "labels": [True, False],
    }
    _, _, _, (data,) = steps(JUDGE % ", after_wrong: go_on", rules)
    assert data["labels"] == [True, False, True] and len(data["completions"]) == 3


def test_a_judge_that_counts_wrongly_is_asked_again_and_then_a_reject(steps: Callable[..., Any]) -> None:
    rules = [{"contains": "2 verdicts for 3 steps", "reply": verdicts(*["right"] * 3)},
             {"reply": verdicts("right", "right")}]  # fmt: skip
    made, (row,), _, _ = steps(JUDGE % "", rules)
    assert made["repairs"] == {"teacher": 1} and len(row["meta"]["steps"]["labelled"]) == 3
    assert "2 verdicts for 3 steps" in steps(JUDGE % "", rules, code=5, sets="teachers.teacher.repairs=0")


def test_a_judge_of_each_step_is_shown_no_later_one_and_stops(steps: Callable[..., Any]) -> None:
    one = '{"reason": "x", "verdict": "%s"}'
    rules = [
        {"contains": "15", "reply": one % "wrong"},
        {"contains": "[step 1]", "reply": one % "right"},
    ]
    stage = JUDGE.replace("judge", "judge-one", 1) % ", at_once: false"
    made, (row,), _, _ = steps(stage, rules)
    assert made["requests"]["sent"] == 2 and [each["label"] for each in row["meta"]["steps"]["labelled"]] == [
        True,
        False,
    ]
    made, (row,), _, _ = steps(stage.replace("false", "false, after_wrong: go_on"), rules)
    assert made["requests"]["sent"] == 1 and [each["label"] for each in row["meta"]["steps"]["labelled"]] == [
        True,
        False,
        False,
    ]


def test_rollouts_count_what_reaches_the_answer(steps: Callable[..., Any]) -> None:
    rules = [
        {"contains": "7 * 2 = 15", "reply": "Answer: 15"},
        {"nth": 0, "reply": "So it is.\n**Answer:** 14.0"},
        {"nth": 1, "reply": "It is", "finish": "length"},
        {"nth": 2, "reply": "", "refusal": "No."},
        {"reply": "Answer: 15"},
    ]
    made, (row,), (lost,), (data,) = steps(ROLL % ", after_wrong: go_on", rules)
    told = row["meta"]["steps"]["labelled"]
    assert [(each["label"], each["share"], each["rollouts"]) for each in told] == [
        (True, 0.3333, 3),  # one reached it, one was cut, one went wrong; the fourth is lost
        (False, 0.0, 4),
        (False, 0.0, 0),  # the solution's own answer
    ]
    assert made["requests"]["sent"] == len(row["calls"]) == 8 and data["labels"] == [True, False, False]
    assert (lost["reason"], lost["detail"], len(lost["calls"])) == ("refused", "step 1, rollout 3: No.", 1)
    assert Stepwise(labels="soft").row(Record(**row)) == {**data, "labels": [0.3333, 0.0, 0.0]}
    made, (row,), _, _ = steps(ROLL % "", rules)
    assert made["requests"]["sent"] == 0 and len(row["meta"]["steps"]["labelled"]) == 2


def test_what_cannot_be_labelled_is_a_reject(steps: Callable[..., Any]) -> None:
    seeds = [SOLVED, {**SOLVED, "id": "b", "final": ""}, {"id": "c", "instruction": "Why?"},
             {**SOLVED, "id": "d", "output": "x\n" * 5}, {**SOLVED, "id": "e", "instruction": "Mute."}]  # fmt: skip
    rules = [{"contains": "Mute", "reply": "", "refusal": "No."}, {"reply": "Answer: 14"}]
    _, (row,), lost, _ = steps(ROLL % ", most: 4", rules, *seeds)
    assert row["seeds"] == ["a"] and {each["id"]: each["reason"] for each in lost} == {
        "b": "no_gold", "c": "nothing_to_split", "d": "too_many_steps", "e": "no_rollouts"}  # fmt: skip


def test_resume_and_one_changed_seed(steps: Callable[..., Any], tmp_path: Path) -> None:
    seeds = [{**SOLVED, "id": str(number), "instruction": f"What is it, {number}?"} for number in range(3)]
    rules = [{"reply": "Answer: 14"}]
    made, _, _, _ = steps(ROLL % "", rules, *seeds)
    assert made["requests"]["sent"] == 3 * 2 * 4
    files = published(tmp_path / "out", card=True)
    again, _, _, _ = steps(ROLL % "", rules, *seeds)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == files
    last = {**seeds[2], "output": "3 + 4 = 7.\n7 * 2 = 14.\nAnswer: 14"}
    more, _, _, _ = steps(ROLL % "", rules, *seeds[:2], last)
    assert more["requests"]["sent"] == 4  # the first step is the same, and what is asked from it


def test_settings_without_effect_are_refused(steps: Callable[..., Any]) -> None:
    for wrong, stage in {
        "n has no effect": JUDGE % ", n: 3",
        "at_once has no effect": ROLL % ", at_once: false",
        "does not show the steps": JUDGE.replace("feedback/steps/judge", "label/answer") % "",
        "who is shown the answer": ROLL.replace("complete", "judge") % "",
    }.items():
        assert wrong in steps(stage, [{"reply": "x"}], code=2)


def test_gold_and_solution_of_a_record() -> None:
    record = Record(id="a", output="4", reasoning="2 + 2", meta={"gold": "#### 4"}, extra={"final": True, "n": 4})
    assert solution(record) == "2 + 2\n\nAnswer: 4" and gold_of(record, "n") == "4"
    bare = record.model_copy(update={"meta": {}})
    assert (gold_of(bare, "n"), gold_of(bare, "final"), gold_of(bare, None)) == ("4", "", "")


def test_a_verifier_knows_an_answer_in_another_form(steps: Callable[..., Any]) -> None:
    half = {
        "id": "a",
        "instruction": "What is 1 - 0.5?",
        "output": "Take it away.\nIt is half.\nAnswer: 0.5",
        "final": "1/2",
    }
    rules = [{"reply": "Answer: $\\frac{1}{2}$"}]
    labels = {}
    for option in ("", ", verifier: {type: math}"):
        _, (row,), _, _ = steps(ROLL % f"{option}, after_wrong: go_on", rules, half)
        labels[option] = [each["label"] for each in row["meta"]["steps"]["labelled"]]
    assert labels == {"": [False, False, True], ", verifier: {type: math}": [True, True, True]}
    assert "verifier has no effect on by: judge" in steps(JUDGE % ", verifier: {type: math}", rules, code=2)
