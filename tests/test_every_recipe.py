"""What every recipe that ships keeps to: a second run asks nothing, its bytes do not depend on timing, and a changed seed
asks again only about itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import published
from test_golden import GOLDEN, RECIPES

from kdgen.config import load_recipe

FILES = ("records.jsonl", "rejects.jsonl", "data.jsonl")
# A draw from twelve seeds shows most of them to every call; it is tests/test_resume.py that has pools of a real size.
DRAWS = {"self-instruct", "hard-cases", "paraphrase", "branch"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_keeps_its_promises(kdgen: Callable[..., Any], tmp_path: Path, name: str) -> None:
    base = GOLDEN / name
    recipe = load_recipe(name)
    sets = base.with_name(base.name + ".sets")
    free = recipe.seed_free
    given = "" if free else base.with_name(base.name + ".seeds.jsonl").read_text()
    seeds = [json.loads(line) for line in given.splitlines()]

    def run(
        folder: str, ledger: str, seeds: list[dict[str, Any]], width: int
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        (tmp_path / "s.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in seeds))
        asked = [
            "run",
            name,
            *(() if free else ("--seeds", "s.jsonl")),
            "-q",
            "--json",
            "-o",
            folder,
            "--ledger",
            ledger,
        ]
        for role, _ in recipe.leaves():
            asked += ["--teacher", f"{role}=scripted:{base.with_name(base.name + '.rules.jsonl')}"]
            asked += ["--set", f"teachers.{role}.concurrency={width}"]
        for line in sets.read_text().splitlines() if sets.exists() else ():
            asked += ["--set", line]
        said = kdgen(*asked)
        assert said.code == 0, said.err
        made = published(tmp_path / folder)
        return json.loads(said.out), {file: made[file] for file in FILES}

    first, files = run("out", "l.db", seeds, 8)
    again, same = run("out", "l.db", seeds, 8)
    asked = again["requests"]
    assert asked["sent"] == asked["failed"] and same == files, (
        "what an endpoint refuses is not paid for, so not in the ledger"
    )
    _, alone = run("alone", "other.db", seeds, 1)
    assert alone == files, "the order of replies shows in the rows"
    if free or any(stage.method in DRAWS or stage.draws_seeds for stage in recipe.stages):
        return
    column = next(column for column in ("instruction", "question", "text", "input") if seeds[-1].get(column))
    seeds[-1] = {**seeds[-1], column: f"{seeds[-1][column]} Indeed."}
    changed, _ = run("out", "l.db", seeds, 8)
    assert changed["requests"]["sent"] <= first["requests"]["sent"] * max(0.34, 2 / len(seeds))
