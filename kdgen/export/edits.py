"""Rows with rewards for tokens."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kdgen.export.base import Format
from kdgen.export.shapes import JSON, TEXT, WORDS
from kdgen.record import Record
from kdgen.solutions import solution


class Edits(Format):
    """`{"prompt", "bad", "good", "edit_ops", "token_rewards"}`, from `feedback/edit` (RLMEC, FIGA).

    `edit_ops` is a list of `[op, bad_start, bad_end, good_start, good_end]`, `token_rewards` of each text a list of
    `[start, end, weight]` that covers it. Both count characters, so that they fit any tokenizer by its offsets.
    """

    TRAINERS: ClassVar[str] = "RLMEC, FIGA"

    format: Literal["edits"] = "edits"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """Both texts and what lies between them. A record without edits has no place."""
        held = record.meta.get("edit")
        listed = held.get("ops") if isinstance(held, dict) else None
        ops: list[Any] = listed if isinstance(listed, list) else []
        if not ops or len(record.candidates) != 2 or not record.task:
            return None
        good, bad = (solution(each) for each in record.candidates)
        rewards = {
            side: [[*op[span], op["weights"][place]] for op in ops if op[span][0] < op[span][1]]
            for place, (side, span) in enumerate((("bad", "old"), ("good", "new")))
        }
        edit_ops = [[op["op"], *op["old"], *op["new"]] for op in ops]
        return {"prompt": record.task, "bad": bad, "good": good, "edit_ops": edit_ops, "token_rewards": rewards}

    def shape(self) -> dict[str, Any]:
        """Texts, and lists of texts and numbers."""
        rewards = {"bad": [JSON, 0], "good": [JSON, 0]}
        return {"prompt": WORDS, "bad": TEXT, "good": TEXT, "edit_ops": [JSON], "token_rewards": rewards}
