"""Self-knowledge: a model's own reasons, kept where they reach the known answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.banks import BankFile
from kdgen.errors import Rejected
from kdgen.parse import bare, final_answer, same_answer, split_answer, split_thinking
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row, score
from kdgen.stages.answer import TASK, asked_of, reasoned, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.draw import Draw
from kdgen.teachers.base import Reply

SHOTS = frozenset({"question", "reasoning", "response"})


class Star(Stage):
    """Reasons that lead to the right answer: D = {(x, y, φ_sk(x, y)) | x ~ S, y ~ p_S(y | I ⊕ x)} (Xu et al., Eq. 8).

    φ_sk is whether y ends in the record's own answer (STaR, arXiv 2203.14465). The model is asked after `shots` solved
    questions, drawn from the rows of the loop's last iteration, and before there are any from the bank `examples`. A
    question that it does not solve in `tries` draws is asked once more with the answer as a hint (rationalisation), by the
    prompt `hint`; reasons that then reach it are kept as if there had been none, and `meta.star` says `hinted`. A question
    that stays unsolved is a reject. An example never shows the question that is asked.
    """

    stage: Literal["self"] = "self"
    method: Literal["star"] = "star"
    prompt: PromptFile
    hint: PromptFile | None = None
    examples: BankFile
    shots: int = Field(4, ge=1, le=32)
    tries: int = Field(1, ge=1, le=64)

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": TASK | {"examples"},
        "hint": TASK | {"examples", "gold"},
    }

    @property
    def validates(self) -> set[str]:
        """The model, whose reply must have reasons and an answer."""
        return {self.to}

    @property
    def draws_earlier(self) -> bool:
        """Its examples are rows of the iteration before."""
        return True

    def check(self, where: str) -> None:
        """An example is a question, its reasons and its answer; there are as many as are shown."""
        super().check(where)
        if not {*self.examples.fields} >= SHOTS:
            have, need = ", ".join(self.examples.fields), ", ".join(sorted(SHOTS))
            raise bad_stage(f"an example has {need}", f"{where}.examples", f"its entries have: {have}")
        # One more than is shown, for an entry may be the question itself.
        if len(self.examples.entries) <= self.shots:
            many = f"{self.shots} examples are shown, and the bank has {len(self.examples.entries)}: one more is needed"
            raise bad_stage(many, f"{where}.shots", f"shots: {len(self.examples.entries) - 1}")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each question with the examples that it is asked after."""
        for record in pool:
            asked = record.task or record.text
            drawn = draw.top(draw.earlier, self.shots + 1, asked)
            rows = [each for each in drawn if each.task != asked and each.reasoning][: self.shots]
            shots: list[JsonValue] = [
                {"id": each.id, "question": each.task, "reasoning": each.reasoning, "response": each.output}
                for each in rows
            ]
            left = [entry for entry in self.examples.entries if entry.texts["question"].strip() != asked.strip()]
            left.sort(key=lambda entry: score(draw.seed, draw.stage, entry.id, asked))
            shots += [{"id": entry.id, **entry.texts} for entry in left[: self.shots - len(shots)]]
            yield record.model_copy(update={"meta": {**record.meta, "shots": shots}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call where the first draw is right; at most `tries`, and one with the hint."""
        shots: Any = job.meta["shots"]
        gold = final_answer(job.output) if job.output else ""
        if not gold:
            raise Rejected("no_gold", "the record has no answer to reach")
        asked = {**task_variables(job), "examples": shots}
        reply, told = None, ""
        for number in range(self.tries):
            reply, told = await self._solved(ask, self.prompt, gold, nth=number, **asked)
            if reply:
                break
        hinted = reply is None and self.hint is not None
        if reply is None and self.hint is not None:
            reply, told = await self._solved(ask, self.hint, gold, gold=gold, **asked)
        if reply is None:
            raise Rejected("unsolved", f"{told[:200]}; it is {gold[:100]}")
        rationale, answer = split_answer(split_thinking(reply.text)[1])
        content: dict[str, Any] = {"reasoning": rationale, "output": answer, **asked_of(job)}
        star: dict[str, JsonValue] = {"hinted": hinted, "shots": [shot["id"] for shot in shots]}
        meta = {name: value for name, value in job.meta.items() if name != "shots"}
        row = job.model_copy(update={"meta": meta}).child(
            stage=self.stage,
            method=self.method,
            calls=list(dict.fromkeys(ask.calls)),
            writers=dict.fromkeys(("reasoning", "output"), reply.teacher),
            meta={"gold": gold, "star": star},
            finish=reply.finish,
            **content,
        )
        return [row]

    async def _solved(self, ask: Ask, prompt: Prompt, right: str, **asked: Any) -> tuple[Reply | None, str]:
        """The reply that reaches the answer, or what came instead of one."""
        try:
            reply = await ask(prompt, check=reasoned, **asked)
        except Rejected as fate:
            return None, f"{fate.reason}: {fate.detail}"
        answer = split_answer(split_thinking(reply.text)[1])[1]
        return (reply, "") if same_answer(answer, right) else (None, f"the answer was {bare(answer)[:100]}")

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """Reasons with an answer, which is right once it is told."""
        return f"{words(60)}\nAnswer: {variables.get('gold') or words(2)}"
