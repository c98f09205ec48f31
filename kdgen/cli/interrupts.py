"""Ctrl-C and SIGTERM where no run is under way."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what a run's own handlers do not cover, with nothing left behind."""
    old = {}
    if threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _stop(number: int, frame: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # another must not break the tidying up
    print(f"error: interrupted by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(130)
