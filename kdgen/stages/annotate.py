"""Labeling by a codebook: several annotators, how sure they are, and who decides where they are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    create_model,
)

from kdgen.codebooks import Codebook, CodebookFile, Example, Span, located, written
from kdgen.errors import Rejected
from kdgen.parse import TERM, split_thinking
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.teachers.base import Reply
from kdgen.teachers.logprobs import probability

NOTHING = "(none)"
SPANS = TypeAdapter(tuple[Span, ...])
Place = tuple[int, int, str]


class Vote(BaseModel):
    """What one annotator says; a codebook's own has its classes."""

    model_config = ConfigDict(extra="forbid")

    explanation: str
    label: str = ""
    spans: tuple[Span, ...] = ()


@lru_cache(maxsize=64)
def _schema(codebook: Codebook) -> type[BaseModel]:
    """The form of a vote by a codebook, with its classes."""
    names: Any = Literal[codebook.names]
    known: Any = Annotated[names, BeforeValidator(lambda name: codebook.class_of(str(name)) or name)]
    settings = ConfigDict(extra="forbid")
    make: Any = create_model
    said: dict[str, Any] = {"label": (known, ...)}
    if codebook.kind == "spans":
        words = Annotated[str, Field(min_length=1)]
        span: Any = make("Span", __config__=settings, exact=(words, ...), **said)
        said = {"spans": (list[span], ...)}
    made: type[BaseModel] = make("Vote", __config__=settings, explanation=(str, ...), **said)
    return made


@dataclass(frozen=True)
class Verdict:
    """What the annotators say together: the row's output, how sure it is, who said why, the votes in words, what is told."""

    output: str
    confidence: float
    reply: Reply
    reason: str
    votes: str
    told: dict[str, JsonValue]


