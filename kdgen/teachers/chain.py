"""The invocations that make up one run where kdgen exits while batches are out: they share one budget.

Each reply that one of them asked for is noted as the run's in the commit that stores it, whichever process stores it:
an import may be another run's, or end in a kill. A run is of one dataset, and ends when that is published or when its
budget is reached.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import orjson

from kdgen.errors import Rejected
from kdgen.teachers.base import Raw, Request, TeacherSpec
from kdgen.teachers.bill import Bill, cost
from kdgen.teachers.budget import NOTHING, Hold
from kdgen.teachers.ledger import Ledger

ROWS = 500


class Chain:
    """The run that makes one dataset, over its invocations."""

    def __init__(self, ledger: Ledger, run: str) -> None:
        self.ledger = ledger
        self.run = run
        self._specs: dict[str, TeacherSpec] = {}
        self._last = 0
        self._sum = NOTHING

    def join(self) -> None:
        """This invocation may not be the only one: what it pays is noted."""
        self.ledger.run = self.run

    def tell(self, specs: Iterable[TeacherSpec], bill: Bill) -> None:
        """Let the bill know what the run has paid, this invocation's part too."""
        self._specs = {spec.label: spec for spec in specs}
        lost = self.ledger.one("SELECT tokens, usd FROM lost WHERE run=?", self.run)
        self._sum = Hold(*lost) if lost else NOTHING
        bill.of_chain = lambda: self._paid(bill)

    def _paid(self, bill: Bill) -> Hold:
        sql = (
            "SELECT p.id, c.teacher, c.wire, c.request, c.nth, c.reply, c.headers FROM parts p "
            "JOIN calls c ON c.key=p.key WHERE p.run=? AND p.id>? ORDER BY p.id LIMIT ?"
        )
        while rows := self.ledger.all(sql, self.run, self._last, ROWS):
            self._last = rows[-1][0]
            for _, teacher, *call, reply, headers in rows:
                tokens, usd = self._cost(
                    bill, self._specs.get(teacher), Request(*call), Raw(reply, orjson.loads(headers))
                )
                self._sum = Hold(self._sum.tokens + tokens, self._sum.usd + usd)
        return self._sum

    @staticmethod
    def _cost(bill: Bill, spec: TeacherSpec | None, request: Request, raw: Raw) -> tuple[int, float]:
        """What a reply cost; where it does not say that, a token is at least one byte."""
        if spec is None:
            return len(request.body) + len(raw.body), 0.0
        price = bill.prices.of(spec, raw.mode)
        try:
            usage = spec.read(request, raw).usage
        except Rejected:
            sizes = len(request.body), len(raw.body)
            return sum(sizes), price.worst(*sizes) if price else 0.0
        return usage.input + usage.output, cost(price, usage)

    async def leave(self, bill: Bill) -> None:
        """The run may go on in another invocation, which must know what may have been billed without a reply."""
        if not bill.lost_tokens or not self.ledger.run:
            return
        sql = "INSERT INTO lost VALUES (?,?,?) ON CONFLICT DO UPDATE SET tokens=tokens+excluded.tokens, usd=usd+excluded.usd"
        values = (self.run, bill.lost_tokens, bill.lost_usd)
        await self.ledger.transact(lambda db: db.execute(sql, values))

    async def end(self) -> None:
        """The dataset is published, or the budget reached: what comes next is another run."""

        def end(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM parts WHERE run=?", (self.run,))
            db.execute("DELETE FROM lost WHERE run=?", (self.run,))

        sql = "SELECT 1 FROM parts WHERE run=? UNION SELECT 1 FROM lost WHERE run=?"
        if self.ledger.one(sql, self.run, self.run):
            await self.ledger.transact(end)
