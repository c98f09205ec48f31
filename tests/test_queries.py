"""Curation of queries: what is no query, logprobs, and the way back to the document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

from kdgen.record import Record
from kdgen.stages.near import Near
from kdgen.stages.write import _asked, _no_query

WRITE = {"stage": "curate", "method": "write", "prompt": "curate/queries/search", "makes": "query"}
TRIP = {"stage": "curate", "method": "round-trip", "prompt": "curate/round-trip", "among": 3}
ABOUT = ["harbour cranes", "mountain lakes", "winter wheat", "copper mines", "river barges", "paper mills"]
RULES = [
    {"regex": r"(?s)\[(\d)\]\n[^\n]*number 3\b.*Query: \w+ \w+ 3 ", "reply": '{"reason": "No.", "which": 0}'},
    {"regex": r"(?s)\[(\d)\]\n[^\n]*number (\d+)\b.*Query: \w+ \w+ \2 ", "reply": r'{"reason": "So.", "which": \1}'},
    {"regex": r"about (\w+ \w+), number (\d+)\.\Z", "reply": r"Query: \1 \2 hours", "logprobs": [{"logprob": -0.5}]},
]
Made = Callable[..., tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]]


def documents(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"d{n}", "text": f"What there is to be said about {ABOUT[n % len(ABOUT)]}, number {n}."}
        for n in range(count)
    ]


@pytest.fixture
def make(kdgen: Callable[..., Any], tmp_path: Path) -> Made:
    """Run stages over documents: manifest, records, rejects."""
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))

    def go(seeds: list[dict[str, Any]], *stages: dict[str, Any]) -> Any:
        write_seeds(tmp_path / "s.jsonl", seeds)
        recipe = {
            "name": "r",
            "seeds": {"path": "s.jsonl"},
            "teachers": {"teacher": {"provider": "scripted", "path": "rules.jsonl"}},
            "stages": stages,
            "export": {"format": "retrieval"},
        }
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        said = kdgen("run", "./r.yaml", "-o", "out", "--ledger", "l.db", "--json", "-q")
        if said.code:
            return said, [], []
        parts = ((tmp_path / f"out/{name}.jsonl").read_text().splitlines() for name in ("records", "rejects"))
        return json.loads(said.out), *([json.loads(line) for line in part] for part in parts)

    return go


def test_a_query_leads_back_to_its_document_or_is_lost(make: Made, tmp_path: Path) -> None:
    made, rows, rejects = make(documents(12), WRITE, TRIP)
    assert [row["seeds"] for row in rows] == [[f"d{n}"] for n in range(12) if n != 3]
    assert [(row["reason"], row["instruction"]) for row in rejects] == [("leads_nowhere", "copper mines 3 hours")]
    for row in rows:
        twin = f"d{(int(row['seeds'][0][1:]) + 6) % 12}"
        assert row["meta"]["near"][0] == twin and len(row["meta"]["near"]) == 2, "who is about the same is shown"
        assert row["text"].endswith(f"number {row['seeds'][0][1:]}.") and len(row["calls"]) == 2
    data = [json.loads(line) for line in (tmp_path / "out/data.jsonl").read_text().splitlines()]
    assert data[0] == {"query": "harbour cranes 0 hours", "positive": rows[0]["text"]}
    assert made["requests"]["sent"] == 24


def test_another_document_asks_again_only_where_it_comes_near(make: Made, tmp_path: Path) -> None:
    make(documents(12), WRITE, TRIP)
    files = (tmp_path / "out/records.jsonl").read_bytes()
    again, _, _ = make(documents(12), WRITE, TRIP)
    assert again["requests"]["sent"] == 0 and (tmp_path / "out/records.jsonl").read_bytes() == files
    other = {"id": "new", "text": "What there is to be said about paper mills, number 99."}
    more, rows, _ = make([*documents(12), other], WRITE, TRIP)
    moved = [row["seeds"][0] for row in rows if "new" in row["meta"]["near"]]
    assert {"d5", "d11"} <= set(moved) and more["requests"]["sent"] == 2 + len(moved) < 9


def test_queries_of_unlikely_words_are_rejects(make: Made) -> None:
    sure = {**WRITE, "params": {"logprobs": 0}}
    _, rows, _ = make(documents(2), {**sure, "min_logprob": -0.6})
    assert [row["meta"]["logprob"] for row in rows] == [-0.5, -0.5] and rows[0]["writers"].keys() == {"instruction"}
    said, _, _ = make(documents(2), {**sure, "min_logprob": -0.4})
    assert said.code == 5 and "2 low_logprob" in said.err
    said, _, _ = make(documents(2), {**WRITE, "min_logprob": -0.4})
    assert said.code == 2 and "is not asked for logprobs" in said.err and "stages.0.params.logprobs=0" in said.err
    said, _, _ = make(documents(2), {**sure, "makes": "task", "min_logprob": -0.4})
    assert said.code == 2 and "min_logprob has no effect on makes: task" in said.err


@pytest.mark.parametrize(
    ("text", "query", "wrong"),
    [
        ("Query: why do tides come", "why do tides come", ""),
        ('**"why do tides come"**', '**"why do tides come"**', ""),
        ("<think>Hm.</think>\n“tide times”", "tide times", ""),
        ("Question 2: who rules?\nQuestion 3: why?", "who rules?\nQuestion 3: why?", "more than one line"),
        ("  ...", "...", "no query"),
        ("The Moon pulls the sea as it goes round the Earth", None, "copied"),
        ("the moon pulls the sea", None, ""),
        ("潮汐为什么会出现", "潮汐为什么会出现", ""),
    ],
)
def test_what_is_no_query(text: str, query: str | None, wrong: str) -> None:
    source = "Well: the Moon pulls the sea, as it goes round the Earth."
    assert query is None or _asked(text) == query
    assert wrong in (_no_query(text, source) or "") and bool(wrong) == bool(_no_query(text, source))


def test_nearness_is_of_two_texts_alone() -> None:
    texts = [
        "bees make honey",
        "bees make wax in long rows of combs for young queens",
        "iron rusts",
        "",
        "honey and bees",
    ]
    records = [Record(id=str(n), text=text) for n, text in enumerate(texts)]
    near = Near(records)
    assert [each.id for each in near.to("honey of bees", 9)] == ["4", "0", "1"]
    assert near.to("zebra", 3) == [] and Near([]).to("bees", 3) == [] and near.to("bees", 0) == []
    more = Near([*records, Record(id="x", text="bees and bees and bees fly")])
    assert [each.id for each in more.to("honey of bees", 9) if each.id != "x"] == ["4", "0", "1"]


def test_a_document_alone_or_twice(make: Made) -> None:
    one = documents(1)
    _, rows, rejects = make(one, WRITE, TRIP)
    assert rows[0]["meta"]["near"] == [] and not rejects
    _, rows, _ = make([*one, {"id": "same", "text": one[0]["text"]}], WRITE, TRIP)
    assert [row["meta"]["near"] for row in rows] == [[], []], "the same text is no other document"
