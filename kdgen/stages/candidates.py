"""Feedback: several answers to one task, of several models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.banks import BankFile
from kdgen.errors import Rejected
from kdgen.parse import final_answer, split_thinking
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Record, Row, score
from kdgen.stages.answer import TASK, asked_of, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.stages.draw import Draw

SEED = "seed"
Drawn = tuple[str, str]  # the role that is asked, and the id of its principle


class Candidates(Stage):
    """Draw `n` answers to a task: the y of D = {(x, y, φ_fb(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7).

    The roles of `among` take them in turn, or with `draw: random` `n` different ones of them are drawn for each task
    (UltraFeedback, arXiv 2310.01377: 4 of 17 models). The student is one of them where its own answers are to be judged
    (on-policy). Each answer is asked for under a principle drawn for it from the bank `principles`, which a prompt shows
    as `{{ principle.text }}`; its id is in the candidate's `notes`. With `own: candidate` the answer that the record has
    is the first candidate, of role `seed`; else it is kept as `meta.gold`. Roles of one model give the same answer
    unless something else, such as the temperature, tells them apart.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["candidates"] = "candidates"
    prompt: PromptFile
    n: int = Field(4, ge=1, le=1024)
    among: tuple[str, ...] = ()
    draw: Literal["cycle", "random"] = "cycle"
    principles: BankFile | None = None
    own: Literal["gold", "candidate"] = "gold"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"principle"}}

    @property
    def roles(self) -> set[str]:
        """All that may be asked."""
        return {*(self.among or (self.to,))}

    def check(self, where: str) -> None:
        """The pool is as large as what is drawn from it, and principles are shown."""
        super().check(where)
        if self.among and "to" in self.model_fields_set:
            raise bad_stage("to has no effect where among says who is asked", f"{where}.to", "take it out")
        if len(set(self.among)) < len(self.among):
            raise bad_stage("a role stands twice", f"{where}.among")
        if self.draw == "random" and len(self.among) < self.n:
            cause = f"{self.n} different roles cannot be drawn from {len(self.among)}"
            raise bad_stage(cause, f"{where}.among", "name more, or draw: cycle")
        if self.draw == "cycle" and len(self.among) > self.n:
            cause = f"{self.n} draws do not reach {len(self.among)} roles in turn"
            raise bad_stage(cause, f"{where}.among", f"n: {len(self.among)}, or draw: random")
        shown = "principle" in self.prompt.variables
        if shown != (self.principles is not None):
            hint = "declare `principle` and show {{ principle.text }}" if not shown else "principles: BANK"
            raise bad_stage("principles and a prompt that shows one go together", f"{where}.principles", hint)

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each record with who is asked, and under which principle."""
        for record in pool:
            key = (*record.seeds, record.task or record.text)
            roles = self.among or (self.to,)
            if self.draw == "random":
                asked = sorted(roles, key=lambda role: score(draw.seed, draw.stage, role, *key))[: self.n]
            else:
                asked = [roles[number % len(roles)] for number in range(self.n)]
            drawn: list[JsonValue] = [
                [role, self.principles.draw(draw.seed, draw.stage, *key, role, asked[:number].count(role)).id]
                if self.principles
                else [role, ""]
                for number, role in enumerate(asked)
            ]
            yield record.model_copy(update={"meta": {**record.meta, "drawn": drawn}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """`n` calls at once. Each that is lost is a reject; without any candidate there is no row besides."""
        planned: Any = job.meta["drawn"]
        drawn: list[Drawn] = [(role, principle) for role, principle in planned]
        job = job.model_copy(update={"meta": {name: value for name, value in job.meta.items() if name != "drawn"}})
        if self.own == "candidate" and not job.output:
            raise Rejected("no_gold", "the record has no answer of its own")
        asks = [ask.fork() for _ in drawn]
        found = await gathered([self._draw(job, each, drawn, number) for number, each in enumerate(asks)])
        ask.calls += [call for each in asks for call in each.calls]
        came = [each for each in found if isinstance(each, Candidate)]
        rows: list[Row] = []
        for (role, _), fate, own in zip(drawn, found, asks, strict=True):
            if isinstance(fate, Rejected):
                lost = job.model_copy(update={"calls": (*job.calls, *own.calls), "output": ""})
                rows.append(lost.rejected(self.name, fate.reason, f"{role}: {fate.detail}"))
        if not came:
            return rows
        meta: dict[str, JsonValue] = {"gold": job.output} if job.output and self.own == "gold" else {}
        if self.own == "candidate":
            writer = job.writers.get("output", "")
            seed = Candidate(output=job.output, reasoning=job.reasoning, writer=writer, role=SEED, calls=job.calls)
            came = [seed, *came]
        writers = {name: label for name, label in job.writers.items() if name not in ("output", "reasoning")}
        content: dict[str, Any] = {"output": "", "reasoning": "", "finish": "", **asked_of(job)}
        row = job.model_copy(update={"writers": writers}).child(
            stage=self.stage,
            method=self.method,
            calls=[call for each in came if each.role != SEED for call in each.calls],
            writers={"candidates": ", ".join(dict.fromkeys(each.writer for each in came if each.writer))},
            meta=meta,
            candidates=tuple(came),
            **content,
        )
        return [row, *rows]

    async def _draw(self, job: Record, ask: Ask, drawn: Sequence[Drawn], number: int) -> Candidate:
        role, id = drawn[number]
        before = [each for each, _ in drawn[:number]].count(role)
        told = dict(self.principles.entry(id).texts) if self.principles else {}
        shown: dict[str, Any] = {"principle": told, "gold": "" if number % 2 else final_answer(job.output)}
        shown |= task_variables(job)
        reply = await ask(self.prompt, to=role, nth=before, history=job.history, **shown)
        thinking, text = split_thinking(reply.text)
        if not text:
            raise Rejected("empty_answer", f"finish: {reply.finish}")
        return Candidate(
            output=text,
            reasoning=reply.reasoning or thinking,
            writer=reply.teacher,
            role=role,
            calls=tuple(ask.calls),
            notes={"principle": id} if id else {},
        )

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """An answer; every other one is the record's own, so that a verifier tells them apart."""
        return f"{words(0)}\nAnswer: {variables['gold']}" if variables["gold"] else words(0)
