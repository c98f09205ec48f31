"""Curation from documents: quotes, distractors that stay where they are, withheld documents, grades."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

from kdgen.parse import find_quote

CITE = {"stage": "curate", "method": "cite", "prompt": "curate/cited"}
ANSWER = r'{"evidence": ["Fact number \1 is"], "reasoning": "It says so.", "response": "It is so, \1."}'
RULES = [
    {"regex": r"(?s)Fact number (\d+) is known.*Question: What of \1\?", "reply": ANSWER},
    {"contains": "Question:", "reply": '{"evidence": [], "reasoning": "None does.", "response": "They do not tell."}'},
]
Made = Callable[..., tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]]


GRADE = {"stage": "curate", "method": "grade", "prompt": "curate/faithful", "at_least": 4}
JUDGED = [
    {"regex": r"(?s)to check: It is so, \d\.\n\nIs each", "reply": '{"reason": "It says so.", "score": 5}'},
    {"contains": "to check:", "reply": '{"reason": "More than the answer is shown.", "score": 1}'},
]


def facts(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"f{n}", "q": f"What of {n}?", "t": f"Fact number {n} is known to all who live there."}
        for n in range(count)
    ]


@pytest.fixture
def cite(kdgen: Callable[..., Any], tmp_path: Path) -> Made:
    """Run one cite stage over seeds: manifest, records, rejects."""
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in [*JUDGED, *RULES]))

    def go(seeds: list[dict[str, Any]], *more: dict[str, Any], **fields: Any) -> Any:
        write_seeds(tmp_path / "s.jsonl", seeds)
        recipe = {
            "name": "r",
            "seeds": {"path": "s.jsonl", "map": {"instruction": "q", "text": "t"}},
            "teachers": {"teacher": {"provider": "scripted", "path": "rules.jsonl"}},
            "stages": [{**CITE, **fields}, *more],
        }
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        said = kdgen("run", "./r.yaml", "-o", "out", "--ledger", "l.db", "--json", "-q")
        assert said.code == 0, said.err
        parts = ((tmp_path / f"out/{name}.jsonl").read_text().splitlines() for name in ("records", "rejects"))
        return json.loads(said.out), *([json.loads(line) for line in part] for part in parts)

    return go


def test_a_quote_is_kept_as_the_source_has_it() -> None:
    text = "He said:  “It’s\nTHE end.”  Then (a+b) left."
    for quote, found in [
        ("it's the end.", "It’s\nTHE end."),
        ('"It’s the', "“It’s\nTHE"),
        ("(a+b) left", "(a+b) left"),
    ]:
        number, start, end = find_quote(quote, ["", text]) or (0, 0, 0)
        assert (number, text[start:end]) == (1, found)
    assert find_quote("It is the end", [text]) is None and find_quote("  ", [text]) is None


def test_distractors_are_others_and_the_document_is_anywhere_among_them(cite: Made) -> None:
    _, rows, _ = cite(facts(30), distractors=3, cite=True)
    assert len(rows) == 30
    places = set()
    for row in rows:
        (quote,) = row["meta"]["quotes"]
        places.add(quote["document"])
        shown = row["input"].split("\n\n")
        assert len(set(shown)) == 4 and row["parents"] == [row["meta"]["documents"][quote["document"] - 1]]
        assert row["text"] in shown[quote["document"] - 1] and row["output"].endswith(
            f'[{quote["document"]}] "{quote["text"]}"'
        )
        assert row["text"][quote["start"] :].startswith(quote["text"])
        assert set(row["seeds"]) == set(row["meta"]["documents"]) and row["seeds"][0] == row["parents"][0]
        assert row["writers"].keys() == {"output", "reasoning"} and len(row["calls"]) == 1
    assert places == {1, 2, 3, 4}


def test_another_seed_asks_again_only_where_it_is_drawn(cite: Made) -> None:
    first, before, _ = cite(facts(40), distractors=3)
    again, _, _ = cite(facts(40), distractors=3)
    more, after, _ = cite(facts(41), distractors=3)
    assert (first["requests"]["sent"], again["requests"]["sent"]) == (40, 0)
    moved = [new for old, new in zip(before, after, strict=False) if old["input"] != new["input"]]
    assert all("f40" in row["seeds"] for row in moved)
    assert 0 < len(moved) < 10 and more["requests"]["sent"] == len(moved) + 1


def test_a_share_of_documents_is_withheld(cite: Made) -> None:
    made, rows, rejects = cite(facts(60), distractors=3, withheld=0.3)
    out = [row for row in rows if row["meta"]["withheld"]]
    assert len(rows) == 60 and not rejects and 10 <= len(out) <= 26
    for row in out:
        assert row["output"] == "They do not tell." and row["meta"]["quotes"] == [] and row["text"] not in row["input"]
        assert row["input"].count("Fact number") == 3 and row["parents"][0] not in row["meta"]["documents"]
    _, recalled, _ = cite(facts(60), distractors=3, withheld=0.3, absent="recall", cite=True)
    assert {row["instruction"] for row in recalled if row["meta"]["withheld"]} == {row["instruction"] for row in out}
    for row in recalled:
        if row["meta"]["withheld"]:
            assert row["text"] not in row["input"] and row["meta"]["quotes"][0]["document"] == 0
            assert row["output"].startswith("It is so") and "[" not in row["output"]
    more, _, _ = cite(facts(60), distractors=3, withheld=0.4)
    assert more["requests"]["sent"] < 20, "a larger share asks again only what it takes in"
    assert made["requests"]["sent"] == 60


def test_documents_are_shown_or_not(cite: Made) -> None:
    _, rows, _ = cite(facts(3), shows="nothing")
    assert [row["input"] for row in rows] == ["", "", ""] and rows[0]["meta"]["quotes"][0]["document"] == 1
    _, rows, rejects = cite(
        [*facts(2), {"id": "x", "q": "What of 9?", "t": "Nothing."}, {"id": "y", "q": "Why?", "t": ""}]
    )
    assert [(row["id"], row["reason"]) for row in rejects] == [("x", "unanswered"), ("y", "no_document")]
    assert rows[0]["input"] == "[1] Fact number 0 is known to all who live there."


def test_a_judge_is_shown_the_answer_without_the_quotes_below_it(cite: Made) -> None:
    _, rows, rejects = cite(facts(3), GRADE, cite=True)
    assert len(rows) == 3 and not rejects
    assert (
        rows[0]["output"].endswith('\n\n[1] "Fact number 0 is"') and rows[0]["meta"]["grades"]["quality"]["score"] == 5
    )


@pytest.mark.parametrize(
    ("stage", "cause"),
    [
        ({**CITE, "withheld": 0.2}, "withheld leaves a row without any document"),
        ({**CITE, "withheld": 0.2, "distractors": 2, "shows": "nothing"}, "withheld leaves a row without any document"),
        ({**CITE, "absent": "recall"}, "absent has no effect"),
        ({**CITE, "cite": True, "shows": "nothing"}, "cite names documents that no row shows"),
        (
            {**CITE, "method": "grade", "prompt": "curate/faithful", "buckets": {"high": 3}},
            "the lowest bucket begins with 1",
        ),
        ({**CITE, "method": "write", "prompt": "curate/questions", "ask_for": 2}, "makes: text is one a call"),
    ],
)
def test_what_cannot_be_is_an_error(kdgen: Callable[..., Any], tmp_path: Path, stage: Any, cause: str) -> None:
    (tmp_path / "rules.jsonl").write_text('{"reply": "x"}\n')
    teachers = {"teacher": {"provider": "scripted", "path": "rules.jsonl"}}
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "teachers": teachers, "stages": [stage]}))
    said = kdgen("check", "./r.yaml")
    assert said.code == 2 and cause in said.err, said.err


def test_a_chunks_quote_leads_back_to_its_file(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    source = (
        "# Bees\n\nSome words before it.\n\n## Honey\n\nBees make honey from nectar. They store it in combs of wax.\n"
    )
    (tmp_path / "docs/bees.md").write_text(source)
    teacher = script(
        {"contains": "Write 5 questions", "reply": '{"tasks": ["What do bees make honey from?"]}'},
        {"contains": "You check answers", "reply": '{"reason": "Yes.", "score": 5}'},
        {"reply": '{"evidence": ["honey from nectar", "Honey from nectar"], "reasoning": "So.", "response": "x y"}'},
    )
    said = kdgen("curate", "docs", "-m", "grounded", "-t", teacher, "-q", "-o", "out", "--set", "seeds.chunk.least=4")
    assert said.code == 0, said.err
    (row,) = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_text().splitlines()]
    span, (quote,) = row["meta"]["span"], row["meta"]["quotes"]  # what is quoted twice stands there once
    assert span["section"] == "Bees > Honey" and (span["line"], span["end_line"]) == (5, 7)
    at = span["start"] + quote["start"]
    assert source[at : at + len(quote["text"])] == "honey from nectar"
    assert row["meta"]["grades"] == {"faithful": {"reason": "Yes.", "score": 5}}
    assert len(row["calls"]) == 3 and set(row["writers"]) == {"instruction", "output", "reasoning"}
