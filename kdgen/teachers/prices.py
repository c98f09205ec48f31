"""Prices in dollars per million tokens: a dated table that ships, and the user's own over it.

Local teachers cost nothing. A price that is not known is None, never 0.
"""

from __future__ import annotations

import datetime
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError

from kdgen.record import Frozen
from kdgen.tables import read_table
from kdgen.teachers.base import TeacherSpec, Usage
from kdgen.yamls import explain, load_yaml

FREE_PROVIDERS = ("local", "scripted", "transformers", "vllm")
# The hosts at which a provider's own prices hold; what another server charges is not known.
OWN_HOSTS = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}
SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")

Mode = Literal["online", "batch"]


class Price(NamedTuple):
    """Dollars per million tokens of one way to ask one model.

    All of a request whose input is longer than `over` tokens costs `long_input` and `long_output` times as much.
    """

    input: float
    output: float
    cached_input: float
    cache_write: float
    over: float = float("inf")
    long_input: float = 1.0
    long_output: float = 1.0

    def of(self, usage: Usage) -> float:
        """Dollars of one reply. Input is fresh, read from a cache or written to one; each has its rate."""
        written = min(usage.cache_write, usage.input)
        cached = min(usage.cached_input, usage.input - written)
        fresh = usage.input - written - cached
        came = fresh * self.input + cached * self.cached_input + written * self.cache_write
        if usage.input > self.over:
            return (came * self.long_input + usage.output * self.output * self.long_output) / 1e6
        return (came + usage.output * self.output) / 1e6

    def worst(self, input_tokens: int, output_tokens: int) -> float:
        """The most that a request of at most these sizes can cost: all input at the dearest rate."""
        came = input_tokens * max(self.input, self.cached_input, self.cache_write)
        went = output_tokens * self.output
        if input_tokens > self.over:
            came, went = came * max(self.long_input, 1.0), went * max(self.long_output, 1.0)
        return (came + went) / 1e6


FREE = Price(0.0, 0.0, 0.0, 0.0)


class Long(Frozen):
    """Factors on a request whose input is longer than `over` tokens."""

    model_config = ConfigDict(allow_inf_nan=False)

    over: int = Field(gt=0)
    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Rates(Frozen):
    """Dollars per million tokens; a cache rate that is missing is that of other input."""

    model_config = ConfigDict(allow_inf_nan=False)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(None, ge=0)
    cache_write: float | None = Field(None, ge=0)
    cache_write_1h: float | None = Field(None, ge=0)

    def price(self, factor: float, *, writes: str, long: Long | None) -> Price:
        """These rates times `factor`; `writes` says whether and for how long input is kept in a cache."""
        hour = self.cache_write if self.cache_write_1h is None else self.cache_write_1h
        kept = {"off": None, "5m": self.cache_write, "1h": hour}[writes]
        rates = [
            self.input,
            self.output,
            self.input if self.cached_input is None else self.cached_input,
            self.input if kept is None else kept,
        ]
        price = Price(*(rate * factor for rate in rates))
        return price._replace(over=long.over, long_input=long.input, long_output=long.output) if long else price


def _kind(value: Any) -> str:
    return "rates" if isinstance(value, dict | Rates) else "factor"


Way = Annotated[
    Annotated[Annotated[float, Field(ge=0)], Tag("factor")] | Annotated[Rates, Tag("rates")], Discriminator(_kind)
]


class Row(Rates):
    """One model: its rates, and what its other ways to be asked cost (a factor, or rates of their own)."""

    batch: Way | None = None
    flex: Way | None = None
    priority: Way | None = None
    long: Long | None = None

    def by(self, spec: TeacherSpec, mode: Mode) -> Price | None:
        """The price of asking as `spec` says, or None where that way has none."""
        tier = "batch" if mode == "batch" else str(getattr(spec, "service_tier", "auto"))
        way = {"batch": self.batch, "flex": self.flex, "priority": self.priority}.get(tier, 1.0)
        if way is None:
            return None
        # Only Anthropic's teacher says that nothing is written; the caches of others work by themselves.
        writes = getattr(spec, "cache", "5m")
        if isinstance(way, Rates):
            return way.price(1.0, writes=writes, long=self.long)
        return self.price(way, writes=writes, long=self.long)


class Table(Frozen):
    """A file of prices: rows by `provider:model@base_url`, `provider:model` or `model`."""

    read: datetime.date | None = None
    sources: dict[str, str] = {}
    models: dict[str, Row]


class Prices(Frozen):
    """Prices as a run knows them: the user's rows, then the table that ships."""

    own: dict[str, Row] = {}

    def of(self, spec: TeacherSpec, mode: Mode | None = None) -> Price | None:
        """The price of a teacher, asked as it says or by `mode`; None where it is not known."""
        row = _row(self.own, spec) if self.own else None
        if row is None and spec.provider in FREE_PROVIDERS:
            return FREE
        if row is None and _at_home(spec):
            row = _row(shipped().models, spec)
        return row.by(spec, mode or spec.mode) if row else None


PLAIN = Prices()


def price_of(spec: TeacherSpec, table: Prices | None = None, mode: Mode | None = None) -> Price | None:
    """The price of a teacher, or None where it is not known. `mode`: how it was really asked, where that differs."""
    return (table or PLAIN).of(spec, mode)


def prices_file(path: Path) -> Prices:
    """The user's own prices over the table that ships. Raises UserError with file and line."""
    source = load_yaml(path)
    try:
        return Prices(own=Table.model_validate(source.tree).models)
    except ValidationError as error:
        raise explain(error, source, Table) from None


@cache
def shipped() -> Table:
    """The table that ships, read when the first price is asked for."""
    return Table.model_validate(read_table("prices"))


def _row(rows: dict[str, Row], spec: TeacherSpec) -> Row | None:
    """The row that names the teacher most closely: with its address, provider and snapshot, or with less of them."""
    url = getattr(spec, "base_url", None)
    for model in dict.fromkeys((spec.model, SNAPSHOT.sub("", spec.model))):
        named = f"{spec.provider}:{model}"
        for key in (f"{named}@{url}", named, model):
            if key in rows:
                return rows[key]
    return None


def _at_home(spec: TeacherSpec) -> bool:
    """Whether the provider itself is asked."""
    url = getattr(spec, "base_url", None)
    return spec.provider in OWN_HOSTS and (url is None or urlsplit(url).hostname == OWN_HOSTS[spec.provider])
