"""Progress on stderr: a bar in a terminal, plain lines in a log, nothing when asked for nothing."""

from __future__ import annotations

import sys
import time
from typing import Any

from kdgen.manifest import Tally
from kdgen.teachers.bill import Bill

EVERY = 10.0


class Quiet:
    """No progress."""

    def start(self, total: int | None) -> None:
        """Say nothing."""

    def tick(self, tally: Tally, bill: Bill) -> None:
        """Say nothing."""

    def done(self) -> None:
        """Say nothing."""


class Lines(Quiet):
    """A plain line every ten seconds and one at the end."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._total: int | None = None
        self._line = ""

    def start(self, total: int | None) -> None:
        """Remember what is expected."""
        self._began = self._last = time.monotonic()
        self._total = total

    def tick(self, tally: Tally, bill: Bill) -> None:
        """Print where it stands, at most every ten seconds."""
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._print(tally, bill)

    def _print(self, tally: Tally, bill: Bill) -> None:
        print(f"{time.strftime('%H:%M:%S')} {summary(tally, bill, self._total)}", file=sys.stderr, flush=True)


class Bar(Quiet):
    """A bar with rate and remaining time."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=5,
        )
        self._task: Any = None
        self._total: int | None = None
        self._last = 0.0

    def start(self, total: int | None) -> None:
        """Show the bar."""
        self._total = total
        self._task = self._bar.add_task("rows", total=total, state="starting")
        self._bar.start()

    def tick(self, tally: Tally, bill: Bill) -> None:
        """Move the bar, at most ten times a second."""
        now = time.monotonic()
        if now - self._last >= 0.1:
            self._last = now
            self._bar.update(self._task, completed=tally.rows, state=summary(tally, bill, self._total))

    def done(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def summary(tally: Tally, bill: Bill, total: int | None) -> str:
    """`12 of 50 rows, 30 rejects, 25 requests, 4 from the ledger, $0.01`."""
    of = f" of {total:,}" if total else ""
    money = f", ${bill.usd:.2f}" if bill.usd else ""
    rejects = tally.rejects.total()
    return (
        f"{tally.rows:,}{of} rows, {rejects:,} rejects, {bill.requests:,} requests, "
        f"{bill.from_ledger:,} from the ledger{money}"
    )


def watcher(quiet: bool) -> Quiet:
    """The right way to show progress here."""
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()
