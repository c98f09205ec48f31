"""Expansion by demonstrations: Self-Instruct's bootstrapping loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdgen.errors import UserError
from kdgen.parse import bare, numbered
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.base import Ask, Draw, Pool, PoolStage

RENUMBERED = re.compile(r"^\d{1,3}[.):]\s+")


class SelfInstruct(PoolStage):
    """New tasks from demonstrations of old ones: D = {x | x ~ p_T(x | I ⊕ c)} (Xu et al., Eq. 4).

    Self-Instruct (Wang et al., arXiv 2212.10560): each call shows `human` seed tasks and `machine` tasks of
    earlier rounds (6 + 2; seeds fill in while there are too few), each of `shown_words` words at most with its input,
    and asks for `ask_for` more; a
    candidate joins the pool when the heuristics keep it and its ROUGE-L with the whole pool is at most
    0.7. `calls` is the number of calls of a round; without it, a target's 32nd part, at least 4. Rounds go
    on to `rounds` (4 without a target), and with a target until it is met, `max_candidates` (20 a target row)
    are made, or two rounds in a row add nothing.
    """

    stage: Literal["expand"] = "expand"
    method: Literal["self-instruct"] = "self-instruct"
    prompt: PromptFile
    human: int = Field(6, ge=0)
    machine: int = Field(2, ge=0)
    ask_for: int = Field(8, ge=1)
    shown_words: int = Field(60, ge=1)
    rounds: int | None = Field(None, ge=1)
    calls: int | None = Field(None, ge=1)
    max_candidates: int | None = Field(None, ge=1)
    novelty: float | None = Field(0.7, gt=0, le=1)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": frozenset({"demonstrations", "first", "last", "count"})}
    cut_is_fine: ClassVar[bool] = True

    def plan_pool(self, seeds: Pool, made: Pool, round: int, calls: int, draw: Draw) -> Iterator[Record]:
        """Each job's demonstrations, drawn by rendezvous and mixed."""
        known = len(seeds) + len(made)
        seeds, made = (self._short(pool) for pool in (seeds, made))
        if known and not len(seeds) + len(made):
            raise UserError(
                f"no task has 1 to {self.shown_words} words, so there is no demonstration",
                where=self.name,
                hint="raise shown_words; a text alone is no task (seeds.map: {instruction: COLUMN} makes it one)",
            )
        for number in range(calls):
            machine = draw.top(made, self.machine, "machine", round, number)
            human = draw.top(seeds, self.human + self.machine - len(machine), "human", round, number)
            shown = draw.top(Pool(human + machine), len(human) + len(machine), "order", round, number)
            if not shown:
                return
            text = "\n".join(" ".join(task.task.split()) for task in shown)
            yield shown[0].child(
                stage=self.stage, method=self.method, parents=shown, text=text, meta={"round": round, "job": number}
            )

    def _short(self, pool: Pool) -> Pool:
        return Pool([task for task in pool.records if 0 < len(task.task.split()) <= self.shown_words])

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The list that is asked for."""
        return "\n".join(
            f"{number}. Explain {words(15)}" for number in range(variables["first"], variables["last"] + 1)
        )

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call; the items of the numbered list that comes back. A list cut at max_tokens loses its last item."""
        first = len(job.parents) + 1
        last = first + self.ask_for - 1
        shown = job.text.split("\n")
        reply = await ask(self.prompt, partial=True, demonstrations=shown, first=first, last=last, count=self.ask_for)
        items = numbered(reply.text)
        if not items:
            return [job.rejected(self.name, "no_list", reply.text[:200])]
        rows: list[Row] = []
        for place, item in enumerate(items):
            row = job.sibling(
                stage=self.stage,
                method=self.method,
                calls=(reply.key,),
                writers={"instruction": reply.teacher},
                meta={"round": job.meta["round"], "place": place},
                instruction=bare(RENUMBERED.sub("", item).strip("*").strip()),
            )
            if reply.finish == "length" and place == len(items) - 1:
                rows.append(row.rejected(self.name, "cut", "the last item of a list cut at max_tokens"))
            elif place >= self.ask_for:
                rows.append(row.rejected(self.name, "not_asked_for", f"item {place + 1} of {self.ask_for}"))
            else:
                rows.append(row)
        return rows
