"""Facts as seeds: what counts as the fact, and which answers agree with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

from kdgen.record import Record
from kdgen.stages.facts import disagrees, holds, told, values_of

RULES = [
    {
        "regex": r"(?s)Fact:\n.*number: (\d+)",
        "reply": r'{"pairs": [{"question": "Which place has the bell of town \1?", "response": "It is \1, the \1th."}, '
        r'{"question": "What number has the town?", "response": "It has \1."}]}',
    },
]
WRITE = {
    "stage": "curate",
    "method": "write",
    "prompt": "curate/knowledge",
    "makes": "pairs",
    "ask_for": 3,
    "answers": "fact",
}
Made = Callable[..., tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]]


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        ("The capital is Canberra.", "canberra", True),
        ("The capital is Canberra City.", "Canberra", True),
        ("It flows into the black sea.", "Black Sea", True),
        ("The sea is black.", "Black Sea", False),
        ("A density of 19 300 kg", "19,300", True),
        ("It was 1,945 then", "1945", True),
        ("It has 80 parts", "8", False),
        ("In 1, 2 or 3", "1", True),
        ("seven is 7.0", "", False),
        ("about 7.0", "7", True),
        ("Autumn comes", "Au", False),
        ("京都在日本", "京都", True),
        ("東京都", "京都府", False),
        ("", "x", False),
    ],
)
def test_a_text_says_a_value(text: str, value: str, says: bool) -> None:
    assert holds(text, value) is says


def test_the_fact_of_a_seed_is_its_answer_or_else_its_cells() -> None:
    triple = Record(id="t", text="S r O.", extra={"subject": "S", "Relation": "r", "object": "O", "sure": True, "n": 0})
    assert values_of(triple) == ["S", "O", "0", "S r O."]
    assert told(triple) == "S r O.\nsubject: S\nRelation: r\nobject: O\nn: 0"
    exam = Record(id="e", instruction="Why?", output="so", extra={"choices": ["so", "not so"], "level": "easy"})
    assert values_of(exam) == ["so"]
    assert told(exam) == "Why?\nlevel: easy\nchoices: so, not so\nAnswer: so"


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Which town does the bell stand in?", "In Bern.", None),
        ("Which number has Bern?", "It has the number 12.", None),
        ("Which number has Bern?", "Bern has the number 13.", "gives_it_away"),
        ("Which number has the town?", "It has 13.", "disagrees_with_fact"),
        ("Is Bern number 12?", "Yes, Bern is number 12.", "gives_it_away"),
    ],
)
def test_an_answer_says_what_the_question_does_not(question: str, answer: str, reason: str | None) -> None:
    fate = disagrees(question, answer, ["Bern", "12"])
    assert (fate[0] if fate else None) == reason


@pytest.fixture
def make(kdgen: Callable[..., Any], tmp_path: Path) -> Made:
    """Run a write stage over facts: manifest, records, rejects."""
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))

    def go(seeds: list[dict[str, Any]], **fields: Any) -> Any:
        write_seeds(tmp_path / "s.jsonl", seeds)
        recipe = {
            "name": "r",
            "seeds": {"path": "s.jsonl"},
            "teachers": {"teacher": {"provider": "scripted", "path": "rules.jsonl"}},
            "stages": [{**WRITE, **fields}],
        }
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        said = kdgen("run", "./r.yaml", "-o", "out", "--ledger", "l.db", "--json", "-q")
        if said.code:
            return said, [], []
        parts = ((tmp_path / f"out/{name}.jsonl").read_text().splitlines() for name in ("records", "rejects"))
        return json.loads(said.out), *([json.loads(line) for line in part] for part in parts)

    return go


def facts(count: int) -> list[dict[str, Any]]:
    return [{"id": f"f{n}", "text": "A town with a bell", "number": n, "tags": ["old", "loud"]} for n in range(count)]


def test_rows_agree_with_their_fact_and_keep_it(make: Made) -> None:
    _, rows, rejects = make(facts(2))
    assert [(row["seeds"], row["instruction"], row["output"]) for row in rows] == [
        (["f0"], "What number has the town?", "It has 0."),
        (["f1"], "What number has the town?", "It has 1."),
    ]
    assert rows[0]["text"] == "A town with a bell\nnumber: 0\ntags: old, loud" and rows[0]["input"] == ""
    assert [row["reason"] for row in rejects] == ["gives_it_away"] * 2
    _, rows, rejects = make(facts(2), answers="any")
    assert len(rows) == 4 and not rejects and rows[0]["text"] == "A town with a bell"


def test_a_changed_fact_asks_for_itself_alone(make: Made, tmp_path: Path) -> None:
    first, _, _ = make(facts(6))
    files = (tmp_path / "out/records.jsonl").read_bytes(), (tmp_path / "out/rejects.jsonl").read_bytes()
    again, _, _ = make(facts(6))
    assert ((tmp_path / "out/records.jsonl").read_bytes(), (tmp_path / "out/rejects.jsonl").read_bytes()) == files
    changed, rows, _ = make([*facts(5), {"id": "f5", "text": "A town with a bell", "number": 77}])
    assert [each["requests"]["sent"] for each in (first, again, changed)] == [6, 0, 1]
    assert rows[-1]["output"] == "It has 77."


def test_only_pairs_have_answers_to_check(make: Made) -> None:
    said, _, _ = make(facts(1), makes="tasks")
    assert said.code == 2 and "makes: tasks has no answers" in said.err


def test_the_facts_that_ship_hold_what_they_ask_for() -> None:
    path = Path(__file__).parent.parent / "seeds/facts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 57
    for row in rows:
        if "answer" in row:
            assert row["choices"].count(row["answer"]) == 1 and len(set(row["choices"])) == len(row["choices"])
        if "object" in row:
            assert row["object"] in row["text"], "a triple's sentence says its object"
