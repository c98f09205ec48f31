"""Annotation by a codebook: votes, confidence, agreement, who decides in doubt, and what people give back."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import lines, published, write_seeds

from kdgen.agreement import Agreement
from kdgen.codebooks import Span, load_codebook, located
from kdgen.errors import UserError
from kdgen.resources import builtins
from kdgen.teachers.logprobs import probability


def vote(label: str = "", **more: Any) -> str:
    said = {"explanation": "So it is.", **({"label": label} if label else {}), **more}
    return json.dumps(said)


def spans(*marked: tuple[str, str]) -> str:
    return vote(spans=[{"exact": exact, "label": label} for exact, label in marked])


@pytest.fixture
def annotate(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen label --method annotate` on seeds and rules; the manifest, with the rows and rejects."""

    def run(seeds: list[dict[str, Any]], rules: list[dict[str, Any]], *sets: str, code: int = 0) -> Any:
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", seeds)
        knobs = [part for each in ("stages.0.explain=null", *sets) for part in ("--set", each)]
        asked = ("label", "s.jsonl", "-m", "annotate", "-t", "scripted:r.jsonl", "--ledger", "l.db", "-o", "out")
        said = kdgen(*asked, *knobs, "--json", "-q")
        assert said.code == code, said.err
        if code:
            return said.err
        return json.loads(said.out), lines(tmp_path / "out/records.jsonl"), lines(tmp_path / "out/rejects.jsonl")

    return run


ENTITIES = "stages.0.codebook=entities"
TOWN = [{"id": "t", "text": "Paris met Paris in Paris; Comparison followed."}]


def test_spans_stand_word_for_word_and_the_majority_has_them(annotate: Callable[..., Any]) -> None:
    """Each mention has its own place; one more than stand there, and words inside a word, make a vote invalid."""
    rules = [
        {"nth": 0, "reply": spans(("Paris", "person"), ("Paris", "Person"), ("Paris", "place"))},
        {"nth": 1, "reply": spans(("Paris", "person"), ("Paris", "person"))},
        {"nth": 2, "reply": spans(("Paris", "person"), ("Comparison", "place"))},
        {"nth": 3, "reply": spans(*[("Paris", "person")] * 4)},
        {"nth": 4, "reply": spans(("Compari", "person"))},
    ]
    made, rows, rejects = annotate(TOWN, rules, ENTITIES, "stages.0.least_confidence=0.4")
    (row,) = rows
    assert not rejects and row["input"] == TOWN[0]["text"] and "names a person" not in row["input"]
    told = row["meta"]["annotation"]
    # Three of five votes have the first mention; two of five, no majority of those asked, the second.
    assert told["spans"] == [{"start": 0, "end": 5, "exact": "Paris", "label": "person"}]
    assert json.loads(row["output"]) == [{"exact": "Paris", "label": "person"}]
    assert {(each["start"], each["label"], each["votes"]) for each in told["votes"]} == {
        (0, "person", 3), (10, "person", 2), (19, "place", 1), (26, "place", 1),
    }  # fmt: skip
    assert told["lost"] == {"invalid_output": 2} and told["confidence"] == 0.4
    assert made["agreement"]["label/annotate"]["units"] == 7  # words
    assert made["repairs"] == {"teacher": 2}


def test_a_text_without_spans_is_a_row(annotate: Callable[..., Any]) -> None:
    made, rows, _ = annotate(TOWN, [{"reply": spans()}], ENTITIES)
    assert rows[0]["output"] == "[]" and rows[0]["meta"]["annotation"]["confidence"] == 1
    assert made["agreement"]["label/annotate"]["kappa"] is None  # one category alone: chance explains it all


def test_what_people_mend_is_a_seed(annotate: Callable[..., Any]) -> None:
    """The rejects as they are, with another output: labelled rows, no call; a label that is none is a reject."""
    seeds = [
        {"id": "a", "text": "Anna sings."},
        {"id": "b", "text": "Bo rests."},
        {"id": "c", "text": "Cy and Di run."},
    ]
    rules = [
        {"contains": "Cy and", "nth": 0, "reply": spans(("Cy", "person"))},
        *({"nth": n, "reply": spans((name, "place"))} for n, name in ()),
    ]
    rules += [{"contains": "Cy and", "reply": spans(("Cy", "person"))}]
    rules += [
        {"contains": name, "nth": n, "reply": spans((name, label))}
        for name in ("Anna", "Bo")
        for n, label in enumerate(("person", "place", "place"))
    ]
    _, rows, rejects = annotate(seeds, [*rules, {"reply": spans()}], ENTITIES)
    assert [row["seeds"] for row in rows] == [["c"]] and [each["reason"] for each in rejects] == ["needs_people"] * 2
    assert json.loads(rejects[0]["output"]) == [] and "1 Anna (person), 2 Anna (place)" in rejects[0]["detail"]
    rejects[0]["output"] = '[{"exact": "Anna", "label": "Person"}]'
    rejects[1]["output"] = '[{"exact": "Beau", "label": "person"}]'
    made, rows, lost = annotate(rejects, [{"reply": "no"}], ENTITIES, "stages.0.existing=keep")
    assert made["requests"]["sent"] == 0
    assert [(row["id"] != "a", row["seeds"], row["instruction"], row["input"]) for row in rows] == [
        (True, ["a"], rejects[0]["instruction"], "Anna sings.")
    ]
    assert json.loads(rows[0]["output"]) == [{"exact": "Anna", "label": "person"}]
    assert [(each["id"], each["reason"]) for each in lost] == [("b", "bad_gold")]


