"""What every recipe that ships keeps to: a second run asks nothing, its bytes do not depend on timing, and a seed that comes
or changes asks about itself alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import published
from test_golden import GOLDEN, RECIPES

from kdgen.config import load_recipe

FILES = ("records.jsonl", "rejects.jsonl", "data.jsonl")
# These draw from all records for each call, of which a dozen seeds show most; tests/test_resume.py has a pool of a real size.
DRAWS = {"self-instruct", "hard-cases"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_keeps_its_promises(kdgen: Callable[..., Any], tmp_path: Path, name: str) -> None:
    base = GOLDEN / name
    recipe = load_recipe(name)
    sets = base.with_name(base.name + ".sets")
    free = recipe.seed_free
    given = "" if free else base.with_name(base.name + ".seeds.jsonl").read_text()
    seeds = [json.loads(line) for line in given.splitlines()]

    def run(folder: str, seeds: list[dict[str, Any]], width: int = 8) -> tuple[Counter[str], dict[str, bytes]]:
        (tmp_path / "s.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in seeds))
        asked = ["run", name, *(() if free else ("--seeds", "s.jsonl")), "-q", "--json", "-o", folder]
        asked += ["--ledger", f"{folder}.db"]
        for role, _ in recipe.leaves():
            asked += ["--teacher", f"{role}=scripted:{base.with_name(base.name + '.rules.jsonl')}"]
            asked += ["--set", f"teachers.{role}.concurrency={width}"]
        for line in sets.read_text().splitlines() if sets.exists() else ():
            asked += ["--set", line]
        said = kdgen(*asked)
        assert said.code == 0, said.err
        made = published(tmp_path / folder)
        manifests = json.loads(said.out)
        manifests = manifests if isinstance(manifests, list) else [manifests]
        requests = Counter[str]()
        for each in manifests:
            requests.update(each["requests"])
        return requests, {file: made[file] for file in FILES}

    _, files = run("out", seeds)
    again, same = run("out", seeds)
    # What an endpoint refuses is not paid for, so it is not in the ledger.
    assert again["sent"] == again["failed"] and same == files
    _, alone = run("alone", seeds, 1)
    assert alone == files, "the order of replies shows in the rows"
    if free or any(stage.method in DRAWS or stage.draws_seeds for stage in recipe.stages):
        return
    # Seeds without an id have one by their place among the others' digests: here it must be known.
    seeds = [{**seed, "id": seed.get("id", f"s{number}")} for number, seed in enumerate(seeds)]
    _, files = run("known", seeds)
    shown = {name: seeds[0][name] for name in ("instruction", "question", "text", "input") if seeds[0].get(name)}
    added = {"id": "another", **{name: f"{text} Indeed." for name, text in shown.items()}}
    altered = {name: f"{text} So it is." for name, text in shown.items()}
    for changed in ([{**seeds[0], **added}, *seeds], [{**seeds[0], **altered}, *seeds[1:]]):
        new = changed[0]["id"]
        requests, made = run("known", changed)
        assert calls(made, new, about=False) == calls(files, new, about=False), "others are asked about anew"
        assert requests["sent"] and requests["sent"] - requests["failed"] <= len(calls(made, new, about=True))


def calls(files: dict[str, bytes], seed: str, *, about: bool) -> set[str]:
    """The calls behind rows and rejects that are about a seed, or behind all others."""
    rows = [json.loads(line) for file in FILES[:2] for line in files[file].splitlines()]
    return {call for row in rows if (seed in row["seeds"]) == about for call in row["calls"]}
