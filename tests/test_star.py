"""STaR: reasons kept by the answer, the hint, and examples that never give an answer away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import lines, write_seeds

from kdgen.config import load_recipe
from kdgen.record import Record
from kdgen.stages import Draw, Pool
from kdgen.stages.star import Star

SEEDS = [{"id": f"s{n}", "question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(6)]
RULES = [
    {"regex": r"(?s)Problem: What is 5 plus 1\?\s*\Z", "reply": "It is like the others.\nAnswer: 60"},
    *(
        {"regex": rf"(?s)Problem: What is {n} plus 1\?\s*\Z", "reply": f"One after {n} comes {n + 1}.\nAnswer: {n + 1}"}
        for n in range(6)
    ),
]


def star() -> Star:
    stage = load_recipe("self/star").stages[0]
    assert isinstance(stage, Star)
    return stage


def test_examples_come_from_the_rows_before_and_never_show_the_question() -> None:
    rows = [
        Record(id=f"r{n}", instruction=f"What is {n} plus 1?", reasoning=f"After {n}.", output=str(n + 1))
        for n in range(6)
    ]
    draw = Draw(0, "self/star")
    for earlier in ([], rows[:2], rows):
        draw.earlier = Pool(earlier)
        for record in rows:
            (job,) = star().plan((record,), 0, draw)
            shots: Any = job.meta["shots"]
            assert len(shots) == 4 and record.instruction not in {shot["question"] for shot in shots}
            drawn = [shot["id"] for shot in shots if shot["id"].startswith("r")]
            assert len(drawn) == min(4, len([row for row in earlier if row.id != record.id]))


def test_a_question_of_the_bank_is_not_shown_its_own_solution() -> None:
    stage = star()
    for entry in stage.examples.entries:
        record = Record(id="r", instruction=entry.texts["question"] + "\n", output=entry.texts["response"])
        (job,) = stage.model_copy(update={"shots": 5}).plan((record,), 0, Draw(0, "self/star"))
        shots: Any = job.meta["shots"]
        assert len(shots) == 5 and entry.id not in {shot["id"] for shot in shots}


def test_two_iterations_and_the_second_shows_rows_of_the_first(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", SEEDS)
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
    asked = ("self", "s.jsonl", "-m", "star", "-t", "scripted:r.jsonl", "--ledger", "l.db", "-o", "out", "--json")
    said = kdgen(*asked, "--set", "loop.iterations=[{}, {}]")
    assert said.code == 0, said.err
    first, second = json.loads(said.out)
    assert first["counts"]["rows"] == second["counts"]["rows"] == 5 and first["counts"]["rejects"] == {"unsolved": 1}
    made = [lines(tmp_path / f"out/M{n}/records.jsonl") for n in (1, 2)]
    ids = {row["id"] for row in made[0]}
    assert not any({*row["meta"]["star"]["shots"]} & ids for row in made[0])
    assert all(len({*row["meta"]["star"]["shots"]} & ids) == 4 for row in made[1])
    again = kdgen(*asked, "--set", "loop.iterations=[{}, {}]")
    assert [each["requests"]["sent"] for each in json.loads(again.out)] == [0, 0]


def test_the_hint_is_never_in_a_row(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", SEEDS[:1])
    rules = [
        {"contains": "its answer is 1", "reply": "After none comes one.\nAnswer: 1"},
        {"reply": "I guess.\nAnswer: 7"},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    asked = ("self", "s.jsonl", "-m", "star", "-t", "scripted:r.jsonl", "--ledger", "l.db", "-o", "out")
    assert kdgen(*asked, "--set", "stages.0.tries=3").code == 0
    (row,) = lines(tmp_path / "out/M1/records.jsonl")
    assert row["meta"]["star"]["hinted"] and row["instruction"] == SEEDS[0]["question"] and len(row["calls"]) == 4
    assert "its answer is" not in (tmp_path / "out/M1/data.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stages.0.shots=6", "the bank has 6: one more is needed"),
        ("stages.0.examples=systems", "its entries have: text"),
    ],
)
def test_examples_that_cannot_be_shown(kdgen: Callable[..., Any], tmp_path: Path, change: str, said: str) -> None:
    found = kdgen("self", "math", "-m", "star", "--set", change)
    assert found.code == 2 and said in found.err
