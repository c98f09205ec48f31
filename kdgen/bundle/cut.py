"""Which rows go where: splits by seed, shares of several datasets, nested subsets, an order. Decided from a few numbers a row."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator, model_validator

from kdgen.bundle.groups import Groups, short
from kdgen.errors import GateFailed, UserError
from kdgen.record import Frozen, Record, pick, score

LEFT, TOO_LONG, TAKEN = 0, 1, 2
LENGTH = "length"


class Cut(Frozen):
    """How rows are cut. The defaults leave them as they are: one split, `train`, in the datasets' order.

    `split` gives each split its part; rows that share a seed stay together. `order` is `length` or a number in the record
    (`meta.score`), the lowest first, or with `:desc` the highest. `subsets` are sizes; each holds the smaller ones. Rows longer
    than `max_tokens` are left out; `pack` is the length of a sequence, for how many the rows fill. `tokenizer` is a path; without,
    words are counted. `seed` draws anew.
    """

    split: dict[str, float] = {}
    order: str = ""
    subsets: tuple[int, ...] = ()
    max_tokens: int | None = Field(None, ge=1)
    pack: int | None = Field(None, ge=1)
    tokenizer: str = ""
    seed: int = 0

    @field_validator("subsets")
    @classmethod
    def _rising(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
            raise ValueError("sizes are whole numbers from 1, each once")
        return tuple(sorted(sizes))

    @field_validator("order")
    @classmethod
    def _known(cls, order: str) -> str:
        name, _, way = order.partition(":")
        if order and (name.split(".")[0] not in (LENGTH, *Record.model_fields) or way not in ("", "asc", "desc")):
            raise ValueError(
                "`length`, or where a number stands in the record (meta.score), and :desc for the highest first"
            )
        return order

    @field_validator("split")
    @classmethod
    def _parts(cls, split: dict[str, float]) -> dict[str, float]:
        if split and (len(split) < 2 or not all(re.fullmatch(r"\w+", name) for name in split)):
            raise ValueError("two names at least, of letters, digits and _: train=0.9,test=0.1")
        if not all(math.isfinite(part) and part > 0 for part in split.values()):
            raise ValueError("each part is more than 0")
        return split

    @model_validator(mode="after")
    def _apart(self) -> Cut:
        for size in self.subsets:
            if (name := f"{self.splits[0]}_{size}") in self.split:
                raise ValueError(f"{name} is a split, and the subset of {size} would be called so too")
        return self

    @property
    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.split) or ["train"]

    @property
    def measured(self) -> bool:
        """Whether the length of a row matters."""
        return bool(self.max_tokens or self.pack or self.tokenizer or self.order.split(":")[0] == LENGTH)

    @property
    def plain(self) -> bool:
        """Whether each row can be written as it comes."""
        return self == Cut(seed=self.seed)

    def key(self) -> Callable[[Record, int], float] | None:
        """What rows are ordered by; NaN where a record lacks it."""
        if not self.order:
            return None
        name, _, way = self.order.partition(":")
        sign = -1.0 if way == "desc" else 1.0
        if name == LENGTH:
            return lambda record, length: sign * length
        first, *path = name.split(".")

        def number(record: Record, length: int) -> float:
            value: Any = getattr(record, first)
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            return sign * value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan

        return number


@dataclass
class Table:
    """What is known of a dataset's rows after one reading, 17 bytes of each and what the cut needs besides."""

    cut: Cut
    share: float | None = None
    rehearsal: bool = False
    state: bytearray = field(default_factory=bytearray)
    ids: array[int] = field(default_factory=lambda: array("Q"))
    seeds: array[int] = field(default_factory=lambda: array("Q"))
    draws: array[int] = field(default_factory=lambda: array("Q"))
    keys: array[float] = field(default_factory=lambda: array("d"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    left: dict[int, list[int]] = field(
        default_factory=dict
    )  # of rows that are not taken: the seeds of those of several
    ends: array[int] = field(default_factory=lambda: array("Q"))
    to: Any = None  # int8[n]: the number of the split, from 0, or -1
    rank: Any = None  # float64[n]: the place among those of its dataset and split, 0 to 1

    def add(self, record: Record, taken: bool, length: int, end: int, groups: Groups, key: float) -> None:
        """Note a record; `end` is where its line ends."""
        if self.cut.order:
            self.ends.append(end)
        long = taken and self.cut.max_tokens is not None and length > self.cut.max_tokens
        self.state.append(TOO_LONG if long else TAKEN if taken else LEFT)
        own, seeds = short(record.id), [short(seed) for seed in record.seeds or (record.id,)]
        if len(seeds) > 1 and taken:
            groups.tie(seeds)
        elif len(seeds) > 1:
            self.left[own] = seeds
        self.ids.append(own)
        self.seeds.append(seeds[0])
        self.draws.append(score("draw", self.cut.seed, record.id))
        if self.cut.measured:
            self.lengths.append(length)
        if self.cut.order:
            self.keys.append(key)


def assign(tables: Sequence[Table], cut: Cut, groups: Groups) -> None:
    """Give every row its split and rank. Raises GateFailed where a split or a share cannot be had."""
    import numpy as np

    if len(tables) > 1:
        _tie_across(tables, groups)
    names = cut.splits
    for table in tables:
        state = np.frombuffer(table.state, dtype=np.uint8)
        table.to = np.where(state == TAKEN, 0, -1).astype(np.int8)
        table.rank = np.zeros(len(state))
        if len(names) > 1:
            of: dict[int, int] = {}
            for row in np.flatnonzero(table.to == 0).tolist():
                root = groups.root(table.seeds[row])
                if root not in of:
                    if len(of) > 100_000:
                        of.clear()
                    of[root] = names.index(pick(cut.split, "split", cut.seed, root))
                table.to[row] = of[root]
    for number, name in enumerate(names):
        having = [int((table.to == number).sum()) for table in tables]
        if not sum(having):
            raise _empty(name, tables, groups)
        wanted = _wanted(tables, having)
        if not sum(wanted):
            lacks = having.index(0)
            hint = "another --seed N, or a larger part"
            raise GateFailed(f"dataset {lacks + 1} of the mix has no row in {name}", where="--mix", hint=hint)
        for place, (table, count, want) in enumerate(zip(tables, having, wanted, strict=True)):
            rows = np.flatnonzero(table.to == number)
            # The lowest draws are taken: more rows in a dataset move few, and a larger share holds the smaller one.
            ranked = rows[np.argsort(np.frombuffer(table.draws, dtype=np.uint64)[rows], kind="stable")]
            table.to[ranked[want:]] = -1
            # No two ranks are equal, so that a subset has just its size.
            table.rank[ranked[:want]] = (np.arange(min(want, count)) + 0.5) / max(want, 1) + place * 1e-12
    _check_subsets(tables, cut)


def _wanted(tables: Sequence[Table], having: list[int]) -> list[int]:
    """How many rows of each dataset: all, or as many as the shares allow. Rehearsal comes on top of the others' rows."""
    shares = [(table.share, count) for table, count in zip(tables, having, strict=True) if not table.rehearsal]
    if all(share is not None for share, _ in shares):
        whole = sum(share for share, _ in shares if share is not None)
        total = min(count * whole / share for share, count in shares if share)
        wanted = [min(count, int(total * share / whole + 1e-9)) for share, count in shares if share is not None]
    else:
        wanted = [count for _, count in shares]
    main, others = sum(wanted), iter(wanted)
    part = sum(table.share or 0.0 for table in tables if table.rehearsal)
    told = []
    for table, count in zip(tables, having, strict=True):
        if not table.rehearsal:
            told.append(next(others))
            continue
        want = round(main * (table.share or 0.0) / (1 - part))
        if want > count:
            cause = f"a rehearsal share of {table.share:g} takes {want:,} rows, and there are {count:,}"
            raise GateFailed(cause, where="--rehearse", hint=f"at most {count / (main + count):.3g} of this dataset")
        told.append(want)
    return told


def _tie_across(tables: Sequence[Table], groups: Groups) -> None:
    """A dataset may be made of another's rows; then a row's id there is a seed here, and both hang together.

    So they do where the row itself is not taken: its seeds stand behind what was made of it.
    """
    import numpy as np

    seeds = np.unique(np.concatenate([np.frombuffer(table.seeds, dtype=np.uint64) for table in tables]))
    left = {seed for table in tables for several in table.left.values() for seed in several}
    seeds = np.union1d(seeds, np.array(sorted(groups.tied() | left), dtype=np.uint64))
    for table in tables:
        ids = np.frombuffer(table.ids, dtype=np.uint64)
        for row in np.flatnonzero(np.isin(ids, seeds)).tolist():
            own = table.ids[row]
            if own != table.seeds[row]:
                groups.tie((own, *table.left.get(own, ()), table.seeds[row]))


def _empty(name: str, tables: Sequence[Table], groups: Groups) -> GateFailed:
    sizes: dict[int, int] = {}
    for table in tables:
        for state, seed in zip(table.state, table.seeds, strict=True):
            if state == TAKEN:
                root = groups.root(seed)
                sizes[root] = sizes.get(root, 0) + 1
    most, rows = max(sizes.values(), default=0), sum(sizes.values())
    cause = f"the split {name!r} gets no row: by their seeds the {rows:,} rows are {len(sizes):,} groups, the largest of {most:,}"
    hint = "a larger part, another --seed N; or hold seeds back before the run, and make a dataset of those alone"
    return GateFailed(cause, where="--split", hint=hint)


def _check_subsets(tables: Sequence[Table], cut: Cut) -> None:
    have = sum(int((table.to == 0).sum()) for table in tables)
    for size in cut.subsets:
        if size > have:
            cause = f"a subset of {size:,} rows is more than {cut.splits[0]} has: {have:,}"
            raise UserError(cause, where="--subsets", hint=f"at most {have}")


def bounds(tables: Sequence[Table], cut: Cut) -> list[float]:
    """For each subset the rank under which a row of the first split is in it."""
    import numpy as np

    if not cut.subsets:
        return []
    ranks = np.sort(np.concatenate([table.rank[table.to == 0] for table in tables]), kind="stable")
    return [float(ranks[size - 1]) for size in cut.subsets]
