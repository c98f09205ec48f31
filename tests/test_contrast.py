"""Pairs whose order is known from how they were made: which are made, what is in them, what ends them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import lines, published, write_seeds

from kdgen.banks import load_bank
from kdgen.record import Candidate, digest
from kdgen.resources import find

FINE = {"id": "z", "instruction": "Say {digest}, in a word."}  # a pair, whatever becomes of the others
FINELY = [
    {"regex": "(?s)You change.*Say", "reply": '{"constraint": "a word", "request": "Say digest."}'},
    {"regex": "Say", "reply": "So {digest}."},
]
SEED = {"id": "a", "instruction": "Describe the wind in one line."}


@pytest.fixture
def contrast(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A recipe of feedback: the manifest, the rows, the rejects."""

    def run(
        method: str, seeds: list[dict[str, Any]], rules: list[dict[str, Any]], *sets: str, code: int = 0, more: str = ""
    ) -> Any:
        script = f"{digest(rules)}.jsonl"  # rules and replies are kept by the name of the file
        (tmp_path / script).write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", seeds)
        knobs = [part for each in sets for part in ("--set", each)]
        teachers = ["-t", f"scripted:{script}", *(("-t", f"{more}=scripted:{script}") if more else ())]
        said = kdgen("feedback", "s.jsonl", "-m", method, *teachers, "--ledger", f"{digest(rules)}.db", "-o", "out", *knobs,
                     "--json", "-q")  # fmt: skip
        assert said.code == code, said.err
        if code:
            return said.err
        return json.loads(said.out), lines(tmp_path / "out/records.jsonl"), lines(tmp_path / "out/rejects.jsonl")

    return run


def test_both_sides_of_rlcd_are_asked_under_one_pair(contrast: Callable[..., Any]) -> None:
    rules = [{"regex": r"Write (an? [^.]+)\.\)", "reply": "It was \\1."}]
    seeds = [{"id": str(number), "instruction": f"Describe wind {number}."} for number in range(12)]
    made, rows, _ = contrast("rlcd", seeds, rules, "filters=[]")
    assert made["requests"]["sent"] == 24 and len(rows) == 12
    bank = load_bank(find("banks", "affixes", Path()))
    assert len(bank.entries) == 16
    for row in rows:
        entry = bank.entry(row["meta"]["banks"]["affix"])
        chosen, rejected = (Candidate(**each) for each in row["candidates"])
        assert entry.texts["positive"] in chosen.output and entry.texts["negative"] in rejected.output
        assert row["output"] == chosen.output and row["calls"] == [*chosen.calls, *rejected.calls]
        assert row["writers"] == {"output": chosen.writer} and chosen.score is None
    assert len({row["meta"]["banks"]["affix"] for row in rows}) > 3


def test_a_lost_side_costs_its_own_pairs_and_what_is_left_is_told(contrast: Callable[..., Any]) -> None:
    rules = [{"regex": "(?s)average.*wind", "reply": "", "refusal": "No."}, {"reply": "It is {digest} and more."}]
    made, rows, lost = contrast("almost", [SEED], rules, "filters=[]", more="student")
    assert [row["meta"]["sides"] for row in rows] == [[2, 3], [2, 4], [3, 4]]
    assert [(each["reason"], each["detail"]) for each in lost] == [("refused", "side 1: No.")]
    _, (row,), _ = contrast("almost", [SEED], rules, "filters=[]", "stages.0.pairs=ends", more="student")
    assert row["meta"]["sides"] == [2, 4]
    _, rows, _ = contrast("almost", [SEED], rules, "filters=[]", "stages.0.pairs=next", more="student")
    assert [row["meta"]["sides"] for row in rows] == [[2, 3], [3, 4]] and made["requests"]["sent"] == 4
    negative = "|".join(entry.texts["negative"] for entry in load_bank(find("banks", "affixes", Path())).entries)
    rules = [{"regex": negative, "reply": "", "refusal": "No."}, {"reply": "It blows."}]
    _, (fine,), lost = contrast("rlcd", [FINE, SEED], [*FINELY, *rules])
    assert fine["seeds"] == ["z"] and [each["reason"] for each in lost] == ["refused", "no_pair"]
    assert lost[1]["output"] == "It blows." and len(lost[1]["calls"]) == 1


