"""The one row type, from seed to export, and the one way a row ends on the way."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, JsonValue

if TYPE_CHECKING:
    from kdgen.features import Feature


class Frozen(BaseModel):
    """Base of every piece: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Message(Frozen):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


def digest(*parts: object) -> str:
    """20 hex digits (80 bits) that stand for `parts`: strings, numbers, messages, lists or dicts of them."""
    return hashlib.sha256(orjson.dumps(parts, vars, orjson.OPT_SORT_KEYS)).hexdigest()[:20]


def score(*key: object) -> int:
    """A 64-bit number that depends on `key` alone: the source of every draw."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def pick(weights: Mapping[str, float], *key: object) -> str:
    """One name, drawn by weight; another name added or taken away moves only the draws that it wins or won.

    Weighted rendezvous hashing (Schindelhauer & Schomaker 2005): the largest weight / -ln(u) wins.
    """
    return max(weights, key=lambda name: -weights[name] / math.log((score(name, *key) + 1) / (2**64 + 2)))


class Candidate(Frozen):
    """One of several answers to a record's task, with what is thought of it.

    `writer` is the label of the model that wrote it, `role` the recipe's name for it (`seed` where the seed brought it),
    `calls` the ledger keys of the replies behind text and scores. `scores` are by name: an aspect of a rubric, a verifier,
    a reward model; None is unscored, which is never a number. `score` is the one that ranks, higher is better, and `rank`
    the place by it: 1 is the best, equals share a place. `notes` say the rest: reasons, the principle it was asked under.
    """

    output: str
    reasoning: str = ""
    writer: str = ""
    role: str = ""
    calls: tuple[str, ...] = ()
    scores: dict[str, float | None] = {}
    score: float | None = None
    rank: int | None = None
    notes: dict[str, JsonValue] = {}


class Record(Frozen):
    """A row and everything that made it.

    `instruction`, `input`, `output` are the task and its answer; `history` and `system` come before
    the instruction in a conversation; `text` is a document; `reasoning` is kept apart from `output`.
    `seeds` are the ids of the seeds this row depends on, `parents` the records it was made from,
    `calls` the ledger keys of the replies behind it, and `writers` says which teacher wrote which field.
    `candidates` are several answers to the same task; in a preference pair there are two, the chosen one first.
    `meta` belongs to methods, `extra` to the user (columns carried along untouched). `features` is no field: digests and
    rows leave it out.
    """

    id: str
    instruction: str = ""
    input: str = ""
    output: str = ""
    reasoning: str = ""
    system: str = ""
    history: tuple[Message, ...] = ()
    text: str = ""
    candidates: tuple[Candidate, ...] = ()
    stage: str = "seed"
    method: str = ""
    seeds: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    writers: dict[str, str] = {}
    finish: str = ""
    meta: dict[str, JsonValue] = {}
    extra: dict[str, JsonValue] = {}

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> Record:
        """A record of all fields, unchecked: what kdgen itself made needs no validation, and rows are many."""
        record = cls.__new__(cls)
        for name, value in (("__dict__", fields), ("__pydantic_fields_set__", set()), *UNSET):
            object.__setattr__(record, name, value)
        return record

    @property
    def features(self) -> Mapping[str, Feature]:
        """What a teacher told of this record beside words, by name."""
        return self.__pydantic_private__ or {}

    def featured(self, more: Mapping[str, Feature]) -> Record:
        """This record with more features."""
        made = Record.trusted(self.__dict__)
        if more or self.features:  # pydantic's own place for what is no field: a copy keeps it
            object.__setattr__(made, "__pydantic_private__", {**self.features, **more})
        return made

    @property
    def task(self) -> str:
        """The instruction with its input, as one text."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    def child(
        self,
        *,
        stage: str,
        method: str,
        calls: Iterable[str] = (),
        parents: Iterable[Record] | None = None,
        writers: dict[str, str] | None = None,
        meta: dict[str, JsonValue] | None = None,
        **content: Any,
    ) -> Record:
        """A new record made from this one (or from `parents`), with its lineage and a derived id.

        With `parents`, nothing but lineage is taken from them: the child is a new task. Without, the
        child is this record with `content` changed, and the user's extra columns stay with it; so do its features, where
        no text of it changes.
        """
        made_from = (self,) if parents is None else tuple(parents)
        calls = tuple(calls)
        own = dict.fromkeys(call for parent in made_from for call in parent.calls) if parents is None else {}
        fields: dict[str, Any] = dict(BLANK if parents is not None else self.__dict__)
        fields |= content
        fields |= {
            "stage": stage,
            "method": method,
            "seeds": tuple(dict.fromkeys(seed for parent in made_from for seed in parent.seeds)),
            "parents": tuple(parent.id for parent in made_from),
            "calls": (*own, *calls),
            "writers": {**fields.get("writers", {}), **(writers or {})},
            "meta": {**fields.get("meta", {}), **(meta or {})},
            "id": digest(stage, method, [parent.id for parent in made_from], calls, content, meta or {}),
        }
        made = Record.trusted(fields)
        return (
            made.featured(self.features) if parents is None and self.features and not TEXTS & content.keys() else made
        )

    def sibling(self, *, stage: str, method: str, calls: tuple[str, ...], **changes: Any) -> Record:
        """A record made by this job of a pool: the job's own parents and seeds stand behind it."""
        made = digest(stage, method, self.id, calls, changes)
        return Record(
            id=made, seeds=self.seeds, parents=self.parents, stage=stage, method=method, calls=calls, **changes
        )

    def rejected(self, stage: str, reason: str, detail: str = "") -> Reject:
        """This record's row in rejects.jsonl."""
        return Reject(
            id=self.id,
            stage=stage,
            reason=reason,
            detail=detail,
            instruction=self.instruction,
            input=self.input,
            output=self.output,
            seeds=self.seeds,
            parents=self.parents,
            calls=self.calls,
        )


BLANK: dict[str, Any] = {name: field.default for name, field in Record.model_fields.items()}
TEXTS = frozenset("instruction input output reasoning system history text".split())
UNSET = (("__pydantic_extra__", None), ("__pydantic_private__", None))


class Reject(Frozen):
    """A row that ended on the way: where, why, and what it was."""

    id: str
    stage: str
    reason: str
    detail: str = ""
    instruction: str = ""
    input: str = ""
    output: str = ""
    seeds: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


class Waiting(Frozen):
    """A row whose reply is in a batch that has not come back."""

    id: str


Row = Record | Reject | Waiting
