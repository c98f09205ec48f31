"""Reading what teachers write: lists, labelled sections, final answers, think tags. Pure, and total: no input raises."""

from __future__ import annotations

import re

NUMBERED = re.compile(
    r"^[ \t]*(?:\*\*)?(?:task|instruction|prompt)?[ \t]*#?(\d{1,3})[ \t]*[.):][ \t]*(?:\*\*)?[ \t]*", re.I | re.M
)
THINK = re.compile(r"\A\s*<(think|thinking|reasoning)>(.*?)(?:</\1>|\Z)\s*", re.S | re.I)
ANSWER = re.compile(r"^[ \t>*_#]*(?:final[ \t]+)?answer[ \t*_]*(?::|is\b)[ \t*_]*", re.I | re.M)
FENCE = re.compile(r"\A```[\w-]*\n(.*?)\n?```\Z", re.S)
QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


def numbered(text: str) -> list[str]:
    """The items of a numbered list (`9. …`, `9) …`, `Task 9: …`), each with its continuation lines.

    Numbers must climb by one from item to item; a number that does not is text of the item it stands in
    (a list inside an item). Text before the first number is dropped.
    """
    marks = list(NUMBERED.finditer(text))
    starts: list[re.Match[str]] = []
    for mark in marks:
        if not starts or int(mark.group(1)) == int(starts[-1].group(1)) + 1:
            starts.append(mark)
    ends = [mark.start() for mark in starts[1:]] + [len(text)]
    return [text[mark.end() : end].strip() for mark, end in zip(starts, ends, strict=False)]


def split_thinking(text: str) -> tuple[str, str]:
    """(reasoning, rest): a leading think block apart from what follows it; an unclosed one is all reasoning."""
    found = THINK.match(text)
    return (found.group(2).strip(), text[found.end() :].strip()) if found else ("", text.strip())


def split_answer(text: str) -> tuple[str, str]:
    """(rationale, answer): what stands before and after the last `Answer:` line.

    Without such a line the answer is empty and the whole text is the rationale.
    """
    marks = list(ANSWER.finditer(text))
    if not marks:
        return text.strip(), ""
    last = marks[-1]
    return text[: last.start()].strip(), text[last.end() :].strip().strip("*_").strip()


def bare(text: str) -> str:
    """Text without a code fence or one pair of quotes around all of it."""
    text = text.strip()
    fenced = FENCE.match(text)
    if fenced and "```" not in fenced.group(1):
        text = fenced.group(1).strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def words(text: str) -> list[str]:
    """Lower-cased runs of ASCII letters and digits, as the rouge-score package counts them."""
    return WORD.findall(text.lower())


WORD = re.compile(r"[a-z0-9]+")
BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str) -> str:
    """The short answer in a worked solution: after `####`, in the last \\boxed{}, or all of it where it is short."""
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    boxed = BOXED.findall(text)
    return boxed[-1].strip() if boxed else text.strip()


def same_answer(left: str, right: str) -> bool:
    """Whether two short answers agree: case, articles, outer punctuation, units signs and number forms aside."""
    left, right = (_plain(final_answer(side)) for side in (left, right))
    if left == right:
        return True
    numbers = [NUMBER.findall(side) for side in (left, right)]
    if all(len(found) == 1 for found in numbers):
        return _value(numbers[0][0]) == _value(numbers[1][0])
    return False


def _plain(text: str) -> str:
    text = re.sub(r"[\s$€£%*_`\\]+", " ", text.lower()).strip(" .,;:!?\"'()[]{}")
    return re.sub(r"^(?:the|a|an) ", "", text).strip()


def _value(number: str) -> float:
    top, _, bottom = number.replace(",", "").partition("/")
    return float(top) / float(bottom) if bottom and float(bottom) else float(top)
