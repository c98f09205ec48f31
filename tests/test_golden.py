"""Every recipe that ships, on the scripted teacher, against the files it should make.

`KDGEN_UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes them anew. Ids and call keys are digests that a prompt's
wording changes; they are compared by the order in which they first appear, as are token counts.
A recipe FAMILY/METHOD needs golden/FAMILY/METHOD.rules.jsonl and .seeds.jsonl, and may have .sets (a `--set` a line).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from server import ROOT, published

import kdgen
from kdgen.cli import main
from kdgen.config import load_recipe

GOLDEN = Path(__file__).parent / "golden"
RECIPES = sorted(
    path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
)
DIGEST = re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{20})\b")
FILES = ("records.jsonl", "rejects.jsonl", "data.jsonl", "README.md")
# What the golden runs must meet between them, so that a changed script cannot quietly stop testing it.
REASONS = {
    "copies_prompt", "cut", "dangling", "duplicate", "duplicate_seed", "echo", "empty_answer", "empty_task",
    "endpoint_refused", "filtered", "invalid_output", "near_duplicate", "no_information_gain", "no_list",
    "not_asked_for", "odd_start", "over_target", "refusal", "refused", "sorry_answer", "too_short",
    "needs_more_than_text", "write_a_program",
}  # fmt: skip


def normal(files: dict[str, str]) -> dict[str, str]:
    """Digests as ordinals, in the order of the files; versions and token counts as words."""
    seen: dict[str, str] = {}
    made = {}
    for name, text in files.items():
        plain = DIGEST.sub(lambda found: seen.setdefault(found[0], f"#{len(seen) + 1}"), text)
        plain = plain.replace(f"kdgen/) {kdgen.__version__}", "kdgen/) VERSION")
        made[name] = re.sub(r"of [\d,]+ input and [\d,]+ output tokens", "of N input and M output tokens", plain)
    return made


def run(name: str, folder: Path) -> dict[str, str]:
    base = GOLDEN / name
    rules = base.with_name(base.name + ".rules.jsonl")
    seeds = base.with_name(base.name + ".seeds.jsonl")
    sets = base.with_name(base.name + ".sets")
    free = load_recipe(name).seed_free
    for needed in (rules,) if free else (rules, seeds):
        assert needed.is_file(), (
            f"the recipe {name} has no {needed.relative_to(ROOT)}: every recipe needs a golden test"
        )
    asked = [
        "run",
        name,
        *(() if free else ("--seeds", str(seeds))),
        "-q",
        "-o",
        str(folder / "out"),
        "--ledger",
        str(folder / "ledger.db"),
    ]
    for role, _ in load_recipe(name).leaves():
        asked += ["--teacher", f"{role}=scripted:{rules}"]
    for line in sets.read_text().splitlines() if sets.exists() else ():
        asked += ["--set", line]
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 0
    made = published(folder / "out", card=True)
    return normal({file: made[file].decode() for file in FILES})


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_makes_its_golden_files(name: str, tmp_path: Path) -> None:
    made = run(name, tmp_path)
    folder = GOLDEN / name
    if os.environ.get("KDGEN_UPDATE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in made.items():
            (folder / file).write_text(text)
    for file, text in made.items():
        expected = folder / file
        assert expected.is_file(), f"{expected} is missing: KDGEN_UPDATE_GOLDEN=1 writes it; read it before you keep it"
        assert text.splitlines() == expected.read_text().splitlines(), f"{name}: {file}"


def test_golden_files_have_recipes() -> None:
    known = {
        path.relative_to(GOLDEN).as_posix().split(".")[0]
        for path in GOLDEN.rglob("*.*")
        if path.parent.parent == GOLDEN
    }
    assert known <= set(RECIPES), "golden files of a recipe that is gone"


def test_golden_runs_meet_every_kind_of_end() -> None:
    rows = [json.loads(line) for path in GOLDEN.rglob("rejects.jsonl") for line in path.read_text().splitlines()]
    assert {row["reason"] for row in rows} >= REASONS
    kept = [json.loads(line) for path in GOLDEN.rglob("records.jsonl") for line in path.read_text().splitlines()]
    assert {row["meta"].get("agrees") for row in kept} == {True, False, None}
    assert all(row["calls"] and (row["seeds"] or "nth" in row["meta"]) for row in kept)
    # A pair that a critic found good is as its seed was, as is one that was scored; a seed's own answer may be the chosen one.
    assert all(
        row["writers"] or row["candidates"] for row in kept if not {"rewrite", "features", "scores"} & {*row["meta"]}
    )