PAIRS = [
    {"id": "a", "text": "How tall is it?", "second": "It is 300 m tall."},
    {"id": "b", "text": "How old is it?", "second": " "},
    {"id": "c", "text": "How wide is it?"},
]


def test_pairs_show_both_texts_and_so_does_the_row(annotate: Callable[..., Any]) -> None:
    rules = [{"regex": "First: How tall.*\n\nSecond: It is 300 m", "reply": vote("Partly-Relevant")}]
    _, rows, rejects = annotate(PAIRS, rules, "stages.0.codebook=relevance")
    assert [(row["output"], row["input"]) for row in rows] == [
        ("partly relevant", "First: How tall is it?\n\nSecond: It is 300 m tall.")
    ]
    assert {(each["id"], each["reason"]) for each in rejects} == {("b", "no_second_text"), ("c", "no_second_text")}


def test_a_better_teacher_decides_in_doubt_and_people_where_it_does_not(
    annotate: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "best.jsonl").write_text(
        json.dumps({"contains": "so-so", "reply": vote("mixed")})
        + "\n"
        + json.dumps({"reply": "", "refusal": "No."})
        + "\n"
    )
    best = '{provider: scripted, path: "./best.jsonl"}'.replace("./", str(tmp_path) + "/")
    sets = (f"teachers.best={best}", "stages.0.better=best", "stages.0.votes=2")
    seeds = [{"id": "a", "text": "It is so-so."}, {"id": "b", "text": "It is."}, {"id": "c", "text": "It is lovely."}]
    rules = [
        {"contains": "lovely", "reply": vote("positive")},
        {"nth": 0, "reply": vote("positive")},
        {"reply": vote("negative")},
    ]
    made, rows, rejects = annotate(seeds, rules, *sets)
    decided = {
        row["seeds"][0]: (row["output"], row["writers"]["output"], row["meta"]["annotation"].get("by")) for row in rows
    }
    assert decided == {"a": ("mixed", "scripted:best", "best"), "c": ("positive", "scripted:r", None)}
    assert [(each["id"], each["reason"]) for each in rejects] == [("b", "needs_people")] and "refused" in rejects[0][
        "detail"
    ]
    assert len(rejects[0]["calls"]) == 3 and made["agreement"]["label/annotate"]["units"] == 3


def test_a_label_the_model_doubts_is_not_sure(annotate: Callable[..., Any]) -> None:
    """Every vote says the same, each with probability 0.5."""
    said = vote("neutral")
    start = said.rindex("neutral")
    tokens = [
        {"token": said[:start], "logprob": -9.0},
        {"token": "neu", "logprob": math.log(0.5)},
        {"token": 'tral"}', "logprob": 0},
    ]
    rules = [{"contains": "doubt", "reply": said, "logprobs": tokens}, {"reply": said}]
    seeds = [{"id": "a", "text": "I doubt."}, {"id": "b", "text": "I do not."}]
    _, rows, rejects = annotate(seeds, rules)
    assert [row["seeds"] for row in rows] == [["b"]] and [each["id"] for each in rejects] == ["a"]
    assert "confidence 0.5" in rejects[0]["detail"]


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": [{"logprobs": {"content": [{"token": None, "logprob": "x"}]}}]}]
)
def test_a_reply_without_logprobs_has_no_probability(body: Any) -> None:
    assert probability(body, "x") is None


