"""Expansion by evolution: Evol-Instruct."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import alone, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.draw import Draw

LEAK = re.compile(r"\b(?:given|rewritten|created|new) prompt\b|#[a-z ]*prompt#", re.I)
STOP_WORDS = frozenset(
    "a an the and or but if of to in on at by for with from as is are was were be been it its this that these those i "
    "you he she we they me him her us them my your his our their not no yes so do does did have has had can could "
    "will would".split()
)


class Verdict(BaseModel):
    """Whether two tasks ask the same."""

    model_config = ConfigDict(extra="forbid")

    verdict: Literal["same", "different"]


class Evol(Stage):
    """Harder and rarer tasks, step by step, each answered: Evol-Instruct (WizardLM, arXiv 2304.12244).

    For `rounds` rounds one of `operations` is drawn (in-depth: constraints, deepen, concretize,
    reasoning, input; in-breadth: a rarer task of the same domain) and applied to what the last round left.
    An evolved task is eliminated, and the one before it tried again in the next round, when (1) it adds
    nothing (it is the same, or `equal`'s judge says so), (2) its answer is a refusal: it has "sorry" in it and is shorter than 80
    words, (3) its answer is only punctuation and stop words, or (4) it copies words of the prompt that
    made it. Every generation is a row whose parent is the one before.
    """

    stage: Literal["expand"] = "expand"
    method: Literal["evol"] = "evol"
    operations: dict[str, PromptFile]
    equal: PromptFile
    answer: PromptFile
    judge: str = "teacher"
    rounds: int = Field(4, ge=1)
    sorry_words: int = Field(80, ge=0)

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "operations": frozenset({"instruction"}),
        "equal": frozenset({"first", "second"}),
        "answer": TASK,
    }
    consumes: ClassVar[bool] = True

    @property
    def roles(self) -> set[str]:
        """The teacher and the judge."""
        return {self.to, self.judge}

    @property
    def validates(self) -> set[str]:
        """The judge, whose verdict has a schema."""
        return {self.judge}

    def check(self, where: str) -> None:
        """At least one operation is needed."""
        super().check(where)
        if not self.operations:
            raise bad_stage("evol has no operation", where, "operations maps a name to a prompt")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each record with the operations that its rounds will apply."""
        names: list[JsonValue] = list(self.operations)
        for record in pool:
            drawn = [draw.choice(names, record.id, number) for number in range(self.rounds)]
            yield record.model_copy(update={"meta": {**record.meta, "operations": drawn}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """Up to three calls a round: evolve, compare, answer."""
        drawn = job.meta["operations"]
        assert isinstance(drawn, list)
        plain = {name: value for name, value in job.meta.items() if name != "operations"}
        current, rows = job.model_copy(update={"meta": plain}), list[Row]()
        for number, operation in enumerate(drawn, 1):
            before = len(ask.calls)
            try:
                current = await self._evolve(current, str(operation), number, ask)
                rows.append(current)
            except Rejected as fate:
                lost = current.child(
                    stage=self.stage,
                    method=self.method,
                    calls=ask.calls[before:],
                    meta={"round": number, "operation": operation},
                )
                rows.append(lost.rejected(self.name, fate.reason, f"round {number}, {operation}: {fate.detail}"))
        return rows

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A task that differs, a judge's word, or an answer."""
        if prompt == self.equal:
            return Verdict(verdict="different").model_dump_json()
        return words(40) if prompt in self.operations.values() else f"{words(0)}\n#### {words(2)}"

    async def _evolve(self, current: Record, operation: str, number: int, ask: Ask) -> Record:
        # A follow-up means nothing without its conversation: it is evolved, answered and kept with what was said before.
        evolved = await ask(self.operations[operation], history=current.history, instruction=current.task)
        task = alone(split_thinking(evolved.text)[1])
        if not terms(task):
            raise Rejected("empty_task", task)
        if LEAK.search(task) and not LEAK.search(current.task):
            raise Rejected("copies_prompt", task[:200])
        if terms(task) == terms(current.task):
            raise Rejected("no_information_gain", "the same task again")
        compared = await ask(self.equal, to=self.judge, schema=Verdict, first=current.task, second=task)
        if Verdict.model_validate_json(compared.text).verdict == "same":
            raise Rejected("no_information_gain", task[:200])
        made = self.child(
            current,
            evolved,
            compared,
            writes=(),
            meta={"round": number, "operation": operation},
            instruction=task,
            input="",
            output="",
            reasoning="",
        )
        answered = await ask(self.answer, history=made.history, **task_variables(made))
        thinking, output = split_thinking(answered.text)
        said = terms(output)
        if "sorry" in said and len(said) < self.sorry_words:
            raise Rejected("sorry_answer", output[:200])
        if all(word in STOP_WORDS for word in said):
            raise Rejected("empty_answer", output[:200])
        reasoning = answered.reasoning or thinking
        done = current.child(
            stage=self.stage,
            method=self.method,
            calls=[evolved.key, compared.key, answered.key],
            writers={"instruction": evolved.teacher, "output": answered.teacher},
            meta={"round": number, "operation": operation},
            instruction=task,
            input="",
            output=output,
            reasoning=reasoning,
            finish=answered.finish,
        )
        return done
