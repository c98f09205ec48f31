"""From records to the rows of files: read, row, check, cut, write. Memory holds a few numbers a row, and for a plain export none."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from kdgen.bundle.cut import LEFT, TAKEN, TOO_LONG, Cut, Table, assign, bounds
from kdgen.bundle.dataset import Dataset, record_of, row_of
from kdgen.bundle.groups import Groups
from kdgen.bundle.measure import IDS, length_of, told
from kdgen.bundle.sinks import Sink
from kdgen.errors import GateFailed, KdgenError, UserError
from kdgen.export import EXPORTS, FeatureFormat, Format
from kdgen.store import RECORDS


@dataclass
class Part:
    """A dataset of the export: whole, with a share of the mix, or with a share that it is rehearsed in."""

    dataset: Dataset
    share: float | None = None
    rehearsal: bool = False
    records: int = 0
    no_place: int = 0
    too_long: int = 0
    rows: int = 0

    def counts(self) -> dict[str, int]:
        """Where its records went: they are rows, or one of the others."""
        left = self.records - self.no_place - self.too_long - self.rows
        lost = {"no_place": self.no_place, "too_long": self.too_long, "not_drawn": left}
        return {"records": self.records, "rows": self.rows, **{name: count for name, count in lost.items() if count}}


@dataclass
class Done:
    """What an export was: rows of each file, lengths of each split, the first row of all."""

    files: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, dict[str, Any]] = field(default_factory=dict)
    unordered: int = 0
    groups: int = 0
    first: dict[str, Any] | None = None
    columns: set[str] = field(default_factory=set)

    def saw(self, row: dict[str, Any]) -> None:
        """Note the first row, and which columns there are."""
        if self.first is None:
            self.first = row
        self.columns.update(row)

    def shape(self, form: Format, container: str) -> dict[str, Any]:
        """The columns that the files have: in JSONL those that some row has, in Parquet all."""
        shape = form.shape()
        return {
            name: part for name, part in shape.items() if container != "jsonl" or name.removesuffix("?") in self.columns
        }


def export(parts: Sequence[Part], form: Format, cut: Cut, sink: Callable[[str], Sink]) -> Done:
    """Write every row to the sinks of its split and subsets. `sink` opens one by its name.

    Raises GateFailed where nothing has a place or a split, share or subset cannot be had; UserError that names the record of
    a row that is none.
    """
    if len(parts) == 1 and cut.plain:
        return _straight(parts[0], form, cut, sink)
    tables, groups = _survey(parts, form, cut)
    if not any(TAKEN in table.state for table in tables):
        raise nothing(parts, form)
    assign(tables, cut, groups)
    done = Done()
    limits = bounds(tables, cut)
    names = cut.splits
    sinks: dict[str, Sink] = {}

    def write(name: str, row: dict[str, Any]) -> None:
        if name not in sinks:
            sinks[name] = sink(name)
        sinks[name].write(row)
        done.files[name] = done.files.get(name, 0) + 1

    for name in names:  # opened in the splits' order, whichever row comes first
        sinks[name], done.files[name] = sink(name), 0
    for part, row, split, rank in (
        _ordered(parts, form, cut, tables, done) if cut.order else _merged(parts, form, tables)
    ):
        part.rows += 1
        if not row.keys() <= done.columns:
            done.saw(row)
        write(names[split], row)
        for size, limit in zip(cut.subsets, limits, strict=True):
            if split == 0 and rank <= limit:
                write(f"{names[0]}_{size}", row)
    if len(names) > 1:
        done.groups = len(
            {
                groups.root(seed)
                for table in tables
                for seed, state in zip(table.seeds, table.state, strict=True)
                if state != LEFT
            }
        )
    if cut.measured:
        unit = "tokens" if cut.tokenizer or IDS in form.shape() else "words"
        for number, name in enumerate(names):
            lengths = [
                n for table in tables for n, to in zip(table.lengths, table.to.tolist(), strict=True) if to == number
            ]
            done.lengths[name] = told(lengths, unit, cut.pack)
    return done


def _straight(part: Part, form: Format, cut: Cut, sink: Callable[[str], Sink]) -> Done:
    """One reading: each row is written as it comes."""
    done, dataset, lost = Done(), part.dataset, 0
    write, columns, number = sink("train").write, done.columns, -1
    for number, _, record in dataset.records(form):
        row = row_of(form, record, dataset, number)
        if row is None:
            lost += 1
            continue
        if not row.keys() <= columns:
            done.saw(row)
        write(row)
    dataset.check()
    part.records, part.no_place, part.rows = number + 1, lost, number + 1 - lost
    done.files = {"train": part.rows}
    if not part.rows:
        raise nothing([part], form)
    return done


def _survey(parts: Sequence[Part], form: Format, cut: Cut) -> tuple[list[Table], Groups]:
    """The first reading: what each record is, in numbers."""
    groups, tables, key = Groups(), [], cut.key()
    length = length_of(form.shape(), cut.tokenizer) if cut.measured else None
    for part in parts:
        table, end = Table(cut, part.share, part.rehearsal), 0
        for number, size, record in part.dataset.records(form):
            row = row_of(form, record, part.dataset, number)
            long = length(row) if length and row is not None else 0
            end += size
            table.add(record, row is not None, long, end, groups, key(record, long) if key else 0.0)
        part.dataset.check()
        part.records, part.no_place = len(table.state), table.state.count(LEFT)
        part.too_long = table.state.count(TOO_LONG)
        tables.append(table)
    return tables, groups


Item = tuple[Part, dict[str, Any], int, float]


def _merged(parts: Sequence[Part], form: Format, tables: Sequence[Table]) -> Iterator[Item]:
    """The second reading, in the datasets' order; several are laid evenly through each other."""

    def rows(place: int, part: Part, table: Table) -> Iterator[tuple[float, int, Item]]:
        to = table.to.tolist() if len(table.to) < 1 << 16 else table.to
        total, sent = max(int((table.to >= 0).sum()), 1), 0
        before = part.dataset.sha256
        for number, _, record in part.dataset.records(form):
            if number < len(to) and (split := int(to[number])) >= 0:
                row = row_of(form, record, part.dataset, number)
                if row is None:
                    break
                sent += 1
                yield (sent - 0.5) / total, place, (part, row, split, float(table.rank[number]))
        if part.dataset.sha256 != before or sent != (table.to >= 0).sum():
            raise UserError("the records changed while they were read", where=str(part.dataset.folder))

    streams = [rows(*each) for each in zip(range(len(parts)), parts, tables, strict=True)]
    for _, _, item in heapq.merge(*streams, key=lambda each: each[:2]):
        yield item


