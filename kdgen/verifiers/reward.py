"""The verifiers of a dataset as a trainer's reward: TRL's GRPOTrainer takes `reward` as one of its `reward_funcs`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kdgen.sandbox.box import Outcome, Sandbox
from kdgen.verifiers import read_verifier


def reward(
    completions: Sequence[Any],
    verifier: Sequence[Any],
    answer: Sequence[str] | None = None,
    sandbox: Sandbox | None = None,
    **columns: Any,
) -> list[float | None]:
    """A score from 0 to 1 for each completion (a text, or a list of messages), None where it cannot be judged.

    `verifier` and `answer` are the columns that `export: {format: prompt}` writes; programs run in `sandbox`. Raises
    ValueError for a verifier that is none.
    """
    box = sandbox or Sandbox()

    async def execute(
        program: str, /, *, stdin: str = "", files: Mapping[str, str] | None = None, guess: str = ""
    ) -> Outcome:
        return await box.run(program, stdin, files)

    async def judged() -> list[float | None]:
        specs = [read_verifier(spec if isinstance(spec, str) else json.dumps(spec)) for spec in verifier]
        golds = answer or [""] * len(specs)
        told = zip(specs, completions, golds, strict=True)
        found = await asyncio.gather(*[spec.verdict(_text(each), gold or "", execute) for spec, each, gold in told])
        return [verdict.score for verdict in found]

    return asyncio.run(judged())


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"] or "") if completion else ""
