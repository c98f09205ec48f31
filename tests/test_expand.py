"""Expansion: what is drawn and shown, what comes back, and what becomes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

Kdgen, Script = Callable[..., Any], Callable[..., str]


def rows(folder: Path, name: str = "records.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def sets(*each: str) -> list[str]:
    return [part for one in each for part in ("--set", one)]


ANSWERED = [{"id": f"s{number}", "instruction": f"Name river {number}.", "output": "So."} for number in range(12)]
WIDE = ("stages.0.rounds=1", "stages.0.calls=40", "stages.0.novelty=null", "target=null", "dedupe=[]")
PAIR = "### Task 4\nInstruction: Explain {digest} and why\nInput: N/A\nOutput: It is so."


def test_tasks_come_with_their_answers_in_one_call(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [*ANSWERED, {"id": "bare", "instruction": "Has no answer."}])
    asked = ("expand", "s.jsonl", "-m", "alpaca", "-t", script(PAIR), "--json", "-q", "-o", "out")
    made = json.loads(kdgen(*asked, *sets(*WIDE)).out)
    assert made["requests"]["sent"] == 40 and made["counts"]["rows"] > 20
    kept = rows(tmp_path / "out")
    assert all((row["input"], row["output"], len(row["parents"])) == ("", "It is so.", 3) for row in kept)
    assert all(set(row["writers"]) == {"instruction", "output"} for row in kept)
    assert "bare" not in {parent for row in kept for parent in row["parents"]}

    write_seeds(tmp_path / "s.jsonl", [*ANSWERED, {"id": "new", "instruction": "Name a sea.", "output": "So."}])
    more = json.loads(kdgen(*asked, *sets(*WIDE)).out)
    assert 0 < more["requests"]["sent"] <= 18, "a seed more is shown in its own share of the calls"


def test_nothing_to_show_of_pairs(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"id": "bare", "instruction": "Has no answer."}])
    said = kdgen("expand", "s.jsonl", "-m", "alpaca", "-t", script(PAIR))
    assert said.code == 2 and "no task has 1 to 150 words and an output" in said.err


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (("form=task", "ask_for=2"), "form: task asks for one"),
        (("form=input",), "novelty is of instructions"),
        (("groups=2",), "there is nothing to group by"),
        (("group=kind", "groups=9"), "every group needs a task to show"),
        (("group=kind",), "and a kind, so there is no demonstration"),
        (("group=kind", "groups=2"), "2 groups of kind are needed"),
    ],
)
def test_an_expansion_that_cannot_be(
    kdgen: Kdgen, script: Script, tmp_path: Path, changes: tuple[str, ...], cause: str
) -> None:
    write_seeds(tmp_path / "s.jsonl", ANSWERED)
    changed = sets(*(f"stages.0.{change}" for change in changes))
    said = kdgen("expand", "s.jsonl", "-t", script("9. Explain {digest} to me now"), *changed)
    assert said.code == 2 and cause in said.err, said.err


def test_a_group_is_drawn_as_often_as_it_is_large(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    kinds = ["hard"] * 30 + ["odd"] * 10
    seeds = [
        {"id": f"{kind}-{number}", "instruction": f"Name {kind} river {number}.", "kind": kind}
        for number, kind in enumerate(kinds)
    ]
    write_seeds(tmp_path / "s.jsonl", seeds)
    asked = (
        "expand",
        "s.jsonl",
        "-t",
        script({"contains": "numbered", "reply": "9. Explain {digest} to me now"}, "Yes."),
    )
    changed = sets(
        "stages.0.group=kind",
        "stages.0.calls=80",
        "stages.0.rounds=2",
        "stages.0.novelty=null",
        "target=null",
        "dedupe=[]",
    )
    assert kdgen(*asked, *changed, "-q", "-o", "out").code == 0
    made = rows(tmp_path / "out")
    share = Counter(row["meta"]["group"] for row in made)
    assert 0.6 < share["hard"] / share.total() < 0.9
    for row in made:
        assert {seed.split("-")[0] for seed in row["seeds"]} == {row["meta"]["group"]}