def _ordered(parts: Sequence[Part], form: Format, cut: Cut, tables: Sequence[Table], done: Done) -> Iterator[Item]:
    """The second reading, by the key; records without one come last."""
    import numpy as np

    keys = np.concatenate([np.frombuffer(table.keys) for table in tables])
    owner = np.repeat(np.arange(len(tables), dtype=np.int16), [len(table.keys) for table in tables])
    starts = np.cumsum([0, *(len(table.keys) for table in tables)])
    taken = np.concatenate([table.to for table in tables]) >= 0
    done.unordered = int(np.isnan(keys[taken]).sum())
    if done.unordered == taken.sum():
        raise GateFailed(
            f"no record has a number at {cut.order!r}", where="--order", hint="length, meta.score, extra.COLUMN …"
        )
    handles = [os.open(part.dataset.version / RECORDS, os.O_RDONLY) for part in parts]
    try:
        for at in np.argsort(keys, kind="stable"):
            if not taken[at]:
                continue
            place = int(owner[at])
            number, part, table = int(at - starts[place]), parts[place], tables[place]
            start, end = table.ends[number - 1] if number else 0, table.ends[number]
            record = record_of(os.pread(handles[place], end - start, start), part.dataset, number)
            row = row_of(form, record, part.dataset, number)
            if row is None:
                raise UserError("the records changed while they were read", where=str(part.dataset.folder))
            yield part, row, int(table.to[number]), float(table.rank[number])
    finally:
        for handle in handles:
            os.close(handle)


def nothing(parts: Sequence[Part], form: Format) -> GateFailed:
    """No record has a place: say which formats would take the first ones."""
    takes: dict[str, None] = {}
    long = sum(part.too_long for part in parts)
    for part in parts:
        for number, line in enumerate(islice(part.dataset.lines(), 20)):
            record = record_of(line, part.dataset, number)
            for name, kind in EXPORTS.items():
                if any(piece.is_required() for piece in kind.model_fields.values()) or issubclass(kind, FeatureFormat):
                    continue
                try:
                    if row_of(kind(format=name), record, part.dataset, number) is not None:
                        takes[name] = None
                except KdgenError:
                    continue
    total = sum(part.records for part in parts)
    cause = f"none of {total:,} records has a place in {form.format}" + (f" ({long:,} are too long)" if long else "")
    hint = f"they have one in: {', '.join(takes)}" if takes else "the dataset has no rows"
    return GateFailed(cause, where=str(parts[0].dataset.folder), hint=hint)
