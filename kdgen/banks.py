"""Banks: files of system messages, principles, personas, topics…, of which a stage draws one entry a record.

A bank file is

    about: what its entries are
    source: where they come from, and under what licence
    entries:
      - {id: teacher, weight: 2, text: You explain as a patient teacher would.}
      - You answer in one sentence.

An entry has the fields that all others of its bank have; a text alone is its `text`. What is drawn for a record depends
on the record and on the entry's id and weight, so that an entry added or taken away moves only its own share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from kdgen.errors import UserError
from kdgen.record import Frozen, digest, pick
from kdgen.resources import find
from kdgen.yamls import explain, load_yaml


class Entry(Frozen):
    """One entry: its id, its weight, its texts by field."""

    id: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    texts: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, dict) or "texts" in value:
            return value
        own = {name: value[name] for name in ("id", "weight") if name in value}
        texts = {str(name): text for name, text in value.items() if name not in own}
        if not texts:
            raise PydanticCustomError("no_text", "an entry has a text", {"hint": "- {id: brief, text: …}"})
        return {"id": digest(texts)[:8], **own, "texts": texts}


class Bank(Frozen):
    """A loaded bank."""

    about: str
    source: str = Field(min_length=1)
    paper: str = ""
    entries: tuple[Entry, ...] = Field(min_length=1)

    @field_validator("entries")
    @classmethod
    def _alike(cls, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        seen: set[str] = set()
        for entry in entries:
            if entry.id in seen:
                raise PydanticCustomError("twice", "{id} stands twice", {"id": repr(entry.id)})
            if entry.texts.keys() != entries[0].texts.keys():
                given, wanted = (", ".join(sorted(each.texts)) for each in (entry, entries[0]))
                context = {"id": repr(entry.id), "given": given, "wanted": wanted}
                raise PydanticCustomError("unlike", "{id} has {given}, the first entry has {wanted}", context)
            seen.add(entry.id)
        return entries

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that every entry has."""
        return tuple(self.entries[0].texts)

    def draw(self, *key: object) -> Entry:
        """The entry that `key` draws, by weight."""
        drawn = pick({entry.id: entry.weight for entry in self.entries}, *key)
        return self.entry(drawn)

    def several(self, count: int, *key: object) -> list[Entry]:
        """The `count` entries that `key` draws by weight, no entry twice; all of them where there are fewer."""
        left = {entry.id: entry.weight for entry in self.entries}
        found: list[Entry] = []
        while left and len(found) < count:
            found.append(self.entry(pick(left, *key)))
            del left[found[-1].id]
        return found

    def entry(self, id: str) -> Entry:
        """The entry of that id. Raises LookupError."""
        return next(entry for entry in self.entries if entry.id == id)


def load_bank(path: Path) -> Bank:
    """Read a bank file. Raises UserError with file and line for what is wrong with it."""
    source = load_yaml(path)
    try:
        return Bank.model_validate(source.tree)
    except ValidationError as error:
        raise explain(error, source, Bank) from None


def named(kind: str, load: Callable[[Path], Any]) -> BeforeValidator:
    """What turns a name in a recipe, a built-in's or a path relative to the recipe, into what `load` reads there."""

    def resolve(value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        base = (info.context or {}).get("base", Path())
        try:
            return load(find(kind, value, base))
        except UserError as error:
            cause = f"{error.where}: {error.cause}" if error.where else error.cause
            raise PydanticCustomError("no_prompt", "{cause}", {"cause": cause, "hint": error.hint}) from None

    return BeforeValidator(resolve)


BankFile = Annotated[Bank, named("banks", load_bank)]
"""A recipe's `banks:` entry — a built-in's name or a path relative to the recipe — loaded and checked."""
