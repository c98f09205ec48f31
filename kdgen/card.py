"""The Hugging Face dataset card, written from the manifest. Two runs that made the same rows write the same card."""

from __future__ import annotations

from typing import Any

import yaml

SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]


def card_of(manifest: dict[str, Any], example: dict[str, Any] | None) -> str:
    """README.md of a dataset folder."""
    counts, rows = manifest["counts"], manifest["counts"]["rows"]
    front = {
        "pretty_name": manifest["name"],
        "license": "other",
        "license_name": "see-teachers",
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"],
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "distillation", "kdgen"],
        "size_categories": [next((name for most, name in SIZES if rows < most), "1M<n<10M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data.jsonl"}]}],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {manifest['name']}",
        "",
        manifest["about"] or "A distillation dataset.",
        *([f"Method: {manifest['paper']}."] if manifest["paper"] else []),
        "",
        f"{rows:,} rows, made with [kdgen](https://pypi.org/project/kdgen/) {manifest['kdgen']}: a teacher model wrote the "
        "fields that `records.jsonl` names under `writers`.",
        "",
        "## Teachers",
        "",
        "| role | teacher | model licence | origin |",
        "|---|---|---|---|",
    ]
    for role, teacher in manifest["teachers"].items():
        lines.append(
            f"| {role} | {teacher['label']} | {teacher.get('licence', 'not stated')} | {teacher.get('origin', '')} |"
        )
    lines += [
        "",
        *terms_of(manifest),
        "## From seeds to rows",
        "",
        "| | records |",
        "|---|---:|",
        f"| seeds | {counts['seeds']:,} |",
        f"| generated | {counts['generated']:,} |",
        f"| used as demonstrations | {counts['demonstrations']:,} |",
        f"| rejected | {sum(counts['rejects'].values()):,} |",
        f"| **rows** | **{rows:,}** |",
        "",
    ]
    if covered := manifest["seeds"].get("coverage"):
        lines += [
            f"{covered['chosen']:,} of {covered['of']:,} seeds were selected to stand for all: none is farther than "
            f"{covered['radius']:g} from one of them, on average {covered['mean']:g} (distances of wording, 0 to 2).",
            "",
        ]
    if counts["rejects"]:
        lines += ["| rejected because | records |", "|---|---:|"]
        lines += [f"| {reason} | {count:,} |" for reason, count in counts["rejects"].items()]
        lines.append("")
    lines += _features(manifest)
    total = manifest["dataset"]
    lines += [
        f"{total['replies']:,} replies of {total['tokens']['input']:,} input and {total['tokens']['output']:,} output "
        "tokens stand behind them; `records.jsonl` names the replies of each row, `rejects.jsonl` says why each lost row was lost.",
        "",
        *_agreement(manifest),
        *_judges(manifest),
        "## Provenance",
        "",
        f"- recipe `{manifest['hashes']['recipe']}`",
    ]
    lines += [f"- prompt {name} `{made}`" for name, made in manifest["hashes"]["prompts"].items()]
    lines += [f"- seeds {name} `sha256:{made}`" for name, made in manifest["hashes"]["seeds"].items()]
    if example is not None:
        shown = yaml.safe_dump(example, sort_keys=False, allow_unicode=True, width=100).strip()
        lines += ["", "## One row", "", "~~~yaml", shown, "~~~"]
    return "\n".join(lines) + "\n"


def _features(manifest: dict[str, Any]) -> list[str]:
    """What the shards beside the rows hold."""
    features = manifest.get("features")
    if not features:
        return []
    lines = [
        "## Features",
        "",
        "Beside the rows, by their ids, in `features/` (`kdgen.features.open` reads them):",
        "",
        "| feature | kind | rows | tokens | from |",
        "|---|---|---:|---:|---|",
    ]
    for name, told in features.items():
        made_by = ", ".join(dict.fromkeys(facts["teacher"] for facts in told["facts"]))
        lines.append(f"| {name} | {told['kind']} | {told['rows']:,} | {told['tokens']:,} | {made_by} |")
    return [*lines, ""]


def _agreement(manifest: dict[str, Any]) -> list[str]:
    """How far the raters of a stage agree, over all that they rated, what was lost later included."""
    if not manifest["agreement"]:
        return []
    lines = [
        "## Agreement",
        "",
        "| stage | Fleiss' kappa | pairs that agree | units | ratings |",
        "|---|---:|---:|---:|---:|",
    ]
    for stage, rated in manifest["agreement"].items():
        kappa, observed = ("-" if rated[name] is None else f"{rated[name]:.2f}" for name in ("kappa", "observed"))
        lines.append(f"| {stage} | {kappa} | {observed} | {rated['units']:,} | {rated['ratings']:,} |")
    return [*lines, ""]


def _judges(manifest: dict[str, Any]) -> list[str]:
    """What the verdicts of each judge say of the judge, over all that it was shown, what was lost later included."""
    if not manifest["judges"]:
        return []
    lines = ["## Judges", "", "| stage | judge | report |", "|---|---|---|"]
    for stage, judges in manifest["judges"].items():
        for role, report in judges.items():
            told = [
                f"{words} {_figure(report[name])}" for name, words in REPORTED.items() if report.get(name) is not None
            ]
            lines.append(f"| {stage} | {role} | {', '.join(told)} |")
    notices = [
        notice
        for notice in manifest["notices"]
        if any(notice.startswith(f"{stage}, judge ") for stage in manifest["judges"])
    ]
    return [*lines, "", *(f"- {notice}" for notice in notices), *([""] if notices else [])]


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


REPORTED = {
    "grades": "grades",
    "unscored": "unscored",
    "top_share": "highest grade",
    "entropy": "entropy",
    "self_preference": "own model's over others'",
    "pairs": "pairs",
    "lists": "lists",
    "unread": "unread",
    "swap_consistency": "same when swapped",
    "first_preferred": "first preferred",
    "ties": "ties",
    "own_wins": "own model wins",
    "first_on_top": "first on top",
    "first_expected": "by chance",
}


def terms_of(manifest: dict[str, Any]) -> list[str]:
    """What the teachers' makers ask, who said that it may be used so, and what goes along with the rows."""
    used = f"`{manifest['use']}`" + (f", to train {manifest['student']}" if manifest["student"] else "")
    lines = [
        "## Terms",
        "",
        f"Made for use {used}. For orientation, not legal advice; the licence of the rows follows from these terms and the "
        "seeds' licences.",
        "",
        "| role | terms | status | they ask | read |",
        "|---|---|---|---|---|",
    ]
    for ruling in manifest["terms"]:
        for each in ruling["verdicts"]:
            source = f"[{each['key']}]({each['source']})" if each["source"] else each["key"]
            lines.append(f"| {ruling['role']} | {source} | {each['status']} | {each['asks']} | {each['read']} |")
    acks = {ruling["key"]: ruling["ack"] for ruling in manifest["terms"] if ruling["ack"]}.items()
    lines += ["", *(f"- {key}, as of {ack['date']}, acknowledged: {ack['why']}" for key, ack in acks)]
    notices = dict.fromkeys(notice for ruling in manifest["terms"] for notice in ruling["notices"])
    lines += [f"- {notice}" for notice in notices]
    return [*lines, ""] if acks or notices else lines
