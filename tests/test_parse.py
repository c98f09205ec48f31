"""Reading what teachers write: total over any text, and exact on the forms they use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdgen import parse

# Text full of what the readers look for, so that the interesting branches are met.
MARKS = [
    "1. ",
    "2) ",
    "Task 3: ",
    "**4.** ",
    "<think>",
    "</think>",
    "Answer:",
    "**Answer:**",
    "####",
    "\\boxed{",
    "}",
    "```",
]
SPICED = st.lists(
    st.sampled_from([*MARKS, '"', "“", "1/0", "9" * 400, "-3", "٣", "\n", " "]) | st.text(max_size=5), max_size=12
)
ANY = st.text(max_size=60) | SPICED.map("".join)
ITEM = (
    st.text(st.characters(codec="ascii", categories=("L", "Zs")), min_size=1, max_size=30).map(str.strip).filter(bool)
)


@given(ANY)
def test_no_text_raises_and_nothing_is_invented(text: str) -> None:
    assert all(item in text for item in parse.numbered(text))
    for part in (*parse.split_thinking(text), parse.split_answer(text)[0], parse.bare(text), parse.final_answer(text)):
        assert part in text
    assert parse.bare(text) == parse.bare(text).strip()
    assert all(word.isascii() and word == word.lower() for word in parse.words(text))
    assert all(term.isalnum() for term in parse.terms(text))


def test_terms_are_of_any_script() -> None:
    assert parse.terms("Name 2 rivers, please_now!") == parse.words("Name 2 rivers, please_now!")
    assert parse.terms("Nommez l'Île") == ["nommez", "l", "île"]
    assert parse.terms("写一首诗。") == ["写一首诗"] and parse.terms("؟?！—") == []
    assert parse.terms("print(x) を説明する") != parse.terms("print(x) を翻訳する")


@given(ANY, ANY)
def test_agreeing_is_reflexive_and_symmetric(left: str, right: str) -> None:
    assert parse.same_answer(left, left)
    assert parse.same_answer(left, right) == parse.same_answer(right, left)


@given(
    st.lists(ITEM, min_size=1, max_size=9),
    st.integers(0, 990),
    st.sampled_from(["{}. ", "{}) ", "Task {}: ", "**{}.** ", "#{}: "]),
)
def test_numbered_lists_round_trip(items: list[str], first: int, form: str) -> None:
    text = "".join(f"{form.format(first + place)}{item}\n" for place, item in enumerate(items))
    assert parse.numbered(text) == items
    assert parse.numbered(f"Here they are:\n\n{text}") == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        ("no list", []),
        ("1. a\n2. b\n3. c", ["a", "b", "c"]),
        ("9. a\n10. b", ["a", "b"]),
        ("1. a\nmore of a\n\n2. b", ["a\nmore of a", "b"]),
        ("1. do:\n1. x\n2. b", ["do:\n1. x", "b"]),
        ("1. a\n5. inside a\n2. b", ["a\n5. inside a", "b"]),
        ("1. a 2. not a new item", ["a 2. not a new item"]),
        ("  3) a\n\t4) b", ["a", "b"]),
        ("Task 1: a\nTASK 2: b", ["a", "b"]),
        ("1.\n2. b", ["", "b"]),
        ("1. a\r\n2. b\r\n", ["a", "b"]),
        ("1984. a year", []),
    ],
)
def test_numbered(text: str, items: list[str]) -> None:
    assert parse.numbered(text) == items


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain", ("", "plain")),
        ("<think>a\nb</think>\nc", ("a\nb", "c")),
        ("  <THINKING> a </THINKING> c ", ("a", "c")),
        ("<reasoning>a</reasoning>", ("a", "")),
        ("<think>never closed", ("never closed", "")),
        ("c <think>a</think>", ("", "c <think>a</think>")),
        ("<think>a</thinking>b</think>c", ("a</thinking>b", "c")),
        ("<think></think>c", ("", "c")),
    ],
)
def test_split_thinking(text: str, parts: tuple[str, str]) -> None:
    assert parse.split_thinking(text) == parts


PROGRAM = (
    "```python\ndef f(x):\n    # Answer: the square\n    answer: int = x * x  # \\boxed{4}\n    return answer\n```"
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("why\nAnswer: 5", ("why", "5")),
        ("why\n**Answer:** 5", ("why", "5")),
        ("why\n**Answer: 5**", ("why", "5")),
        ("why\n### Final answer: 5", ("why", "5")),
        ("why\nThe answer: 5", ("why\nThe answer: 5", "")),
        ("Answer: 4\nno\nAnswer: 5", ("Answer: 4\nno", "5")),
        ("why\nanswer is 5", ("why", "5")),
        ("why\nAnswer:\n5\n", ("why", "5")),
        ("why only", ("why only", "")),
        ("Answer: 5", ("", "5")),
        ("why\nAnswer:", ("why", "")),
        ("why\nAnswers: 5", ("why\nAnswers: 5", "")),
        ("why. Answer: 5", ("why.", "5")),
        ("why. Answer: 5\nor not", ("why. Answer: 5\nor not", "")),
        ("why, so Answer: 5", ("why, so Answer: 5", "")),
        ("2+3 is \\boxed{5}", ("2+3 is 5", "5")),
        ("why\nSo it is \\( \\boxed{5} \\).\nAsk me more!", ("why\nSo it is \\( 5 \\).", "5")),
        ("why\n\\[\nx = \\boxed{5}\n\\]", ("why\n\\[\nx = 5\n\\]", "5")),
        ("why\n\\[\n\\boxed{5}\n\\]", ("why", "5")),
        ("why\n$$\\boxed{5}$$", ("why", "5")),
        ("why\nSo it is \\(Answer: 5\\)", ("why\nSo it is \\(Answer: 5\\)", "")),
        ("why\nSo it is \\(\n\nAnswer: 5\\)", ("why\nSo it is", "5")),
        ("why\nAnswer: \\boxed{\\frac{1}{2}}", ("why", "\\frac{1}{2}")),
        ("why\n```\nAnswer: 5\n```", ("why\n```", "5\n```")),
        (PROGRAM, (PROGRAM, "")),
        (f"why\nAnswer:\n{PROGRAM}", ("why", PROGRAM)),
    ],
)
def test_split_answer(text: str, parts: tuple[str, str]) -> None:
    assert parse.split_answer(text) == parts


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('"quoted"', "quoted"),
        ("“quoted”", "quoted"),
        ("```python\nx = 1\n```", "x = 1"),
        ("```\n\n```", ""),
        ('"a" and "b"', '"a" and "b"'),
        ("```\na\n```\nb\n```\nc\n```", "```\na\n```\nb\n```\nc\n```"),
        ("“a” and “b”", "“a” and “b”"),
        ("“a “b”", "“a “b”"),
        ("'", "'"),
        ('""', ""),
        ('  ```\n"a"\n```  ', "a"),
        ("it's 'so'", "it's 'so'"),
    ],
)
def test_bare(text: str, inside: str) -> None:
    assert parse.bare(text) == inside


SAME = [
    ("42", "42."), ("42", " 42 "), ("$1,200.00", "1200"), ("3/4", "0.75"), ("1/3", "2/6"), ("50%", "50"), ("007", "7"),
    ("-3", "−3"), ("The dog", "dog"), ("A DOG!", "dog"), ("(B)", "b"), ("**5**", "5"), ("\\boxed{7}", "7"), ("x\n#### 7", "7"),
    ("5 apples", "5"), ("x = 5", "5"), ("n=5", "5"), ("2\\pi", "2 π"), ("2x", "2x"), ("5 m", "5"),
    ("5 apples", "5 apples in all"), ("it is \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("12345678901234567890", "12,345,678,901,234,567,890"),
]  # fmt: skip
DIFFERENT = [
    ("42", "43"), ("7.5", "75"), ("yes", "no"), ("-3", "3"), ("1/2", "2"), ("1/0", "1"), ("5 km", "5 m"), ("x^2", "y^2"),
    ("x + 2", "2"), ("-x", "x"), ("12345678901234567890", "12345678901234567891"), ("9" * 5000, "8" * 5000), ("3 and 4", "3"),
    ("", "0"), ("B", "C"), ("0.333", "1/3"), ("2\\pi", "2"), ("2π", "2"), ("2x", "2"), ("5 i", "5"), ("7 squared", "7"),
    ("not 7", "7"), ("half of 7", "7"), ("x = 2y", "x = 2"),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), SAME)
def test_same_answers(left: str, right: str) -> None:
    assert parse.same_answer(left, right) and parse.same_answer(right, left)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different_answers(left: str, right: str) -> None:
    assert not parse.same_answer(left, right) and not parse.same_answer(right, left)


@pytest.mark.parametrize(
    ("left", "right", "one"),
    [
        ("positive", "Positive.", True), ("Sci/Tech", "sci tech", True), ("C++", "c++", True), ("-1", " -1 ", True),
        ("+", "+ ", True), ("-1", "1", False), ("C", "C++", False), ("C#", "C", False), ("+", "-", False), ("★★", "★★★", False),
        ("< 5", "> 5", False), ("👍", "👎", False), ("well-made", "well made", True), ("", "+", False),
    ],
)  # fmt: skip
def test_labels_that_a_mark_alone_tells_apart(left: str, right: str, one: bool) -> None:
    assert parse.same_label(left, right) is parse.same_label(right, left) is one


@given(st.decimals(-(10**9), 10**9, places=3), st.integers(0, 3))
def test_a_number_agrees_with_its_other_forms(number: object, zeros: int) -> None:
    text = f"{number:f}"
    assert parse.same_answer(f"${number:,}", text) and parse.same_answer(text + "0" * zeros, f"= {text}".strip("= "))
    assert not parse.same_answer(text, f"{text}1")


def test_labelled_parts_keep_what_only_looks_like_a_label() -> None:
    text = """Sure!
### Task 4
Instruction: Add up.
Input: 2
3
Output: 5
### Task 5
**Instruction:** Name a bird
Output: **A wren.**
Input: is text here

5.

---
6. Instruction: Say 42
Output: 42"""
    assert parse.labelled(text, ("instruction", "input", "output")) == [
        {"instruction": "Add up.", "input": "2\n3", "output": "5"},
        {"instruction": "Name a bird", "output": "**A wren.**\nInput: is text here"},
        {"instruction": "Say 42", "output": "42"},
    ]
    assert parse.labelled("Output: 3\nnothing", ("instruction", "output")) == []


def test_a_line_that_announces_a_text_is_none_of_it() -> None:
    assert parse.alone("Sure! Let's rephrase the task to make it harder:\n\nSort a list.") == "Sort a list."
    assert parse.alone("Here is the new task:\n\nSort a list.") == "Sort a list."
    assert parse.alone("Let's add two numbers: 3 and 4.") == "Let's add two numbers: 3 and 4."
