"""The `ask` of a stage: from a prompt to a whole, valid reply of the right teacher, or a reject."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from kdgen.agreement import Agreement
from kdgen.config import Recipe
from kdgen.errors import BudgetReached, EndpointError, Rejected, UserError
from kdgen.judging import Judging, Seen
from kdgen.programs import Programs
from kdgen.prompts import Prompt
from kdgen.record import Message, Record
from kdgen.sandbox.box import Outcome
from kdgen.stages import AnyStage, Draw
from kdgen.teachers.base import Call, Params, Reply, Request, TeacherSpec
from kdgen.teachers.batch import Batches
from kdgen.teachers.bill import Bill
from kdgen.teachers.dispatch import Dispatch
from kdgen.teachers.halt import Halt
from kdgen.teachers.heed import way_out
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.roles import Cascade, Pool
from kdgen.teachers.told import spells

Check = Callable[[Reply], str | None]


@dataclass(frozen=True, slots=True)
class Question:
    """What a stage asks: the prompt as it was rendered, and how its reply is to be read."""

    prompt: Prompt
    variables: dict[str, Any]
    messages: list[dict[str, str]]
    schema: type[BaseModel] | None
    nth: int
    partial: bool
    valid: Check | None
    open: bool = False
    score: int | None = None
    tokens: bool = False

    def call(self, params: Params, more: Sequence[dict[str, str]] = ()) -> Call:
        """The call that asks it; `more` are messages of a repair."""
        return Call([*self.messages, *more], params, _shape(self.schema), self.nth, self.open, tokens=self.tokens)

    def scored(self) -> Call:
        """The call that has its last message scored, for which sampling means nothing."""
        return Call(self.messages, Params(max_tokens=1), nth=self.nth, score=self.score, tokens=True)


@dataclass
class Step:
    """A stage in its place, with the parameters settled for each role that may answer it."""

    stage: AnyStage
    params: dict[str, Params]
    draw: Draw


@dataclass
class Desk:
    """The teachers of one run, and what was asked of them again."""

    recipe: Recipe
    ledger: Ledger
    bill: Bill
    halt: Halt
    max_wait: float | None = None
    teachers: dict[str, Dispatch] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    judging: dict[str, Judging] = field(default_factory=dict)
    handed: int = 0
    spent: BudgetReached | None = None
    after: tuple[TeacherSpec, ...] = ()

    def __post_init__(self) -> None:
        self.programs = Programs(self.recipe.sandbox, self.ledger, self.halt)
        self._ready: set[str] = set()
        self._seen: set[str] = set()
        for role, spec in self.recipe.leaves():
            self.teachers[role] = Dispatch(spec, self.ledger, self.bill, self.halt, functools.partial(self.ready, role))

    def ready(self, role: str) -> None:
        """At a miss: raise Rejected where the budget is spent.

        At a role's first: raise UserError where it, or a teacher that may be asked after it or by a later iteration of
        the loop, lacks something, or where programs will be written that cannot be run here.
        """
        if self.spent is not None:
            raise Rejected("budget_reached", "the budget was reached before this was asked")
        if role in self._ready:
            return
        reached = [self.recipe.reach(stage.roles) for stage in self.recipe.stages]
        first = next(place for place, roles in enumerate(reached) if role in roles)
        later = dict.fromkeys(each for roles in reached[first:] for each in roles)
        try:
            for each in later:
                self.teachers[each].spec.ready()
                self.notices += [note for note in self.teachers[each].spec.notes() if note not in self.notices]
            for spec in self.after:
                spec.ready()
            if any(stage.executes for stage in self.recipe.stages[first:]):
                self.recipe.sandbox.ready()
        except UserError as error:
            self.halt.set(error)
            raise
        self._ready.update(later)

    async def complete(self, step: Step, role: str, question: Question, request: Request) -> Reply:
        """The reply of a role's teacher, which shows no sign of a parameter that was ignored."""
        reply = await self.teachers[role].complete(request)
        if names := self.teachers[role].spec.ignored(step.params[role], reply):
            self._ignored(role, names)
        return reply

    async def score(self, role: str, step: Step, question: Question, requests: Sequence[Request]) -> Reply:
        """The reply of a role's teacher that tells the tokens of a text that it was given."""
        spec, said = self.teachers[role].spec, question.messages[-1]["content"]
        replies = [await self.teachers[role].complete(request) for request in requests]
        return replace(replies[0], told=spec.told(replies, said))

    async def execute(self, program: str, stdin: str, files: Mapping[str, str], guess: str) -> Outcome:
        """How a program ends in the sandbox."""
        return await self.programs.run(program, stdin, files)

    async def recover(self) -> None:
        """Look after the batches that earlier runs left, and import what has ended."""
        for batches in self._batches():
            batches.max_wait = self.max_wait
            if batches.out():
                await batches.collect()
        self._seen = self._out()

    async def submit(self) -> None:
        """Hand in what this pass wants from batches."""
        for batches in self._batches():
            self.handed += await batches.submit(self.halt.check)

    def todo(self) -> list[str]:
        """What a person has to run for the batches that are out."""
        return [told for batches in self._batches() for told in batches.todo()]

    async def next_import(self, poll: float) -> None:
        """Wait until a batch is done with: imported, or without a reply for what may be asked for again or online."""
        try:
            if not self.handed and not self._out():
                await self.halt.sleep(poll)  # another process asks for what this one wants
            while True:
                self._seen |= self._out()
                for batches in self._batches():
                    await batches.collect()
                out = self._out()
                if not out or self._seen - out:
                    return
                await self.halt.sleep(poll)
        finally:
            for batches in self._batches():
                await batches.close()

    def _out(self) -> set[str]:
        return {name for batches in self._batches() for name in batches.out()}

    def _batches(self) -> list[Batches]:
        return [dispatch.batches for dispatch in self.teachers.values() if dispatch.batches is not None]

    def _ignored(self, role: str, names: list[str]) -> None:
        """A server ignores what it was asked: that ends the run, or is noted where the recipe says `unsupported: drop`."""
        spec, said = self.teachers[role].spec, f"ignores {', '.join(names)}: its replies show it"
        if spec.unsupported == "drop":
            if f"{role} {said}" not in self.notices:
                self.notices.append(f"{role} {said}")
            return
        error = EndpointError(f"{spec.label} {said}", where=role, hint=way_out(names))
        self.halt.set(error)
        raise error

    def remarks(self) -> list[str]:
        """What is wrong with the judges of this run, by what they said."""
        return [each for name, judging in sorted(self.judging.items()) for each in judging.notices(name)]

    def step(self, place: int, stage: AnyStage) -> Step:
        """Settle the stage's parameters with each teacher that it may reach."""
        params = {}
        for role in self.recipe.reach(stage.roles):
            params[role], dropped = self.teachers[role].spec.settle(stage.params, f"stages.{place} asking {role}")
            if dropped:
                self.notices.append(f"{stage.name}: {role} does not take {', '.join(dropped)}; left out")
        return Step(stage, params, Draw(self.recipe.seed, stage.name))