def test_answers_that_say_the_same_are_no_pair(contrast: Callable[..., Any]) -> None:
    rules = [{"regex": "does|callous|rude", "reply": "air."}, {"reply": "Air!"}]
    _, _, (lost,) = contrast("rlcd", [FINE, SEED], [*FINELY, *rules])
    assert (lost["reason"], len(lost["calls"])) == ("same_answer", 2)


def test_a_constraint_is_taken_out_and_the_row_says_which(contrast: Callable[..., Any]) -> None:
    relaxed = json.dumps({"constraint": "in one line", "request": "Describe the wind at length."})
    rules = [
        {"contains": "You change", "reply": relaxed},
        {"contains": "at length", "reply": "Long."},
        {"reply": "Air."},
    ]
    made, (row,), _ = contrast("degraded", [{**SEED, "output": "It blows.", "input": "North"}], rules)
    chosen, rejected = (Candidate(**each) for each in row["candidates"])
    assert (chosen.output, chosen.role, rejected.output) == ("It blows.", "seed", "Long.")
    assert rejected.notes["relaxed"] == json.loads(relaxed) and len(rejected.calls) == 2
    assert (row["instruction"], row["input"], "gold" in row["meta"]) == (SEED["instruction"], "North", False)
    assert made["requests"]["sent"] == 2
    for said, reason in {
        '{"constraint": "", "request": ""}': "no_constraint",
        '{"constraint": "x", "request": "Describe the wind, in one line!"}': "not_relaxed",
        "no": "invalid_output",
    }.items():
        rules = [*FINELY, {"contains": "You change", "reply": said}, {"reply": "Air."}]
        _, _, lost = contrast("degraded", [FINE, SEED], rules)
        assert [each["reason"] for each in lost] == [reason, "no_pair"]


def test_a_fault_is_written_into_the_answer_that_was_given(contrast: Callable[..., Any]) -> None:
    rules = [
        {"regex": r"(?s)A good answer:\n(\w+).*so that ([^.]+)\.", "reply": "\\1, but \\2"},
        {"reply": "Air moves."},
    ]
    _, (row,), _ = contrast("spoiled", [SEED], rules)
    chosen, rejected = row["candidates"]
    assert chosen["output"] == "Air moves." and rejected["output"].startswith("Air, but ")


def test_no_worse_answer_is_asked_for_where_the_better_one_was_lost(contrast: Callable[..., Any]) -> None:
    other = {"id": "b", "instruction": "Describe the rain."}
    rules = [
        {"regex": r"(?s)fault.*wind", "reply": "Never asked."},
        {"contains": "fault", "reply": "It falls upward."},
        {"contains": "wind", "reply": "", "refusal": "No."},
        {"reply": "It falls."},
    ]
    made, (row,), lost = contrast("spoiled", [SEED, other], rules)
    assert row["seeds"] == ["b"] and made["requests"]["sent"] == 3
    assert [(each["reason"], len(each["calls"])) for each in lost] == [("refused", 1), ("no_better_answer", 0)]


def test_resume_and_one_changed_seed(contrast: Callable[..., Any], tmp_path: Path) -> None:
    seeds = [{"id": str(number), "instruction": f"Describe wind {number}."} for number in range(5)]
    rules = [{"reply": "It is {digest}."}]
    contrast("rlcd", seeds, rules)
    files = published(tmp_path / "out", card=True)
    again, _, _ = contrast("rlcd", seeds, rules)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == files
    more, _, _ = contrast("rlcd", [*seeds[:4], {**seeds[4], "instruction": "Describe fog."}], rules)
    assert more["requests"]["sent"] == 2


def test_sides_without_a_difference_are_refused(contrast: Callable[..., Any], tmp_path: Path) -> None:
    worse = tmp_path / "worse.md"
    worse.write_text("---\nabout: x\nvariables: {better: x}\n---\n[[user]]\nSpoil {{ better }}\n")
    for wrong, sets in {
        "stands twice": "stages.0.sides=[{prompt: label/plain}, {prompt: label/plain}]",
        "shots has no effect": "stages.0.sides=[{prompt: label/plain, shots: 3}, {prompt: label/plain}]",
        "no side is better": f"stages.0.sides=[{{prompt: {worse}}}, {{prompt: label/plain}}]",
        "at least 2 items": "stages.0.sides=[{prompt: label/plain}]",
    }.items():
        assert wrong in contrast("spoiled", [SEED], [{"reply": "x"}], sets, "stages.0.banks={}", code=2)
