"""Several draws a task: what is kept, why the rest is not, in one batch pass, the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import lines, published, write_seeds

RULES = [
    {"nth": 0, "reply": "Say so.\nAnswer: 6"},
    {"nth": 1, "reply": "Four each, {digest}.\nAnswer: 8"},
    {"nth": 2, "reply": "Count them.\nAnswer: 8 legs"},
    {"reply": "<think>x</think>"},
]


@pytest.fixture
def sample(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
    write_seeds(tmp_path / "s.jsonl", [{"id": "a", "instruction": "How many legs have two cats?", "output": "8"}])

    def run(*sets: str, out: str = "out", method: str = "best-of-n") -> Any:
        knobs = [part for each in sets for part in ("--set", each)]
        asked = ("label", "s.jsonl", "-m", method, "-t", "scripted:r.jsonl", "--ledger", f"{out}.db", "-o", out)
        return kdgen(*asked, *knobs, "--json", "-q")

    return run


@pytest.mark.parametrize(
    ("pick", "kept", "lost"),
    [
        ("vote", {1: True}, {"outvoted": 1, "over_keep": 1, "empty_answer": 1}),
        ("gold", {1: True}, {"disagrees_with_gold": 1, "over_keep": 1, "empty_answer": 1}),
        ("all", {0: False}, {"over_keep": 2, "empty_answer": 1}),
    ],
)
def test_what_is_kept_and_why_the_rest_is_not(
    sample: Callable[..., Any], tmp_path: Path, pick: str, kept: dict[int, bool], lost: dict[str, int]
) -> None:
    said = sample(f"stages.0.pick={pick}")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert made["counts"]["rejects"] == lost and made["requests"]["sent"] == 4
    rows = lines(tmp_path / "out/records.jsonl")
    assert {row["meta"]["nth"]: row["meta"]["agrees"] for row in rows} == kept
    assert all(len(row["calls"]) == 1 and row["seeds"] == ["a"] for row in rows)
    assert all(len(row["calls"]) == 1 for row in lines(tmp_path / "out/rejects.jsonl"))
    before = published(tmp_path / "out", card=True)
    again = json.loads(sample(f"stages.0.pick={pick}").out)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == before


def test_more_draws_ask_only_for_more(sample: Callable[..., Any]) -> None:
    assert json.loads(sample("stages.0.n=3").out)["requests"]["sent"] == 3
    assert json.loads(sample("stages.0.n=4").out)["requests"]["sent"] == 1


@pytest.mark.parametrize(
    ("sets", "cause"),
    [
        (("stages.0.pick=judge",), "a judge and its prompt go together"),
        (("stages.0.grade=label/grade",), "a judge and its prompt go together"),
        (("stages.0.least_score=3",), "least_score has no effect on pick: vote"),
        (("stages.0.pick=all", "stages.0.least_share=0.3"), "least_share has no effect on pick: all"),
        (("stages.0.keep=9",), "9 of 4 draws cannot be kept"),
    ],
)
def test_an_option_without_effect_is_an_error(sample: Callable[..., Any], sets: tuple[str, ...], cause: str) -> None:
    said = sample(*sets)
    assert said.code == 2 and cause in said.err


def test_all_draws_go_into_one_batch(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    """A draw that waits does not keep the others from being handed in: one file, not one a draw."""
    write_seeds(tmp_path / "s.jsonl", [{"id": "a", "instruction": "How many?"}, {"id": "b", "instruction": "Why?"}])
    sets = ("teachers.teacher.mode=batch", f"teachers.teacher.batch_dir={tmp_path / 'files'}")
    asked = ("label", "s.jsonl", "-m", "best-of-n", "-t", "vllm:Qwen3-8B")
    said = kdgen(*asked, *[part for each in sets for part in ("--set", each)], "--no-wait", "-q")
    assert said.code == 75, said.err
    (file,) = (tmp_path / "files").glob("*.jsonl")
    assert len(lines(file)) == 8


MERGE = {"contains": "one answer of several", "reply": "Both {last}"}
GRADES = [
    {"regex": "(?s)grade.*B says", "reply": '{"reason": "x", "score": 9}'},
    {"contains": "grade", "reply": '{"reason": "x", "score": 3}'},
]


@pytest.fixture
def teachers(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen label --method two-teacher`, one script each; the manifest, the rows, the rejects."""
    for name, rules in (
        ("a", [{"regex": "(?s)one answer of several.*Say lost"}, MERGE, *GRADES, {"reply": "A says {digest}"}]),
        ("b", [{"contains": "hush", "refusal": "No."}, {"reply": "B says {digest}"}]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))

    def run(seeds: list[dict[str, Any]], *sets: str) -> Any:
        write_seeds(tmp_path / "s.jsonl", seeds)
        knobs = [part for each in sets for part in ("--set", each)]
        asked = ("label", "s.jsonl", "-m", "two-teacher", "-t", "scripted:a.jsonl", "-t", "second=scripted:b.jsonl")
        said = kdgen(*asked, *knobs, "--ledger", "l.db", "-o", "out", "--json", "-q")
        if said.code:
            return said.err
        return json.loads(said.out), lines(tmp_path / "out/records.jsonl"), lines(tmp_path / "out/rejects.jsonl")

    return run


