"""What `kdgen export` does: read the options, write the files, say what was written."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import TypeAdapter, ValidationError

from kdgen.bundle.croissant import croissant
from kdgen.bundle.cut import Cut
from kdgen.bundle.dataset import Dataset
from kdgen.bundle.flow import Done, Part, export
from kdgen.bundle.folder import Container, one_file, writing
from kdgen.bundle.measure import IDS
from kdgen.bundle.papers import card_of, default_name, manifest_of
from kdgen.bundle.provenance import statement
from kdgen.cli.job import pretty
from kdgen.errors import UserError
from kdgen.export import ALIASES, EXPORTS, AnyExport, FeatureFormat, Format, Triples
from kdgen.export.examples import example_of, settings_of
from kdgen.record import Frozen
from kdgen.resources import did_you_mean
from kdgen.store import dumps
from kdgen.yamls import Source, explain, parse_value

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CONTAINERS = get_args(Container)
FOLDERS = ("beir", "llamafactory")  # more than rows


class Wanted(Frozen):
    """What `--to` and `--set` say."""

    to: AnyExport
    cut: Cut


def ship(
    dataset: str | None,
    to: str,
    *,
    out: str,
    sets: Sequence[str],
    container: str,
    split: str,
    mix: Sequence[str],
    rehearse: Sequence[str],
    order: str,
    subsets: str,
    max_tokens: int | None,
    pack: int | None,
    tokenizer: str,
    seed: int,
    name: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export. Raises KdgenError for whatever does not go."""
    raw = {
        "split": _parts(split), "order": order, "subsets": _sizes(subsets), "max_tokens": max_tokens, "pack": pack,
        "tokenizer": tokenizer, "seed": seed,
    }  # fmt: skip
    wanted = wanted_of(to, sets, raw)
    form: Format = wanted.to
    cut = wanted.cut
    parts = parts_of(dataset, mix, rehearse)
    fits = [part.dataset.fitted(form) for part in parts]
    form = fits[0]
    if any(each != form for each in fits):
        raise UserError(
            "the datasets' features differ in name, k or vocabulary", where="--mix", hint="--set feature=…, k=…"
        )
    called = name or default_name(parts)
    if not NAME.fullmatch(called):
        raise UserError(f"{called!r} is no name", where="--name", hint="letters, digits, '.', '_' and '-'")
    target = Path(out or f"out/{called}.{form.format}")
    single = out == "-" or target.suffix in (".jsonl", ".parquet")
    _check(form, cut, container, out, single, as_json)
    _check_seed(cut, parts)
    if single:
        with one_file(target, form) as sink:
            done = export(parts, form, cut, sink)
        manifest = manifest_of(
            called, parts, form, cut, done, {}, "parquet" if target.suffix == ".parquet" else "jsonl"
        )
    else:
        with writing(target, form, cast(Container, container)) as folder:
            done = export(parts, form, cut, folder.sink)
            files = folder.close()
            manifest = manifest_of(called, parts, form, cut, done, files, container)
            first = {split: made["files"][0] for split, made in manifest["splits"].items()}
            for file, content in form.beside(called, first).items():
                folder.text(file, content)
            folder.text("README.md", card_of(manifest, parts, form, done).encode())
            folder.text("manifest.json", pretty(manifest).encode())
            folder.text("croissant.json", pretty(croissant(manifest, parts, form, done)).encode())
            folder.text("provenance.json", pretty(statement(manifest)).encode())
    if as_json:
        print(pretty(manifest), end="")
    if not quiet:
        print(_last_words(manifest, done, target, cut), file=sys.stderr)


def wanted_of(to: str, sets: Sequence[str], cut: dict[str, Any]) -> Wanted:
    """The format with its settings, and the cut. Raises UserError."""
    if not to:
        raise UserError("say which format", where="--to", hint="kdgen export --list shows them")
    name = ALIASES.get(to, to)
    if name not in EXPORTS:
        hint = did_you_mean(to, [*EXPORTS, *ALIASES]) or f"one of {', '.join(EXPORTS)}"
        raise UserError(f"{to!r} is no format", where="--to", hint=hint)
    tree: dict[str, Any] = {"to": {"format": name}, "cut": cut}
    source = Source(Path("--set"), tree, {("to",): f"--to {to}"})
    source.lines |= {("cut", key): f"--{key.replace('_', '-')}" for key in cut}
    for each in sets:
        field, equals, text = each.partition("=")
        if not equals or not field or field == "format":
            raise UserError(f"{each!r} is not FIELD=VALUE", where="--set", hint="--set reasoning=think")
        source.set(["to", *field.split(".")], parse_value(text, f"--set {field}"), f"--set {field}")
    try:
        return Wanted.model_validate(tree, context={"base": Path.cwd()})
    except ValidationError as error:
        raise explain(error, source, Wanted) from None


