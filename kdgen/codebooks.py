"""Codebooks: files that say what annotators are asked, and which classes there are.

A codebook file is

    about: what it is for
    source: where it comes from, and under what licence
    kind: classes            # one class a text; or spans: classes of words in it; or pairs: one class for two texts
    task: Is the review positive, negative or mixed?
    classes:
      - {name: positive, definition: The writer would buy it again.}
      - {name: negative, definition: The writer would not.}
    examples:
      - {text: It broke in a week., label: negative, reason: "It does not last, and nothing good is said."}

An example of `pairs` has a `second` text besides, one of `spans` has `spans: [{exact: Ada Lovelace, label: person}]` in the
place of a label. A reason may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from kdgen.banks import named
from kdgen.record import Frozen
from kdgen.resources import did_you_mean
from kdgen.yamls import explain, load_yaml

NO_SPACES = "\u0e00"  # from here on scripts write without spaces between words, or join endings to them


class Kind(Frozen):
    """A class: its name, and what belongs to it."""

    name: str = Field(min_length=1)
    definition: str = Field(min_length=1)


class Span(Frozen):
    """Words of a text and their class."""

    exact: str = Field(min_length=1)
    label: str


class Example(Frozen):
    """A text with its right label, and why it is right."""

    text: str = Field(min_length=1)
    second: str = ""
    label: str = ""
    spans: tuple[Span, ...] = ()
    reason: str = ""


class Codebook(Frozen):
    """A loaded codebook."""

    about: str
    source: str = Field(min_length=1)
    paper: str = ""
    kind: Literal["classes", "spans", "pairs"] = "classes"
    task: str = Field(min_length=1)
    classes: tuple[Kind, ...] = Field(min_length=1)
    examples: tuple[Example, ...] = ()

    @field_validator("classes")
    @classmethod
    def _apart(cls, classes: tuple[Kind, ...], info: ValidationInfo) -> tuple[Kind, ...]:
        names = [folded(each.name) for each in classes]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise _wrong(f"the class {twice!r} stands twice")
        if info.data.get("kind") != "spans" and len(names) < 2:
            raise _wrong("one class leaves nothing to choose", "name another, or kind: spans")
        return classes

    @field_validator("examples")
    @classmethod
    def _fitting(cls, examples: tuple[Example, ...], info: ValidationInfo) -> tuple[Example, ...]:
        kind, names = info.data.get("kind"), {folded(each.name) for each in info.data.get("classes", ())}
        if not names:
            return examples
        for number, example in enumerate(examples, 1):
            labels = [span.label for span in example.spans] if kind == "spans" else [example.label]
            at = f"example {number}"
            if kind == "spans" and example.label:
                raise _wrong(f"{at} has a label", "an example of spans has spans: [{exact: …, label: …}]")
            if kind != "spans" and (example.spans or not example.label):
                raise _wrong(f"{at} has {'spans' if example.spans else 'no label'}", f"kind: {kind} takes a label")
            if alien := next((label for label in labels if folded(label) not in names), ""):
                raise _wrong(f"{at}: {alien!r} is no class", did_you_mean(alien, names))
            if (kind == "pairs") != bool(example.second):
                raise _wrong(f"{at} has {'a' if example.second else 'no'} second text", "kind: pairs takes two texts")
            if lost := next((span for span, place in located(example.text, example.spans) if place is None), None):
                raise _wrong(f"{at}: {lost.exact!r} does not stand in its text")
        return examples

    @property
    def names(self) -> tuple[str, ...]:
        """The classes by name, in order."""
        return tuple(each.name for each in self.classes)

    def class_of(self, label: str) -> str | None:
        """The class that a label names, its case and spacing aside."""
        return next((name for name in self.names if folded(name) == folded(label)), None)


def folded(name: str) -> str:
    """A class's name, its case and spacing aside."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def located(text: str, spans: Sequence[Span]) -> list[tuple[Span, tuple[int, int] | None]]:
    """Each span with its place in `text`, (start, end) in characters, or None where it does not stand there.

    Its words stand there as they are, spacing aside, and as whole words. What is named several times has its places from
    the first on; where it is named more often than it stands, the rest have none.
    """
    found: list[tuple[Span, tuple[int, int] | None]] = []
    taken: set[tuple[int, int]] = set()
    for span in spans:
        pattern = r"\s+".join(re.escape(word) for word in span.exact.split())
        places = (match.span() for match in re.finditer(pattern, text)) if pattern else ()
        free = (place for place in places if place not in taken and _whole_words(text, *place))
        place = next(free, None)
        if place:
            taken.add(place)
        found.append((span, place))
    return found


def _whole_words(text: str, start: int, end: int) -> bool:
    """Whether neither end of a place cuts a word in two."""
    return not any(
        0 < edge < len(text) and all(each.isalnum() and each < NO_SPACES for each in text[edge - 1 : edge + 1])
        for edge in (start, end)
    )


def written(spans: Sequence[Span]) -> str:
    """Spans as the output of a row: a JSON list."""
    return orjson.dumps([span.model_dump() for span in spans]).decode()


def _wrong(cause: str, hint: str = "") -> PydanticCustomError:
    return PydanticCustomError("codebook", "{cause}", {"cause": cause, "hint": hint})


def load_codebook(path: Path) -> Codebook:
    """Read a codebook file. Raises UserError with file and line for what is wrong with it."""
    source = load_yaml(path)
    try:
        return Codebook.model_validate(source.tree)
    except ValidationError as error:
        raise explain(error, source, Codebook) from None


CodebookFile = Annotated[Codebook, named("codebooks", load_codebook)]
"""A recipe's `codebook:` — a built-in's name or a path relative to the recipe — loaded and checked."""
