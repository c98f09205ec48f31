"""Rows for reinforcement learning and on-policy distillation: a prompt, and what its answers are judged by."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from kdgen.export.base import TOOLS, Format, gold_text, tooled
from kdgen.export.shapes import TEXT, WORDS
from kdgen.record import Record


class PromptOnly(Format):
    """`{"prompt": [{"role", "content"}, …], "answer", "verifier"[, "tools"]}`: TRL's GRPO, RLOO and DistillationTrainer, open-r1, verl.

    The record's answer is not in the row: `answer` (or `gold_as`) is the right one, `meta.gold`, and empty where there is none.
    `verifier` is the spec of `meta.verifier` as JSON, which `kdgen.verifiers.reward.reward` reads, and is left out of rows
    without one. Tests by cases are in `verification_info` too, as open-r1's code rewards take them.
    """

    TRAINERS: ClassVar[str] = "TRL GRPO, RLOO and DistillationTrainer, open-r1, verl"

    format: Literal["prompt"] = "prompt"
    reasoning: Literal["drop"] = "drop"
    gold_as: Literal["answer", "solution", "ground_truth"] = "answer"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The prompt with its verifier."""
        if not record.instruction:
            return None
        row: dict[str, Any] = {"prompt": self.prompt(record), **tooled(record)}
        gold, spec = record.meta.get("gold"), record.meta.get("verifier")
        if gold not in (None, "") or spec:
            row[self.gold_as] = gold_text(gold)
        if isinstance(spec, dict):
            row["verifier"] = json.dumps(spec, ensure_ascii=False)
            cases: Any = spec.get("cases")
            if cases:
                told = [{"input": case["input"], "output": case["output"], "type": "stdin_stdout"} for case in cases]
                row["verification_info"] = {"language": "python", "test_cases": told}
        return row

    def shape(self) -> dict[str, Any]:
        """The prompt, and what answers are judged by."""
        cases = [{"input": TEXT, "output": TEXT, "type": WORDS}]
        told = {f"{self.gold_as}?": TEXT, "verifier?": WORDS}
        return {
            "prompt": [self.turn()],
            **TOOLS,
            **told,
            "verification_info?": {"language": WORDS, "test_cases": cases},
        }
