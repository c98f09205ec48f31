"""Feedback by repair: the student tries, a check says what is wrong, the teacher mends it, and the check has the last word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import JsonValue

from kdgen.errors import Rejected
from kdgen.parse import final_answer, split_thinking
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Message, Record, Row
from kdgen.stages.answer import TASK, asked_of, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.verify import check_source, runs_programs, spec_of
from kdgen.teachers.base import Reply
from kdgen.verifiers import AnyVerifier
from kdgen.verifiers.base import Verdict

Rows = Literal["both", "fix", "repair", "pair"]


class Repair(Stage):
    """Repair what the student got wrong: D = {(x, y, φ_fb(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7), φ_fb being a fix.

    PERsD (arXiv 2310.18628): the student answers the task by `attempt`, and a verifier (`verifier`, or the seed's column
    `spec_from`, as in feedback/verify) checks it, by unit tests or by any other rule. Where it fails the teacher is shown the task,
    the wrong answer and what the check said, and its fix is kept if it passes the same check. `rows` says what is made of
    that: `fix` is task -> fix, `repair` is (task, wrong answer, error) -> fix, whose error is the user's turn `again`, `both`
    are both; `pair` is a preference, the fix over the wrong answer. A task that the student solves teaches nothing new and
    is a reject, or with `solved: keep` a row with the student's answer. `meta.attempt` and `meta.error` keep what failed.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["repair"] = "repair"
    attempt: PromptFile
    prompt: PromptFile
    again: PromptFile | None = None
    student: str = "student"
    verifier: AnyVerifier | None = None
    spec_from: str | None = None
    rows: Rows = "both"
    solved: Literal["reject", "keep"] = "reject"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "attempt": TASK,
        "prompt": TASK | {"wrong", "error"},
        "again": frozenset({"error"}),
    }

    @property
    def roles(self) -> set[str]:
        """The student, and the teacher who repairs."""
        return {self.student, self.to}

    @property
    def executes(self) -> bool:  # type: ignore[override]
        """Whether the check runs programs."""
        return runs_programs(self.verifier, self.spec_from)

    def check(self, where: str) -> None:
        """The teacher sees what is wrong, and rows that teach repairing have their turn."""
        super().check(where)
        check_source(self.verifier, self.spec_from, where)
        if unseen := {"wrong", "error"} - self.prompt.variables.keys():
            raise bad_stage(f"the prompt does not show {min(unseen)!r}", f"{where}.prompt", f"{{{{ {min(unseen)} }}}}")
        if (self.rows in ("both", "repair")) != (self.again is not None):
            cause = "rows that teach repairing and their user's turn go together"
            raise bad_stage(cause, f"{where}.again", "rows: both, again: feedback/repair/again")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call, and one more where the student is wrong; as many checks."""
        spec = spec_of(job, self.verifier, self.spec_from)
        gold = final_answer(job.output)
        if spec.needs_gold and not gold:
            raise Rejected("no_gold", "the record has no answer to compare with")
        shown = task_variables(job)
        tried = await ask(self.attempt, to=self.student, history=job.history, gold=gold, **shown)
        wrong = _text(tried)
        first = await spec.verdict(wrong, gold, ask.execute)
        if first.passed is None:
            raise Rejected("unverified", first.detail)
        meta: dict[str, JsonValue] = {"verifier": spec.model_dump(mode="json"), **({"gold": gold} if gold else {})}
        if first.passed:
            if self.solved == "reject":
                raise Rejected("student_passes", "the student's answer passes its check")
            solved: Record = self.child(
                job, tried, writes=("output",), meta=meta, **asked_of(job), **_content(tried, wrong)
            )
            return [solved]
        error = first.detail or "it is wrong"
        reply = await ask(self.prompt, history=job.history, gold=gold, wrong=wrong, error=error, **shown)
        fix = _text(reply)
        last = await spec.verdict(fix, gold, ask.execute)
        if not last.passed:
            lost = job.model_copy(update={"output": fix, "calls": (*job.calls, *ask.calls)})
            return [lost.rejected(self.name, "unverified" if last.passed is None else "fix_fails", last.detail)]
        return self._rows(job, (tried, wrong, first), (reply, fix, last), {**meta, "attempt": wrong, "error": error})

    def _rows(
        self,
        job: Record,
        tried: tuple[Reply, str, Verdict],
        fixed: tuple[Reply, str, Verdict],
        meta: dict[str, JsonValue],
    ) -> list[Row]:
        """The rows that `rows` names."""
        reply, fix, _ = fixed
        content: dict[str, Any] = {**asked_of(job), **_content(reply, fix)}
        made: list[Row] = []
        if self.rows in ("both", "fix"):
            row = {**meta, "kind": "fix"}
            made.append(self.child(job, tried[0], reply, writes=("output",), meta=row, **content))
        if self.again is not None:
            (turn,) = [each["content"] for each in self.again.render({"error": meta["error"]})]
            asked = [Message(role="user", content=job.task or job.text), Message(role="assistant", content=tried[1])]
            told = {**content, "history": (*job.history, *asked), "instruction": turn, "input": ""}
            row = {**meta, "kind": "repair"}
            made.append(self.child(job, tried[0], reply, writes=("output",), meta=row, **told))
        if self.rows == "pair":
            pair = tuple(
                Candidate(
                    output=text,
                    writer=by.teacher,
                    role=role,
                    calls=(by.key,),
                    scores={"verified": verdict.score},
                    score=verdict.score,
                )
                for role, (by, text, verdict) in ((self.to, fixed), (self.student, tried))
            )
            row = {**meta, "kind": "pair"}
            made.append(self.child(job, tried[0], reply, writes=("output",), meta=row, **content, candidates=pair))
        return made

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """An attempt that has no answer, and a fix that has one."""
        if prompt == self.attempt:
            return words(0)
        return (
            f"{words(20)}\nAnswer: {variables['gold']}" if not self.executes else f"```python\n# {words(0)}\nx = 1\n```"
        )


def _text(reply: Reply) -> str:
    text = split_thinking(reply.text)[1]
    if not text:
        raise Rejected("empty_answer", f"finish: {reply.finish}")
    return text


def _content(reply: Reply, text: str) -> dict[str, str]:
    thinking = reply.reasoning or split_thinking(reply.text)[0]
    return {"output": text, "reasoning": thinking, "finish": reply.finish}