def parts_of(dataset: str | None, mix: Sequence[str], rehearse: Sequence[str]) -> list[Part]:
    """The datasets. Raises UserError."""
    if (dataset is None) == (not mix):
        cause = (
            "name a dataset, or several with --mix"
            if dataset is None
            else "a dataset beside --mix: give it its share too"
        )
        raise UserError(cause, where="DATASET", hint=f"--mix {dataset or 'out/a'}=0.7 --mix out/b=0.3")
    if mix and len(mix) < 2:
        raise UserError("a mix is of two datasets at least", where="--mix", hint="--mix out/a=0.7 --mix out/b=0.3")
    parts = [Part(Dataset.at(dataset))] if dataset is not None else []
    for option, given in (("--mix", mix), ("--rehearse", rehearse)):
        for text in given:
            path, share = _share(text, option)
            parts.append(Part(Dataset.at(path), share, option == "--rehearse"))
    if sum(part.share or 0 for part in parts if part.rehearsal) >= 1:
        raise UserError("rehearsal shares are parts of the whole, less than 1 together", where="--rehearse")
    return parts


def _share(text: str, option: str) -> tuple[str, float]:
    path, equals, number = text.rpartition("=")
    try:
        share = float(number)
        if not equals or not path or not 0 < share < float("inf") or (option == "--rehearse" and share >= 1):
            raise ValueError
    except ValueError:
        raise UserError(f"{text!r} is not DATASET=SHARE", where=option, hint=f"{option} out/a=0.3") from None
    return path, share


def _parts(text: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for each in text.split(",") if text else ():
        name, equals, part = each.strip().partition("=")
        if not equals or name in told:
            raise UserError(f"{each!r} is not NAME=PART", where="--split", hint="--split train=0.9,test=0.1")
        told[name] = part
    return told


def _sizes(text: str) -> list[str]:
    return [each.strip() for each in text.split(",")] if text else []


def _check(form: Format, cut: Cut, container: str, out: str, single: bool, as_json: bool) -> None:
    """Refuse what would have no effect or has no place."""
    if container not in CONTAINERS:
        hint = did_you_mean(container, CONTAINERS) or f"one of {', '.join(CONTAINERS)}"
        raise UserError(f"{container!r} is no kind of files", where="--as", hint=hint)
    if form.format in FOLDERS and (single or container != "jsonl"):
        where, what = ("-o", "one file") if single else ("--as", container)
        raise UserError(
            f"{form.format} is a folder of several files, not {what}", where=where, hint="-o DIR, --as jsonl"
        )
    if single and container != "jsonl":
        raise UserError(f"--as {container} makes a folder, and -o {out} is a file", where="--as", hint="-o DIR")
    if single and (cut.split or cut.subsets):
        raise UserError("splits and subsets are several files", where="-o", hint="-o DIR")
    if isinstance(form, Triples) and (cut.split or cut.order):
        hint = "--to beir splits, and keeps each document in one split"
        raise UserError(
            "the other document is drawn from all of them, so no split would keep to itself", where="--split", hint=hint
        )
    if isinstance(form, FeatureFormat) and cut.order:
        raise UserError(
            "features are read in the records' order", where="--order", hint="order the rows as they are trained on"
        )
    if IDS in form.shape() and cut.tokenizer:
        raise UserError(f"the rows of {form.format} are tokens already", where="--tokenizer", hint="leave it out")
    if out == "-" and as_json:
        raise UserError("-o - and --json both want stdout", hint="name a folder with -o DIR")


def _check_seed(cut: Cut, parts: Sequence[Part]) -> None:
    drawn = cut.split or cut.subsets or any(part.share is not None for part in parts)
    if cut.seed and not drawn:
        raise UserError(
            "nothing is drawn, so --seed has no effect", where="--seed", hint="it is for --split, --mix, --subsets"
        )


def _last_words(manifest: dict[str, Any], done: Done, target: Path, cut: Cut) -> str:
    counts = manifest["counts"]
    lines = [
        f"{counts['rows']:,} rows in {target} ({manifest['format']['format']}), from {counts['records']:,} records"
    ]
    words = {"no_place": "have no place in the format", "too_long": "are too long", "not_drawn": "are not drawn"}
    lines += [f"{counts[key]:,} records {said}" for key, said in words.items() if counts[key]]
    if cut.split or cut.subsets:
        lines.append(", ".join(f"{name} {rows:,}" for name, rows in done.files.items()))
    for name, told in manifest.get("lengths", {}).items():
        packed = f", {told['sequences']:,} sequences of {told['packed_to']:,}" if "sequences" in told else ""
        lines.append(f"{name}: {told['total']:,} {told['unit']}, longest {told['longest']:,}{packed}")
    if done.unordered:
        lines.append(f"{done.unordered:,} rows have no number at {cut.order!r} and come last")
    return "\n".join(lines + [f"note: {notice}" for notice in manifest["notices"]])


def list_formats(only: str) -> None:
    """Every format: who reads it, its settings, and a row."""
    if only and ALIASES.get(only, only) not in EXPORTS:
        raise UserError(f"{only!r} is no format", where="--to", hint=did_you_mean(only, EXPORTS))
    for name, kind in EXPORTS.items():
        if only and name != ALIASES.get(only, only):
            continue
        print(f"{name}: {kind.TRAINERS}")
        if told := settings_of(kind):
            print(f"  --set {', '.join(told)}")
        form = TypeAdapter[Any](AnyExport).validate_python(example_of(name)[1], context={"base": Path.cwd()})
        print("  " + dumps(form.row(example_of(name)[0])).decode(), end="")
    print(f"also: {', '.join(f'{alias} = {name}' for alias, name in ALIASES.items())}")
