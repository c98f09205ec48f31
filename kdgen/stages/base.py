"""What a stage is: what it may ask, what it may draw, and its two verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar, cast

from pydantic import BaseModel, JsonValue, create_model

from kdgen.banks import BankFile
from kdgen.errors import Pending, Rejected, UserError
from kdgen.filters import AnyFilter
from kdgen.judging import Seen
from kdgen.prompts import Prompt
from kdgen.record import Frozen, Message, Record, Row
from kdgen.sandbox.box import Outcome
from kdgen.stages.draw import Draw, Pool
from kdgen.stages.methods import class_of, named
from kdgen.teachers.base import Params, Reply

T = TypeVar("T")


class Ask(Protocol):
    """All that a stage may do to the outside world. `calls` are the ledger keys of what the job has asked so far."""

    calls: list[str]

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
        check: Callable[[Reply], str | None] | None = None,
        open: bool = False,
        score: int | None = None,
        layers: tuple[int, ...] = (),
        embed: bool = False,
        **variables: Any,
    ) -> Reply:
        """The reply of role `to` (the stage's own where None) to the rendered prompt.

        `nth` tells repeated draws apart, `schema` constrains the reply to a model's JSON schema and validates it,
        `check` says what else is wrong with a reply, and `partial` that one cut at max_tokens is still of use. With `open`
        the teacher is not to answer but to write the user's turn; the prompt is a system message then, or nothing.
        With `score` nothing is written: the prompt's last message, the assistant's, is scored, and `reply.told` has its
        tokens and the likeliest `score` at each, with the hidden states of `layers`. Raises Rejected where the tokens do
        not spell the message. With `embed` the prompt's last message becomes a vector (`told.vector_of`).
        A reply that does not validate is asked for again, with what is wrong shown, as often as the teacher's
        `repairs` says. Raises Rejected where it is cut, refused, filtered or invalid in the end, or does not say that
        it is whole: such a reply is never passed off as a whole answer. So it does, before anything is sent, where the
        prompt fails on the variables or shows nothing of them.
        """

    async def execute(
        self, program: str, /, *, stdin: str = "", files: Mapping[str, str] | None = None, guess: str = ""
    ) -> Outcome:
        """How a Python program ends in the recipe's sandbox; what runs at once is bounded by the machine's CPUs.

        `files` lie beside it by name. `guess` is what it is taken to print in a plan, which runs nothing. The stage
        `executes`, so that a machine on which nothing can be isolated is known before anything is sent.
        """

    def fork(self) -> Ask:
        """An ask of its own for the same job, with calls of its own, for what is asked at the same time."""

    def rate(self, units: Iterable[Mapping[str, int]]) -> None:
        """Note how many raters gave each category to each unit of the job, for the run's agreement (Fleiss' kappa)."""

    def judged(self, seen: Iterable[Seen]) -> None:
        """Note what judges said, each by its role, for the run's report on them."""


