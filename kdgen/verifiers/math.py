"""Math equality: whether an answer's last result is the gold one, by math-verify (LaTeX and plain text to SymPy)."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdgen.parse import same_answer, split_answer, split_thinking
from kdgen.verifiers.base import Verdict, Verifier, unjudged, verdict_of

SHOWN = 100
TAIL = 20_000  # characters of an answer's end that are looked at: its result stands there
LONGEST = 1500  # characters of a result; what is longer is no result
MARKED = re.compile(r"\\boxed|\\begin|\$|\\\(|\\\[")
BRACKETS = re.compile(r"[()\[\]{}\\]|[A-Za-z]\d")
ODD = re.compile(r"[()\[\]{}\\+*/^=_<>]")  # where a number is a part of something that could not be read
SAID = re.compile(r"\banswer\b[\s*_]*(?:is|:|=)[\s:*_]*", re.I)  # in a line, such as "so the answer is 7"
BOX = "\\boxed{"
JOINED = re.compile(r"(?:[^.\n]){0,60}")  # what may stand between two boxes of one result


class Math(Verifier):
    """The result of an answer equals the gold one: 1/2, 0.5 and \\frac{1}{2}, sets, intervals, matrices, equations.

    The result is what the last \\boxed{} holds, else what follows the last `####`, `Answer:` or "answer is", else what math-verify takes
    for it. `digits` are the decimals to which numbers must agree. An interval and the inequality that says the same agree,
    and so do `x = 3` and `3`.
    """

    type: Literal["math"] = "math"
    digits: int = Field(6, ge=1, le=15)

    needs_gold: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("math_verify",)

    def prepare(self) -> None:
        """SymPy takes a second."""
        _library()

    def judge(self, answer: str, gold: str) -> Verdict:
        """Whether the results are equal."""
        said, right = result(answer), result(gold)
        if not said:
            return verdict_of(False, "the answer is empty")
        shown = f"{said[:SHOWN]} for {right[:SHOWN]}"
        if _plain(said) == _plain(right):
            return verdict_of(True, shown)
        if len(right) > LONGEST:
            return unjudged(f"the gold answer is no result: {len(right)} characters")
        if len(said) > LONGEST:
            return verdict_of(False, f"the answer has no result; its last {len(said)} characters were looked at")
        wanted, found = _parsed(right), _parsed(said)
        verify = _library()[1]
        if wanted and found and verify(wanted, found, float_rounding=self.digits, timeout_seconds=None):
            return verdict_of(True, shown)
        # "7 apples" for 7: words and units that LaTeX takes for products of letters.
        plain = not BRACKETS.search(f"{said} {right}")
        return verdict_of(plain and same_answer(said, right), shown)


def result(text: str) -> str:
    """The result that a worked answer ends with, or all of it where nothing marks one. Boxes in a row are one result."""
    text = split_thinking(text)[1][-TAIL:]
    if boxes := _boxes(text):
        first = len(boxes) - 1
        while first and JOINED.fullmatch(text[boxes[first - 1][1] : boxes[first][0]]):
            first -= 1
        start, end = boxes[first][0], boxes[-1][1]
        return text[start + len(BOX) : end - 1].strip() if first == len(boxes) - 1 else text[start:end]
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    if marked := split_answer(text)[1]:
        return marked.strip()
    said = [text[mark.end() :].split("\n", 1)[0].strip().strip("*_ ") for mark in SAID.finditer(text)]
    return (said[-1].removesuffix(".") if said and said[-1] else text).strip()


def boxed(text: str) -> str | None:
    """What the last \\boxed{} of a text holds, however deep its braces are; None where there is none that closes."""
    boxes = _boxes(text)
    return text[boxes[-1][0] + len(BOX) : boxes[-1][1] - 1] if boxes else None


def _boxes(text: str) -> list[tuple[int, int]]:
    """Where the boxes of a text begin and end, in one pass; one in another is part of it."""
    found: list[tuple[int, int]] = []
    start = text.find(BOX)
    while start >= 0:
        depth, place = 1, start + len(BOX)
        for mark in re.compile(r"[{}]").finditer(text, place):
            depth += 1 if mark[0] == "{" else -1
            if not depth:
                found.append((start, mark.end()))
                break
        if depth:
            break  # it does not close, and nothing after it can be told apart from its inside
        start = text.find(BOX, found[-1][1])
    return found


def _parsed(text: str) -> Any:
    """What math-verify makes of a result: LaTeX, or the number in a few words where there is no more to it."""
    parse, _, latex, plain = _library()
    text = _wrapped(text)
    found = parse(text, extraction_config=latex, parsing_timeout=None)
    if not found and not ODD.search(text.strip("$")):
        found = parse(text, extraction_config=plain, parsing_timeout=None)
    return found


def _wrapped(text: str) -> str:
    """A result as LaTeX: what is written as a program would (`3*s**2`, `sqrt(2)`, `pi`) is said its way."""
    text = text.replace("\\$", "")
    if MARKED.search(text) or "\n" in text:
        return text
    if "\\" not in text:
        text = re.sub(r"\b(\d+)\s+(\d+/\d+)\b", r"(\1+\2)", text)
        text = text.replace("**", "^").replace("*", "\\cdot ")
        text = re.sub(r"\bsqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
        text = re.sub(r"\bpi\b", r"\\pi ", text)
    return f"${text}$"


def _plain(text: str) -> str:
    text = re.sub(r"(?<![\d,.])(\d{1,3}(?:\s\d{3})+)(?!\d)", lambda found: re.sub(r"\s", "", found[0]), text)
    # Any other space between two figures stays: 3 4 is not 34, nor 1 1/2 the same as 11/2.
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|quad)(?![a-zA-Z])|(?<!\d)\s+|\s+(?!\d)|\$", "", text)
    return re.sub(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}", r"\1", text).replace("dfrac", "frac").rstrip(".")


def _library() -> tuple[Any, Any, Any, Any]:
    import logging

    logging.disable(logging.CRITICAL)
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    return parse, verify, (LatexExtractionConfig(boxed_match_priority=0),), (ExprExtractionConfig(),)
