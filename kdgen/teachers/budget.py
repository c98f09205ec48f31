"""Caps, reservations, and what of them is out in batches."""

from __future__ import annotations

import time
from typing import NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from kdgen.record import Frozen


class Budget(Frozen):
    """Hard caps of one run and of a calendar month (UTC, all runs of one ledger).

    What the next request could cost at worst is reserved before it is sent. Invocations that end with "come back later"
    are one run, until one publishes or reaches the cap.
    """

    usd: float | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0, le=2**62)
    month_usd: float | None = Field(None, ge=0)
    month_tokens: int | None = Field(None, ge=0, le=2**62)
    publish: bool = Field(False, description="at the cap, publish the rows that are complete")

    @model_validator(mode="after")
    def _has_a_cap(self) -> Budget:
        if self.publish and not self.capped:
            raise PydanticCustomError("no_cap", "there is no cap at which to publish", {"hint": "budget: {usd: 1}"})
        return self

    @property
    def monthly(self) -> bool:
        """Whether a month has a cap."""
        return self.month_usd is not None or self.month_tokens is not None

    @property
    def of_run(self) -> bool:
        """Whether a run has a cap."""
        return self.usd is not None or self.tokens is not None

    @property
    def capped(self) -> bool:
        """Whether there is any cap."""
        return self.of_run or self.monthly

    @property
    def in_usd(self) -> bool:
        """Whether a cap is in dollars, so that prices must be known."""
        return self.usd is not None or self.month_usd is not None


class Hold(NamedTuple):
    """A reservation; `month` is the one that it is written down for."""

    tokens: int
    usd: float
    month: str = ""


NOTHING = Hold(0, 0.0)


class Out:
    """What is out in batches: a reservation for each request, by teacher and key."""

    def __init__(self) -> None:
        self._holds: dict[str, dict[str, Hold]] = {}
        self.tokens, self.usd = 0, 0.0

    def put(self, home: str, holds: dict[str, Hold]) -> None:
        """Say all that is out for a teacher."""
        self._holds[home] = holds
        everything = [hold for each in self._holds.values() for hold in each.values()]
        self.tokens, self.usd = sum(hold.tokens for hold in everything), sum(hold.usd for hold in everything)

    def add(self, home: str, key: str, hold: Hold) -> None:
        """One request more."""
        self.back(home, key)
        self._holds.setdefault(home, {})[key] = hold
        self.tokens, self.usd = self.tokens + hold.tokens, self.usd + hold.usd

    def back(self, home: str, key: str) -> None:
        """A request has its reply, or never gets one."""
        hold = self._holds.get(home, {}).pop(key, NOTHING)
        self.tokens, self.usd = self.tokens - hold.tokens, self.usd - hold.usd


def this_month() -> str:
    """The calendar month in UTC, as `2026-11`."""
    return time.strftime("%Y-%m", time.gmtime())