TWO = [{"id": "s", "instruction": "Say it."}, {"id": "h", "instruction": "Say hush."}]


def test_two_teachers_make_a_row_each(teachers: Callable[..., Any]) -> None:
    made, rows, (lost,) = teachers(TWO)
    told = [(row["seeds"][0], row["writers"]["output"], row["output"][:1]) for row in rows]
    assert told == [("s", "scripted:a", "A"), ("s", "scripted:b", "B"), ("h", "scripted:a", "A")]
    assert (lost["id"], lost["reason"], len(lost["calls"])) == ("h", "refused", 1)
    assert made["requests"]["sent"] == 4


def test_the_better_answer_of_two_teachers(teachers: Callable[..., Any]) -> None:
    sets = ("stages.0.pick=judge", "stages.0.grade=label/grade", "stages.0.keep=1")
    _, rows, rejects = teachers(TWO, *sets)
    assert [(row["writers"]["output"], row["meta"]["score"], row["meta"]["judge"]) for row in rows] == [
        ("scripted:b", 9, "scripted:a"), ("scripted:a", 3, "scripted:a"),
    ]  # fmt: skip
    assert [each["reason"] for each in rejects] == ["over_keep", "refused"]


def test_one_answer_made_of_both(teachers: Callable[..., Any], tmp_path: Path) -> None:
    """A task that one teacher alone answers has nothing to be merged: its answer is a reject, as is the lost one."""
    sets = ("stages.0.pick=merge", "stages.0.merge=label/merge")
    made, (row,), rejects = teachers(TWO, *sets)
    assert row["output"].startswith("Both Task:\nSay it.") and "Answer 1:\nA says" in row["output"]
    assert "Answer 2:\nB says" in row["output"] and len(row["calls"]) == 3
    assert row["meta"]["merged"] == ["scripted:a", "scripted:b"] and row["writers"] == {"output": "scripted:a"}
    assert [(each["id"], each["reason"]) for each in rejects] == [("h", "nothing_to_merge"), ("h", "refused")]
    assert made["requests"]["sent"] == 5
    files = published(tmp_path / "out", card=True)
    again, _, _ = teachers(TWO, *sets)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == files
    more, _, _ = teachers([{"id": "s", "instruction": "Say this."}, TWO[1]], *sets)
    assert more["requests"]["sent"] == 3
    _, _, (lost,) = teachers([TWO[0], {"id": "m", "instruction": "Say lost."}], *sets)
    assert (lost["reason"], len(lost["calls"])) == ("empty_answer", 3), "both draws, and the merge that said nothing"


@pytest.mark.parametrize(
    ("sets", "cause"),
    [
        (("stages.0.n=1",), "1 draws do not reach 2 different teachers"),
        (("stages.0.among=[teacher, teacher]",), "do not reach 2 different teachers"),
        (("stages.0.to=teacher",), "to has no effect"),
        (("stages.0.pick=merge",), "a merge and its prompt go together"),
        (("stages.0.pick=merge", "stages.0.merge=label/merge", "stages.0.keep=1"), "a merge makes one row"),
        (("stages.0.among=[teacher]",), "no stage asks the teacher 'second'"),
    ],
)
def test_several_teachers_are_asked_or_it_is_an_error(
    teachers: Callable[..., Any], sets: tuple[str, ...], cause: str
) -> None:
    assert cause in teachers(TWO, *sets)
