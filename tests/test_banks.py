"""Banks: one entry a record, drawn by weight, kept in the lineage, stable under insertion."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import tasks, write_seeds

from kdgen.banks import Bank, load_bank
from kdgen.errors import UserError
from kdgen.resources import builtins

SAYS = "---\nabout: x\nvariables: {instruction: a, who: b}\n---\n[[user]]\nAs {{ who.text }}: {{ instruction }}\n"
WHO = "about: people\nsource: test\nentries:\n  - {id: cook, weight: 3, text: a cook}\n  - {id: king, text: a king}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "says.md").write_text(SAYS)
    (tmp_path / "who.yaml").write_text(WHO)
    (tmp_path / "rules.jsonl").write_text(json.dumps({"reply": "It is so."}) + "\n")
    write_seeds(tmp_path / "s.jsonl", tasks(40))

    def write(banks: Any, prompt: str = "says.md") -> Path:
        stage = {"stage": "label", "method": "answer", "prompt": prompt, "banks": banks}
        path = tmp_path / "r.yaml"
        teacher = {"provider": "scripted", "path": "rules.jsonl"}
        path.write_text(
            json.dumps({"name": "r", "teachers": {"teacher": teacher}, "seeds": "s.jsonl", "stages": [stage]})
        )
        return path

    return write


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_an_entry_is_shown_kept_and_stable_under_insertion(
    recipe: Callable[..., Path], kdgen: Callable[..., Any], tmp_path: Path
) -> None:
    asked = ("run", recipe({"who": "who.yaml"}), "-q", "--json", "--ledger", "l.db")
    made = kdgen(*asked, "-o", "out")
    assert made.code == 0, made.err
    drawn = {row["instruction"]: row["meta"]["banks"]["who"] for row in records(tmp_path / "out")}
    counts = Counter(drawn.values())
    assert counts["cook"] > counts["king"] > 0

    again = json.loads(kdgen(*asked, "-o", "out").out)
    assert again["requests"]["sent"] == 0

    (tmp_path / "who.yaml").write_text(WHO + "  - {id: monk, text: a monk}\n")
    more = json.loads(kdgen(*asked, "-o", "out").out)
    now = {row["instruction"]: row["meta"]["banks"]["who"] for row in records(tmp_path / "out")}
    moved = {task for task in drawn if now[task] != drawn[task]}
    assert {now[task] for task in moved} == {"monk"}
    assert more["requests"]["sent"] == len(moved) < 20


def test_a_system_bank_is_the_rows_system_message_and_can_be_erased_at_export(
    recipe: Callable[..., Path], kdgen: Callable[..., Any], tmp_path: Path
) -> None:
    asked = ("run", recipe({"system": "systems"}, "label/answer"), "-q")
    assert kdgen(*asked, "-o", "kept").code == 0
    bank = load_bank(builtins("banks")["systems"])
    for row, record in zip(
        (tmp_path / "kept/data.jsonl").read_text().splitlines(), records(tmp_path / "kept"), strict=True
    ):
        text = bank.entry(record["meta"]["banks"]["system"]).texts["text"]
        assert record["system"] == text
        assert json.loads(row)["messages"][0] == {"role": "system", "content": text}
    assert kdgen(*asked, "-o", "erased", "--set", "export={format: messages, system: drop}").code == 0
    assert "system" not in (tmp_path / "erased/data.jsonl").read_text()


@pytest.mark.parametrize(
    ("banks", "prompt", "cause"),
    [
        ({"who": "who.yaml"}, "label/answer", "shows the bank 'who'"),
        ({"who": "personnas"}, "says.md", "did you mean personas?"),
        ({"system": "topics"}, "label/answer", "have one field, text"),
        ({}, "says.md", "asks for 'who'"),
    ],
)
def test_a_bank_without_effect_or_place_is_an_error(
    recipe: Callable[..., Path], kdgen: Callable[..., Any], banks: Any, prompt: str, cause: str
) -> None:
    said = kdgen("run", recipe(banks, prompt))
    assert said.code == 2 and cause in said.err


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("about: a\nsource: b\nentries:\n  - {id: x, text: a}\n  - {id: x, text: b}\n", 3, "'x' stands twice"),
        ("about: a\nsource: b\nentries:\n  - {id: x, text: a}\n  - {id: y, name: b}\n", 3, "'y' has name"),
        ("about: a\nsource: b\nentries:\n  - {id: x, weight: 0, text: a}\n", 4, "weight"),
        ("about: a\nsource: b\nentries:\n  - {id: x}\n", 4, "an entry has a text"),
        ("about: a\nentries: [x]\n", 1, "source is missing"),
        ("about: a\nsource: b\nentries: []\n", 3, "entries"),
        ("about: a\nsource: b\nentrys: []\n", 1, "entries is missing"),
    ],
)
def test_a_bad_bank_says_where(tmp_path: Path, text: str, line: int, cause: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as found:
        load_bank(path)
    assert cause in found.value.cause and found.value.where == f"{path}:{line}"


@pytest.mark.parametrize("name", sorted(builtins("banks")))
def test_the_banks_that_ship(name: str) -> None:
    bank = load_bank(builtins("banks")[name])
    assert isinstance(bank, Bank) and len(bank.entries) >= 3 and "MIT" in bank.source
