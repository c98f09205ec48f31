"""One run and all it takes: the passes, the signals, the ledger, the publication."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from kdgen.card import card_of
from kdgen.config import Recipe
from kdgen.errors import BudgetReached, ComeBack, EndpointError, Interrupted, KdgenError, UserError
from kdgen.progress import watcher
from kdgen.record import digest
from kdgen.runner import Run
from kdgen.seeds import Scan
from kdgen.store import Staging, Store
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.bill import Bill
from kdgen.teachers.chain import Chain
from kdgen.teachers.halt import Halt
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.prices import Prices
from kdgen.terms import Ruling

POLL = 60.0


@dataclass(frozen=True)
class Job:
    """A run: passes until no row waits for a batch, signals, the ledger.

    `gate` sees the finished rows and the manifest before they are published, and raises where they should not be.
    `earlier` are the records of a loop's iterations before, `after` the teachers of those that follow.
    """

    recipe: Recipe
    seeds: Path
    scan: Scan
    ledger: Path
    quiet: bool
    wait: bool
    max_wait: float | None
    prices: Prices
    rulings: list[Ruling]
    earlier: tuple[Path, ...] = ()
    after: tuple[TeacherSpec, ...] = ()
    gate: Callable[[Path, dict[str, Any]], None] | None = None

    async def run(self, staging: Callable[[], AbstractContextManager[Staging]], store: Store | None) -> dict[str, Any]:
        """Pass after pass; the manifest of the last. Raises ComeBack where batches are out and nobody waits."""
        gc.freeze()  # what is loaded stays, so no collection need look at it
        book = Ledger(self.ledger)
        bill = Bill(self.recipe.budget, self.prices, book)
        chain = Chain(book, digest(str(store.folder.absolute()) if store else [str(self.seeds), self.recipe.digest]))
        try:
            if self.recipe.batched:
                chain.join()
            if self.recipe.batched and self.recipe.budget.of_run:
                chain.tell((spec for _, spec in self.recipe.leaves()), bill)
            spent = None
            try:
                manifest = await self._passes(book, bill, staging, store)
            except BudgetReached as error:
                spent = error
            except KdgenError:
                await chain.leave(bill)
                raise
            await chain.end()
            if spent is None:
                return manifest
            if not self.recipe.budget.publish:
                raise spent
            raise _published(spent, await self._passes(book, bill, staging, store, spent))
        except UserError as error:
            if not bill.requests:
                raise
            # Exit code 2 says that nothing was sent.
            hint = f"{error.hint}; what was paid is in the ledger" if error.hint else "what was paid is in the ledger"
            raise EndpointError(error.cause, where=error.where, hint=hint) from None
        finally:
            try:
                await bill.write(soon=False)
            finally:
                await book.close()

    async def _passes(
        self,
        book: Ledger,
        bill: Bill,
        staging: Callable[[], AbstractContextManager[Staging]],
        store: Store | None,
        spent: BudgetReached | None = None,
    ) -> dict[str, Any]:
        """Passes until no row waits; the last is published. With `spent`, what would have to be asked for is rejected."""
        halt = Halt()
        self._heed_signals(halt)
        while True:
            run = Run(
                self.recipe, self.seeds, self.scan, book, watcher(self.quiet), bill, halt=halt, rulings=self.rulings,
                earlier=self.earlier,
            )  # fmt: skip
            run.desk.max_wait, run.desk.spent, run.desk.after = self.max_wait, spent, self.after
            with staging() as version:
                manifest = await run.go(version)
                if manifest is not None:
                    if self.gate is not None:
                        self.gate(version.folder, manifest)
                    if store is not None:
                        card = card_of(manifest, first_row(version.folder))
                        store.publish(version, manifest["hashes"]["files"], pretty(manifest), card)
                    return manifest
            said = f"{run.tally.rows:,} rows are done, {run.tally.waiting:,} wait for batches"
            todo = run.desk.todo()
            if not self.wait:
                hint = "\n        ".join([*todo, "then run the same command" if todo else "run the same command later"])
                raise ComeBack(f"{said}; nothing was published", hint=hint)
            if not self.quiet:
                print("\n".join([f"{said}; looking again every {POLL:g} s", *todo]), file=sys.stderr)
            await run.desk.next_import(POLL)

    def _heed_signals(self, halt: Halt) -> None:
        loop = asyncio.get_running_loop()

        def stop(name: str) -> None:
            if halt.reason is not None:
                os._exit(130)
            halt.set(
                Interrupted(
                    f"interrupted by {name}; nothing was published",
                    hint="what was paid is in the ledger: the same command goes on from here",
                )
            )
            if not self.quiet:
                print(f"{name}: stopping; replies on their way have {halt.grace:g} s", file=sys.stderr)

        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, stop, sign.name)


def _published(spent: BudgetReached, manifest: dict[str, Any]) -> BudgetReached:
    rows = manifest["counts"]["rows"]
    return BudgetReached(f"{spent.cause}; {rows:,} complete rows are published", where=spent.where, hint=spent.hint)


def pretty(manifest: dict[str, Any] | list[dict[str, Any]]) -> str:
    """A manifest as indented JSON, or those of a loop's iterations as a list."""
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2).decode() + "\n"


def first_row(folder: Path) -> dict[str, Any] | None:
    """The first exported row of a version, for its card."""
    with (folder / "data.jsonl").open("rb") as rows:
        line = rows.readline()
    row: dict[str, Any] | None = orjson.loads(line) if line else None
    return row
