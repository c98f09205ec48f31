"""Curation by rephrasing: styles by bucket, copies and lost content, questions below their document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

from kdgen.parse import gist, units
from kdgen.stages.rephrase import Style

SOURCE = (
    "Fact {n} is that copper melts at 1085 degrees, that iron needs far more heat than copper does, and that old "
    "furnaces were fed with charcoal by bellows until coke took its place."
)
SAID = (
    "Copper turns liquid at 1085 degrees; iron wants greater heat. Charcoal and bellows fed furnaces before coke ({n})."
)
RULES = [
    {"regex": "(?s)You grade.*poor", "reply": '{"reason": "x", "score": 1}'},
    {"regex": "(?s)You grade.*middling", "reply": '{"reason": "x", "score": 3}'},
    {"contains": "You grade", "reply": '{"reason": "x", "score": 5}'},
    {
        "contains": '"pairs"',
        "reply": '{"pairs": [{"question": "At how many degrees does copper melt?", "response": "It melts at 1085 degrees."}, '
        '{"question": "Who found it?", "response": "Somebody called Archimedes, probably."}, '
        '{"question": "What has copper at 1085?", "response": "it melts at 1085 degrees"}]}',
    },
    {"regex": r"(?s)Fact (\d+) .*half as many", "reply": SAID.format(n=r"\1")},
    {"regex": r"(?s)Document:\n([^\n]+)", "reply": r"\1"},
]
BUCKETS = {"low": 1, "middle": 3, "high": 4}
QUALITY = {"stage": "curate", "method": "grade", "prompt": "curate/quality", "buckets": BUCKETS}
DISTIL = {"prompt": "curate/rephrase/distil"}
QA = {"prompt": "curate/rephrase/questions", "makes": "qa"}
Made = Callable[..., tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]]


def documents(count: int, word: str = "good") -> list[dict[str, Any]]:
    return [{"id": f"{word}{n}", "text": SOURCE.format(n=n) + f" It is {word}."} for n in range(count)]


@pytest.fixture
def make(kdgen: Callable[..., Any], tmp_path: Path) -> Made:
    """Run styles over documents: manifest, records, rejects."""
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))

    def go(seeds: list[dict[str, Any]], styles: dict[str, Any], *, graded: bool = True, form: str = "text") -> Any:
        write_seeds(tmp_path / "s.jsonl", seeds)
        recipe = {
            "name": "r",
            "seeds": {"path": "s.jsonl"},
            "teachers": {"teacher": {"provider": "scripted", "path": "rules.jsonl"}},
            "stages": [*([QUALITY] if graded else []), {"stage": "curate", "method": "rephrase", "styles": styles}],
            "export": {"format": form},
        }
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        said = kdgen("run", "./r.yaml", "-o", "out", "--ledger", "l.db", "--json", "-q")
        assert said.code == 0, said.err
        parts = ((tmp_path / f"out/{name}.jsonl").read_text().splitlines() for name in ("records", "rejects"))
        return json.loads(said.out), *([json.loads(line) for line in part] for part in parts)

    return go


def test_a_document_is_said_in_the_styles_of_its_bucket(make: Made) -> None:
    styles = {
        "distil": {**DISTIL, "buckets": ["high", "low"]},
        "qa": {**QA, "buckets": ["high"]},
    }
    seeds = [*documents(1), *documents(1, "poor"), *documents(1, "middling")]
    made, rows, rejects = make(seeds, styles)
    assert [(row["seeds"][0], row["meta"]["style"], row["meta"]["bucket"]) for row in rows] == [
        ("good0", "distil", "high"),
        ("good0", "qa", "high"),
        ("poor0", "distil", "low"),
    ]
    assert rows[0]["text"].startswith("Copper turns liquid") and len(rows[0]["calls"]) == 2
    assert rows[1]["text"] == (
        f"{seeds[0]['text']}\n\nQuestion: At how many degrees does copper melt?\nAnswer: It melts at 1085 degrees."
    )
    assert [(row["reason"], row["instruction"]) for row in rejects] == [
        ("not_in_document", "Who found it?"),
        ("duplicate", "What has copper at 1085?"),
        ("no_style", ""),
    ]
    assert made["requests"]["sent"] == 6, "three grades, two styles and one"


def test_what_was_not_graded_has_only_the_styles_for_all(make: Made) -> None:
    _, rows, rejects = make(documents(2), {"a": DISTIL}, graded=False)
    assert [row["meta"] for row in rows] == [{"style": "a"}] * 2 and not rejects
    _, rows, rejects = make(
        [*documents(1), {"id": "x", "text": "..."}], {"a": {**DISTIL, "buckets": ["high"]}, "b": DISTIL}, graded=False
    )
    assert len(rows) == 1 and [row["reason"] for row in rejects] == ["no_document"]


def test_pairs_are_rows_of_their_own_where_they_are_wanted(make: Made) -> None:
    _, rows, rejects = make(documents(1), {"qa": {**QA, "makes": "pairs"}}, form="messages")
    assert [(row["instruction"], row["output"]) for row in rows] == [
        ("At how many degrees does copper melt?", "It melts at 1085 degrees.")
    ]
    assert rows[0]["text"].startswith("Fact 0") and rows[0]["writers"].keys() == {"instruction", "output"}
    assert [row["reason"] for row in rejects] == ["not_in_document", "duplicate"]


def test_a_copy_is_lost_alone(make: Made) -> None:
    _, rows, rejects = make(documents(1), {"copy": {"prompt": "curate/rephrase/list"}, "distil": DISTIL})
    assert [row["meta"]["style"] for row in rows] == ["distil"]
    assert [row["reason"] for row in rejects] == ["copies_source"] and rejects[0]["output"].startswith("Fact 0")


def test_another_document_or_style_asks_for_itself_alone(make: Made, tmp_path: Path) -> None:
    styles = {"distil": {**DISTIL, "buckets": ["high"]}, "qa": QA}
    first, _, _ = make(documents(5), styles)
    files = (tmp_path / "out/records.jsonl").read_bytes(), (tmp_path / "out/rejects.jsonl").read_bytes()
    again, _, _ = make(documents(5), styles)
    assert ((tmp_path / "out/records.jsonl").read_bytes(), (tmp_path / "out/rejects.jsonl").read_bytes()) == files
    assert (first["requests"]["sent"], again["requests"]["sent"]) == (15, 0)
    more, _, _ = make(documents(6), styles)
    third, _, _ = make(documents(6), {**styles, "list": {"prompt": "curate/rephrase/list"}})
    assert (more["requests"]["sent"], third["requests"]["sent"]) == (3, 6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SAID, None),
        (SOURCE, "copies_source"),
        (f"Well, so it goes. {SOURCE}", "copies_source"),
        ("Nothing of it is left, only words about other matters altogether, with no end.", "lost_content"),
    ],
)
def test_other_words_for_the_same(text: str, reason: str | None) -> None:
    fate = Style.model_construct(**{"least_kept": 0.3, "most_copied": 0.3}).lost(text, SOURCE)
    assert (fate[0] if fate else None) == reason


def test_scripts_without_spaces_are_counted_by_character() -> None:
    style = Style.model_construct(**{"least_kept": 0.3, "most_copied": 0.3})
    source = "四川省的省会是成都,成都位于中国西南部的盆地之中,气候温和湿润。"
    assert units("成都 rain7雨") == ["成", "都", "rain7", "雨"] and "成都" in gist(source)
    assert (style.lost(source, source) or ("",))[0] == "copies_source"
    assert style.lost("成都是四川省的省会。这座城市地处中国西南部,在盆地之中,气候湿润而且温和。", source) is None
    assert (style.lost("今天天气很好,我们去公园玩。", source) or ("",))[0] == "lost_content"
    assert style.unfounded("Yes.", source) is None and style.unfounded("Beijing", source) is not None


@pytest.mark.parametrize(
    ("styles", "cause"),
    [
        ({"a": {**DISTIL, "ask_for": 3}}, "ask_for has no effect on makes: text"),
        ({"a": {**QA, "most_copied": 0.2}}, "most_copied has no effect on makes: qa"),
        ({}, "at least 1 item"),
    ],
)
def test_what_cannot_be_is_an_error(kdgen: Callable[..., Any], tmp_path: Path, styles: Any, cause: str) -> None:
    (tmp_path / "rules.jsonl").write_text('{"reply": "x"}\n')
    teachers = {"teacher": {"provider": "scripted", "path": "rules.jsonl"}}
    stage = {"stage": "curate", "method": "rephrase", "styles": styles}
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "teachers": teachers, "stages": [stage]}))
    said = kdgen("check", "./r.yaml")
    assert said.code == 2 and cause in said.err, said.err