def test_resume_and_one_changed_seed(annotate: Callable[..., Any], tmp_path: Path) -> None:
    """The same bytes again for nothing; a changed seed asks for its own votes, the examples are explained once."""
    seeds = [{"id": str(number), "text": f"Thing {number} is fine."} for number in range(4)]
    rules = [
        {"contains": "Why is this right", "reply": "Words decide."},
        {"nth": 4, "reply": vote("mixed")},
        {"reply": vote("neutral")},
    ]
    sets = ("stages.0.explain=label/annotate/explain",)
    first, _, _ = annotate(seeds, rules, *sets)
    assert first["requests"]["sent"] == 4 * 5 + 4
    files = published(tmp_path / "out", card=True)
    again, _, _ = annotate(seeds, rules, *sets)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == files
    more, _, _ = annotate([*seeds[:3], {"id": "3", "text": "Another thing."}], rules, *sets)
    assert more["requests"]["sent"] == 5
    assert more["agreement"] == first["agreement"] == again["agreement"]


def test_a_seeds_own_label_is_compared_where_it_is_one(annotate: Callable[..., Any]) -> None:
    seeds = [
        {"id": str(n), "instruction": "Kind?", "input": f"{n}", "output": gold}
        for n, gold in enumerate(("Neutral", "mixed", "who knows"))
    ]
    _, rows, _ = annotate(seeds, [{"reply": vote("neutral")}])
    assert [(row["meta"]["gold"], row["meta"].get("agrees")) for row in rows] == [
        ("neutral", True), ("mixed", False), ("who knows", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sets", "cause"),
    [
        ("stages.0.second=other", "kind: classes has no second text"),
        ("stages.0.codebook=sentimint", "did you mean sentiment or"),
        ("stages.0.codebook=./bad.yaml", "'cat' is no class"),
        ("stages.0.better=nobody", "asks 'nobody'"),
        (
            "stages.0={stage: label, method: annotate, prompt: label/annotate, codebook: sentiment, better: teacher, least_confidence: 0}",
            "nothing is less sure than 0",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(
    annotate: Callable[..., Any], tmp_path: Path, sets: str, cause: str
) -> None:
    (tmp_path / "bad.yaml").write_text(BOOK + "examples: [{text: a, label: cat}]\n")
    assert cause in annotate(TOWN, [{"reply": "x"}], sets.replace("./bad", str(tmp_path / "bad")), code=2)


BOOK = "about: a\nsource: b\ntask: Which?\nclasses: [{name: one, definition: x}, {name: two, definition: y}]\n"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (BOOK.replace("two", "One"), "'one' stands twice"),
        (BOOK.replace(", {name: two, definition: y}", ""), "one class leaves nothing to choose"),
        (BOOK + "examples: [{text: a}]\n", "examples: example 1 has no label"),
        (BOOK + "examples: [{text: a, second: b, label: one}]\n", "has a second text"),
        (BOOK + "kind: pairs\nexamples: [{text: a, label: one}]\n", "has no second text"),
        (BOOK + "kind: spans\nexamples: [{text: a, label: one}]\n", "has a label"),
        (
            BOOK + "kind: spans\nexamples: [{text: able, spans: [{exact: ab, label: one}]}]\n",
            "'ab' does not stand in its text",
        ),
        (BOOK + "kind: words\n", "kind"),
    ],
)
def test_a_bad_codebook_says_what_is_wrong(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as found:
        load_codebook(path)
    assert cause in found.value.cause and found.value.where.startswith(str(path))


@pytest.mark.parametrize("name", sorted(builtins("codebooks")))
def test_the_codebooks_that_ship(name: str) -> None:
    book = load_codebook(builtins("codebooks")[name])
    assert {example.label for example in book.examples} <= {"", *book.names} and "MIT" in book.source


def test_places_follow_spacing_and_scripts() -> None:
    def find(text: str, *exact: str) -> list[Any]:
        return [place for _, place in located(text, [Span(exact=each, label="x") for each in exact])]

    assert find("New\n York, new york", "New York", "new york") == [(0, 9), (11, 19)]
    assert find("東京都に住む", "東京") == [(0, 2)] and find("cart", "art") == [None]
    assert find("C++ (C)", "C++", "C") == [(0, 3), (0, 1)] and find("a", "  ") == [None]


def test_kappa_of_a_known_table() -> None:
    """The example of Fleiss (1971) that Wikipedia works out: 10 units, 14 raters, kappa 0.210."""
    table = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1), (7, 7, 0, 0, 0),
        (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    agreement = Agreement()
    agreement.add({str(place): count for place, count in enumerate(row)} for row in table)
    assert agreement.data() == {"kappa": 0.2099, "observed": 0.378, "units": 10, "ratings": 140}


UNITS = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)))


@given(UNITS, st.randoms())
def test_agreement_does_not_depend_on_order(units: list[dict[str, int]], mix: Any) -> None:
    one, other = Agreement(), Agreement()
    one.add(units)
    mixed = list(units)
    mix.shuffle(mixed)
    for unit in mixed:
        other.add([Counter(unit)])
    assert one.data() == other.data()
    kappa = one.data()["kappa"]
    assert kappa is None or -1 <= kappa <= 1
