"""Labeling by programs: what a teacher writes is run, and what that prints is the answer, or is thought about further."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import NUMBER, bare, final_answer, first_program, same_answer, split_answer, split_thinking
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Message, Record, Row
from kdgen.sandbox.box import Outcome
from kdgen.stages.answer import TASK, asked_of, compared, reasoned, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.teachers.base import Reply

SHOWN = 2000  # characters of what a program printed that its writer is shown, and that a row keeps
NEAR = 1e-6
NOTHING = ("None", "nan")  # what Python says of a value that is not there


class Program(Stage):
    """Label with a program: D = {x, y | x ~ X, y = run(p), p ~ p_T(p | I ⊕ c ⊕ x)} (Xu et al., Eq. 3; PoT, arXiv 2211.12588).

    The reply, program and all, is `reasoning`, the last line that the program prints is `output`. MAmmoTH (arXiv
    2309.05653) mixes such rows with chains of thought, which `thought` asks for: with `thoughts: both` of each question, with
    `fallback` of one whose program is lost. A program is lost where it does not run to its end, prints nothing, or, with
    `on_disagree: reject`, disagrees with the record's gold answer; it is a reject with that reason. `trigger` is added
    to the task of a row with a program, so that a student can be told which of the two to write.
    """

    stage: Literal["label"] = "label"
    method: Literal["program"] = "program"
    prompt: PromptFile
    thought: PromptFile | None = None
    thoughts: Literal["both", "fallback"] = "fallback"
    trigger: str = ""
    on_disagree: Literal["keep", "reject"] = "reject"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK, "thought": TASK}
    executes: ClassVar[bool] = True

    @property
    def validates(self) -> set[str]:
        """The teacher, whose reply must have a program, or a rationale and an answer."""
        return {self.to}

    def check(self, where: str) -> None:
        """Without a prompt for thoughts there are none."""
        super().check(where)
        if self.thought is None and "thoughts" in self.model_fields_set:
            cause = "thoughts has no effect without a prompt for them"
            raise bad_stage(cause, f"{where}.thoughts", "thought: label/rationale")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call, and one for the thought where it is asked for."""
        ways = [self._programmed, *([self._thought] if self.thought and self.thoughts == "both" else [])]
        asks = [ask.fork() for _ in ways]
        found = await gathered([way(job, each) for way, each in zip(ways, asks, strict=True)])
        if self.thought and self.thoughts == "fallback" and isinstance(found[0], Rejected):
            asks.append(ask.fork())
            found += await gathered([self._thought(job, asks[-1])])
        ask.calls += [call for each in asks for call in each.calls]
        rows: list[Row] = []
        for made, each in zip(found, asks, strict=True):
            lost = job.model_copy(update={"calls": (*job.calls, *each.calls)})
            rows.append(lost.rejected(self.name, made.reason, made.detail) if isinstance(made, Rejected) else made)
        return rows

    async def _programmed(self, job: Record, ask: Ask) -> Record:
        gold = final_answer(job.output)
        reply = await ask(self.prompt, history=job.history, check=_written, gold=gold, **task_variables(job))
        source, said = first_program(split_thinking(reply.text)[1])
        printed = printed_by(await ask.execute(source, guess=" ".join(gold.split()) or "1"))
        last = printed.splitlines()[-1].strip()
        answer = split_answer(last)[1] or last
        if answer in NOTHING and not gold:
            raise Rejected("program_silent", f"it printed {answer}")
        meta = compared(job, answer, near_answer, reject=self.on_disagree == "reject")
        meta |= {"way": "program", "printed": printed[:SHOWN]}
        return self._row(job, reply, said, answer, meta, **self._triggered(job))

    async def _thought(self, job: Record, ask: Ask) -> Record:
        assert self.thought is not None
        gold = final_answer(job.output)
        reply = await ask(self.thought, history=job.history, check=reasoned, gold=gold, **task_variables(job))
        rationale, answer = split_answer(split_thinking(reply.text)[1])
        meta = compared(job, answer, same_answer, reject=self.on_disagree == "reject")
        return self._row(job, reply, rationale, answer, {**meta, "way": "thought"})

    def _triggered(self, job: Record) -> dict[str, str]:
        """The last field of the task with the trigger below it."""
        task = job.model_copy(update=asked_of(job))
        field, text = ("input", task.input) if task.input else ("instruction", task.instruction)
        return {field: f"{text}\n\n{self.trigger}"} if self.trigger else {}

    def _row(
        self, job: Record, reply: Reply, reasoning: str, answer: str, meta: dict[str, JsonValue], **task: str
    ) -> Record:
        content = {**asked_of(job), **task, "reasoning": reasoning, "output": answer, "finish": reply.finish}
        return self.child(job, reply, writes=("reasoning", "output"), meta=meta, **content)

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A program, or a rationale and an answer."""
        if prompt == self.prompt:
            return f"```python\n# {words(0)}\nprint(1)\n```"
        return f"{words(0)}\nAnswer: {variables['gold'] or words(2)}"


class Tora(Stage):
    """Label with reasoning that programs are part of (ToRA, arXiv 2309.17452): D = {x, y | x ~ X, y ~ p_T(y | I ⊕ c ⊕ x)}
    (Xu et al., Eq. 3), where y = r1 p1 o1 r2 … and o is what the program p prints, never what the teacher says it would.

    What a program printed, or how it failed, is shown to the teacher, who goes on: with another program, at most `rounds`
    of them, or with the final answer. The row's `history` ends with these turns (the question, then assistant and tool in
    turn), its `output` is the last rationale with the answer. Lost are a conversation without an answer in the end, one
    whose last program did not run or printed nothing, and, with `on_disagree: reject`, one that disagrees with the
    record's gold answer.
    """

    stage: Literal["label"] = "label"
    method: Literal["tora"] = "tora"
    prompt: PromptFile
    rounds: int = Field(3, ge=1, le=20)
    on_disagree: Literal["keep", "reject"] = "reject"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"printed", "last"}}
    executes: ClassVar[bool] = True

    @property
    def validates(self) -> set[str]:
        """The teacher, whose reply must have a program, or an answer after one."""
        return {self.to}

    def check(self, where: str) -> None:
        """The prompt must show what a program printed."""
        super().check(where)
        if "printed" not in self.prompt.variables:
            raise bad_stage("the prompt does not show what a program printed", f"{where}.prompt", "{{ printed }}")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """A call for each program, and one for the answer."""
        asked, gold = task_variables(job), final_answer(job.output)
        before, told = list(job.history), [Message(role="user", content=job.task or job.text)]
        replies, ends = list[Reply](), list[Outcome]()
        shown = ""
        while True:
            last = len(ends) == self.rounds
            state = {**asked, "printed": shown, "last": last}
            check = _final if last else _next if ends else _written
            reply = await ask(self.prompt, history=before, check=check, gold=gold, **state)
            replies.append(reply)
            text = split_thinking(reply.text)[1]
            if ends and (answer := _answered(text)):
                break
            source, said = first_program(text)
            ends.append(await ask.execute(source, guess=" ".join(gold.split()) or "1"))
            # What follows a program was said before it ran: it is what the teacher believes, not what came out.
            shown_before, shown = self.prompt.render({**self.drawn(job), **state}), _shown(ends[-1])
            before += [Message(role="user", content=each["content"]) for each in shown_before if each["role"] == "user"]
            before.append(Message(role="assistant", content=said))
            told += [Message(role="assistant", content=said), Message(role="tool", content=shown)]
        printed_by(ends[-1])
        meta = compared(job, split_answer(answer)[1], near_answer, reject=self.on_disagree == "reject")
        row = self.child(
            job,
            *replies,
            writes=("history", "output"),
            meta={**meta, "programs": [end.reason for end in ends]},
            history=(*job.history, *told),
            output=answer,
            reasoning="",
            finish=reply.finish,
            **asked_of(job),
        )
        return [row]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A program, and after it an answer."""
        if not variables["printed"]:
            return f"{words(20)}\n```python\n# {words(0)}\nprint(1)\n```"
        return f"{words(20)}\nAnswer: {variables['gold'] or words(2)}"


