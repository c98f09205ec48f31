"""What the commands do, as plain functions."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kdgen.cli.inputs import scanned, seed_file
from kdgen.cli.iterations import iterate
from kdgen.cli.job import Job, pretty
from kdgen.config import Recipe, load_iterations, load_recipe
from kdgen.errors import UserError
from kdgen.export import FORMATS
from kdgen.resources import builtins, did_you_mean
from kdgen.seeds import scan
from kdgen.shapes import FIELDS
from kdgen.store import Staging, Store
from kdgen.teachers.bill import Bill
from kdgen.teachers.prices import PLAIN, prices_file
from kdgen.terms import Ruling, gate, judge, parse_ack


def recipe_of(verb: str, method: str) -> str:
    """The built-in recipe of a verb's method. Raises UserError that says what there is."""
    known = [name.removeprefix(f"{verb}/") for name in builtins("configs") if name.startswith(f"{verb}/")]
    if method not in known:
        hint = did_you_mean(method, known) or f"{verb} has: {', '.join(known)}"
        cause = f"{verb!r} has no method {method!r}" if method else f"say how to {verb}"
        raise UserError(cause, where="--method", hint=hint)
    return f"{verb}/{method}"


def make(
    name: str,
    seeds: str | None,
    *,
    out: str,
    teachers: Sequence[str] | None,
    sets: Sequence[str] | None,
    limit: int | None,
    target: int | None,
    columns: Sequence[str] | None,
    on_bad: str | None,
    form: str | None,
    ledger: str,
    budget_usd: float | None,
    budget_tokens: int | None,
    budget_usd_month: float | None,
    budget_tokens_month: int | None,
    publish_at_budget: bool,
    wait: bool,
    max_wait: float | None,
    prices: str | None,
    acks: Sequence[str] | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a dataset: load, check, run, publish, print."""
    if out == "-" and as_json:
        raise UserError("-o - and --json both want stdout", hint="name a folder with -o DIR")
    changes = changes_of(seeds, limit=limit, target=target, columns=columns, on_bad=on_bad, form=form)
    caps = {
        "usd": budget_usd,
        "tokens": budget_tokens,
        "month_usd": budget_usd_month,
        "month_tokens": budget_tokens_month,
        "publish": publish_at_budget or None,
    }
    changes |= {f"budget.{unit}": cap for unit, cap in caps.items() if cap is not None}
    recipes = load_iterations(name, sets=sets or (), teachers=teachers or (), changes=changes)
    recipe = recipes[0]
    for option, given in (("--no-wait", not wait), ("--max-wait", max_wait is not None)):
        if given and not recipe.batched:
            hint = "--set teachers.ROLE.mode=batch, or leave the option out"
            raise UserError("no teacher of this recipe is asked through batches", where=option, hint=hint)
    if out == "-" and recipe.budget.publish:
        raise UserError("what is complete at the cap is published to a folder only", where="-o -", hint="-o DIR")
    if out == "-" and recipe.loop is not None:
        raise UserError("a loop makes several datasets", where="-o -", hint="-o DIR")
    rulings = gate_of(recipes, acks or ())
    table = prices_file(Path(prices)) if prices else PLAIN
    for each in recipes:
        for role, spec in each.leaves():
            Bill(each.budget, table).check(spec, role)
    with seed_file(recipe) as (path, spooled):
        found = scanned(recipe, path, spooled)
        job = Job(recipe, path, found, Path(ledger), quiet, wait, max_wait, table, rulings[0])
        folder = Path(out or f"out/{recipe.name}")
        if recipe.loop is not None:
            _loop(recipes, job, rulings, folder, as_json, quiet)
            return
        if out == "-":
            with tempfile.TemporaryDirectory(prefix="kdgen-") as there:
                asyncio.run(job.run(lambda: nullcontext(Staging(Path(there))), None))
                with (Path(there) / "data.jsonl").open("rb") as rows:
                    shutil.copyfileobj(rows, sys.stdout.buffer)
                    sys.stdout.buffer.flush()
            return
        store = Store(folder)
        with store.locked():
            manifest = asyncio.run(job.run(store.staging, store))
    _tell(manifest, store.folder, as_json, quiet)


def _loop(
    recipes: Sequence[Recipe], job: Job, rulings: Sequence[list[Ruling]], folder: Path, as_json: bool, quiet: bool
) -> None:
    """Make the iterations, and tell of those that were made, whatever ends them."""
    made: list[dict[str, Any]] = []
    try:
        for number, (store, manifest) in enumerate(iterate(recipes, job, rulings, folder), 1):
            made.append(manifest)
            _tell(manifest, store.folder, False, quiet, f"M{number}: ")
    finally:
        if as_json and made:
            print(pretty(made), end="")
    if quiet:
        return
    then = "serve it, and write an iteration that names it"
    print(f"next: train the student on {folder}/M{len(made)}, {then}", file=sys.stderr)
    if (folder / f"M{len(made) + 1}").exists():
        print(f"note: {folder}/M{len(made) + 1} is of an iteration that the recipe no longer has", file=sys.stderr)


def _tell(manifest: dict[str, Any], folder: Path, as_json: bool, quiet: bool, ahead: str = "") -> None:
    if as_json:
        print(pretty(manifest), end="")
    if not quiet:
        print(ahead + _last_words(manifest, folder), file=sys.stderr)


def gate_of(recipes: Sequence[Recipe], given: Sequence[str]) -> list[list[Ruling]]:
    """What the terms of each recipe's teachers say. Raises TermsNotAcknowledged, and UserError for what nobody asked."""
    judged = [judge(dict(recipe.leaves()), recipe.use, recipe.student) for recipe in recipes]
    acks = dict(parse_ack(text) for text in given)
    keys = [verdict.key for rulings in judged for ruling in rulings for verdict in ruling.verdicts]
    for key in acks:
        if key not in keys:
            hint = did_you_mean(key, keys) or f"what holds here: {', '.join(dict.fromkeys(keys))}"
            raise UserError(f"no teacher is under the terms {key!r}", where="--ack-terms", hint=hint)
    return [gate(rulings, {**recipe.terms, **acks}) for rulings, recipe in zip(judged, recipes, strict=True)]


def changes_of(
    seeds: str | None,
    *,
    limit: int | None,
    target: int | None,
    columns: Sequence[str] | None,
    on_bad: str | None,
    form: str | None,
) -> dict[str, Any]:
    """What the options of a verb change in its recipe. Raises UserError."""
    changes: dict[str, Any] = {}
    if seeds is not None:
        known = (
            seeds == "-" or seeds.startswith("package:") or (seeds in builtins("seeds") and not Path(seeds).exists())
        )
        changes["seeds.path"] = seeds if known else str(Path(seeds).absolute())
    for pair in columns or ():
        field, equals, column = pair.partition("=")
        if not equals or field not in FIELDS:
            hint = did_you_mean(field, FIELDS) or f"fields: {', '.join(FIELDS)}"
            raise UserError(f"{pair!r} is not FIELD=COLUMN", where="--map", hint=hint)
        changes[f"seeds.map.{field}"] = column
    if on_bad is not None:
        if on_bad not in ("fail", "skip"):
            raise UserError(f"{on_bad!r} is neither fail nor skip", where="--on-bad-seed")
        changes["seeds.on_bad"] = on_bad
    if limit is not None:
        changes["seeds.limit"] = limit
    if target is not None:
        changes["target"] = target
    if form is not None:
        if form not in FORMATS:
            hint = did_you_mean(form, FORMATS) or f"one of {', '.join(FORMATS)}"
            raise UserError(f"{form!r} is no format", where="--format", hint=hint)
        changes["export.format"] = form
    return changes


def _last_words(manifest: dict[str, Any], folder: Path) -> str:
    counts, requests = manifest["counts"], manifest["requests"]
    lines = [
        f"{counts['rows']:,} rows in {folder}/data.jsonl "
        f"(from {counts['seeds']:,} seeds, {counts['generated']:,} generated, {sum(counts['rejects'].values()):,} rejected)",
        f"{requests['sent']:,} requests sent, {requests['from_ledger']:,} answered by the ledger, {requests['failed']:,} failed"
        + (f", {requests['from_batches']:,} back from batches" if requests["from_batches"] else "")
        + (f", ${manifest['cost_usd']:.4f}" if manifest["cost_usd"] else ""),
    ]
    if counts["rejects"]:
        most = sorted(counts["rejects"].items(), key=lambda pair: -pair[1])[:6]
        lines.append("rejected: " + ", ".join(f"{count} {reason}" for reason, count in most))
    if manifest["target"] and manifest["stopped"] != "target":
        lines.append(f"stopped before the target of {manifest['target']}: {STOPS[manifest['stopped']]}")
    return "\n".join(lines + [f"note: {notice}" for notice in manifest["notices"]])


STOPS = {
    "budget": "the budget is reached",
    "seeds": "the seeds are used up",
    "candidate_cap": "the cap on candidates is met (stages.N.max_candidates)",
    "dry": "two rounds in a row added nothing new",
    "rounds": "all rounds are done",
}


def check(
    names: Sequence[str] | None, seeds: str | None, *, teachers: Sequence[str] | None, sets: Sequence[str] | None
) -> None:
    """Load and check recipes and their seeds; one line each on stdout."""
    changes = changes_of(seeds, limit=None, target=None, columns=None, on_bad=None, form=None)
    for name in names or list(builtins("configs")):
        recipe, *later = load_iterations(name, sets=sets or (), teachers=teachers or (), changes=changes)
        said = f"{len(recipe.stages)} stages, teachers: " + ", ".join(
            f"{role} = {spec.label}" for role, spec in recipe.teachers.items()
        )
        said += f", {1 + len(later)} iterations" if later else ""
        if recipe.seeds is not None and recipe.seeds.path != "-":
            with seed_file(recipe) as (path, _):
                found = scan(recipe.seeds, path)
            left = sum(reason == "not_selected" for reason, _ in found.bad.values())
            out = [f"{n:,} {why}" for n, why in ((len(found.bad) - left, "not usable"), (left, "not selected")) if n]
            said += f", {found.rows:,} seeds" + (f" ({', '.join(out)})" if out else "")
        print(f"ok  {name}: {said}")
        for line in dict.fromkeys(line for each in (recipe, *later) for line in _lacks(each)):
            print(f"    {line}")


def _lacks(recipe: Recipe) -> Iterator[str]:
    """What a run of the recipe would need here besides."""
    for role, spec in recipe.leaves():
        yield from (f"{role}: {need}" for need in spec.needs())
    if recipe.executes:
        try:
            recipe.sandbox.ready()
        except UserError as error:
            yield f"sandbox: {error.cause}"
    for ruling in judge(dict(recipe.leaves()), recipe.use, recipe.student):
        if ruling.status != "allowed" and ruling.acknowledged(recipe.terms.get(ruling.key)).ack is None:
            yield f"{ruling.role}: its terms are {ruling.status}; a run needs {ruling.worst.flag}"


def list_recipes() -> None:
    """One line a recipe."""
    for name in builtins("configs"):
        recipe = load_recipe(name)
        print(f"{name:24} {recipe.about}")


def show_recipe(name: str) -> None:
    """The recipe's file, as it ships."""
    known = builtins("configs")
    if name not in known:
        raise UserError(f"no recipe is named {name!r}", hint=did_you_mean(name, known) or "kdgen recipes lists them")
    print(known[name].read_text(encoding="utf-8"), end="")


def pull(name: str) -> None:
    """Fetch a model into the cache and print its path."""
    from kdgen.teachers.models import pull as fetch

    print(fetch(name, lambda line: print(line, file=sys.stderr)))
