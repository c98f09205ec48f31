"""Principles: all of them are shown to the teacher, and none of them is in what a student trains on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server import write_seeds

from kdgen.banks import load_bank
from kdgen.resources import builtins

LIST = {"regex": "all of this kind: (.*?)\\. They", "reply": "3. Is {digest} of the kind \\1?"}
ANSWER = {"contains": "Always ask a doctor", "reply": "It touches health.\nAnswer: Ask a doctor about {digest}."}
KNOBS = (
    "--set",
    "target=null",
    "--set",
    "stages.0.rounds=1",
    "--set",
    "stages.0.calls=6",
    "--set",
    "stages.0.novelty=null",
)


def rows(folder: Path, name: str = "records.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_sixteen_principles_ship_each_once() -> None:
    bank = load_bank(builtins("banks")["principles"])
    assert len({entry.texts["text"] for entry in bank.entries}) == 16


def test_the_principles_are_shown_whole_and_left_out_of_the_rows(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    bank = tmp_path / "mine.yaml"
    bank.write_text("about: a\nsource: b\nentries:\n  - always ask a doctor\n  - never shout\n")
    write_seeds(tmp_path / "s.jsonl", [{"instruction": f"Name {n} things of use at sea."} for n in range(5)])
    asked = ("expand", "s.jsonl", "-m", "principles", *KNOBS, "-o", "out", "--ledger", "l.db", "--set", "dedupe=[]")
    rules = (LIST, {**ANSWER, "regex": "(?s)2. Never shout"}, "Well.\nAnswer: other")
    asked += ("-t", script(*rules), "--set", f"stages.1.lists.rules={bank}")
    said = kdgen(*asked, "--json", "-q")
    assert said.code == 0, said.err
    made = rows(tmp_path / "out")
    assert len(made) == 6 and json.loads(said.out)["requests"]["sent"] == 12
    cares = {entry.id: entry.texts["text"] for entry in load_bank(builtins("banks")["cares"]).entries}
    for row in made:
        assert row["output"].startswith("Ask a doctor") and row["reasoning"] == "It touches health."
        assert row["system"] == "" and cares[row["meta"]["banks"]["care"]] in row["instruction"]
    exported = (tmp_path / "out/data.jsonl").read_text()
    assert "Never shout" not in exported and "touches" not in exported and '"system"' not in exported

    bank.write_text(bank.read_text() + "  - count twice\n")
    changed = json.loads(kdgen(*asked, "--json", "-q").out)
    assert (changed["requests"]["sent"], changed["requests"]["from_ledger"]) == (6, 6), "the questions stay as they are"


def test_an_answer_without_thoughts_is_asked_for_again_and_then_lost(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"instruction": "Name things of use at sea."}, {"instruction": "Count sails."}])
    mended = {"contains": "That reply cannot be used", "reply": "Calm (7).\nAnswer: Ask them tomorrow."}
    asked = ("expand", "s.jsonl", "-m", "principles", *KNOBS, "-o", "out", "--ledger", "l.db")
    said = kdgen(*asked, "-t", script(LIST, mended, "Answer: no"), "--json", "-q")
    assert said.code == 0 and json.loads(said.out)["repairs"] == {"teacher": 6}, said.err
    lost = kdgen(*asked, "-t", script(LIST, "Answer: no", name="other"), "--json", "-q")
    assert lost.code == 5 and "invalid_output" in lost.err
