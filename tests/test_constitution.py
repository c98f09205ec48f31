"""Constitutional criticism: another principle a round, each round in the row, and the pair that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import outcome, write_seeds

from kdgen.banks import load_bank
from kdgen.export import Critique
from kdgen.record import Candidate, Record
from kdgen.resources import find

BAD = '{"critique": "It breaks it.", "verdict": "revise"}'
GOOD = '{"critique": "It keeps it.", "verdict": "good"}'
SEED = {"id": "a", "instruction": "How do I open it?", "output": "With force."}


@pytest.fixture
def constitution(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen feedback --method constitution`: the manifest, the rows, the rejects, the data."""

    def run(seeds: list[dict[str, Any]], rules: list[dict[str, Any]], *sets: str, code: int = 0) -> Any:
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", seeds)
        knobs = [part for each in sets for part in ("--set", each)]
        asked = ("s.jsonl", "-m", "constitution", "-t", "scripted:r.jsonl", "--ledger", "l.db", "-o", "out")
        said = kdgen("feedback", *asked, *knobs, "--json", "-q")
        return outcome(said, tmp_path / "out", code, "records", "rejects", "data")

    return run


def rounds(row: dict[str, Any]) -> list[dict[str, str]]:
    told: list[dict[str, str]] = row["meta"]["rewrite"]["output"]["rounds"]
    return told


def test_a_kept_principle_ends_nothing_and_each_round_has_its_own(constitution: Callable[..., Any]) -> None:
    rules = [
        {"regex": "(?s)check answers.*With force", "reply": BAD},
        {"contains": "check answers", "reply": GOOD},
        {"reply": "With patience."},
    ]
    made, (row,), _, _ = constitution([SEED], rules)
    told = rounds(row)
    assert [each["output"] for each in told] == ["With force.", *["With patience."] * 3]
    assert len({each["principle"] for each in told}) == 4 and "principles" not in row["meta"]
    assert made["requests"]["sent"] == 5 and row["output"] == "With patience."


def test_the_critic_and_the_reviser_are_shown_the_principle_of_the_round(constitution: Callable[..., Any]) -> None:
    bank = load_bank(find("banks", "constitution", Path()))
    assert len(bank.entries) == 16
    rules = [{"regex": r"(?s)The principle: ([^\n]+)", "reply": '{"critique": "\\1", "verdict": "revise"}'},
             {"regex": r"(?s)What to do: ([^\n]+)", "reply": "\\1"}]  # fmt: skip
    _, (row,), _, _ = constitution([SEED], rules)
    told = rounds(row)
    for each, after in zip(told, [*(later["output"] for later in told[1:]), row["output"]], strict=True):
        entry = bank.entry(each["principle"])
        assert (each["critique"], after) == (entry.texts["critique"], entry.texts["revision"])


def test_a_pair_is_the_revision_and_what_was_there(constitution: Callable[..., Any]) -> None:
    rules = [
        {"regex": "(?s)check answers.*kept", "reply": GOOD},
        {"contains": "check answers", "reply": BAD},
        {"contains": "You revise", "reply": "Better {digest}."},
        {"reply": "Drafted."},
    ]
    seeds = [SEED, {"id": "b", "instruction": "Say kept.", "output": "It is kept."}, {"id": "c", "instruction": "Why?"}]
    made, (row, drafted), (lost,), _ = constitution(seeds, rules, "stages.1.pair=true")
    chosen, rejected = (Candidate(**each) for each in row["candidates"])
    assert (chosen.output, rejected.output) == (row["output"], "With force.")
    assert (rejected.role, rejected.calls, chosen.writer) == ("seed", (), row["writers"]["output"])
    assert list(chosen.calls) == row["calls"] and len(row["calls"]) == 8
    assert drafted["candidates"][1]["writer"] and len(drafted["candidates"][1]["calls"]) == 1
    assert (lost["id"], lost["reason"], len(lost["calls"])) == ("b", "unchanged", 4)
    assert made["counts"]["rejects"] == {"unchanged": 1}


def test_an_added_principle_moves_only_what_drew_it(constitution: Callable[..., Any], tmp_path: Path) -> None:
    rules = [{"contains": "check answers", "reply": GOOD}]
    seeds = [{**SEED, "id": str(number), "instruction": f"How do I open {number}?"} for number in range(20)]
    text = find("banks", "constitution", Path()).read_text()
    (tmp_path / "b.yaml").write_text(text)
    _, rows, _, _ = constitution(seeds, rules, f"stages.1.constitution={tmp_path}/b.yaml")
    (tmp_path / "b.yaml").write_text(f'{text}  - {{id: new, critique: "Is it new?", revision: "Make it old."}}\n')
    made, again, _, _ = constitution(seeds, rules, f"stages.1.constitution={tmp_path}/b.yaml")
    assert 0 < made["requests"]["sent"] < 20  # 4 of 17 drawn for 20 rows: about 5 draws of the new one
    for old, new in zip(rows, again, strict=True):
        before, after = ([each["principle"] for each in rounds(row)] for row in (old, new))
        assert [each for each in after if each != "new"] == before[: 4 - ("new" in after)]


def test_formats_of_criticism(constitution: Callable[..., Any]) -> None:
    rules = [{"regex": "(?s)check answers.*With force", "reply": BAD}, {"contains": "check answers", "reply": GOOD},
             {"reply": "With patience."}]  # fmt: skip
    _, _, _, (data,) = constitution([SEED], rules, "export={format: critique}")
    assert data == {"prompt": SEED["instruction"], "answer": "With force.", "critique": "It breaks it.",
                    "revision": "With patience."}  # fmt: skip
    _, _, _, (chain,) = constitution([SEED], rules, "export={format: critique, layout: chain}", "stages.1.rounds=1")
    assert chain["completion"] == "Draft: With force.\n\nFeedback: It breaks it.\n\nAnswer: With patience."


def test_what_does_not_go_together_is_said_before_anything_is_sent(constitution: Callable[..., Any]) -> None:
    for wrong, sets in {
        "go together": ("stages.1.constitution=null",),
        "do not last for 17 rounds": ("stages.1.rounds=17",),
        "a pair is two answers": ("stages.1.pair=true", "stages.1.field=instruction"),
    }.items():
        assert wrong in constitution([SEED], [{"reply": GOOD}], *sets, code=2)


def test_a_record_without_rounds_has_no_critique() -> None:
    assert Critique().row(Record(id="a", instruction="Why?", output="So.", meta={"rewrite": {"output": 3}})) is None
