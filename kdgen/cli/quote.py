"""`kdgen plan`: what a run would ask and cost, as a table, with a rendered prompt of each kind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdgen.cli.inputs import scanned, seed_file
from kdgen.cli.job import pretty
from kdgen.cli.work import changes_of
from kdgen.config import load_iterations
from kdgen.features.disk import human
from kdgen.planning import ASSUMED, Plan, PlanDesk, plan
from kdgen.progress import Quiet
from kdgen.runner import Run
from kdgen.teachers.bill import Bill
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.prices import PLAIN, prices_file
from kdgen.terms import Ruling, judge

HEAD = ("stage", "role: teacher", "requests", "in ledger", "to send", "input", "output", "online", "batch", "at most")


def quote(
    name: str,
    seeds: str | None,
    *,
    teachers: Sequence[str] | None,
    sets: Sequence[str] | None,
    limit: int | None,
    target: int | None,
    columns: Sequence[str] | None,
    ledger: str,
    prices: str | None,
    reply_tokens: int | None,
    as_json: bool,
) -> None:
    """Load and check as a run would, go through the recipe once without sending, print."""
    changes = changes_of(seeds, limit=limit, target=target, columns=columns, on_bad=None, form=None)
    recipe, *more = load_iterations(name, sets=sets or (), teachers=teachers or (), changes=changes)
    table = prices_file(Path(prices)) if prices else PLAIN
    rulings = judge(dict(recipe.leaves()), recipe.use, recipe.student)
    there = Path(ledger) if Path(ledger).exists() else None
    with seed_file(recipe) as (path, spooled):
        found = scanned(recipe, path, spooled)

        async def go(folder: Path) -> Plan:
            # A plan writes no ledger: where there is none, an empty one stands in.
            book = Ledger(there or folder / "ledger.db")
            try:
                run = Run(recipe, path, found, book, Quiet(), Bill(prices=table), desks=PlanDesk)
                return await plan(run, folder, reply_tokens)
            finally:
                await book.close()

        with tempfile.TemporaryDirectory(prefix="kdgen-") as made:
            planned = asyncio.run(go(Path(made)))
    data = planned.data(table)
    if as_json:
        data |= {"name": recipe.name, "seeds": found.rows, "terms": [ruling.data() for ruling in rulings]}
        print(pretty(data), end="")
        return
    print(f"{recipe.name}: {found.rows:,} seeds; a plan, nothing is sent\n")
    print("\n".join(_table(data)))
    print()
    if recipe.loop is not None:
        print(
            f"this is M1, the first of {1 + len(more)} iterations; what each after it asks hangs on the rows before it"
        )
    for line in [*_notes(data, reply_tokens), *_terms(rulings), *_prompts(data)]:
        print(line)


def _table(data: dict[str, Any]) -> list[str]:
    rows = [HEAD]
    for line in [*data["lines"], {**data["total"], "stage": "all", "role": "", "teacher": ""}]:
        who = f"{line['role']}: {line['teacher']}" if line["role"] else ""
        counts = (line[name] for name in ("requests", "in_ledger", "to_send", "input_tokens", "output_tokens"))
        money = (_usd(line[name]) for name in ("usd_online", "usd_batch", "usd_at_most"))
        rows.append((line["stage"], who, *(f"{count:,}" for count in counts), *money))
    wide = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    return [
        "  ".join(
            cell.ljust(size) if place < 2 else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(row, wide, strict=True))
        ).rstrip()
        for row in rows
    ]


def _usd(value: float | None) -> str:
    return "-" if value is None else f"${value:,.4f}" if 0 < value < 1 else f"${value:,.2f}"


def _notes(data: dict[str, Any], said: int | None) -> list[str]:
    notes = ["input and output are tokens; at most: every reply as long as max_tokens allows, no token of input cached"]
    if any(line["to_send"] and not line["learnt"] for line in data["lines"]):
        what = f"as you said, {said}" if said is not None else f"assumed, {ASSUMED} (--reply-tokens N says better)"
        notes.append(f"length of a reply where the ledger has none of its kind: {what}, or of the form asked for")
    if any(line["learnt"] for line in data["lines"]):
        notes.append("where the ledger has replies of a kind, their mean length is taken")
    if any(line["to_send"] and line["usd_online"] is None for line in data["lines"]):
        notes.append("-: no price is known; --prices FILE gives one")
    rejects = "".join(f", {count} {reason}" for reason, count in data["rejects"].items())
    notes.append(f"rows: about {data['rows']:,}, were every invented reply a good one{rejects}")
    if kept := data.get("features"):
        parts = ", ".join(f"{name} {human(size)}" for name, size in kept.items())
        notes.append(
            f"features: about {human(sum(kept.values()))} of disk ({parts}); the replies take more in the ledger"
        )
    return notes


def _terms(rulings: list[Ruling]) -> list[str]:
    left = [ruling for ruling in rulings if ruling.status != "allowed"]
    lines = [line for ruling in left for line in ("", *ruling.lines(), f"  a run needs {ruling.worst.flag}")]
    return lines


def _prompts(data: dict[str, Any]) -> list[str]:
    lines = []
    for line in data["lines"]:
        for name, messages in line["prompts"].items():
            lines += ["", f"--- {name}, as {line['role']} ({line['teacher']}) is asked first"]
            for message in messages:
                lines += [f"[{message['role']}]", message["content"]]
    return lines
