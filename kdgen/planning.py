"""What a run would ask and cost: the same pass, with invented replies where the ledger has none. Nothing is sent.

What a reply will be nobody knows, so it is taken to be of the right form and to pass every filter; its length is that
of the replies that the ledger has for the same stage and teacher, else what the user says, else an assumption.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from kdgen.asking import Desk, Step
from kdgen.errors import GateFailed
from kdgen.features.disk import expected
from kdgen.parse import tokens_of
from kdgen.questions import Question
from kdgen.record import Record
from kdgen.runner import Run
from kdgen.sandbox.box import Outcome
from kdgen.store import Staging
from kdgen.teachers.base import Reply, Request, TeacherSpec, Usage
from kdgen.teachers.invented import content, scored, vector
from kdgen.teachers.prices import Price, Prices

ASSUMED = 256
ENOUGH = 5
TURN, REPLY = 4, 3
SURE: dict[str, Any] = {"choices": [{"logprobs": {"content": [{"logprob": 0.0}]}}]}
WORDS = (
    "amber basin copper delta early forest garden harbor island jacket kernel ladder market needle orange planet quiet "
    "river silver timber under valley window yellow zenith answer bridge circle dinner engine figure ground hollow"
).split()


@dataclass
class Line:
    """What one stage asks of one teacher."""

    stage: str
    role: str
    spec: TeacherSpec
    known: int = 0
    missing: int = 0
    known_guess: int = 0
    known_input: int = 0
    known_output: int = 0
    guess: int = 0
    said: int = 0
    most: float | None = 0.0
    prompts: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, request: Request, guess: int, said: int, price: Price | None) -> None:
        """Count a request that would be sent; `guess` and `said` are its tokens, as they are expected."""
        worst = price.worst(len(request.body), request.room) if price is not None and request.room else None
        self.most = None if worst is None or self.most is None else self.most + worst
        self.missing += 1
        self.guess += guess
        self.said += said

    @property
    def usage(self) -> Usage:
        """The tokens of all that would be sent. Where the ledger has replies of the kind, they set the measure."""
        learnt = self.known >= ENOUGH
        came = self.guess * (self.known_input / self.known_guess if learnt and self.known_guess else 1.0)
        went = self.missing * self.known_output / self.known if learnt else float(self.said)
        return Usage(input=round(came), output=round(went))

    def usd(self, price: Price | None) -> float | None:
        """Dollars of all that would be sent, without a discount for what a cache may serve."""
        usage, count = self.usage, max(1, self.missing)
        each = Usage(input=round(usage.input / count), output=round(usage.output / count))
        return None if price is None else self.missing * price.of(each)

    def data(self, prices: Prices) -> dict[str, Any]:
        """For `--json`."""
        online, batch = prices.of(self.spec, "online"), prices.of(self.spec, "batch")
        usage = self.usage
        return {
            "stage": self.stage,
            "role": self.role,
            "teacher": self.spec.label,
            "requests": self.known + self.missing,
            "in_ledger": self.known,
            "to_send": self.missing,
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "usd_online": self.usd(online),
            "usd_batch": self.usd(batch) if self.spec.batchable() else None,
            "usd_at_most": self.most,
            "mode": self.spec.mode,
            "learnt": self.known >= ENOUGH,
            "prompts": self.prompts,
        }


@dataclass
class PlanDesk(Desk):
    """A desk that answers from the ledger, and else invents."""

    expect: int | None = None
    lines: dict[tuple[str, str], Line] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    async def recover(self) -> None:
        """Nothing is looked after."""

    async def submit(self) -> None:
        """Nothing is handed in."""

    async def execute(self, program: str, stdin: str, files: Mapping[str, str], guess: str) -> Outcome:
        """How it ended when it ran, else as the stage guesses: a plan runs no program."""
        known = self.programs.known(self.programs.key(program, stdin, files))
        return known or Outcome("ok", 0, guess, "")

    async def complete(self, step: Step, role: str, question: Question, request: Request) -> Reply:
        """The ledger's reply, or an invented one; each request is counted once."""
        spec = self.teachers[role].spec
        line = self.lines.setdefault((step.stage.name, role), Line(step.stage.name, role, spec))
        line.prompts.setdefault(question.prompt.name, question.messages)
        fresh = request.key not in self.seen
        self.seen.add(request.key)
        guess = _guess(spec, question)
        raw = self.ledger.get(request.key)
        if raw is not None:
            line.known += fresh
            reply = spec.read(request, raw)
            if fresh:
                line.known_guess += guess
                line.known_input += reply.usage.input
                line.known_output += reply.usage.output
            return reply
        room = request.room or ASSUMED * 8
        count = min(room, self.expect if self.expect is not None else ASSUMED)
        text = step.stage.example(question.prompt, question.variables, _inventor(request.key, count))
        if question.schema is not None and not _fits(question.schema, text):
            text = orjson.dumps(instance(question.schema.model_json_schema())).decode()
        if fresh:
            said = min(room, self.expect if self.expect is not None else max(1, tokens_of(text)))
            line.add(request, guess, said, self.bill.prices.of(spec))
        usage = Usage(input=guess, output=count)
        body = SURE if step.stage.reads_logprobs is not None else {}
        if step.stage.features:
            top = step.params[role].logprobs or 0
            body = {"choices": [{"logprobs": {"content": content(text, top)}}]}
        return Reply(request.key, text, "stop", usage, body, model=spec.model, teacher=spec.label)

    async def score(self, role: str, step: Step, question: Question, requests: Sequence[Request]) -> Reply:
        """What the ledger has of a text's tokens, or invented ones."""
        if all(self.ledger.get(request.key) is not None for request in requests):
            for request in requests:
                await self.complete(step, role, question, request)
            return await super().score(role, step, question, requests)
        replies = [await self.complete(step, role, replace(question, schema=None), request) for request in requests]
        if question.embed:
            return replace(replies[0], body={"data": [{"embedding": vector(question.messages)}]})
        return replace(replies[0], told=scored(question.messages, question.score or 0, question.layers))


