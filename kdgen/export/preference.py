"""Rows for preference tuning and reward models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kdgen.export.base import TOOLS, Format, tooled
from kdgen.export.shapes import FLAG, JSON, NUMBER, TEXT
from kdgen.record import Candidate, Record


class Preference(Format):
    """`{"prompt": [message, …], "chosen": [message], "rejected": [message], "score_chosen", "score_rejected", "chosen_model",
    "rejected_model"[, "tools"]}`: TRL's DPO, ORPO, CPO and reward trainers, which leave scores and models alone. A score is null
    where nobody scored.
    """

    TRAINERS: ClassVar[str] = "TRL DPO, ORPO, CPO, SimPO and reward models"

    format: Literal["preference"] = "preference"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The pair, where the record is one: two candidates, the chosen one first."""
        pair = pair_of(record)
        if pair is None:
            return None
        chosen, rejected = pair
        return {
            "prompt": self.prompt(record),
            "chosen": [self.message(chosen)],
            "rejected": [self.message(rejected)],
            "score_chosen": chosen.score,
            "score_rejected": rejected.score,
            "chosen_model": chosen.writer,
            "rejected_model": rejected.writer,
            **tooled(record),
        }

    def shape(self) -> dict[str, Any]:
        """What is asked, both answers, their scores and writers."""
        said, score = [self.turn()], f"{NUMBER}?"
        told = {"score_chosen": score, "score_rejected": score, "chosen_model": TEXT, "rejected_model": TEXT}
        return {"prompt": said, "chosen": said, "rejected": said, **told, **TOOLS}


def pair_of(record: Record) -> tuple[Candidate, Candidate] | None:
    """The chosen and the rejected answer, where the record is a pair: two candidates, the chosen one first.

    Two answers that nothing has chosen between are no pair: the chosen one is the record's own output.
    """
    if not record.instruction or len(record.candidates) != 2:
        return None
    chosen, rejected = record.candidates
    if record.output != chosen.output or chosen.output == rejected.output:
        return None
    return chosen, rejected


class Kto(Format):
    """`{"prompt": [message, …], "completion": [message], "label": true | false[, "tools"]}`: TRL's and Axolotl's KTO."""

    TRAINERS: ClassVar[str] = "TRL KTO"

    format: Literal["kto"] = "kto"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The answer and its label, where it has one (`feedback/each` with `good_from`)."""
        label = record.meta.get("label")
        if not record.instruction or not record.output or not isinstance(label, bool):
            return None
        said = {"prompt": self.prompt(record), "completion": [self.message(record)], "label": label}
        return {**said, **tooled(record)}

    def shape(self) -> dict[str, Any]:
        """What is asked, the answer, its label."""
        return {"prompt": [self.turn()], "completion": [self.turn()], "label": FLAG, **TOOLS}


class Ranked(Format):
    """`{"prompt": [message, …], "responses": [text, …], "scores": […], "models": […]}`, best first: RRHF, PRO, listwise DPO."""

    TRAINERS: ClassVar[str] = "RRHF, PRO, listwise DPO"

    format: Literal["ranked"] = "ranked"
    reasoning: Literal["drop", "fold", "think"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The candidates that have a score, where there are two at least."""
        scored = sorted((-each.score, place) for place, each in enumerate(record.candidates) if each.score is not None)
        if not record.instruction or len(scored) < 2:
            return None
        best = [record.candidates[place] for _, place in scored]
        return {
            "prompt": self.prompt(record),
            "responses": [self.answer(each) for each in best],
            "scores": [each.score for each in best],
            "models": [each.writer for each in best],
        }

    def shape(self) -> dict[str, Any]:
        """Lists of one length."""
        return {"prompt": [self.turn()], "responses": [TEXT], "scores": [NUMBER], "models": [TEXT]}


class Reward(Format):
    """`{"prompt": [message, …], "completion": [message], "score", "scores": {name: number | null}}`: one answer and what it is
    worth, for reward models that learn a number (HelpSteer's form).
    """

    TRAINERS: ClassVar[str] = "reward models that learn a number"

    format: Literal["reward"] = "reward"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The answer, where it has a score."""
        score, scores = record.meta.get("score"), record.meta.get("scores")
        if not record.instruction or not record.output or not isinstance(score, int | float):
            return None
        named = scores if isinstance(scores, dict) else {}
        return {"prompt": self.prompt(record), "completion": [self.message(record)], "score": score, "scores": named}

    def shape(self) -> dict[str, Any]:
        """What is asked, the answer, its scores."""
        return {"prompt": [self.turn()], "completion": [self.turn()], "score": NUMBER, "scores": JSON}
