"""What every teacher is: a frozen spec whose `request` and `read` are pure, and the wire that its `connect` opens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field

from kdgen.errors import UserError
from kdgen.features import Facts
from kdgen.teachers.calls import Call, Fault, FaultKind, Finish, Params, Raw, Reply, Request, Told, Usage, dumped
from kdgen.teachers.chat import chat_body, read_chat, read_completion
from kdgen.teachers.heed import unheeded
from kdgen.teachers.told import read_told
from kdgen.teachers.turns import COMPLETIONS, NAMES

__all__ = [
    "BatchApi",
    "Call",
    "Fault",
    "FaultKind",
    "Finish",
    "Full",
    "Params",
    "Raw",
    "Reply",
    "Request",
    "Sought",
    "Status",
    "TeacherSpec",
    "Told",
    "Usage",
    "Wire",
    "chat_body",
    "read_chat",
]


Lack = Literal[
    "temperature", "top_p", "max_tokens", "seed", "stop", "presence_penalty", "frequency_penalty", "logprobs", "effort",
    "schema",
]  # fmt: skip


SCORERS = "a teacher that can: local, vllm:MODEL, transformers:MODEL"


class Wire(Protocol):
    """An open connection to one endpoint."""

    async def send(self, request: Request) -> Raw:
        """Send `request` once. Raises Fault; never retries."""

    async def close(self) -> None:
        """Release sockets, threads and memory."""


class Status(NamedTuple):
    """Where a batch stands: running, ended (results can be read), failed (none will come) or full (the queue was)."""

    state: Literal["running", "ended", "failed", "full"]
    detail: str = ""


class Full(Fault):
    """The provider's queue takes no more until batches that run have ended."""


class Sought(NamedTuple):
    """A batch that may or may not have arrived; `mine` tells a request of it by its key, `known` are other batches."""

    name: str
    made_at: float
    size: int
    mine: Callable[[str], bool]
    known: frozenset[str]


class BatchApi(Protocol):
    """A provider's batch interface. Every call may raise Fault."""

    max_requests: ClassVar[int]
    max_bytes: ClassVar[int]
    nameless: ClassVar[bool]  # batches carry no name, so `find` can take another's for one's own
    settles: ClassVar[float]  # seconds for which one that cannot be found may still be on its way

    async def submit(self, name: str, requests: Sequence[Request]) -> str:
        """Hand the requests in under `name`; the provider's id of the batch. A Fault that is `billed` is in doubt."""

    async def find(self, sought: Sought) -> str | None:
        """The provider's id of a batch that was handed in, if it ever arrived."""

    async def status(self, remote: str) -> Status:
        """Where the batch stands."""

    def results(self, remote: str) -> AsyncGenerator[tuple[str, Raw | Fault], None]:
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

    lacks: tuple[Lack, ...] = Field((), description="what this server is known not to take; schema: none is sent")

    wire: ClassVar[str] = "openai.chat"
    metered: ClassVar[bool] = False  # whether an endpoint of this kind may have limits, which its first reply tells
    takes: ClassVar[frozenset[str]] = frozenset(Params.model_fields) - {"effort"}

    @property
    def scores(self) -> bool | None:
        """Whether it says numbers, and no words; None where it can do both."""
        return False

    @property
    def label(self) -> str:
        """The teacher's name in rows and manifests: provider:model."""
        return f"{self.provider}:{self.model}"

    def origin(self) -> dict[str, str]:
        """What is known of the model for the manifest: `licence`, `origin`, `notice`."""
        return {}

    def needs(self) -> dict[str, str]:
        """What is missing here before this teacher can be asked, each with the way out; the ledger can answer without."""
        return {}

    def notes(self) -> list[str]:
        """What to tell of a run before this teacher is asked."""
        return []

    def ready(self) -> None:
        """Raise UserError where something is missing."""
        for need, hint in self.needs().items():
            raise UserError(need, where=self.label, hint=hint)

    def check(self) -> None:
        """Raise UserError for what can be known to be wrong without sending."""

    def batchable(self) -> bool:
        """Whether the provider has batches."""
        return type(self).batches is not TeacherSpec.batches

    def accepts(self) -> frozenset[str]:
        """The parameters that this teacher takes."""
        return self.takes

    def settle(self, params: Params, where: str) -> tuple[Params, list[str]]:
        """`params` over this teacher's own, and the names of those it does not take (when dropped).

        Raises UserError where one is not taken and `unsupported` is "fail".
        """
        merged = params.over(self)
        taken = self.accepts() - set(self.lacks)
        alien = [name for name in merged.given() if name not in taken]
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

    def shut(self) -> tuple[str, str] | None:
        """Why this teacher cannot write a user's turn, with the way out; None where it can."""
        ways = "local, vllm:MODEL, or a server of raw completions: openai:MODEL@BASE_URL with template: " + NAMES
        return "it answers messages, and takes no conversation that is open for the user's words", ways

    def deaf(self) -> tuple[str, str] | None:
        """Why this teacher cannot score a text that it is given, with the way out; None where it can."""
        return "it tells logprobs of what it writes, and of nothing that it is given", SCORERS

    def scoring(self, call: Call) -> list[Request]:
        """The requests that score a call's last message; `told` reads their replies."""
        return [self.request(call)]

    def told(self, replies: Sequence[Reply], said: str) -> Told:
        """The tokens of a last message `said` that was scored. Raises Rejected where they cannot be told."""
        return read_told(replies[0].body)

    def facts(self, params: Params, reply: Reply) -> Facts:
        """What is known of how a reply's logprobs were made. A scored text was not sampled, and has no temperature."""
        known = reply.body.get("facts")
        wrote = reply.told is None
        return Facts(
            self.label,
            model=reply.model or None,
            temperature=params.temperature if wrote else None,
            top_p=params.top_p if wrote else None,
            source="generated" if wrote else "scored",
            mode=self.logprobs_mode(),
            **(known if isinstance(known, dict) else {}),
        )

    def logprobs_mode(self) -> str | None:
        """Whether logprobs are the model's own (raw_logprobs) or what is sampled from; None where it is not known."""
        return None

    def ignored(self, params: Params, reply: Reply) -> list[str]:
        """The parameters that a reply shows to have been ignored."""
        return [] if reply.body.get("object") == "text_completion" else list(unheeded(params, reply))

    def request(self, call: Call) -> Request:
        """The wire's own JSON for `call`."""
        return Request(self.wire, dumped(self.body(call)), call.nth, call.params.max_tokens or 0)

    def body(self, call: Call) -> dict[str, Any]:
        """The chat-completions body; other wires override it."""
        return chat_body(self.model, call)

    def read(self, request: Request, raw: Raw) -> Reply:
        """The reply inside `raw`. Raises Rejected where the body is not what the wire promises."""
        if request.wire == COMPLETIONS:
            return read_completion(request.key, self.label, raw)
        return read_chat(request.key, self.label, raw)

    def connect(self) -> Wire:
        """Open the wire."""
        raise NotImplementedError

    def batches(self) -> BatchApi:
        """Open the provider's batch interface. Raises UserError where it has none."""
        raise UserError(f"{self.label} has no batches", hint="mode: online")

    def todo(self, remote: str) -> str:
        """The command that a person has to run for a batch, where no provider does."""
        return ""
