"""Rows for critics, and for models that revise their own drafts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kdgen.export.base import Format
from kdgen.export.shapes import TEXT, WORDS
from kdgen.record import Record


class Critique(Format):
    """An answer with what was said of it, from the rounds of `label/rewrite` (`meta.rewrite.output`).

    `layout`: `critique` is `{"prompt", "answer", "critique", "revision"}`, of the round whose answer was revised first, or
    of the first where none was; then `revision` is empty. `chain` is `{"prompt", "completion"}`: each draft with its feedback
    and then the answer (SelFee; TRL, Axolotl). A record without rounds has no place.
    """

    TRAINERS: ClassVar[str] = "critics and revisers: TRL SFT, Axolotl"

    format: Literal["critique"] = "critique"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"
    layout: Literal["critique", "chain"] = "critique"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The critique of one answer, or the whole chain."""
        rounds = rounds_of(record)
        if not rounds or not record.task:
            return None
        drafts = [*(each["output"] for each in rounds), record.output]
        if self.layout == "chain":
            told = [f"Draft: {each['output']}\n\nFeedback: {each['critique']}" for each in rounds]
            return {"prompt": record.task, "completion": "\n\n".join([*told, f"Answer: {record.output}"])}
        place = next((at for at in range(len(rounds)) if drafts[at] != drafts[at + 1]), 0)
        critique, after = rounds[place]["critique"], drafts[place + 1]
        revision = after if after != drafts[place] else ""
        return {"prompt": record.task, "answer": drafts[place], "critique": critique, "revision": revision}

    def shape(self) -> dict[str, Any]:
        """Texts."""
        if self.layout == "chain":
            return {"prompt": WORDS, "completion": WORDS}
        return {"prompt": WORDS, "answer": TEXT, "critique": TEXT, "revision": TEXT}


def rounds_of(record: Record) -> list[dict[str, str]]:
    """The rounds of an answer's criticism: in each a `critique` and the `output` that it was about."""
    held = record.meta.get("rewrite")
    told = held.get("output") if isinstance(held, dict) else None
    rounds = told.get("rounds") if isinstance(told, dict) else None
    return [
        {"critique": str(each["critique"]), "output": str(each["output"])}
        for each in (rounds if isinstance(rounds, list) else [])
        if isinstance(each, dict) and "critique" in each and "output" in each
    ]
