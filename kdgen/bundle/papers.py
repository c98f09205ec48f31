"""What an export says of itself: its manifest, and the card that the hub shows. The same rows make the same papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from kdgen import __version__
from kdgen.bundle.arrow import features, packer
from kdgen.bundle.cut import Cut
from kdgen.bundle.flow import Done, Part
from kdgen.bundle.sinks import Written
from kdgen.card import SIZES, terms_of
from kdgen.export import FeatureFormat, Format
from kdgen.record import digest

RETRIEVAL, REINFORCED = "text-retrieval", "reinforcement-learning"
TASKS = {
    **dict.fromkeys(("retrieval", "beir", "triples"), RETRIEVAL),
    **dict.fromkeys(("preference", "kto", "prompt"), REINFORCED),
}
COLUMNLESS = ("beir",)


class _Plain(yaml.SafeDumper):
    """YAML without anchors, which not every reader of cards follows."""

    def ignore_aliases(self, data: Any) -> bool:
        """What stands twice is written twice."""
        return True


def manifest_of(
    name: str,
    parts: Sequence[Part],
    form: Format,
    cut: Cut,
    done: Done,
    files: dict[str, list[Written]],
    container: str,
) -> dict[str, Any]:
    """The manifest of an export. It has no clock and no path: two exports of the same are the same."""
    splits = {split: _split(files.get(split, []), done.files.get(split, 0)) for split in cut.splits}
    sizes = [f"{cut.splits[0]}_{size}" for size in cut.subsets]
    return {
        "kdgen_export": 1,
        "kdgen": __version__,
        "name": name,
        "format": {"format": form.format, **form.model_dump(mode="json", exclude_defaults=True)},
        "as": container,
        "cut": cut.model_dump(mode="json", exclude_defaults=True),
        "counts": {key: sum(part.counts().get(key, 0) for part in parts) for key in COUNTS},
        "datasets": [_dataset(part, form) for part in parts],
        "splits": splits,
        "subsets": {size: _split(files.get(size, []), done.files.get(size, 0)) for size in sizes},
        **({"groups_of_seeds": done.groups} if len(cut.splits) > 1 else {}),
        **({"lengths": done.lengths} if done.lengths else {}),
        **({"without_the_orders_number": done.unordered} if cut.order else {}),
        "notices": list(dict.fromkeys(_notices(parts))),
        "files": {
            each.file: {"rows": each.rows, "bytes": each.bytes, "sha256": each.sha256}
            for made in files.values()
            for each in made
        },
    }


COUNTS = ("records", "rows", "no_place", "too_long", "not_drawn")


def _split(made: Sequence[Written], rows: int) -> dict[str, Any]:
    return {"rows": rows, "files": [each.file for each in made]}


def _dataset(part: Part, form: Format) -> dict[str, Any]:
    made = part.dataset.manifest
    told = {"features": part.dataset.facts(form.feature)} if isinstance(form, FeatureFormat) else {}
    share = {"rehearsal" if part.rehearsal else "share": part.share} if part.share is not None else {}
    return {
        "name": part.dataset.name,
        **share,
        "counts": part.counts(),
        "records_sha256": part.dataset.sha256,
        "recipe": made["hashes"]["recipe"],
        "kdgen": made["kdgen"],
        "paper": made.get("paper", ""),
        "use": made["use"],
        "student": made["student"],
        "seeds": seeds_of(made),
        "prompts": made["hashes"]["prompts"],
        "teachers": {role: teacher_of(each) for role, each in made["teachers"].items()},
        "terms": made["terms"],
        **told,
    }


def seeds_of(made: dict[str, Any]) -> list[dict[str, str]]:
    """The files of seeds of a run: name, SHA-256 and licence."""
    licence = made.get("seeds", {}).get("licence", "")
    return [{"name": name, "sha256": sums, "licence": licence} for name, sums in made["hashes"]["seeds"].items()]


def teacher_of(told: dict[str, Any]) -> dict[str, str]:
    """A teacher: its label, where it is from, its model's licence."""
    return {name: told[name] for name in ("label", "origin", "licence", "notice") if told.get(name)}


def _notices(parts: Sequence[Part]) -> list[str]:
    return [notice for part in parts for ruling in part.dataset.manifest["terms"] for notice in ruling["notices"]]