class Annotate(Stage):
    """Label by a codebook, with reasons: D = {x, y | x ~ X, y ~ p_T(y | I ⊕ c ⊕ x)} (Xu et al., Eq. 3), c a codebook.

    With `explain` the teacher first says of each example why its label is right; the examples are then shown with these
    reasons (explain-then-annotate: AnnoLLM, arXiv 2303.16854). `votes` annotators label each text, the majority decides
    (GPT Annotation, arXiv 2303.15056). Of classes and pairs the confidence is the share of votes, each weighed with the
    probability of its label where replies have logprobs; of spans it is that of the least sure one. Under
    `least_confidence` the role `better` decides, and without one the text is a reject, `needs_people`: mended, it is a seed
    for `existing: keep`, which passes on what a person has labelled. Spans stand in the text word for word. A vote that
    did not come is told of in the row and agrees with nobody; how far the votes agree (Fleiss' kappa) is told of the run.
    A pair's other text is the seed's column `second`.
    """

    stage: Literal["label"] = "label"
    method: Literal["annotate"] = "annotate"
    prompt: PromptFile
    codebook: CodebookFile
    explain: PromptFile | None = None
    votes: int = Field(5, ge=1, le=100)
    least_confidence: float = Field(0.7, ge=0, le=1)
    better: str | None = None
    existing: Literal["replace", "keep"] = "replace"
    second: str = "second"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": frozenset({"kind", "task", "classes", "examples", "text", "second", "extra"}),
        "explain": frozenset({"kind", "task", "classes", "text", "second", "output"}),
    }

    @property
    def roles(self) -> set[str]:
        """The annotator, and who decides what it is not sure of."""
        return {self.to, self.better} if self.better else {self.to}

    @property
    def validates(self) -> set[str]:
        """Both, whose labels have a schema."""
        return self.roles

    def check(self, where: str) -> None:
        """What has no effect on the codebook's kind is an error."""
        super().check(where)
        if self.explain and all(example.reason for example in self.codebook.examples):
            raise bad_stage("no example is left to explain", f"{where}.explain", "take it out, or leave out a reason")
        if self.codebook.kind != "pairs" and "second" in self.model_fields_set:
            raise bad_stage(f"kind: {self.codebook.kind} has no second text", f"{where}.second", "take it out")
        if self.better and not self.least_confidence:
            raise bad_stage("nothing is less sure than 0", f"{where}.better", "least_confidence: 0.7")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """A call for each vote, one for each example to be explained, one of the better teacher where they are not sure."""
        if self.existing == "keep" and job.output:
            return [self._kept(job)]
        text, second = job.input or job.text or job.instruction, ""
        if self.codebook.kind == "pairs":
            second = str(job.extra.get(self.second) or "")
            if not second.strip():
                raise Rejected("no_second_text", f"the seed's column {self.second!r} is empty")
        shown = {**self._codebook(), "examples": await self._examples(ask), "text": text, "second": second}
        shown["extra"] = job.extra
        asks = [ask.fork() for _ in range(self.votes)]
        found = await gathered([self._vote(each, text, shown, nth) for nth, each in enumerate(asks)])
        ask.calls += [call for each in asks for call in each.calls]
        came = [each for each in found if not isinstance(each, Rejected)]
        lost = Counter(each.reason for each in found if isinstance(each, Rejected))
        if not came:
            raise next(each for each in found if isinstance(each, Rejected))
        verdict = self._spans(text, came, ask) if self.codebook.kind == "spans" else self._class(came, ask)
        told: dict[str, JsonValue] = {"confidence": verdict.confidence, **verdict.told}
        if lost:
            told["lost"] = {reason: lost[reason] for reason in sorted(lost)}
        asked = job.model_copy(update=self._asked(job, text, second))
        if verdict.confidence >= self.least_confidence:
            return [self._row(asked, verdict.output, verdict.reply, verdict.reason, told, ask, job.output)]
        unsure = f"confidence {verdict.confidence:g}, {self.least_confidence:g} is the least; votes: {verdict.votes}"
        if self.better is None:
            return [self._for_people(asked, verdict, unsure, ask)]
        try:
            reply, vote = await self._vote(ask, text, shown, 0, to=self.better)
        except Rejected as fate:
            return [self._for_people(asked, verdict, f"{unsure}; {self.better}: {fate}", ask)]
        output, places = vote.label, _places(text, vote)
        if self.codebook.kind == "spans":
            output, told["spans"] = _output(text, places), _listed(text, places)
        return [self._row(asked, output, reply, vote.explanation, {**told, "by": self.better}, ask, job.output)]

    def _codebook(self) -> dict[str, Any]:
        book = self.codebook
        return {"kind": book.kind, "task": book.task, "classes": [each.model_dump() for each in book.classes]}

    def _asked(self, job: Record, text: str, second: str) -> dict[str, Any]:
        """The task of the row, which says by itself what is labelled."""
        pair = f"First: {text}\n\nSecond: {second}" if second else text
        return {"instruction": (job.input and job.instruction) or self.codebook.task, "input": pair, "text": ""}

    async def _examples(self, ask: Ask) -> list[dict[str, str]]:
        """The examples with their reasons; one whose explanation is lost is shown without."""
        examples = self.codebook.examples
        asks = [ask.fork() for _ in examples]
        found = await gathered([self._reason(each, own) for each, own in zip(examples, asks, strict=True)])
        ask.calls += [call for each in asks for call in each.calls]
        return [
            {
                "text": each.text,
                "second": each.second,
                "output": self._output_of(each),
                "reason": "" if isinstance(reason, Rejected) else reason,
            }
            for each, reason in zip(examples, found, strict=True)
        ]

    async def _reason(self, example: Example, ask: Ask) -> str:
        if example.reason or self.explain is None:
            return example.reason
        shown = {**self._codebook(), "text": example.text, "second": example.second}
        return split_thinking((await ask(self.explain, output=self._output_of(example), **shown)).text)[1]

    def _output_of(self, example: Example) -> str:
        return written(example.spans) if self.codebook.kind == "spans" else example.label

    async def _vote(
        self, ask: Ask, text: str, shown: dict[str, Any], nth: int, to: str | None = None
    ) -> tuple[Reply, Vote]:
        schema = _schema(self.codebook)
        check = (lambda reply: _astray(text, _read(schema, reply))) if self.codebook.kind == "spans" else None
        reply = await ask(self.prompt, to=to, nth=nth, schema=schema, check=check, **shown)
        return reply, _read(schema, reply)

    def _class(self, came: Sequence[tuple[Reply, Vote]], ask: Ask) -> Verdict:
        votes = Counter[str]()
        weighed: dict[str, float] = {}
        for reply, vote in came:
            sure = probability(reply.body, Vote.model_validate_json(reply.text).label)
            votes[vote.label] += 1
            weighed[vote.label] = weighed.get(vote.label, 0.0) + (1.0 if sure is None else sure)
        ask.rate([votes])
        best = max(self.codebook.names, key=lambda name: (votes[name], weighed.get(name, 0.0)))
        reply, vote = next(pair for pair in came if pair[1].label == best)
        counted: dict[str, JsonValue] = {name: votes[name] for name in self.codebook.names if votes[name]}
        said = ", ".join(f"{count} {name}" for name, count in counted.items())
        return Verdict(best, round(weighed[best] / self.votes, 4), reply, vote.explanation, said, {"votes": counted})

    def _spans(self, text: str, came: Sequence[tuple[Reply, Vote]], ask: Ask) -> Verdict:
        """The spans that more than half of the votes have. Each word of the text is a unit of which the votes agree."""
        marked = [_places(text, vote) for _, vote in came]
        counts = Counter(place for places in marked for place in set(places))
        words = [word.span() for word in TERM.finditer(text)]
        ask.rate(Counter(_over(start, end, places) for places in marked) for start, end in words)
        kept = sorted(place for place, count in counts.items() if 2 * count > self.votes)
        sure = min((max(count, len(came) - count) for count in counts.values()), default=len(came)) / self.votes
        nearest = min(range(len(came)), key=lambda number: len({*marked[number]} ^ {*kept}))
        reply, vote = came[nearest]
        told: dict[str, JsonValue] = {"votes": _listed(text, [*counts], votes=counts), "spans": _listed(text, kept)}
        said = ", ".join(f"{counts[place]} {text[place[0] : place[1]]} ({place[2]})" for place in sorted(counts))
        return Verdict(_output(text, kept), round(sure, 4), reply, vote.explanation, said, told)

    def _row(
        self, job: Record, output: str, reply: Reply, reason: str, told: dict[str, JsonValue], ask: Ask, gold: str
    ) -> Record:
        meta: dict[str, JsonValue] = {"annotation": told}
        if gold:
            right = self._gold(job.model_copy(update={"output": gold}))
            meta |= {"gold": gold} if right is None else {"gold": right, "agrees": right == output}
        row = self.child(job, reply, writes=("output", "reasoning"), meta=meta, output=output, reasoning=reason,
                         finish=reply.finish, instruction=job.instruction, input=job.input, text=job.text)  # fmt: skip
        return row.model_copy(update={"calls": (*job.calls, *dict.fromkeys(ask.calls))})

    def _for_people(self, job: Record, verdict: Verdict, why: str, ask: Ask) -> Row:
        """The reject that a person mends: the task, the text, and what most votes say as the output."""
        lost = job.model_copy(update={"output": verdict.output, "calls": (*job.calls, *dict.fromkeys(ask.calls))})
        return lost.rejected(self.name, "needs_people", f"{why}; {verdict.reason}")

    def _kept(self, job: Record) -> Record:
        """What a person has labelled, as a row. Raises Rejected where the codebook has no such label."""
        gold = self._gold(job)
        if gold is None:
            raise Rejected("bad_gold", f"{job.output[:100]!r} is no label of the codebook for this text")
        text = job.input or job.text or job.instruction
        content = self._asked(job, text, "" if job.input else str(job.extra.get(self.second) or ""))
        return job.child(
            stage=self.stage, method=self.method, meta={"annotation": {"by": "gold"}}, output=gold, **content
        )

    def _gold(self, job: Record) -> str | None:
        """The output that a record came with as the codebook writes it, or None where it is no label of it."""
        if self.codebook.kind != "spans":
            return self.codebook.class_of(job.output)
        text = job.input or job.text or job.instruction
        try:
            said = SPANS.validate_json(job.output)
        except ValidationError:
            return None
        vote = Vote(explanation="", spans=tuple(
            span.model_copy(update={"label": self.codebook.class_of(span.label) or ""}) for span in said
        ))  # fmt: skip
        astray = any(not span.label for span in vote.spans) or _astray(text, vote)
        return None if astray else _output(text, _places(text, vote))

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A reason, or a vote for the first class, of spans for the first word."""
        if prompt == self.explain:
            return words(30)
        label, first = self.codebook.names[0], TERM.search(variables["text"])
        if self.codebook.kind != "spans":
            return Vote(explanation=words(30), label=label).model_dump_json(exclude={"spans"})
        spans = (Span(exact=first.group(), label=label),) if first else ()
        return Vote(explanation=words(30), spans=spans).model_dump_json(exclude={"label"})


def _read(schema: type[BaseModel], reply: Reply) -> Vote:
    return Vote.model_validate(schema.model_validate_json(reply.text).model_dump())


def _astray(text: str, vote: Vote) -> str | None:
    """Why spans are not of the text."""
    lost = next((span for span, place in located(text, vote.spans) if place is None), None)
    return f"{lost.exact[:100]!r} does not stand (or not so often) in the text word for word" if lost else None


def _places(text: str, vote: Vote) -> list[Place]:
    return [(*place, span.label) for span, place in located(text, vote.spans) if place]


def _over(start: int, end: int, places: Sequence[Place]) -> str:
    """The class of the word at a place, of the first span that covers it."""
    return next((label for first, last, label in places if first < end and start < last), NOTHING)


def _output(text: str, places: Sequence[Place]) -> str:
    return written([Span(exact=text[start:end], label=label) for start, end, label in sorted(places)])


def _listed(text: str, places: Sequence[Place], **counts: Mapping[Place, int]) -> list[JsonValue]:
    """Places as a row tells of them, each with what `counts` say of it."""
    listed: list[JsonValue] = []
    for start, end, label in sorted(places):
        each: dict[str, JsonValue] = {"start": start, "end": end, "exact": text[start:end], "label": label}
        listed.append(each | {name: count[start, end, label] for name, count in counts.items()})
    return listed