def _guess(spec: TeacherSpec, question: Question) -> int:
    said = sum(TURN + tokens_of(message["content"]) for message in question.messages) + REPLY
    if question.schema is not None and spec.provider in ("openai", "anthropic"):
        said += tokens_of(orjson.dumps(question.schema.model_json_schema()).decode())
    return said


def _inventor(key: str, count: int) -> Callable[[int], str]:
    """`words(n)`: n words (a whole reply's worth for 0), other ones at each call and for each request."""
    draw = random.Random(key)

    def words(many: int) -> str:
        return " ".join(draw.choices(WORDS, k=many or max(1, round(count / 1.15))))

    return words


def _fits(schema: Any, text: str) -> bool:
    try:
        schema.model_validate_json(text)
    except ValueError:
        return False
    return True


def instance(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """A small value that a pydantic model's JSON schema takes."""
    root = root or schema
    if "$ref" in schema:
        return instance(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    if union := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return instance(union[0], root)
    kind = schema.get("type")
    if kind == "object":
        return {name: instance(part, root) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {}), root)] * max(1, schema.get("minItems", 1))
    plain = {"integer": 1, "number": 1, "boolean": True, "null": None}.get(kind or "", "text")
    plain = schema.get("minimum", plain)
    return schema.get("const", schema["enum"][-1] if "enum" in schema else plain)


@dataclass(frozen=True)
class Plan:
    """A finished plan."""

    lines: list[Line]
    rows: int
    rejects: dict[str, int]
    stopped: str
    features: dict[str, int]

    def data(self, prices: Prices) -> dict[str, Any]:
        """For `--json`: the lines and their sums; a sum with an unknown part is null."""
        lines = [line.data(prices) for line in self.lines]
        names = ("requests", "in_ledger", "to_send", "input_tokens", "output_tokens")
        total: dict[str, Any] = {name: sum(line[name] for line in lines) for name in names}
        for name in ("usd_online", "usd_batch", "usd_at_most"):
            values = [line[name] for line in lines]
            total[name] = None if None in values else sum(values)
        made = {"rows": self.rows, "rejects": self.rejects, "stopped": self.stopped}
        return {"lines": lines, "total": total, **made, **({"features": self.features} if self.features else {})}


class Weighing(Staging):
    """A version of which nothing but the weight of its features is kept, in bytes by name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.weights: dict[str, int] = {}

    def room(self, need: int) -> None:
        """Nothing is written."""

    def _feature(self, record: Record) -> None:
        for name, feature in record.features.items():
            self.weights[name] = self.weights.get(name, 0) + expected(feature, invented=True)


async def plan(run: Run, folder: Path, expect: int | None) -> Plan:
    """Go through the recipe once; `folder` takes what is thrown away after."""
    desk = run.desk
    assert isinstance(desk, PlanDesk)
    desk.expect = expect
    staging = Weighing(folder)
    try:
        await run.go(staging)
    except GateFailed:
        pass
    finally:
        staging.discard()
    lines = list(desk.lines.values())
    return Plan(lines, run.tally.rows, dict(run.tally.rejects), run.tally.stopped, staging.weights)
