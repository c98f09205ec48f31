"""The invocations that make up one run where kdgen exits while batches are out: they share one budget.

The first writes down how far the ledger was; what came in after that was paid by this run, whichever process was killed
in between. A run ends when it publishes or has reached its budget.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from kdgen.errors import Rejected
from kdgen.teachers.base import Raw, Request, TeacherSpec
from kdgen.teachers.bill import Bill, cost
from kdgen.teachers.ledger import Ledger

ROWS = 500


class Chain:
    """The run of one recipe on one ledger, over its invocations."""

    def __init__(self, ledger: Ledger, recipe: str) -> None:
        self.ledger = ledger
        self.recipe = recipe

    async def join(self, specs: Iterable[TeacherSpec], bill: Bill) -> None:
        """Begin a run, or tell the bill what its earlier invocations paid."""
        found = self.ledger.one("SELECT mark FROM chains WHERE recipe=?", self.recipe)
        if found is not None:
            for spec in {spec.label: spec for spec in specs}.values():
                self._add(spec, found[0], bill)
            return
        sql = "INSERT OR IGNORE INTO chains SELECT ?, coalesce(max(rowid), 0) FROM calls"
        await self.ledger.transact(lambda db: db.execute(sql, (self.recipe,)))

    def _add(self, spec: TeacherSpec, mark: int, bill: Bill) -> None:
        sql = "SELECT rowid, wire, request, nth, reply, headers FROM calls WHERE rowid>? AND teacher=? ORDER BY rowid LIMIT ?"
        while rows := self.ledger.all(sql, mark, spec.label, ROWS):
            mark = rows[-1][0]
            for _, wire, body, nth, reply, headers in rows:
                raw = Raw(reply, orjson.loads(headers))
                try:
                    usage = spec.read(Request(wire, body, nth), raw).usage
                except Rejected:
                    continue
                bill.earlier(usage.input + usage.output, cost(bill.prices.of(spec, raw.mode), usage))

    async def end(self) -> None:
        """The run has published, or has reached its budget: what comes next is another."""
        await self.ledger.transact(lambda db: db.execute("DELETE FROM chains WHERE recipe=?", (self.recipe,)))