def printed_by(end: Outcome) -> str:
    """What a program printed. Raises Rejected where it did not run to its end, or printed nothing."""
    if end.reason != "ok":
        raise Rejected(f"program_{end.reason}", end.why)
    if not end.stdout.strip():
        raise Rejected("program_silent", "it printed nothing")
    return end.stdout.strip()


def near_answer(left: str, right: str) -> bool:
    """Whether two answers agree as `same_answer` says, or are the same number but for what floating point leaves."""
    if same_answer(left, right):
        return True
    numbers = [NUMBER.fullmatch(bare(final_answer(side)).strip("$€£ ")) for side in (left, right)]
    values = [float(found[0].replace(",", "")) for found in numbers if found and "/" not in found[0]]
    return len(values) == 2 and math.isclose(*values, rel_tol=NEAR)


def _shown(end: Outcome) -> str:
    said = end.stdout.strip()[:SHOWN]
    if end.reason != "ok":
        return f"{said}\n{end.why}".strip()
    return said or "(the program printed nothing)"


def _written(reply: Reply) -> str | None:
    return None if first_program(split_thinking(reply.text)[1])[0] else "it has no ```python block"


def _final(reply: Reply) -> str | None:
    return (
        None if _answered(split_thinking(reply.text)[1]) else 'it has no last line "Answer: …", or a program before it'
    )


def _answered(text: str) -> str:
    """A text up to its first program, where that much has an answer: what comes first counts."""
    source, said = first_program(text)
    head = said.removesuffix("```").rpartition("```")[0].strip() if source else text
    return head if split_answer(head)[1] else ""


def _next(reply: Reply) -> str | None:
    if _written(reply) is None or _final(reply) is None:
        return None
    return 'it has neither a ```python block nor a last line "Answer: …"'