class JobAsk:
    """The `ask` of one job; it remembers the calls that were made."""

    __slots__ = ("_desk", "_job", "_step", "calls")

    def __init__(self, desk: Desk, step: Step, job: Record) -> None:
        self._desk = desk
        self._step = step
        self._job = job
        self.calls: list[str] = []

    async def __call__(
        self,
        prompt: Prompt,
        /,
        *,
        to: str | None = None,
        nth: int = 0,
        schema: type[BaseModel] | None = None,
        history: Sequence[Message] = (),
        partial: bool = False,
        check: Check | None = None,
        open: bool = False,
        score: int | None = None,
        **variables: Any,
    ) -> Reply:
        """See `stages.base.Ask`."""
        role = to or self._step.stage.to
        team = self._desk.recipe.teachers[role]
        messages = prompt.render({**self._step.stage.drawn(self._job), **variables}, history)
        if not open and _empty(prompt, variables, messages, history):
            raise Rejected("empty_prompt", f"{prompt.name} shows nothing of this record, so nothing was asked")
        tells = self._step.stage.features
        asked = Question(prompt, variables, messages, schema, nth, partial, _valid(schema, check), open, score, tells)
        if not isinstance(team, Pool | Cascade):
            return await self._whole(role, asked)
        route = team.route(self._desk.recipe.seed, self._step.stage.name, self._job.id, nth)
        for leaf in route[:-1]:
            try:
                reply = await self._whole(leaf, asked)
            except Rejected:
                continue
            if team.unsure(reply, messages[-1]["content"] if messages else "") is None:
                return reply
        return await self._whole(route[-1], asked)

    async def execute(
        self, program: str, /, *, stdin: str = "", files: Mapping[str, str] | None = None, guess: str = ""
    ) -> Outcome:
        """See `stages.base.Ask`."""
        return await self._desk.execute(program, stdin, files or {}, guess)

    def fork(self) -> JobAsk:
        """See `stages.base.Ask`."""
        return JobAsk(self._desk, self._step, self._job)

    def rate(self, units: Iterable[Mapping[str, int]]) -> None:
        """See `stages.base.Ask`."""
        self._desk.agreement.setdefault(self._step.stage.name, Agreement()).add(units)

    def judged(self, seen: Iterable[Seen]) -> None:
        """See `stages.base.Ask`."""
        judging = self._desk.judging.setdefault(self._step.stage.name, Judging())
        for each in seen:
            judging.add(each)

    async def _whole(self, role: str, asked: Question) -> Reply:
        """A reply that is neither cut nor refused and reads as it should, asked again where the recipe allows."""
        if asked.score is not None:
            return await self._scored(role, asked)
        spec, params = self._desk.teachers[role].spec, self._step.params[role]
        asked = replace(asked, schema=None) if "schema" in spec.lacks else asked
        partial, valid = asked.partial, asked.valid
        reply = await self._complete(role, asked, asked.call(params))
        if reply.finish == "stop" and valid is None:
            return reply
        if reply.finish == "length" and not partial and spec.on_cut == "retry" and params.max_tokens:
            wider = Params(max_tokens=2 * params.max_tokens).over(params)
            reply = await self._complete(role, asked, asked.call(wider))
        for _ in range(spec.repairs):
            wrong = None if reply.finish == "length" or valid is None else valid(reply)
            if wrong is None:
                break
            self._desk.repairs[role] += 1
            again = [
                {"role": "assistant", "content": reply.text or "(nothing)"},
                {"role": "user", "content": f"That reply cannot be used: {wrong}. Reply again, in the form asked for."},
            ]
            reply = await self._complete(role, asked, asked.call(params, again))
        _complain(reply, partial, params)
        if valid is not None and (wrong := valid(reply)):
            raise Rejected("invalid_output", wrong)
        return reply

    async def _complete(self, role: str, asked: Question, call: Call) -> Reply:
        request = self._desk.teachers[role].spec.request(call)
        self.calls.append(request.key)
        return self._known(role, await self._desk.complete(self._step, role, asked, request))

    async def _scored(self, role: str, asked: Question) -> Reply:
        """A text's tokens, which spell it."""
        requests = self._desk.teachers[role].spec.scoring(asked.scored())
        self.calls += [request.key for request in requests]
        reply = await self._desk.score(role, self._step, asked, requests)
        if reply.told is not None:
            spells(reply.told, asked.messages[-1]["content"])
        return self._known(role, reply)

    def _known(self, role: str, reply: Reply) -> Reply:
        """The reply with what is known of how its logprobs were made, where the stage keeps them."""
        if not self._step.stage.features:
            return reply
        return replace(reply, facts=self._desk.teachers[role].spec.facts(self._step.params[role], reply))


