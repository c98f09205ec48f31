"""Instructions whose keeping can be told by rule: the 25 families of IFEval (arXiv 2311.07911), by its ids and parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import JsonValue, field_validator, model_validator

from kdgen.parse import split_thinking
from kdgen.verifiers.base import Verdict, Verifier
from kdgen.verifiers.wording import capital_words, language_of, sentences

RELATIONS = ("less than", "at least")
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {"p.p.s": r"p\.\s?p\.\s?s", "p.s.": r"p\.\s?s\."}
FENCES = ("```json", "```Json", "```JSON", "```")


def _related(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(word), text, re.I) for word in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _related(len(re.findall(re.escape(keyword.strip()), text, re.I)), relation, frequency)


def _forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I) for word in forbidden_words)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


def _language(text: str, language: str) -> bool | None:
    found = language_of(text)
    return None if found is None else found == language


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _related(len(sentences(text)), relation, num_sentences)


def _split(text: str, mark: str) -> list[str] | None:
    """The parts between marks; an empty one is allowed at both ends alone, and does not count."""
    parts = re.split(mark, text)
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part for part in parts if part.strip()]


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = _split(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == num_paragraphs


def _words(text: str, num_words: int, relation: str) -> bool:
    return _related(len(re.findall(r"\w+", text)), relation, num_words)


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = parts[nth_paragraph - 1].split()
    said = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0] if words else ""
    return bool(words) and said.lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip().lower()
    return re.search(POSTSCRIPTS.get(marker) or re.escape(marker), text.lower()) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    return sum(bool(re.match(r"\*[^*]|-", line)) for line in lines) == num_bullets


def _constrained(text: str) -> bool:
    return any(option in text for option in CONSTRAINED)


def _highlights(text: str, num_highlights: int) -> bool:
    single, double = re.findall(r"\*[^\n*]*\*", text), re.findall(r"\*\*[^\n*]*\*\*", text)
    return sum(bool(part.strip("*").strip()) for part in (*single, *double)) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(part.lstrip("<").rstrip(">").strip() for part in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    parts = _split(text, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capitals(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _related(capital_words(text), capital_relation, capital_frequency)


def _english(text: str, cased: bool) -> bool | None:
    return _language(text, "en") if cased else False


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: dict[str, tuple[Callable[..., bool | None], dict[str, type]]] = {
    "keywords:existence": (_existence, {"keywords": list}),
    "keywords:frequency": (_frequency, {"keyword": str, "frequency": int, "relation": str}),
    "keywords:forbidden_words": (_forbidden, {"forbidden_words": list}),
    "keywords:letter_frequency": (_letters, {"letter": str, "let_frequency": int, "let_relation": str}),
    "language:response_language": (_language, {"language": str}),
    "length_constraints:number_sentences": (_sentences, {"num_sentences": int, "relation": str}),
    "length_constraints:number_paragraphs": (_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_words": (_words, {"num_words": int, "relation": str}),
    "length_constraints:nth_paragraph_first_word": (
        _first_word,
        {"num_paragraphs": int, "nth_paragraph": int, "first_word": str},
    ),
    "detectable_content:number_placeholders": (_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": (_postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": (_bullets, {"num_bullets": int}),
    "detectable_format:constrained_response": (_constrained, {}),
    "detectable_format:number_highlighted_sections": (_highlights, {"num_highlights": int}),
    "detectable_format:multiple_sections": (_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:json_format": (_json, {}),
    "detectable_format:title": (_title, {}),
    "combination:two_responses": (_two_responses, {}),
    "combination:repeat_prompt": (_repeats, {"prompt_to_repeat": str}),
    "startend:end_checker": (_ends, {"end_phrase": str}),
    "startend:quotation": (_quoted, {}),
    "change_case:capital_word_frequency": (_capitals, {"capital_frequency": int, "capital_relation": str}),
    "change_case:english_capital": (lambda text: _english(text, text.isupper()), {}),
    "change_case:english_lowercase": (lambda text: _english(text, text.islower()), {}),
    "punctuation:no_comma": (lambda text: "," not in text, {}),
}


class Instructions(Verifier):
    """An answer keeps every instruction that can be checked by rule, as IFEval (arXiv 2311.07911) checks them.

    `instruction_id_list` and `kwargs` are the columns of its rows; a parameter that is null is not there. `score` is the share
    that is kept. `loose` tries the answer without its first or last line and without asterisks too, as IFEval's loose
    accuracy does. What is told from the language of a text without one is not judged.
    """

    type: Literal["instructions"] = "instructions"
    instruction_id_list: tuple[str, ...]
    kwargs: tuple[dict[str, JsonValue], ...]
    loose: bool = False

    packages: ClassVar[tuple[str, ...]] = ("langdetect",)

    @field_validator("kwargs", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        rows = value if isinstance(value, list | tuple) else []
        return [
            {name: part for name, part in row.items() if part is not None} if isinstance(row, dict) else {}
            for row in rows
        ]

    @model_validator(mode="after")
    def _known(self) -> Instructions:
        if not self.instruction_id_list:
            raise ValueError("instruction_id_list is empty")
        if len(self.kwargs) != len(self.instruction_id_list):
            raise ValueError(f"{len(self.instruction_id_list)} instructions and {len(self.kwargs)} kwargs")
        for name, given in zip(self.instruction_id_list, self.kwargs, strict=True):
            if name not in CHECKS:
                raise ValueError(f"no instruction is called {name!r}")
            if wrong := _misfit(given, CHECKS[name][1]):
                raise ValueError(f"{name}: {wrong}")
        return self

    def prepare(self) -> None:
        """The profiles of languages take a moment."""
        if any("language" in name or "english" in name for name in self.instruction_id_list):
            language_of("This is English.")

    def judge(self, answer: str, gold: str) -> Verdict:
        """How many of the instructions it keeps."""
        answer = split_thinking(answer)[1]
        texts = _looser(answer) if self.loose else [answer]
        kept: list[bool | None] = []
        for name, given in zip(self.instruction_id_list, self.kwargs, strict=True):
            found = [CHECKS[name][0](text, **given) for text in texts if text.strip()]
            kept.append(True if True in found else None if None in found else False)
        broken = [name for name, each in zip(self.instruction_id_list, kept, strict=True) if not each]
        if None in kept and False not in kept:
            return Verdict(None, None, f"the language cannot be told: {', '.join(broken)}")
        return Verdict(not broken, kept.count(True) / len(kept), f"not kept: {', '.join(broken)}" if broken else "")


def _misfit(given: dict[str, Any], wanted: dict[str, type]) -> str:
    """What is wrong with an instruction's parameters."""
    if lost := next((name for name in wanted if name not in given), ""):
        return f"it has no {lost}"
    if odd := next((name for name in given if name not in wanted), ""):
        return f"it takes no {odd}"
    return next((wrong for name, kind in wanted.items() if (wrong := _unfit(name, given[name], kind))), "")


def _unfit(name: str, value: Any, kind: type) -> str:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    fits = {
        "no whole number": kind is not int or whole,
        "no text": kind is not str or (isinstance(value, str) and value.strip()),
        "no list of texts": kind is not list
        or (isinstance(value, list) and value and all(isinstance(each, str) and each.strip() for each in value)),
        f"neither {' nor '.join(RELATIONS)}": not name.endswith("relation") or value in RELATIONS,
        "no single character": name != "letter" or len(str(value)) == 1,
        "below 1": name != "nth_paragraph" or (whole and value >= 1),
    }
    return next((f"{name} is {wrong}" for wrong, fit in fits.items() if not fit), "")


def _looser(text: str) -> list[str]:
    lines = text.split("\n")
    cuts = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [each for cut in (text, *cuts) for each in (cut, cut.replace("*", ""))]