def card_of(manifest: dict[str, Any], parts: Sequence[Part], form: Format, done: Done) -> str:
    """README.md: what the hub reads, then what people do."""
    rows = manifest["counts"]["rows"]
    front: dict[str, Any] = {
        "pretty_name": manifest["name"],
        "license": "other",
        "license_name": "see-terms",
        "license_link": "README.md#terms",
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"],
        "task_categories": [TASKS.get(form.format, "text-generation")],
        "tags": ["synthetic", "distillation", "kdgen", form.format],
        "size_categories": [next((name for most, name in SIZES if rows < most), "1M<n<10M")],
        **_configs(manifest, form, done),
    }
    lines = [
        "---",
        yaml.dump(front, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1000).strip(),
        "---",
        "",
        f"# {manifest['name']}",
        "",
        *(part.dataset.manifest["about"] for part in parts if part.dataset.manifest["about"]),
        "",
        f"{rows:,} rows in the format `{form.format}` (for {type(form).TRAINERS}), exported with kdgen {manifest['kdgen']}.",
        "",
        "| file | rows | SHA-256 |",
        "|---|---:|---|",
        *(f"| `{file}` | {made['rows']:,} | `{made['sha256']}` |" for file, made in manifest["files"].items()),
        "",
        *_cut_lines(manifest),
        "## Datasets",
        "",
        "| dataset | records | rows | no place in the format | too long | not drawn |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for each in manifest["datasets"]:
        cells = (f"{each['counts'].get(name, 0):,}" for name in COUNTS)
        lines.append(f"| {each['name']} | {' | '.join(cells)} |")
    lines += ["", "## Teachers", "", "| dataset | role | teacher | model licence | origin |", "|---|---|---|---|---|"]
    for each in manifest["datasets"]:
        for role, teacher in each["teachers"].items():
            told = (teacher["label"], teacher.get("licence", "not stated"), teacher.get("origin", ""))
            lines.append(f"| {each['name']} | {role} | {' | '.join(told)} |")
    if facts := [(each["name"], fact) for each in manifest["datasets"] for fact in each.get("features", ())]:
        names = (
            "teacher",
            "k",
            "temperature",
            "top_p",
            "mode",
            "source",
            "vocab_size",
            "tokenizer_sha256",
            "chat_template_sha256",
        )
        lines += [
            "",
            "## What the teacher told of tokens",
            "",
            f"| dataset | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        lines += [f"| {name} | {' | '.join(_known(fact[key]) for key in names)} |" for name, fact in facts]
    lines += ["", "## Seeds", "", "| dataset | seeds | licence | SHA-256 |", "|---|---|---|---|"]
    for each in manifest["datasets"]:
        for seeds in each["seeds"] or [{"name": "none", "licence": "", "sha256": ""}]:
            lines.append(
                f"| {each['name']} | {seeds['name']} | {seeds['licence'] or 'not stated'} | `{seeds['sha256']}` |"
            )
    lines.append("")
    for part in parts:
        said = terms_of(part.dataset.manifest)
        lines += said if len(parts) == 1 else [f"## Terms of {part.dataset.name}", *said[1:]]
    lines += [
        "## Provenance",
        "",
        "`manifest.json`, `croissant.json` (Croissant 1.1) and `provenance.json` (in-toto) say it in full.",
        "",
    ]
    if done.first is not None:
        shown = yaml.safe_dump(done.first, sort_keys=False, allow_unicode=True, width=100).strip()
        lines += ["## One row", "", "~~~yaml", shown, "~~~"]
    return "\n".join(lines) + "\n"


def _known(value: Any) -> str:
    return "not known" if value is None else str(value)


def _configs(manifest: dict[str, Any], form: Format, done: Done) -> dict[str, Any]:
    """What `datasets.load_dataset` opens: the splits, and a configuration for each subset."""
    if form.format in COLUMNLESS:
        tables = {name: f"{name}.jsonl" for name in ("corpus", "queries")}
        told = [{"config_name": name, "data_files": [{"split": name, "path": file}]} for name, file in tables.items()]
        return {"configs": told}  # the hub reads one kind of files a folder; the judgements beside are tab-separated
    splits = {split: made["files"] for split, made in manifest["splits"].items()}
    configs = [{"config_name": "default", "data_files": _paths(splits), "default": True}]
    first, *rest = splits
    for name, made in manifest["subsets"].items():
        several = {first: made["files"], **{split: splits[split] for split in rest}}
        configs.append({"config_name": name, "data_files": _paths(several)})
    shape = done.shape(form, manifest["as"])
    if manifest["as"] == "jsonl" and packer(shape) is not None:
        return {"configs": configs}  # a column that may be anything has no type there; Parquet holds it as a text
    told = features(shape)
    return {
        "configs": configs,
        "dataset_info": [{"config_name": config["config_name"], "features": told} for config in configs],
    }


def _paths(splits: dict[str, list[str]]) -> list[dict[str, Any]]:
    return [{"split": split, "path": files if len(files) > 1 else files[0]} for split, files in splits.items()]


def _cut_lines(manifest: dict[str, Any]) -> list[str]:
    """How the rows were cut, in sentences."""
    cut, said = manifest["cut"], []
    if "split" in cut:
        shares = ", ".join(f"{name} {made['rows']:,}" for name, made in manifest["splits"].items())
        said.append(
            f"Split by seed ({shares} rows; {manifest['groups_of_seeds']:,} groups): rows that share a seed are in one split."
        )
    told = [
        f"{each['name']} {each['counts']['rows']:,} rows ({'rehearsed at' if 'rehearsal' in each else 'share'} "
        f"{each.get('rehearsal', each.get('share')):g})"
        for each in manifest["datasets"]
        if "share" in each or "rehearsal" in each
    ]
    if told:
        said.append(f"Mixed: {', '.join(told)}; the rest is as it came.")
    if "order" in cut:
        missing = manifest["without_the_orders_number"]
        said.append(f"Ordered by {cut['order']}" + (f"; {missing:,} rows without it come last." if missing else "."))
    if manifest["subsets"]:
        names = ", ".join(f"`{name}` ({made['rows']:,} rows)" for name, made in manifest["subsets"].items())
        said.append(f"Subsets of {next(iter(manifest['splits']))}, each within the next: {names}.")
    for name, told_of in manifest.get("lengths", {}).items():
        words = f"{told_of['total']:,} {told_of['unit']}, median {told_of['median']:,}, longest {told_of['longest']:,}"
        if "sequences" in told_of:
            words += f"; packed to {told_of['packed_to']:,}: {told_of['sequences']:,} sequences, {told_of['filled']:.1%} filled"
        said.append(f"{name}: {words}.")
    if "max_tokens" in cut:
        said.append(f"Rows longer than {cut['max_tokens']:,} are left out.")
    return ["## How it was cut", "", *(f"- {line}" for line in said), ""] if said else []


def default_name(parts: Sequence[Part]) -> str:
    """What the export is called where nobody says."""
    names = list(dict.fromkeys(part.dataset.name for part in parts))
    return names[0] if len(names) == 1 else f"{names[0]}-mix-{digest(names)[:6]}"
