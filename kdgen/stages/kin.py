"""Self-knowledge: pairs of a model's own sentences of which each says what the other says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.dedupe.rouge import tokens
from kdgen.errors import Rejected
from kdgen.parse import alone, bare, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.teachers.base import Reply


class Entailed(BaseModel):
    """Whether all that a text says follows from another, the reason first."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    follows: bool


class Kin(Stage):
    """Pairs (x, y) of sentences that a model wrote itself: D = {(x, y, φ_sk(x, y)) | x ~ S, y ~ p_S(y | I ⊕ x)} (Xu et al., Eq. 8).

    Impossible Distillation (arXiv 2305.16635): of `n` sentences drawn for one context those pairs are kept of which each
    follows from the other (φ_sk, judged in both directions), and which differ in the way that `task` asks for. A
    `paraphrase` has at most `most_alike` of its words in common with x (ROUGE-L F1); a `summary` has at most `most_words`
    times as many words as x, and only it has to follow from x. The row asks `instruction` of x as input and is answered by y.
    Words are compared before the judge is asked. At most `keep` pairs of a context are kept, the least alike first; each
    other one is a reject.
    """

    stage: Literal["self"] = "self"
    method: Literal["kin"] = "kin"
    prompt: PromptFile
    follows: PromptFile
    instruction: str = Field(min_length=1)
    n: int = Field(6, ge=2, le=100)
    task: Literal["paraphrase", "summary"] = "paraphrase"
    most_alike: float = Field(0.7, gt=0, lt=1)
    most_words: float = Field(0.7, gt=0, lt=1)
    keep: int = Field(3, ge=1)
    judge: str = "teacher"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": frozenset({"instruction", "input", "text", "extra"}),
        "follows": frozenset({"premise", "conclusion"}),
    }
    consumes: ClassVar[bool] = True

    @property
    def roles(self) -> set[str]:
        """The model, and who judges what follows."""
        return {self.to, self.judge}

    @property
    def validates(self) -> set[str]:
        """The judge, whose word has a schema."""
        return {self.judge}

    def check(self, where: str) -> None:
        """What bounds one task has no effect on the other."""
        super().check(where)
        for field, task in (("most_alike", "paraphrase"), ("most_words", "summary")):
            if field in self.model_fields_set and self.task != task:
                raise bad_stage(f"{field} has no effect on task: {self.task}", f"{where}.{field}", f"task: {task}")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """`n` calls at once, then up to two a pair."""
        shown = {name: getattr(job, name) for name in self.gives["prompt"]}
        asks = [ask.fork() for _ in range(self.n)]
        found = await gathered([self._sentence(each, number, shown) for number, each in enumerate(asks)])
        ask.calls += [call for each in asks for call in each.calls]
        rows: list[Row] = []
        said: dict[tuple[str, ...], tuple[str, Reply]] = {}
        for fate, own in zip(found, asks, strict=True):
            lost = job.model_copy(update={"calls": (*job.calls, *own.calls)})
            if isinstance(fate, Rejected):
                rows.append(lost.rejected(self.name, fate.reason, fate.detail))
            elif said.setdefault(tuple(terms(fate[0])), fate) is not fate:
                rows.append(
                    lost.model_copy(update={"output": fate[0]}).rejected(self.name, "same_sentence", fate[0][:200])
                )
        kept = 0
        for x, y, alike in sorted(self._pairs(list(said.values())), key=lambda pair: pair[2]):
            row = await self._judged(job, ask, x, y, alike, full=kept == self.keep)
            kept += isinstance(row, Record)
            rows.append(row)
        return rows or [job.rejected(self.name, "one_sentence", "a pair takes two")]

    async def _sentence(self, ask: Ask, number: int, shown: dict[str, Any]) -> tuple[str, Reply]:
        reply = await ask(self.prompt, nth=number, **shown)
        text = bare(alone(split_thinking(reply.text)[1]))
        if not terms(text):
            raise Rejected("empty_text", f"finish: {reply.finish}")
        return text, reply

    def _pairs(self, said: list[tuple[str, Reply]]) -> Iterator[tuple[tuple[str, Reply], tuple[str, Reply], float]]:
        """Every two sentences, the longer one as x, with how alike they are; equal lengths stay in the order drawn."""
        from rapidfuzz.distance import Indel

        for one, other in combinations(said, 2):
            x, y = (other, one) if len(terms(other[0])) > len(terms(one[0])) else (one, other)
            yield x, y, Indel.normalized_similarity(tokens(x[0]), tokens(y[0]))  # which is ROUGE-L F1

    async def _judged(
        self, job: Record, ask: Ask, x: tuple[str, Reply], y: tuple[str, Reply], alike: float, *, full: bool
    ) -> Row:
        """The row of a pair, or why it is none."""
        ratio = len(terms(y[0])) / len(terms(x[0]))
        asking: list[str] = []
        meta: dict[str, JsonValue] = {"kin": {"alike": round(alike, 4), "words": round(ratio, 4)}}
        row = job.child(
            stage=self.stage,
            method=self.method,
            calls=[x[1].key, y[1].key],
            writers={"input": x[1].teacher, "output": y[1].teacher},
            meta=meta,
            instruction=self.instruction,
            input=x[0],
            output=y[0],
            reasoning="",
            text="",
            system="",
            history=(),
            finish=y[1].finish,
        )
        if self.task == "paraphrase" and alike > self.most_alike:
            return row.rejected(self.name, "too_alike", f"ROUGE-L {alike:.2f}, {self.most_alike:g} is the most")
        if self.task == "summary" and ratio > self.most_words:
            return row.rejected(
                self.name, "not_shorter", f"{ratio:.2f} times the words, {self.most_words:g} is the most"
            )
        if full:
            return row.rejected(self.name, "over_keep", f"{self.keep} pairs of this context are less alike")
        ways = [(x[0], y[0])] if self.task == "summary" else [(x[0], y[0]), (y[0], x[0])]
        for premise, conclusion in ways:
            before = len(ask.calls)
            try:
                reply = await ask(self.follows, to=self.judge, schema=Entailed, premise=premise, conclusion=conclusion)
            except Rejected as fate:
                return _with(row, [*asking, *ask.calls[before:]]).rejected(self.name, fate.reason, fate.detail)
            asking += ask.calls[before:]
            verdict = Entailed.model_validate_json(reply.text)
            if not verdict.follows:
                return _with(row, asking).rejected(self.name, "does_not_follow", verdict.reason[:200])
        return _with(row, asking)

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A sentence, or that it follows."""
        if prompt == self.follows:
            return Entailed(reason=words(15), follows=True).model_dump_json()
        return words(20)


def _with(row: Record, calls: list[str]) -> Record:
    return row.model_copy(update={"calls": (*row.calls, *calls)})
