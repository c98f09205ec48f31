"""Rows for process reward models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kdgen.export.base import Format
from kdgen.export.shapes import FLAG, NUMBER, TEXT, WORDS
from kdgen.record import Record


class Stepwise(Format):
    """`{"prompt", "completions": [step, …], "labels": […]}` (TRL, Axolotl's stepwise_supervised), from `feedback/steps`.

    `labels`: `hard` are booleans, as trainers take them; `soft` the share of rollouts that reached the answer, 0 to 1, or
    1.0 and 0.0 of a judge.
    """

    TRAINERS: ClassVar[str] = "process reward models: TRL PRM, Axolotl (`stepwise_supervised`)"

    format: Literal["stepwise"] = "stepwise"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"
    labels: Literal["hard", "soft"] = "hard"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The labelled steps. A record without has no place."""
        held = record.meta.get("steps")
        listed = held.get("labelled") if isinstance(held, dict) else None
        steps = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        if not steps or not record.task:
            return None
        soft = [each.get("share", float(bool(each["label"]))) for each in steps]
        labels = soft if self.labels == "soft" else [each["label"] for each in steps]
        return {"prompt": record.task, "completions": [each["text"] for each in steps], "labels": labels}

    def shape(self) -> dict[str, Any]:
        """A label for each step."""
        return {"prompt": WORDS, "completions": [TEXT], "labels": [NUMBER if self.labels == "soft" else FLAG]}
