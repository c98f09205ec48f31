"""Several servers of one model as one wire."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kdgen.teachers.base import Fault, Raw, Request
from kdgen.teachers.http import HttpWire

REST = 5.0


class LeastLoaded:
    """Several servers of one model as one wire: a request goes to the one with the fewest in flight.

    A server that refuses connections is stepped over while another serves. One that fails in any other way gets
    nothing new for a few seconds, or its quick failures would make it look like the least loaded.
    """

    def __init__(self, wires: Sequence[HttpWire]) -> None:
        self.wires = list(wires)
        self.busy = [0] * len(self.wires)
        self.sent = [0] * len(self.wires)
        self._rests_until = [0.0] * len(self.wires)

    async def send(self, request: Request) -> Raw:
        """Send once, to the least loaded server that takes the connection. Raises Fault."""
        refused: Fault | None = None
        tried: set[int] = set()
        while len(tried) < len(self.wires):
            place = self._least(tried)
            tried.add(place)
            self.busy[place] += 1
            self.sent[place] += 1
            try:
                return await self.wires[place].send(request)
            except Fault as fault:
                fault.message = f"{self.wires[place].url}: {fault.message}"
                if fault.kind == "transient":
                    self._rests_until[place] = time.monotonic() + REST
                if fault.kind != "transient" or fault.billed or fault.status:
                    raise
                refused = fault
            finally:
                self.busy[place] -= 1
        assert refused is not None
        raise refused

    def _least(self, tried: set[int]) -> int:
        now = time.monotonic()
        places = (place for place in range(len(self.wires)) if place not in tried)
        return min(places, key=lambda place: (self._rests_until[place] > now, self.busy[place], self.sent[place]))

    async def close(self) -> None:
        """Close every wire."""
        for wire in self.wires:
            await wire.close()