def _complain(reply: Reply, partial: bool, params: Params) -> None:
    match reply.finish:
        case "length" if not partial:
            raise Rejected("cut", f"the reply was cut at {params.max_tokens or 'the endpoint’s'} tokens")
        case "refusal":
            raise Rejected("refused", reply.detail or reply.text[:200])
        case "filter":
            raise Rejected("filtered", "the provider's content filter ended the reply")
        case "tool":
            raise Rejected("tool_call", "the reply is a tool call")
        case "unknown":
            raise Rejected("unknown_finish", f"the reply may not be whole: its finish is {reply.detail or None}")


def _empty(
    prompt: Prompt, variables: Mapping[str, Any], messages: Sequence[Mapping[str, str]], history: Sequence[Message]
) -> bool:
    """Whether a prompt asks nothing of its own, or shows none of what it declares."""
    asks = sum(message["role"] == "user" for message in messages) > sum(turn.role == "user" for turn in history)
    return not asks or bool(prompt.variables and not any(variables.get(name) for name in prompt.variables))


@functools.lru_cache(64)
def _shape(schema: type[BaseModel] | None) -> dict[str, Any] | None:
    return schema.model_json_schema() if schema else None


def _valid(schema: type[BaseModel] | None, check: Check | None) -> Check | None:
    if schema is None and check is None:
        return None

    def valid(reply: Reply) -> str | None:
        if reply.finish in ("refusal", "filter", "tool", "unknown"):
            return None
        if schema is not None:
            try:
                schema.model_validate_json(reply.text)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                return f"{place + ': ' if place else ''}{first['msg']}"[:300]
        return check(reply) if check else None

    return valid
