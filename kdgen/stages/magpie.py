"""Expansion out of nothing: an aligned model that is shown an open user's turn writes what a user asks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdgen.errors import Rejected
from kdgen.parse import terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import BLANK, Record, Row, digest
from kdgen.stages.base import Ask, PoolStage
from kdgen.stages.draw import Draw, Pool

ROLE_MARKS = re.compile(r"<\|[^|\n]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")


class Magpie(PoolStage):
    """New tasks without seeds: D = {x | x ~ p_T(x | t)} (Xu et al., Eq. 4), t the chat template up to the user's words.

    Magpie (arXiv 2406.08464): the teacher completes the user's turn as it has learnt it, at temperature 1. Each call is a
    draw of its own, told apart by its number, so that a higher target asks only for what is missing. `prompt` is the system
    message, if any, that steers what users ask. A draw joins the pool when the filters keep it and its ROUGE-L with the
    whole pool is at most `novelty`. `calls` is the number of draws of a round.
    """

    stage: Literal["expand"] = "expand"
    method: Literal["magpie"] = "magpie"
    prompt: PromptFile
    rounds: int | None = Field(None, ge=1)
    calls: int | None = Field(None, ge=1)
    max_candidates: int | None = Field(None, ge=1)
    novelty: float | None = Field(0.7, gt=0, le=1)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": frozenset({"system"})}
    seedless: ClassVar[bool] = True

    @property
    def opens(self) -> set[str]:
        """The teacher."""
        return {self.to}

    def plan_pool(self, seeds: Pool, made: Pool, round: int, calls: int, draw: Draw) -> Iterator[Record]:
        """The next `calls` draws, by their numbers over all rounds."""
        for nth in range(round * calls, (round + 1) * calls):
            made_by = {"id": digest(self.stage, self.method, nth), "stage": self.stage, "method": self.method}
            yield Record.trusted({**BLANK, **made_by, "meta": {"nth": nth}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        nth = job.meta["nth"]
        assert isinstance(nth, int)
        reply = await ask(self.prompt, nth=nth, open=True, system=job.system)
        text = reply.text.strip()
        if not terms(text):
            raise Rejected("empty_task", f"finish: {reply.finish}")
        row = job.sibling(
            stage=self.stage,
            method=self.method,
            calls=(reply.key,),
            writers={"instruction": reply.teacher},
            finish=reply.finish,
            meta={"nth": nth},
            instruction=text,
        )
        if found := ROLE_MARKS.search(text):
            return [row.rejected(self.name, "template_mark", f"it has {found[0]!r}: is this the model's template?")]
        return [row]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A task."""
        return f"Explain {words(20)}"
