"""What every teacher is made of: parameters, a request, a raw answer, a reply, and the wire between them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import orjson
from pydantic import Field

from kdgen.errors import Rejected, UserError
from kdgen.record import Frozen

Finish = Literal["stop", "length", "refusal", "filter", "tool", "unknown"]
FaultKind = Literal["never", "stop", "rate", "transient"]


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


class Raw(NamedTuple):
    """A reply as it came back: the body's bytes, the few response headers worth keeping, and those that tell limits."""

    body: bytes
    headers: dict[str, str]
    limits: dict[str, str] = {}


class Usage(NamedTuple):
    """Tokens of one reply. `input` counts all input, `cached_input` the part served from a cache."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    cache_write: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A raw reply, read. `body` is the parsed JSON of the wire, `key` its place in the ledger."""

    key: str
    text: str
    finish: Finish
    usage: Usage
    body: dict[str, Any]
    reasoning: str = ""
    model: str = ""
    teacher: str = ""
    detail: str = ""


class Fault(Exception):
    """A request that got no reply.

    `kind`: never = this request cannot succeed (reject the record); stop = no request can (end the
    run); rate = slow down; transient = try again. `billed` marks a reply that may have been paid for.
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
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.billed = billed
        self.hint = hint


class Wire(Protocol):
    """An open connection to one endpoint."""

    async def send(self, request: Request) -> Raw:
        """Send `request` once. Raises Fault; never retries."""

    async def close(self) -> None:
        """Release sockets, threads and memory."""


class Status(NamedTuple):
    """Where a batch stands: running, ended (results can be read) or failed (none will come)."""

    state: str
    done: int = 0
    detail: str = ""


class BatchApi(Protocol):
    """A provider's batch interface. Every call may raise Fault."""

    max_requests: ClassVar[int]
    max_bytes: ClassVar[int]

    async def submit(self, name: str, requests: Sequence[Request]) -> str:
        """Hand the requests in under `name`; the provider's id of the batch."""

    async def find(self, name: str, made_at: float, size: int, known: set[str]) -> str | None:
        """The provider's id of the batch that was handed in as `name`, if it ever arrived."""

    async def status(self, remote: str) -> Status:
        """Where the batch stands."""

    def results(self, remote: str) -> AsyncIterator[tuple[str, Raw | Fault]]:
        """(key, reply or fault) of each request that has ended. A transient Fault means: ask again."""

    async def cancel(self, remote: str) -> None:
        """Ask for an early end; what is done stays."""

    async def close(self) -> None:
        """Release the connection."""


