"""The whole flow of a run; the only module that knows it.

seeds → plan → ask (prompt, request, ledger or wire, reply) → rows → filters → dedupe → export → publish.
Stages that look at one record at a time chain per record with no barrier between them; a stage that
grows a pool waits for what comes before it and hands on what each round adds. With a target, records
flow in waves of as many as are still missing, so nothing is asked that no row needs, and what is asked
does not depend on timing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdgen.aio import ordered, stream
from kdgen.asking import Desk, JobAsk, Step
from kdgen.config import Recipe
from kdgen.dedupe import RougeIndex
from kdgen.dedupe.exact import Index
from kdgen.errors import GateFailed, Pending, Rejected
from kdgen.features.disk import guard
from kdgen.filters import AnyFilter
from kdgen.known import know
from kdgen.manifest import Tally, manifest_of
from kdgen.record import Record, Row, Waiting
from kdgen.seeds import Scan, read
from kdgen.stages import Pool, PoolStage
from kdgen.store import Staging
from kdgen.teachers.bill import Bill
from kdgen.teachers.halt import Halt
from kdgen.teachers.ledger import Ledger
from kdgen.terms import Ruling

SPARE = 256
ROUNDS = 4
DRY_ROUNDS = 2
CANDIDATES_PER_TARGET = 20
LEAST_CALLS, TARGET_PART = 4, 32


class Watch(Protocol):
    """Who looks on while a run goes."""

    def start(self, total: int | None) -> None:
        """A run begins; `total` rows are expected, where that is known."""

    def tick(self, tally: Tally, bill: Bill) -> None:
        """One row or reject was written, or a round ended."""

    def done(self) -> None:
        """The run is over, well or not."""


@dataclass
class Run:
    """One run of a recipe over scanned seeds. `go` writes to a staging folder and returns the manifest.

    `earlier` are the records of a loop's iterations before this one, the last of them last.
    """

    recipe: Recipe
    seeds: Path
    scan: Scan
    ledger: Ledger
    watch: Watch
    bill: Bill
    grace: float = 5.0
    halt: Halt = field(default_factory=Halt)
    tally: Tally = field(default_factory=Tally)
    rulings: list[Ruling] = field(default_factory=list)
    desks: type[Desk] = Desk
    earlier: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        self.halt.grace = self.grace
        self.last = ""
        self.pool = Pool()
        self.desk = self.desks(self.recipe, self.ledger, self.bill, self.halt)
        self.steps = [self.desk.step(place, stage) for place, stage in enumerate(self.recipe.stages)]
        self.spare = min(SPARE, sum(spec.concurrency for _, spec in self.recipe.leaves()))
        self.indexes: list[Index] = [method.index() for method in self.recipe.dedupe]

    def window(self) -> int:
        """How many records may be at work: what the teachers take now, and some that get ready or are being stored."""
        now = sum(dispatch.limits.concurrency.limit for dispatch in self.desk.teachers.values())
        return max(64, now + self.spare)

    async def go(self, staging: Staging) -> dict[str, Any] | None:
        """One pass over the recipe: the manifest, or None where rows wait for a batch.

        Raises the KdgenError that ended it early; nothing is published here.
        """
        started = time.time()
        self.bill.next_pass()
        pools = any(isinstance(step.stage, PoolStage) for step in self.steps)
        if any(stage.features for stage in self.recipe.stages):
            count = self.recipe.target or self.scan.rows
            staging.room(count * sum(stage.row_bytes for stage in self.recipe.stages))
            guard(self.ledger.path.parent)
        self.watch.start(self.recipe.target or (None if pools else self.scan.rows))
        try:
            async with AsyncExitStack() as stack:
                for dispatch in self.desk.teachers.values():
                    stack.push_async_callback(dispatch.close)
                await self.desk.recover()
                self.pool = know(self.recipe, self.steps, self.indexes, self.seeds, self.scan, self.earlier)
                async with aclosing(self._flow(self.steps, self._seeds())) as rows:
                    async for row in rows:
                        self.halt.check()
                        self._sink(row, staging)
                        self.watch.tick(self.tally, self.bill)
                if self.tally.waiting:
                    await self.desk.submit()
        except asyncio.CancelledError:
            self.halt.check()
            raise
        finally:
            self.watch.done()
        self.tally.balance()
        if self.tally.waiting:
            return None
        if self.desk.spent is not None:
            self.tally.stopped = "budget"
            if not self.tally.rows:
                raise self.desk.spent
        if not self.tally.rows:
            raise GateFailed(f"no row was accepted: {self._why()}", hint="nothing was published; what was paid is kept")
        files = staging.close()
        return manifest_of(self, files, staging.features, started)

    def _why(self) -> str:
        most = ", ".join(f"{count} {reason}" for reason, count in self.tally.rejects.most_common(3))
        said = f"{most} (the last: {self.last})" if most else "there was nothing to reject either"
        return "; ".join([said, *self.desk.remarks()])

    def _sink(self, row: Row, staging: Staging) -> None:
        """Filters, dedupe and export: the last hop of a record that came through every stage."""
        if isinstance(row, Waiting):
            self.tally.waiting += 1
            return
        if isinstance(row, Record):
            reason = self._last_word(row)
            exported = None if reason else self.recipe.export.row(row)
            if exported is not None:
                self.tally.rows += 1
                staging.row(row, exported)
                return
            stage, why, detail = reason or ("export", "no_place_in_format", self.recipe.export.format)
            row = row.rejected(stage, why, detail)
        self.tally.rejects[row.reason] += 1
        self.tally.stage_rejects[row.stage] += 1
        self.last = row.detail or row.reason
        staging.reject(row)

    def _last_word(self, record: Record) -> tuple[str, str, str] | None:
        if found := _filtered(self.recipe.filters, record):
            return "filters", *found
        for index in self.indexes:
            if twin := index.seen(record):
                return "dedupe", *_split(twin)
        return None

    async def _seeds(self) -> AsyncGenerator[Row, None]:
        spec = self.recipe.seeds
        for row in read(spec, self.seeds, self.scan) if spec is not None else ():
            self.tally.seeds += 1
            yield row

    async def _flow(self, steps: list[Step], source: AsyncIterator[Row]) -> AsyncGenerator[Row, None]:
        """`source` through `steps`, rejects passed along in their places."""
        head = next((n for n, step in enumerate(steps) if isinstance(step.stage, PoolStage)), len(steps))
        if head == len(steps):
            flow = self._waves(steps, source) if self.recipe.target else self._mapped(steps, source)
        else:
            flow = self._pooled(steps[head], self._mapped(steps[:head], source), steps[head + 1 :])
        async with aclosing(flow) as rows:
            async for row in rows:
                yield row

    async def _mapped(self, steps: list[Step], source: AsyncIterator[Row]) -> AsyncGenerator[Row, None]:
        """Each record through all of `steps`, many at once, in order."""

        async def chain(row: Row) -> list[Row]:
            rows = [row]
            for step in steps:
                if len(rows) == 1:
                    rows = await self._through(step, rows[0])
                else:
                    parts = await asyncio.gather(*(self._through(step, each) for each in rows))
                    rows = [made for part in parts for made in part]
            return rows

        async with aclosing(ordered(source, chain, window=self.window, grace=self.grace + 1)) as results:
            async for rows in results:
                for row in rows:
                    yield row

    async def _through(self, step: Step, row: Row) -> list[Row]:
        if not isinstance(row, Record):
            return [row]
        rows: list[Row] = []
        for job in step.stage.plan((row,), 0, step.draw):
            rows += await self._job(step, job)
        if not rows:
            rows = [row.rejected(step.stage.name, "no_rows", "the stage made nothing of it")]
        self.tally.generated += len(rows) if step.stage.consumes else len(rows) - 1
        self.tally.demonstrations += step.stage.consumes
        self.tally.passed(step.stage.name, 1, rows)
        return rows

    async def _job(self, step: Step, job: Record) -> list[Row]:
        job = step.stage.steered(job, step.draw)
        ask = JobAsk(self.desk, step, job)
        try:
            return [step.stage.marked(job, row) for row in await step.stage.run(job, ask)]
        except Pending:
            return [Waiting(id=job.id)]
        except Rejected as fate:
            lost = job.rejected(step.stage.name, fate.reason, fate.detail)
            return [lost.model_copy(update={"calls": (*lost.calls, *ask.calls)})]

    async def _waves(self, steps: list[Step], source: AsyncIterator[Row]) -> AsyncGenerator[Row, None]:
        """`source` until the target is met: each wave takes as many records as rows are missing."""
        target = self.recipe.target or 0

        more = True

        async def take(count: int) -> AsyncIterator[Row]:
            nonlocal more
            for _ in range(count):
                try:
                    yield await anext(source)
                except StopAsyncIteration:
                    more = False
                    return

        while more and (missing := target - self.tally.rows - self.tally.waiting) > 0:
            async with aclosing(self._mapped(steps, take(missing))) as rows:
                async for row in rows:
                    yield row
        self.tally.stopped = "target" if self.tally.rows >= target else self.tally.stopped

    async def _pooled(self, step: Step, source: AsyncIterator[Row], rest: list[Step]) -> AsyncGenerator[Row, None]:
        """The rounds of a pool stage, what each adds flowing on through `rest`."""
        stage = step.stage
        assert isinstance(stage, PoolStage)
        seeds: list[Record] = []
        async for row in source:
            if isinstance(row, Record):
                seeds.append(row)
            else:
                yield row
        self.tally.demonstrations += len(seeds)
        novelty = RougeIndex(stage.novelty) if stage.novelty is not None else None
        if novelty:
            for record in (*seeds, *self.pool.records):
                novelty.add(record)
        target = self.recipe.target
        calls = stage.calls or max(LEAST_CALLS, (target or 0) // TARGET_PART)
        cap = stage.max_candidates or (CANDIDATES_PER_TARGET * target if target else None)
        human, made, candidates, dry = Pool(seeds), Pool(self.pool.records), 0, 0
        for number in range(stage.rounds or (ROUNDS if target is None else 1 << 30)):
            jobs = list(stage.plan_pool(human, made, number, calls, step.draw))
            fresh: list[Record] = []
            async with aclosing(
                ordered(stream(jobs), lambda job: self._job(step, job), window=self.window, grace=self.grace + 1)
            ) as results:
                async for rows in results:
                    candidates += len(rows)
                    self.tally.generated += len(rows)
                    judged = [self._admitted(row, stage, novelty) for row in rows]
                    self.tally.passed(stage.name, 1, judged)
                    fresh += [row for row in judged if isinstance(row, Record)]
                    for row in judged:
                        if not isinstance(row, Record):
                            yield row
            made.extend(fresh)
            dry = 0 if fresh else dry + 1
            waiting: Iterator[Row] = iter(fresh)
            async with aclosing(self._flow(rest, stream(waiting))) as flow:
                async for row in flow:
                    yield row
            for row in waiting:
                assert isinstance(row, Record)
                yield row.rejected(stage.name, "over_target", f"{target} rows were accepted before it was needed")
            if self.tally.waiting:
                return
            if target is not None and self.tally.rows >= target:
                self.tally.stopped = "target"
                return
            if cap is not None and candidates >= cap:
                self.tally.stopped = "candidate_cap"
                return
            if dry >= DRY_ROUNDS:
                self.tally.stopped = "dry"
                return
        self.tally.stopped = "rounds"

    def _admitted(self, row: Row, stage: PoolStage, novelty: RougeIndex | None) -> Row:
        """A candidate as it joins the pool, or the reject it becomes."""
        if not isinstance(row, Record):
            return row
        if found := _filtered(stage.filters, row):
            return row.rejected(stage.name, *found)
        if novelty and (twin := novelty.seen(row)):
            return row.rejected(stage.name, *_split(twin))
        return row


def _filtered(filters: Iterable[AnyFilter], record: Record) -> tuple[str, str] | None:
    for each in filters:
        if found := each.reject(record):
            return _split(found)
    return None


def _split(found: str) -> tuple[str, str]:
    reason, _, detail = found.partition(": ")
    return reason, detail