async def gathered(asked: Sequence[Coroutine[Any, Any, T]]) -> list[T | Rejected]:
    """What is asked at the same time, in order. Raises what ends the run before Pending, which waits for all of it."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    wrong = [each for each in found if isinstance(each, BaseException) and not isinstance(each, Rejected)]
    if wrong:
        raise next((each for each in wrong if not isinstance(each, Pending)), wrong[0])
    return [each for each in found if not isinstance(each, BaseException) or isinstance(each, Rejected)]


@lru_cache(maxsize=128)
def bounded(model: type[BaseModel], most: int, least: int = 0) -> type[BaseModel]:
    """The model of a list whose schema ends it at `most`, and not before `least`: a small teacher would go on until it is cut.

    A longer list, of a server that keeps to no schema, is read all the same.
    """
    ((name, field),) = model.model_fields.items()
    ending, make = copy(field), cast(Any, create_model)
    ending.json_schema_extra = {"minItems": least, "maxItems": most} if least else {"maxItems": most}
    made: type[BaseModel] = make(
        model.__name__, __base__=model, __doc__=model.__doc__, **{name: (field.annotation, ending)}
    )
    return made


class Stage(Frozen):
    """One elicitation step. Fields are the YAML; `plan` says what to ask about, `run` asks.

    A stage looks at one record at a time and chains with no barrier. `gives` names the variables that
    each prompt field is rendered with; a prompt may use fewer. `consumes` means that what comes out is
    new, and the record that went in is not passed on. `cut_is_fine` means that a reply cut at max_tokens
    is used as far as it goes, `executes` that programs are run that a teacher wrote. Of each of `banks` one entry is
    drawn a job: its fields are `{{ NAME.field }}` in the stage's prompts, its id stays in `meta.banks`; the one named
    `system` becomes the job's system message. Each of `lists` is a bank that is shown whole:
    `{% for each in NAME %}{{ each.field }}`.
    """

    stage: str
    method: str
    to: str = "teacher"
    params: Params = Params()
    banks: dict[str, BankFile] = {}
    lists: dict[str, BankFile] = {}

    gives: ClassVar[dict[str, frozenset[str]]] = {}
    consumes: ClassVar[bool] = False
    seedless: ClassVar[bool] = False  # it takes nothing, so it is the first, and the recipe has no seeds
    cut_is_fine: ClassVar[bool] = False
    executes: ClassVar[bool] = False
    features: ClassVar[bool] = False  # it keeps what a teacher tells beside words, so replies tell what made them

    @classmethod
    def kind_of(cls, value: Any) -> type[Stage] | None:
        """The class that reads what a recipe says of a stage; None where it names no method."""
        found: type[Stage] | None = class_of(named(value))
        return found

    @property
    def name(self) -> str:
        """`stage/method`."""
        return f"{self.stage}/{self.method}"

    @property
    def roles(self) -> set[str]:
        """The teachers that this stage asks."""
        return {self.to}

    @property
    def draws_seeds(self) -> bool:
        """Whether `plan` draws from all seeds of the run, which are then held in memory."""
        return False

    @property
    def draws_earlier(self) -> bool:
        """Whether `plan` draws from the rows of the last iteration of a loop, which are then held in memory."""
        return False

    @property
    def reads_logprobs(self) -> int | None:
        """The `logprobs` that its teachers must be asked for at the least; None where it reads none."""
        return None

    @property
    def validates(self) -> set[str]:
        """The teachers whose replies it asks for with a schema or a check, so that one can be found invalid."""
        return set()

    @property
    def opens(self) -> set[str]:
        """The teachers that it has write a user's turn."""
        return set()

    @property
    def forced(self) -> set[str]:
        """The teachers that it has score a text that they are given."""
        return set()

    @property
    def row_bytes(self) -> int:
        """The bytes of features that a row with a short answer takes at the least, as far as it is known."""
        return 0

    @property
    def inside(self) -> set[str]:
        """The teachers of which it sees hidden states."""
        return set()

    @property
    def embedders(self) -> set[str]:
        """The teachers that it has make vectors."""
        return set()

    @property
    def scorers(self) -> set[str]:
        """The teachers that it has say numbers, and no words."""
        return set()

    def prompts(self) -> Iterator[tuple[str, Prompt]]:
        """Every prompt of the stage with the field that holds it."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Prompt):
                yield name, value
            elif isinstance(value, dict):
                yield from ((name, prompt) for prompt in value.values() if isinstance(prompt, Prompt))

    def check(self, where: str) -> None:
        """Raise UserError where the stage cannot work as it is set."""
        shown: set[str] = set()
        for field, prompt in self.prompts():
            if taken := self.lists.keys() & (self.gives[field] | self.banks.keys()):
                hint = "another name"
                raise bad_stage(f"{min(taken)!r} is a variable already", f"{where}.lists.{min(taken)}", hint)
            prompt.expect(self.gives[field] | self.banks.keys() | self.lists.keys(), f"{where} ({prompt.name})")
            shown |= prompt.variables.keys()
        for name, bank in self.lists.items():
            if name not in shown:
                hint = f"declare it in a prompt and go through it: {', '.join(bank.fields)}"
                raise bad_stage(f"no prompt of this stage shows the bank {name!r}", f"{where}.lists.{name}", hint)
        for name, bank in self.banks.items():
            if name not in shown:
                hint = f"declare it in a prompt and show a field of it: {', '.join(bank.fields)}"
                raise bad_stage(f"no prompt of this stage shows the bank {name!r}", f"{where}.banks.{name}", hint)
            if name == "system" and bank.fields != ("text",):
                raise bad_stage("system messages have one field, text", f"{where}.banks.system")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """The jobs of this round; pure. A stage that sees one record at a time makes each its own job."""
        yield from pool

    def steered(self, job: Record, draw: Draw) -> Record:
        """The job with what its banks drew for it."""
        if not self.banks:
            return job
        nth = [job.meta["nth"]] if "nth" in job.meta else []
        drawn = {name: bank.draw(draw.seed, draw.stage, name, job.id, *nth) for name, bank in self.banks.items()}
        held = job.meta.get("banks")
        ids = {**(held if isinstance(held, dict) else {}), **{name: entry.id for name, entry in drawn.items()}}
        system = {"system": drawn["system"].texts["text"]} if "system" in drawn else {}
        return job.model_copy(update={"meta": {**job.meta, "banks": ids}, **system})

    def marked(self, job: Record, row: Row) -> Row:
        """A row that a steered job made, with what was drawn for it."""
        if not self.banks or not isinstance(row, Record) or "banks" in row.meta:
            return row
        return row.model_copy(update={"meta": {**row.meta, "banks": job.meta["banks"]}})

    def drawn(self, job: Record) -> dict[str, Any]:
        """What a steered job's prompts are rendered with besides: the fields of each entry by the name of its bank."""
        ids = job.meta.get("banks") if self.banks else None
        whole = {name: [dict(entry.texts) for entry in bank.entries] for name, bank in self.lists.items()}
        if not isinstance(ids, dict):
            return whole
        found = {name: dict(bank.entry(str(ids[name])).texts) for name, bank in self.banks.items()}
        return {**whole, **{name: texts["text"] if name == "system" else texts for name, texts in found.items()}}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One conversation about one job: the rows made of it, rejects among them."""
        raise NotImplementedError

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A reply of the form that `prompt` asks for, out of `words(count)`: what a plan has in place of the teacher's."""
        return words(0)

    def child(
        self,
        parent: Record,
        *replies: Reply,
        writes: Sequence[str],
        meta: dict[str, JsonValue] | None = None,
        **content: Any,
    ) -> Record:
        """A record made by this stage from `parent`; `writes` are the fields that the last reply's teacher wrote."""
        return parent.child(
            stage=self.stage,
            method=self.method,
            calls=[reply.key for reply in replies],
            writers=dict.fromkeys(writes, replies[-1].teacher),
            meta=meta,
            **content,
        )


class PoolStage(Stage):
    """A stage that grows a pool in rounds and so waits for all that comes before it.

    `rounds` is the most there are; unset, four without a target and as many as it takes with one.
    Within a round the pool is frozen. A candidate joins it when the stage's filters keep it and, with
    `novelty`, when its ROUGE-L F1 with every task of the pool is at most that.
    """

    rounds: int | None = None
    calls: int | None = None
    max_candidates: int | None = None
    novelty: float | None = None
    filters: tuple[AnyFilter, ...] = ()

    consumes: ClassVar[bool] = True

    def plan_pool(self, seeds: Pool, made: Pool, round: int, calls: int, draw: Draw) -> Iterator[Record]:
        """The jobs of this round, from the seeds and what earlier rounds made; pure."""
        raise NotImplementedError


def bad_stage(cause: str, where: str, hint: str = "") -> UserError:
    """The error of a stage's `check`."""
    return UserError(cause, where=where, hint=hint)
