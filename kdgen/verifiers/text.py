"""Verifiers of form and wording: a letter, a text, a pattern, a JSON schema, quotes."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from kdgen.parse import bare, final_answer, find_quote, split_answer, split_thinking, terms
from kdgen.verifiers.base import Verdict, Verifier, unjudged, verdict_of
from kdgen.verifiers.math import boxed

LETTER = r"\(?\**\(?([A-Za-z])\)?\**"
SAYS, NAMES = (
    re.compile(
        rf"(?:answer|option|choice)\**(?:\s+(?:is|would be|must be)|\s*[:=]){needed}\s*[:=]?\s*(?:option|choice)?\s*{LETTER}(?![\w'’])",
        re.I,
    )
    for needed in ("", "?")
)
ALONE = re.compile(rf"\A\W*{LETTER}(?:[.):,]?\s*\Z|[.):]\**\s+\S)")
BOTH = re.compile(r"\A\W*([A-Z])\W*(?:,|/|&|\bor\b|\band\b)\W*([A-Z])\W*\Z")
QUOTED = re.compile(r"[\"“]([^\"“”\n]{2,2000})[\"”]")


class Choice(Verifier):
    """The answer chooses the gold letter of a multiple choice; `options` may give the letters their texts.

    The letter is what the last \\boxed{} or `Answer:` says, or "the answer is (C)", or the answer itself: `C`, `(C)`, `C) Paris`;
    with `options`, the text of one is as good as its letter. An answer that names none, or two, is wrong.
    """

    type: Literal["choice"] = "choice"
    options: dict[str, str] = {}

    needs_gold: ClassVar[bool] = True

    @field_validator("options")
    @classmethod
    def _letters(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := next((name for name in value if not re.fullmatch("[A-Za-z]", name)), None):
            raise ValueError(f"{wrong!r} is no letter")
        return {name.upper(): text for name, text in value.items()}

    def judge(self, answer: str, gold: str) -> Verdict:
        """Whether the letters are the same."""
        right = self.letter(gold)
        if right is None:
            return unjudged(f"the gold answer names no letter: {gold[:100]}")
        said = self.letter(answer)
        if said is None:
            return verdict_of(False, "it names no letter, or several")
        return verdict_of(said == right, f"{said} for {right}")

    def letter(self, text: str) -> str | None:
        """The letter that a text chooses."""
        text = split_thinking(text)[1][-20_000:]
        inside = boxed(text)
        last = inside if inside is not None else split_answer(text)[1] or final_answer(text)
        last = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", bare(last)).strip()
        if found := BOTH.match(last):
            return found[1] if found[1] == found[2] else None
        if (found := ALONE.match(last)) and self._known(found[1]):
            return found[1].upper()
        if named := [name for name, option in self.options.items() if terms(option) == terms(last) and terms(last)]:
            return named[0] if len(named) == 1 else None
        # "The answer is C. Option A is wrong." says C, though A is named last.
        for pattern in (SAYS, NAMES):
            if said := [letter for letter in pattern.findall(text) if letter.isupper() and self._known(letter)]:
                return str(said[-1])
        return None

    def _known(self, letter: str) -> bool:
        return not self.options or letter.upper() in self.options


class Exact(Verifier):
    """The answer is the gold text: `strip` the spaces around both, `case: false` takes capitals for small letters.

    `final` compares what follows the last `Answer:`, `####` or stands in \\boxed{} alone.
    """

    type: Literal["exact"] = "exact"
    case: bool = False
    strip: bool = True
    final: bool = True

    needs_gold: ClassVar[bool] = True

    def judge(self, answer: str, gold: str) -> Verdict:
        """Whether they are the same."""
        said, right = (self._seen(side) for side in (answer, gold))
        return verdict_of(said == right, f"{said[:100]} for {right[:100]}")

    def _seen(self, text: str) -> str:
        text = split_thinking(text)[1] if self.final else text
        if self.final:
            inside = boxed(text)
            text = inside if inside is not None else split_answer(text)[1] or final_answer(text)
        text = " ".join(text.split()) if self.strip else text
        return text if self.case else text.casefold()


class Regex(Verifier):
    """The answer matches a pattern, somewhere or `whole`; with `group` what that group holds must be the gold answer."""

    type: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    whole: bool = False
    ignore_case: bool = False
    group: int = Field(0, ge=0)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"the pattern is broken: {error}") from None
        return value

    @model_validator(mode="after")
    def _has_group(self) -> Self:
        if self.group > (groups := re.compile(self.pattern).groups):
            raise ValueError(f"the pattern has no group {self.group}, it has {groups}")
        return self

    def judge(self, answer: str, gold: str) -> Verdict:
        """Whether it matches."""
        pattern = re.compile(self.pattern, re.I if self.ignore_case else 0)
        if self.group and not gold.strip():
            return unjudged("there is no gold answer to compare with")
        found = pattern.fullmatch(answer.strip()) if self.whole else pattern.search(answer)
        if found is None:
            return verdict_of(False, "it does not match")
        if not self.group:
            return verdict_of(True)
        said = (found[self.group] or "").strip()
        return verdict_of(said == gold.strip(), f"{said[:100]} for {gold.strip()[:100]}")


class JsonSchema(Verifier):
    """The answer, or the block in it, is JSON that a schema allows; nothing beside it but the fence of the block.

    References to other documents (`$ref: https://…`) are never fetched.
    """

    type: Literal["schema"] = "schema"
    json_schema: dict[str, JsonValue]

    packages: ClassVar[tuple[str, ...]] = ("jsonschema",)

    def prepare(self) -> None:
        """The library takes a moment."""
        import jsonschema  # noqa: F401

    def judge(self, answer: str, gold: str) -> Verdict:
        """Whether it is."""
        import jsonschema
        import referencing

        kind = jsonschema.validators.validator_for(self.json_schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(self.json_schema)
        except jsonschema.SchemaError as error:
            return unjudged(f"the schema is broken: {error.message}"[:300])
        try:
            value = json.loads(bare(split_thinking(answer)[1]), parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            return verdict_of(False, f"it is not JSON: {error}"[:300])
        checker: Any = kind(self.json_schema, registry=referencing.Registry())
        try:
            wrong = next(checker.iter_errors(value), None)
        except referencing.exceptions.Unresolvable as error:
            return unjudged(f"the schema points to what is not in it: {error}"[:300])
        where = "".join(f"[{part!r}]" for part in wrong.absolute_path) if wrong else ""
        return verdict_of(wrong is None, f"{where} {wrong.message}".strip()[:300] if wrong else "")


class Citations(Verifier):
    """Each quote of an answer stands in the documents word for word (spacing, case and kinds of marks aside).

    A quote is a text in double quotation marks of `quote_words` words or more; there are `least` of them. Without
    `documents` they are the row's own text. `score` is the share of quotes that stand.
    """

    type: Literal["citations"] = "citations"
    documents: tuple[str, ...] = ()
    quote_words: int = Field(3, ge=1)
    least: int = Field(1, ge=0)

    def about(self, text: str) -> Verifier:
        """The row's own text is the document."""
        return self if self.documents or not text else self.model_copy(update={"documents": (text,)})

    def judge(self, answer: str, gold: str) -> Verdict:
        """How many of the quotes stand."""
        if not self.documents:
            return unjudged("there is no document to look in")
        quotes = [quote for quote in QUOTED.findall(answer) if len(quote.split()) >= self.quote_words]
        lost = [quote for quote in quotes if not find_quote(quote, self.documents)]
        if len(quotes) < self.least:
            return Verdict(False, 0.0, f"{len(quotes)} quotes, {self.least} are the least")
        share = (len(quotes) - len(lost)) / len(quotes) if quotes else 1.0
        return Verdict(not lost, share, f"not word for word: {lost[0][:200]}" if lost else "")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
