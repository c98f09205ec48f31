"""One call of a teacher: its parameters, the request, the raw answer, the reply read from it, and the fault instead."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import Field

from kdgen.features import Facts
from kdgen.record import Frozen

Finish = Literal["stop", "length", "refusal", "filter", "tool", "unknown"]
FaultKind = Literal["never", "stop", "rate", "transient"]
BATCH = "kdgen-batch"  # the header of a reply from a batch that says which one


class Params(Frozen):
    """Sampling parameters. None means: not sent, so the endpoint's own default holds."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: int | None = Field(None, ge=0, description="top-k logprobs of each generated token")
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    def over(self, below: Params) -> Params:
        """These parameters where they are set, `below` where they are not."""
        mine = {name: value for name in Params.model_fields if (value := getattr(self, name)) is not None}
        return Params(**({name: getattr(below, name) for name in Params.model_fields} | mine))

    def given(self) -> dict[str, Any]:
        """The parameters that are set."""
        return {name: value for name in Params.model_fields if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Call:
    """What a stage asks, before a teacher turns it into its own wire's JSON."""

    messages: Sequence[Mapping[str, str]]
    params: Params
    schema: dict[str, Any] | None = None
    nth: int = 0
    open: bool = False  # the user's turn is next, and the model is to write it
    score: int | None = (
        None  # nothing is to be written: the last message is scored, its tokens and the likeliest `score`
    )
    tokens: bool = False  # the reply is to tell token ids, those of the prompt too


@dataclass(frozen=True, slots=True)
class Request:
    """What is hashed is what is sent is what is logged.

    `body` is the JSON that goes over the wire, byte for byte; `nth` tells repeated draws of one body
    apart; `wire` names the body's dialect. Address, key and timeouts are transport and stay out.
    `room` is the most output tokens it can be billed for (0: not bounded by the request).
    """

    wire: str
    body: bytes
    nth: int = 0
    room: int = 0
    key: str = field(init=False, default="")

    def __post_init__(self) -> None:
        made = hashlib.sha256(b"%s\n%d\n%s" % (self.wire.encode(), self.nth, self.body))
        object.__setattr__(self, "key", made.hexdigest())


def dumped(body: Mapping[str, Any]) -> bytes:
    """A request's JSON: its own keys in alphabetical order, what they hold as it is.

    A model writes an object's properties in the order of the schema, so a schema must not be sorted: what reasons
    would come after what it is the reason of.
    """
    return orjson.dumps({name: body[name] for name in sorted(body)})


class Raw(NamedTuple):
    """A reply as it came back: the body's bytes, the few response headers worth keeping, and those that tell limits."""

    body: bytes
    headers: dict[str, str]
    limits: dict[str, str] = {}

    @property
    def mode(self) -> Literal["online", "batch"]:
        """How it was asked for, which its price depends on."""
        return "batch" if BATCH in self.headers else "online"


class Usage(NamedTuple):
    """Tokens of one reply. `input` counts all input, `cached_input` the part served from a cache."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    cache_write: int = 0
    reasoning: int = 0


class Told(NamedTuple):
    """n tokens with their logprobs, and of each place the likeliest (id, logprob), the likeliest first.

    Place j is p(· | prompt_ids, ids[:j]). `pieces` are the tokens' bytes, where they are known, `ids` and those of `top`
    where the teacher tells them: one that does not has `words` in the place of `top`, the tokens' bytes.
    """

    prompt_ids: Sequence[int]
    ids: Sequence[int]
    logprobs: Sequence[float]
    top: Sequence[Sequence[tuple[int, float]]]
    pieces: Sequence[bytes] | None = None
    words: Sequence[Sequence[tuple[bytes, float]]] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A raw reply, read. `body` is the parsed JSON of the wire, `key` its place in the ledger.

    `told` are the tokens of a text that was scored, and `facts` what told them, where the stage keeps features.
    """

    key: str
    text: str
    finish: Finish
    usage: Usage
    body: dict[str, Any]
    reasoning: str = ""
    model: str = ""
    teacher: str = ""
    detail: str = ""
    told: Told | None = None
    facts: Facts | None = None


class Fault(Exception):
    """A request that got no reply.

    `kind`: never = this request cannot succeed (reject the record); stop = no request can (end the
    run); rate = slow down; transient = try again. `billed` marks a reply that may have been paid for.
    `limits` are the headers of an error that tell limits.
    """

    def __init__(
        self,
        kind: FaultKind,
        message: str,
        *,
        status: int = 0,
        retry_after: float | None = None,
        billed: bool = False,
        hint: str = "",
        limits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.billed = billed
        self.hint = hint
        self.limits = limits or {}
