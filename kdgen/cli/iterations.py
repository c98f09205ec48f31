"""The iterations of a loop, each a dataset of its own: M1, M2, …"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdgen.cli.inputs import scanned
from kdgen.cli.job import Job
from kdgen.config import Recipe
from kdgen.errors import GateFailed, UserError
from kdgen.loops import Loop, Measures, drifted, measured, rows_of
from kdgen.seeds import Seeds
from kdgen.store import RECORDS, Store
from kdgen.teachers.bill import Budget
from kdgen.terms import Ruling


def iterate(
    recipes: Sequence[Recipe], job: Job, rulings: Sequence[list[Ruling]], folder: Path
) -> Iterator[tuple[Store, dict[str, Any]]]:
    """Make each iteration's dataset, as far as it is not made already; what nothing changed in costs nothing again.

    `job` is the first one's. A budget is of all together. Raises GateFailed where rows drift past a bound of the loop: that
    iteration is not published, and none after it is made.
    """
    if (folder / ".current").exists():
        hint = "name a folder for the loop: -o DIR"
        raise UserError("the folder is a dataset, and a loop makes several", where=str(folder), hint=hint)
    earlier: list[Path] = []
    before: Measures | None = None
    usd, tokens = 0.0, 0
    for number, recipe in enumerate(recipes):
        loop = recipe.loop
        assert loop is not None
        store = Store(folder / f"M{number + 1}")
        after = tuple(spec for later in recipes[number + 1 :] for _, spec in later.leaves())
        mine = replace(
            job,
            recipe=_with_budget(recipe, usd, tokens),
            rulings=rulings[number],
            earlier=tuple(earlier),
            after=after,
        )
        if earlier and loop.reads == "rows":
            mine = _from_rows(mine, earlier[-1])
        gate = _Gate(loop, number, tuple(earlier), before)
        with store.locked():
            manifest = asyncio.run(replace(mine, gate=gate).run(store.staging, store))
        # A version that is read goes on being read, whoever publishes another meanwhile.
        earlier.append((store.folder / ".current").resolve() / RECORDS)
        before = gate.measures
        usd += (manifest["cost_usd"] or 0.0) + (manifest["maybe_billed"]["cost_usd"] or 0.0)
        tokens += manifest["tokens"]["input"] + manifest["tokens"]["output"] + manifest["maybe_billed"]["tokens"]
        yield store, manifest


def _from_rows(job: Job, records: Path) -> Job:
    """The job with the rows of another dataset as its seeds."""
    recipe = job.recipe.model_copy(update={"seeds": Seeds(path=str(records))})
    return replace(job, recipe=recipe, seeds=records, scan=scanned(recipe, records, False))


def _with_budget(recipe: Recipe, usd: float, tokens: int) -> Recipe:
    """The recipe with what the iterations before have left of its budget."""
    budget = recipe.budget
    left: dict[str, Any] = {}
    if budget.usd is not None:
        left["usd"] = max(0.0, budget.usd - usd)
    if budget.tokens is not None:
        left["tokens"] = max(0, budget.tokens - tokens)
    return recipe.model_copy(update={"budget": Budget.model_construct(**{**dict(budget), **left})}) if left else recipe


@dataclass
class _Gate:
    """Measures an iteration's rows before they are published, and holds them to the loop's bounds."""

    loop: Loop
    number: int
    earlier: tuple[Path, ...]
    before: Measures | None
    measures: Measures | None = None

    def __call__(self, folder: Path, manifest: dict[str, Any]) -> None:
        reports = [report for judges in manifest["judges"].values() for report in judges.values()]
        self.measures = measured(rows_of(folder / RECORDS), reports)
        manifest["loop"] = {
            "iteration": f"M{self.number + 1}",
            "of": len(self.loop.iterations),
            "reads": self.loop.reads,
            "earlier": {f"M{place}": path.parent.name for place, path in enumerate(self.earlier, 1)},
            "measures": self.measures.data(),
            "before": self.before.data() if self.before else None,
        }
        if said := drifted(self.loop.bounds, self.measures, self.before):
            hint = "read its rows and the loop's recipe; --set loop.bounds.NAME=… takes another bound, null none. What was paid is kept"
            raise GateFailed(f"M{self.number + 1} drifts: {said}; it is not published", hint=hint)
