"""Rows that teach a model to judge."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from kdgen.export.base import Format
from kdgen.export.shapes import NUMBER, TEXT, WORDS
from kdgen.record import Record
from kdgen.rubrics import RubricFile

ASKED = """You are given a task, an answer to it{reference}, and a rubric. Assess the answer strictly by the rubric: first write \
feedback that says what is good and what is lacking, then a line "[RESULT]" with the grade, from {low} to {high}.

Task:
{task}

Answer to assess:
{output}
{gold}
Rubric: {asks}
{scale}"""


class Evaluator(Format):
    """`{"messages": [what a judge is asked, its feedback and grade], "orig_instruction", "orig_response",
    "orig_reference_answer", "orig_criteria", "orig_feedback", "orig_score", "orig_scoreN_description"…}`: a row that teaches a model to
    judge, in the form of Prometheus (arXiv 2310.08491), whose columns trainers leave alone.

    Of a record that `feedback/judge` graded by the same `rubric`, its own output or (`feedback/each`) a candidate;
    `aspect` says which grade, the rubric's first by default.
    """

    TRAINERS: ClassVar[str] = "judges (Prometheus): TRL SFT, Axolotl"

    format: Literal["evaluator"] = "evaluator"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"
    rubric: RubricFile
    aspect: str = ""

    @model_validator(mode="after")
    def _known(self) -> Evaluator:
        if self.aspect and self.aspect not in self.rubric.names:
            raise ValueError(f"aspect {self.aspect!r} is none of the rubric's: {', '.join(self.rubric.names)}")
        return self

    def row(self, record: Record) -> dict[str, Any] | None:
        """The row, where the record has that grade with its reason; a mean between two grades is none."""
        name = self.aspect or self.rubric.names[0]
        scores, notes = record.meta.get("scores"), record.meta.get("notes", record.meta)
        reasons = notes.get("reasons") if isinstance(notes, dict) else None
        score = scores.get(name) if isinstance(scores, dict) else None
        reason = reasons.get(name) if isinstance(reasons, dict) else None
        if name not in self.rubric.names or not record.output or not reason or not isinstance(score, int | float):
            return None
        scale = self.rubric.of(name)
        low, high = scale.ends
        if score % (0.5 if scale.halves else 1) or not _given(notes, name, score):
            return None
        gold = record.meta.get("gold")
        reference = gold if isinstance(gold, str) else ""
        task = record.task or record.text
        asked = ASKED.format(
            reference=", an answer that is known to be right" if reference else "",
            low=low,
            high=high,
            task=task,
            output=record.output,
            gold=f"\nAn answer that is known to be right:\n{reference}\n" if reference else "",
            asks=scale.asks,
            scale="\n".join(f"{grade} = {words}" for grade, words in sorted(scale.scale.items())),
        )
        said = f"{reason}\n[RESULT] {score:g}"
        return {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
            "orig_instruction": task,
            "orig_response": record.output,
            "orig_reference_answer": reference,
            "orig_criteria": scale.asks,
            "orig_feedback": reason,
            "orig_score": score,
            **{f"orig_score{grade}_description": words for grade, words in sorted(scale.scale.items())},
        }

    def shape(self) -> dict[str, Any]:
        """Messages, and Prometheus' columns: one a grade that the rubric describes."""
        told = ("instruction", "response", "reference_answer", "criteria", "feedback")
        grades = self.rubric.of(self.aspect or self.rubric.names[0]).scale
        return {
            "messages": [self.turn()],
            **{f"orig_{name}": TEXT for name in told},
            "orig_score": NUMBER,
            **{f"orig_score{grade}_description": WORDS for grade in sorted(grades)},
        }


def _given(notes: Any, name: str, score: float) -> bool:
    """Whether the grade is the one that the feedback was given with, which is that of the first reply that was read."""
    held = notes.get("grades")
    grades = [each for each in held.values() if isinstance(each, list)] if isinstance(held, dict) else []
    if not grades or name not in held:
        return True  # there was one reply
    first = next((place for place, reply in enumerate(zip(*grades, strict=False)) if set(reply) != {None}), 0)
    return bool(held[name][first] == score)
