"""Feedback by correction: a wrong answer mended with as few changes as possible, and the changes in the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import split_answer, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Frozen, Record, Row
from kdgen.solutions import changed, edits, solution
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage
from kdgen.stages.rewrite import ANNOUNCED
from kdgen.stages.steps import agrees, answer_of, gold_of
from kdgen.teachers.base import Reply
from kdgen.verifiers import AnyVerifier, missing_packages


class Weights(Frozen):
    """What a token counts in training: one of the new text that was added, one of the old that was removed, one kept."""

    added: float = 1.0
    removed: float = -0.5
    kept: float = 0.0


class Edit(Stage):
    """Mend a wrong answer with few edits: RLMEC (arXiv 2401.06081), FIGA (arXiv 2311.04072).

    D = {(x, y, φ(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7): φ is the mended answer and the fewest token edits
    that lead from y to it. `meta.edit` has them as `ops` (keep, replace, insert, delete; character spans in the `old` and the
    `new` text, and the `weights` of a token in each) and the share of tokens `changed`; more than `most` is a new answer
    and a reject. The row is a preference as well: two `candidates`, the mended answer first. Where the right answer is known
    (`meta.gold`, or the seed's column `gold`), what agrees with it is no wrong answer, and what was mended must;
    `verifier` says whether it does, as in feedback/steps.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["edit"] = "edit"
    prompt: PromptFile
    most: float = Field(0.4, gt=0, le=1)
    weights: Weights = Weights()
    gold: str | None = None
    verifier: AnyVerifier | None = None

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"output", "gold"}}

    @property
    def validates(self) -> set[str]:
        """The teacher, whose reply must be an answer."""
        return {self.to}

    @property
    def executes(self) -> bool:  # type: ignore[override]
        """Whether its verifier runs programs."""
        return self.verifier is not None and self.verifier.executes

    def check(self, where: str) -> None:
        """The verifier's packages are there."""
        super().check(where)
        if self.verifier is not None:
            missing_packages((type(self.verifier),), f"{where}.verifier")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call; none where the answer is right."""
        wrong, gold = solution(job), gold_of(job, self.gold)
        if not terms(wrong):
            raise Rejected("nothing_to_edit", "the record has no answer")
        if gold and await agrees(self.verifier, wrong, answer_of(job), gold, ask):
            raise Rejected("already_right", f"{answer_of(job)[:100]} is {gold[:100]}")

        def readable(reply: Reply) -> str | None:
            reasoning, output = self._parts(job, reply)
            if not terms(output) or (job.reasoning and not reasoning):
                return 'it has no last line "Answer: …"' if job.reasoning else "it is empty"
            return None

        shown = {**task_variables(job), "output": wrong, "gold": gold}
        reply = await ask(self.prompt, history=job.history, check=readable, **shown)
        reasoning, output = self._parts(job, reply)
        good = Candidate(
            output=output,
            reasoning=reasoning,
            writer=reply.teacher,
            role=self.to,
            calls=tuple(dict.fromkeys(ask.calls)),
        )
        wrote = job.writers.get("output", "")
        role = "" if wrote else "seed"
        bad = Candidate(output=job.output, reasoning=job.reasoning, writer=wrote, role=role, calls=job.calls)
        made = edits(wrong, solution(good))
        share = round(changed(wrong, solution(good), made), 4)
        lost = job.model_copy(update={"output": solution(good), "calls": (*job.calls, *good.calls)})
        if terms(wrong) == terms(solution(good)):
            return [lost.rejected(self.name, "unchanged", "the answer came back as it was")]
        if share > self.most:
            return [
                lost.rejected(self.name, "new_answer", f"{share:g} of the tokens changed, {self.most:g} is the most")
            ]
        mended = job.model_copy(update={"output": output, "reasoning": reasoning})
        if gold and not await agrees(self.verifier, solution(mended), answer_of(mended), gold, ask):
            detail = f"{answer_of(mended)[:100]} is not {gold[:100]}"
            return [lost.rejected(self.name, "disagrees_with_gold", detail)]
        ops: list[JsonValue] = []
        for edit in made:
            weights = [self.weights.kept] * 2 if edit.op == "keep" else [self.weights.removed, self.weights.added]
            ops.append({"op": edit.op, "old": [*edit.old], "new": [*edit.new], "weights": [*weights]})
        row = job.child(
            stage=self.stage,
            method=self.method,
            calls=good.calls,
            writers=dict.fromkeys(("reasoning", "output") if reasoning else ("output",), reply.teacher),
            meta={"edit": {"changed": share, "ops": ops}, **({"gold": gold, "agrees": True} if gold else {})},
            output=output,
            reasoning=reasoning,
            finish=reply.finish,
            candidates=(good, bad),
        )
        return [row]

    def _parts(self, job: Record, reply: Reply) -> tuple[str, str]:
        """(reasoning, output) as the record has them: an answer in one piece stays one."""
        text = ANNOUNCED.sub("", split_thinking(reply.text)[1], count=1)
        return split_answer(text) if job.reasoning else ("", text)

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The answer with another end, the right one where it is known."""
        before = split_answer(variables["output"])[0]
        return f"{before}\n\nAnswer: {variables['gold'] or words(2)}"
