"""What a text is made of: its sentences, its words in capitals, its language."""

from __future__ import annotations

import functools
import re
from typing import Any

MARKS = ".?!\"'”’)]} "
END = re.compile(r"[.?!][.?!\"'”’)\]}]*(?=\s+|\Z)")
SHORT = frozenset(
    """mr mrs ms dr prof st jr sr inc ltd co corp vs etc e.g i.e a.m p.m u.s u.k no vol fig al cf ca gen col lt capt sgt rev hon
    gov sen rep dept univ est jan feb mar apr jun jul aug sep sept oct nov dec mt ave blvd rd ft ph.d m.d b.a m.a""".split()
)
# Where the Penn Treebank cuts a word.
CUT = re.compile(r"\.{2,}|--+|[\[\](){}<>\",;:?!@#$%&*“”«»‘’`]|(?<=\w)'(?:s|m|d|ll|re|ve)\b|(?<=\w)n't\b", re.I)


def sentences(text: str) -> list[str]:
    """The sentences of a text: a mark that ends one, not after an abbreviation, an initial or a number of a list.

    A line ends none, as IFEval counts them. By rule, not by a model: it may differ from NLTK's Punkt where that learnt otherwise.
    """
    found: list[str] = []
    start = 0
    for end in END.finditer(text):
        rest = text[end.end() : end.end() + 80].lstrip()
        if text[end.start()] == "." and rest:
            if end[0].startswith("..") and rest[0].islower():
                continue
            before = text[start : end.start()].rsplit(maxsplit=1)
            word = before[-1].lower().lstrip("\"'“‘([{*_") if before else ""
            if end[0] == "." and (word in SHORT or re.fullmatch(r"[a-z]|(?:[a-z]\.)+[a-z]", word)):
                continue
        sentence = text[start : end.end()].strip()
        if sentence.strip(MARKS) or not found:
            found.append(sentence)
        start = end.end()
    if (rest := text[start:].strip()) and (rest.strip(MARKS) or not found):
        found.append(rest)
    return found


def capital_words(text: str) -> int:
    """How many words of a text, as the Penn Treebank cuts them, are in capitals."""
    return sum(token.isupper() for token in CUT.sub(lambda found: f" {found[0]} ", text).split())


def language_of(text: str) -> str | None:
    """The code of a text's language, the same for the same text each time; None where it shows none."""
    detect, cannot = _detector()
    try:
        return str(detect(text))
    except cannot:
        return None


@functools.cache
def _detector() -> tuple[Any, Any]:
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return langdetect.detect, langdetect.LangDetectException
