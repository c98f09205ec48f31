"""Labeling: a teacher answers what is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import JsonValue

from kdgen.errors import Rejected
from kdgen.parse import bare, final_answer, same_answer, split_answer, split_thinking
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.base import Ask, Stage
from kdgen.teachers.base import Reply

TASK = frozenset({"instruction", "input", "system", "text", "extra"})


class Answer(Stage):
    """Label a task with the teacher's answer: D = {x, y | x ~ X, y ~ p_T(y | I ⊕ c ⊕ x)} (Xu et al., Eq. 3).

    An output that the record had is kept as `meta.gold`; a prompt may show it, `gold`, as a hint. With `existing: keep` a
    record that has one is passed on unasked.
    """

    stage: Literal["label"] = "label"
    method: Literal["answer"] = "answer"
    prompt: PromptFile
    existing: Literal["replace", "keep"] = "replace"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"gold"}}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call: the answer as `output`, thinking apart in `reasoning`."""
        if self.existing == "keep" and job.output:
            return [job]
        reply = await ask(self.prompt, history=job.history, gold=job.output, **task_variables(job))
        thinking, text = split_thinking(reply.text)
        if not text:
            raise Rejected("empty_answer", f"finish: {reply.finish}")
        meta: dict[str, JsonValue] = {"gold": job.output} if job.output else {}
        reasoning = reply.reasoning or thinking
        content = {**asked_of(job), "output": text, "reasoning": reasoning, "finish": reply.finish}
        return [self.child(job, reply, writes=("output",), meta=meta, **content)]


class Rationale(Stage):
    """Label with a chain of thought and the answer split off it (Distilling Step-by-Step, arXiv 2305.02301).

    The rationale is `reasoning`, the answer `output`. Where the record has a gold answer, `meta.agrees`
    says whether the teacher's agrees with it; `on_disagree: reject` keeps only those that do (Fine-tune-CoT,
    arXiv 2212.10071).
    """

    stage: Literal["label"] = "label"
    method: Literal["rationale"] = "rationale"
    prompt: PromptFile
    on_disagree: Literal["keep", "reject"] = "keep"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK}

    @property
    def validates(self) -> set[str]:
        """The teacher, whose reply must have a rationale and an answer."""
        return {self.to}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call; a reply without a rationale and an `Answer:` line after it is invalid."""
        gold = final_answer(job.output)
        reply = await ask(self.prompt, history=job.history, check=reasoned, gold=gold, **task_variables(job))
        rationale, answer = split_answer(split_thinking(reply.text)[1])
        meta = compared(job, answer, same_answer, reject=self.on_disagree == "reject")
        content = {**asked_of(job), "output": answer, "reasoning": rationale, "finish": reply.finish}
        return [self.child(job, reply, writes=("reasoning", "output"), meta=meta, **content)]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A rationale and an answer, the gold one of all but a student."""
        right = "" if self.to == "student" else variables.get("gold")
        return f"{words(0)}\nAnswer: {right or words(2)}"


def compared(job: Record, answer: str, same: Callable[[str, str], bool], *, reject: bool) -> dict[str, JsonValue]:
    """The gold answer, where the record has one, and whether an answer agrees with it. With `reject` raises Rejected where not."""
    if not job.output:
        return {}
    gold = final_answer(job.output)
    agrees = same(answer, gold)
    if reject and not agrees:
        raise Rejected("disagrees_with_gold", f"{bare(answer)[:100]} is not {gold[:100]}")
    return {"gold": gold, "agrees": agrees}


def reasoned(reply: Reply) -> str | None:
    """What is wrong with a reply that should hold a rationale and an answer after it."""
    rationale, answer = split_answer(split_thinking(reply.text)[1])
    if not answer:
        return 'it has no last line "Answer: …"'
    return None if rationale else "it has an answer but no reasoning before it"


def asked_of(job: Record) -> dict[str, str]:
    """What a row was asked where that is a text alone: the x of Eq. 3, without which an answer has no place in a row."""
    return {} if job.instruction.strip() else {"instruction": job.text}


def task_variables(job: Record) -> dict[str, Any]:
    """What a prompt about one task is rendered with."""
    return {name: getattr(job, name) for name in ("instruction", "input", "system", "text", "extra")}
