"""A system message that fits the task: chosen by a column or the teacher, shown to the teacher, erased for the student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import lines, published, write_seeds

from kdgen.banks import load_bank
from kdgen.resources import builtins

RULES = [
    {"regex": "(?s)You decide.*poem", "reply": '{"reason": "New text.", "selected": "outline-write"}'},
    {"contains": "You decide", "reply": '{"reason": "A fact.", "selected": "direct"}'},
    {"regex": '(?s)\\A(.*?)\n.*known to be "(.*?)"', "reply": "\\1 | \\2"},
    {"regex": "\\A(.*?)\n", "reply": "\\1"},
]
SEEDS: list[dict[str, Any]] = [
    {"id": "a", "instruction": "Write a poem."},
    {"id": "b", "instruction": "Name a bird.", "output": "wren"},
    {"id": "c", "instruction": "Name a fish.", "kind": "compare"},
]


@pytest.fixture
def strategy(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def run(seeds: list[dict[str, Any]], *sets: str) -> Any:
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
        write_seeds(tmp_path / "s.jsonl", seeds)
        knobs = [part for each in sets for part in ("--set", each)]
        asked = ("label", "s.jsonl", "-m", "strategy", "-t", "scripted:r.jsonl", "--ledger", "l.db", "-o", "out")
        return kdgen(*asked, *knobs, "--json", "-q")

    return run


def test_the_teacher_is_told_the_strategy_and_the_student_is_not(strategy: Callable[..., Any], tmp_path: Path) -> None:
    said = strategy(SEEDS)
    assert said.code == 0, said.err
    bank = load_bank(builtins("banks")["strategies"])
    text = {entry.id: entry.texts["text"] for entry in bank.entries}
    rows = lines(tmp_path / "out/records.jsonl")
    assert [row["meta"]["banks"]["system"] for row in rows] == ["outline-write", "direct", "direct"]
    assert [row["output"] for row in rows] == [text["outline-write"], f"{text['direct']} | wren", text["direct"]]
    assert all(row["system"] == text[row["meta"]["banks"]["system"]] and len(row["calls"]) == 2 for row in rows)
    for row in lines(tmp_path / "out/data.jsonl"):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert "known to be" not in row["messages"][0]["content"]


def test_a_column_chooses_without_a_call(strategy: Callable[..., Any], tmp_path: Path) -> None:
    """One row's column names an entry, one none that is there, the others have it not and are asked about."""
    seeds = [*SEEDS, {"id": "d", "instruction": "Name a tree.", "kind": "guess"}]
    said = strategy(seeds, "stages.0.by=kind")
    assert json.loads(said.out)["requests"]["sent"] == 2 + 2 + 1
    rows = {row["seeds"][0]: row for row in lines(tmp_path / "out/records.jsonl")}
    assert rows["c"]["meta"]["banks"]["system"] == "compare" and len(rows["c"]["calls"]) == 1
    (lost,) = lines(tmp_path / "out/rejects.jsonl")
    assert (lost["id"], lost["reason"], lost["calls"]) == ("d", "no_such_entry", [])


def test_resume_and_one_changed_seed(strategy: Callable[..., Any], tmp_path: Path) -> None:
    assert json.loads(strategy(SEEDS).out)["requests"]["sent"] == 6
    files = published(tmp_path / "out", card=True)
    assert json.loads(strategy(SEEDS).out)["requests"]["sent"] == 0
    assert published(tmp_path / "out", card=True) == files
    more = strategy([*SEEDS[:2], {"id": "c", "instruction": "Name a flower."}])
    assert json.loads(more.out)["requests"]["sent"] == 2


@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ("stages.0.banks={system: systems}", "drawn and chosen"),
        ("stages.0.bank=./plain.yaml", "the `text` of an entry"),
        ("stages.0.bank=strategys", "did you mean strategies"),
    ],
)
def test_what_cannot_work_is_said(strategy: Callable[..., Any], tmp_path: Path, setting: str, cause: str) -> None:
    (tmp_path / "plain.yaml").write_text("about: a\nsource: b\nentries: [{name: c}]\n")
    (tmp_path / "p.md").write_text(
        "---\nvariables: {system: x, entries: y}\n---\n[[user]]\n{{ system }} {{ entries }}\n"
    )
    said = strategy(SEEDS, f"stages.0.prompt={tmp_path}/p.md", setting.replace("./plain", str(tmp_path / "plain")))
    assert said.code == 2 and cause in said.err, said.err
