"""Personas: drawn from a bank or made out of texts, each in the row whose task it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

TASK = {
    "regex": r"(?s)numbered 4 to 7, as (.*?) would",
    "reply": r"4. Ask {digest} and {digest}: what does \1 want of me today?",
}
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


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_the_persona_that_was_drawn_is_the_one_that_was_shown(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "people.yaml").write_text(
        "about: a\nsource: b\nentries:\n  - {id: one, text: a diver of wrecks}\n  - {id: two, text: a mender of nets}\n"
    )
    write_seeds(tmp_path / "s.jsonl", [{"instruction": f"Name {n} things of use at sea."} for n in range(5)])
    asked = ("expand", "s.jsonl", "-m", "persona", "-t", script(TASK, "Rest."), *KNOBS, "-o", "out", "--ledger", "l.db")
    knob = ("--set", "dedupe=[]", "--set", f"stages.0.banks.persona={tmp_path}/people.yaml")
    said = kdgen(*asked, *knob)
    assert said.code == 0, said.err
    made = rows(tmp_path / "out")
    for row in made:
        whose = {"one": "a diver of wrecks", "two": "a mender of nets"}[row["meta"]["banks"]["persona"]]
        assert whose in row["instruction"]
    assert len(made) == 6 and {row["meta"]["banks"]["persona"] for row in made} == {"one", "two"}
    again = json.loads(kdgen(*asked, *knob, "--json", "-q").out)
    assert again["requests"]["sent"] == 0 and rows(tmp_path / "out") == made


def test_a_text_more_asks_about_itself_alone(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    """Two people around the person of each text: 1 + 2 + 2 + 2 calls."""
    rules = script(
        {"contains": "Who is likely", "reply": "a keeper of log {digest}"},
        {"contains": "Describe one other", "reply": "a rower of boat {digest}"},
        {"regex": "A person: (.*)", "reply": "{digest} oars, {digest} boats: how long does \\1 take over them?"},
        "An hour.",
    )
    texts = [{"id": str(n), "text": f"The {n}th lock opens at {n} in the morning."} for n in range(4)]
    write_seeds(tmp_path / "s.jsonl", texts[:3])
    asked = (
        "expand",
        "s.jsonl",
        "-m",
        "persona-texts",
        "-t",
        rules,
        "-o",
        "out",
        "--ledger",
        "l.db",
        "--set",
        "dedupe=[]",
    )
    first = json.loads(kdgen(*asked, "--json", "-q").out)
    assert (first["counts"]["rows"], first["requests"]["sent"]) == (6, 21)
    for row in rows(tmp_path / "out"):
        assert row["meta"]["persona"].startswith("a rower of boat ") and row["meta"]["persona"] in row["instruction"]
        assert set(row["meta"]["banks"]) == {"relation", "kind"} and row["text"] == ""
    write_seeds(tmp_path / "s.jsonl", [texts[3], *texts[:3]])
    more = json.loads(kdgen(*asked, "--json", "-q").out)
    assert (more["counts"]["rows"], more["requests"]["sent"], more["requests"]["from_ledger"]) == (8, 7, 21)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("keep_as=banks",), "meta.banks is kdgen's own"),
        (("makes=tasks", "keep_as=who", "banks={}", "prompt=curate/questions"), "makes: tasks keeps its text anyway"),
        (("lists.kind=kinds",), "'kind' is a variable already"),
        (("lists.rules=principles",), "no prompt of this stage shows the bank 'rules'"),
    ],
)
def test_a_setting_without_effect_is_an_error(
    kdgen: Callable[..., Any], tmp_path: Path, sets: tuple[str, ...], said: str
) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"text": "The lock opens."}])
    knobs = [part for each in sets for part in ("--set", f"stages.2.{each}")]
    ended = kdgen("expand", "s.jsonl", "-m", "persona-texts", *knobs)
    assert ended.code == 2 and said in ended.err