class TeacherSpec(Params):
    """A teacher as a recipe names it. `request` and `read` are pure; `connect` opens the wire.

    Nothing is opened, imported or looked up before `connect`, which a run calls at its first miss in
    the ledger: a run that is answered by the ledger opens no connection.
    """

    provider: str
    model: str = ""
    concurrency: int = Field(8, ge=1, le=4096, description="requests in flight at most")
    rpm: float | None = Field(None, gt=0, description="requests a minute at most, over all processes of one ledger")
    tpm: float | None = Field(None, gt=0, description="tokens a minute at most, over all processes of one ledger")
    timeout: float = Field(600, gt=0, description="seconds one request may take")
    patience: float = Field(
        60, ge=0, description="seconds without any success after which a failing endpoint ends the run"
    )
    attempts: int = Field(6, ge=1, description="times one request is tried before its record is given up")
    on_cut: Literal["reject", "retry"] = Field(
        "reject", description="a reply cut at max_tokens: reject the record, or ask once more with twice the room"
    )
    repairs: int = Field(
        0, ge=0, le=5, description="times a reply that does not validate is asked for again, with its error shown"
    )
    mode: Literal["online", "batch"] = Field(
        "online", description="ask at once, or through the provider's batches at half the price"
    )
    unsupported: Literal["fail", "drop"] = Field(
        "fail", description="a parameter this teacher does not take: a config error, or left out and reported"
    )

    wire: ClassVar[str] = "openai.chat"
    takes: ClassVar[frozenset[str]] = frozenset(Params.model_fields) - {"effort"}

    @property
    def label(self) -> str:
        """The teacher's name in rows and manifests: provider:model."""
        return f"{self.provider}:{self.model}"

    def origin(self) -> dict[str, str]:
        """What is known of the model for the manifest: `licence`, `origin`, `notice`."""
        return {}

    def needs(self) -> list[str]:
        """What is missing here before this teacher can be asked; the ledger can answer without it."""
        return []

    def check(self) -> None:
        """Raise UserError for what can be known to be wrong without sending."""

    def settle(self, params: Params, where: str) -> tuple[Params, list[str]]:
        """`params` over this teacher's own, and the names of those it does not take (when dropped).

        Raises UserError where one is not taken and `unsupported` is "fail".
        """
        merged = params.over(self)
        alien = [name for name in merged.given() if name not in self.takes]
        if alien and self.unsupported == "fail":
            role = where.rsplit(" ", 1)[-1]
            raise UserError(
                f"{self.label} does not take {', '.join(alien)}",
                where=where,
                hint=f"set {'it' if len(alien) == 1 else 'them'} to null there, "
                f"or leave out what the teacher does not take with --set teachers.{role}.unsupported=drop",
            )
        if alien:
            merged = Params(**{name: value for name, value in merged.given().items() if name not in alien})
        return merged, alien

    def request(self, call: Call) -> Request:
        """The wire's own JSON for `call`."""
        body = orjson.dumps(self.body(call), option=orjson.OPT_SORT_KEYS)
        return Request(self.wire, body, call.nth, call.params.max_tokens or 0)

    def body(self, call: Call) -> dict[str, Any]:
        """The chat-completions body; other wires override it."""
        return chat_body(self.model, call)

    def read(self, request: Request, raw: Raw) -> Reply:
        """The reply inside `raw`. Raises Rejected where the body is not what the wire promises."""
        return read_chat(request.key, self.label, raw)

    def connect(self) -> Wire:
        """Open the wire."""
        raise NotImplementedError

    def batches(self) -> BatchApi:
        """Open the provider's batch interface. Raises UserError where it has none."""
        raise UserError(f"{self.label} has no batches", hint="mode: online")


def chat_body(model: str, call: Call, *, limit: str = "max_tokens") -> dict[str, Any]:
    """A body of OpenAI's chat-completions dialect; `limit` is the name of its output cap.

    A drawn repeat (nth > 0) of a seeded request moves the seed, or the endpoint would repeat itself.
    """
    body: dict[str, Any] = {"model": model, "messages": list(call.messages)}
    for name, value in call.params.given().items():
        if name == "max_tokens":
            body[limit] = value
        elif name == "seed":
            body["seed"] = value + call.nth
        elif name == "stop":
            body["stop"] = list(value)
        elif name == "logprobs":
            body["logprobs"] = True
            body["top_logprobs"] = value
        elif name == "effort":
            body["reasoning_effort"] = value
        else:
            body[name] = value
    if call.schema is not None:
        name = str(call.schema.get("title", "reply"))
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": call.schema, "strict": True},
        }
    return body


FINISHES: dict[str | None, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "content_filter": "filter",
    "tool_calls": "tool",
    "function_call": "tool",
}


def read_chat(key: str, label: str, raw: Raw) -> Reply:
    """Read a chat-completions reply: text, reasoning, refusal, finish and usage kept apart."""
    try:
        body = orjson.loads(raw.body)
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise Rejected("malformed_reply", f"no choices[0].message in the reply ({type(error).__name__})") from None
    usage = body.get("usage") or {}
    inputs = usage.get("prompt_tokens_details") or {}
    outputs = usage.get("completion_tokens_details") or {}
    refusal = message.get("refusal") or ""
    return Reply(
        key=key,
        text=text,
        finish="refusal" if refusal else FINISHES.get(choice.get("finish_reason"), "unknown"),
        usage=Usage(
            input=usage.get("prompt_tokens") or 0,
            cached_input=inputs.get("cached_tokens") or 0,
            output=usage.get("completion_tokens") or 0,
            cache_write=inputs.get("cache_write_tokens") or 0,
            reasoning=outputs.get("reasoning_tokens") or 0,
        ),
        body=body,
        reasoning=message.get("reasoning") or message.get("reasoning_content") or "",
        model=body.get("model") or "",
        teacher=label,
        detail=refusal,
    )
