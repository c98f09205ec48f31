"""Duplicates: what counts as the same text, and ROUGE-L decided as the rouge-score package decides it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdgen.dedupe import Exact, Rouge, RougeIndex
from kdgen.dedupe.rouge import tokens
from kdgen.record import Record


def record(instruction: str = "", **fields: Any) -> Record:
    return Record(id=fields.pop("id", "r"), instruction=instruction, **fields)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Name a river.", "name a river"),
        ("Name a river.", "  Name\ta\n\nriver ?!"),
        ("ﬁne ½", "FINE 1⁄2"),
        ("Straße", "STRASSE"),
        ("Ａｂｃ", "abc"),
        ("café", "cafe\u0301"),
    ],
)
def test_normalised_texts_are_the_same(left: str, right: str) -> None:
    for normalise, same in ((True, True), (False, False)):
        index = Exact(normalise=normalise).index()
        assert index.seen(record(left)) is None
        assert index.seen(record(left)) == "duplicate: task as in an earlier row"
        assert (index.seen(record(right)) is not None) == same


@pytest.mark.parametrize(
    ("left", "right"), [("Name a river", "Name a rivers"), ("a b", "ab"), ("a.b", "ab"), ("cafe", "café"), ("-1", "1")]
)
def test_other_texts_are_not(left: str, right: str) -> None:
    index = Exact().index()
    assert index.seen(record(left)) is None and index.seen(record(right)) is None


def test_the_fields_that_are_compared() -> None:
    first = record("i", input="a", output="x")
    rows = [record("i", input="b", output="x"), record("i", input="a", output="y"), record("j", input="a", output="x")]
    expected = {
        ("task",): [0, 1, 0],
        ("instruction",): [1, 1, 0],
        ("output",): [1, 0, 1],
        ("instruction", "output"): [1, 0, 0],
    }
    for fields, same in expected.items():
        found = []
        for row in rows:
            index = Exact.model_validate({"fields": fields}).index()
            assert index.seen(first) is None
            found.append(int(index.seen(row) is not None))
        assert found == same, fields
    index = Exact(fields=("instruction", "output")).index()
    index.seen(record("a b", output="c"))
    assert index.seen(record("a", output="b c")) is None, "fields must not run together"


def lcs(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for token in left:
        previous = 0
        for place, other in enumerate(right, 1):
            previous, row[place] = row[place], previous + 1 if token == other else max(row[place], row[place - 1])
    return row[-1]


def rouge(target: list[str], prediction: list[str]) -> float:
    """rouge-score's `_score_lcs` and `fmeasure`, in its order of operations."""
    if not target or not prediction:
        return 0.0
    length = lcs(target, prediction)
    precision, recall = length / len(prediction), length / len(target)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def decisions(texts: list[list[str]], threshold: float) -> tuple[list[bool], list[bool]]:
    index, kept, ours, reference = RougeIndex(threshold), list[list[str]](), [], []
    for text in texts:
        ours.append(index.seen(record(" ".join(text))) is None)
        reference.append(all(rouge(other, text) <= threshold for other in kept))
        if reference[-1]:
            kept.append(text)
    return ours, reference


def near(common: int, left: int, right: int) -> list[list[str]]:
    """Two texts of these lengths with `common` tokens in common, in order."""
    shared = [f"s{number}" for number in range(common)]
    return [
        shared + [f"{side}{number}" for number in range(length - common)]
        for side, length in (("l", left), ("r", right))
    ]


@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=14), max_size=12), st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0])
)
def test_rouge_decides_as_rouge_score_on_any_tokens(texts: list[list[str]], threshold: float) -> None:
    ours, reference = decisions(texts, threshold)
    assert ours == reference


@pytest.mark.parametrize("tenth", range(1, 6))
def test_rouge_on_the_boundary_of_seven_tenths(tenth: int) -> None:
    """F1 is exactly 0.7 on paper where 7k of two texts of 20k tokens in all are in common."""
    common, both = 7 * tenth, 20 * tenth
    for left in range(common, both - common + 1):
        texts = near(common, left, both - left)
        for order in (texts, texts[::-1]):
            ours, reference = decisions(order, 0.7)
            assert ours == reference
        if common < left < both - common:
            assert decisions(near(common - 1, left, both - left), 0.7)[0] == [True, True]
            assert decisions(near(common + 1, left, both - left), 0.7)[0] == [True, False]


def test_the_boundary_is_met_on_both_sides() -> None:
    """In doubles an F1 of exactly 0.7 is over 0.7 for some lengths and not for others; both must occur above."""
    over = {rouge(*near(7 * k, left, 20 * k - left)) > 0.7 for k in range(1, 10) for left in range(7 * k, 13 * k + 1)}
    assert over == {True, False}


def test_of_several_on_the_boundary_any_may_decide() -> None:
    """21 tokens: with 14 of 19 in common F1 is not over 0.7 in doubles, with 21 of 39 it is; both are 0.7 on paper."""
    text = [f"t{number}" for number in range(21)]
    under = text[:14] + [f"u{number}" for number in range(5)]
    over = text + [f"o{number}" for number in range(18)]
    assert rouge(under, text) <= 0.7 < rouge(over, text)
    for pool in ([under, over], [over, under]):
        ours, reference = decisions([*pool, text], 0.7)
        assert ours == reference == [True, True, False]


def test_a_near_duplicate_names_its_twin() -> None:
    index = Rouge(threshold=0.7).index()
    assert index.seen(record("Name a big river in Asia", id="first")) is None
    assert index.seen(record("Bake some bread", id="second")) is None
    assert index.seen(record("name a BIG river, in Asia!", id="third")) == "near_duplicate: ROUGE-L 1.00 with first"
    assert index.seen(record("?!")) is None and index.seen(record("...")) is None, "no tokens, no likeness"


def test_what_is_added_counts_with_and_without_its_input() -> None:
    index = RougeIndex(0.7)
    index.add(record("Translate the text", input="one two three four five six seven", id="seed"))
    assert index.seen(record("translate the text")) is not None
    assert index.seen(record("Translate the text one two three four five six seven")) is not None
    assert index.seen(record("one two three four")) is None


def test_tokens_of_other_scripts_are_characters() -> None:
    assert tokens("Name 2 Rivers!") == ["name", "2", "rivers"]
    assert tokens("写一首诗") == list("写一首诗")
    assert tokens("写 a 诗") == ["写", "a", "诗"] and tokens("naïve words here") == ["na", "ve", "words", "here"]
    index = RougeIndex(0.7)
    assert index.seen(record("写一首关于春天的诗")) is None
    assert index.seen(record("写一首关于春天的歌")) is not None
    assert index.seen(record("今天天气怎么样")) is None


def test_an_alphabet_of_many_words_stays_apart() -> None:
    """Tokens are coded as characters; past 55,295 of them the surrogates must be left out."""
    index = RougeIndex(0.7)
    words = [f"w{number}" for number in range(60_000)]
    for start in range(0, len(words), 100):
        assert index.seen(record(" ".join(words[start : start + 100]))) is None
    assert index.seen(record(" ".join(random.Random(0).sample(words, 100)))) is None
    assert index.seen(record(" ".join(words[59_900:]))) is not None
