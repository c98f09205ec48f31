"""The seeds of a command: where the file is, and the first pass over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdgen.config import Recipe
from kdgen.errors import UserError
from kdgen.readers import spooled_stdin
from kdgen.resources import builtins, did_you_mean, package_file
from kdgen.seeds import Scan, scan
from kdgen.store import RECORDS


@contextmanager
def seed_file(recipe: Recipe) -> Iterator[tuple[Path, bool]]:
    """The file of a recipe's seeds, and whether it is a copy of stdin, which then goes again."""
    spec = recipe.seeds
    if spec is None and recipe.seed_free:
        yield Path(os.devnull), False
        return
    if spec is None:
        hint = "SEEDS after the verb, --seeds FILE, or seeds: in the recipe"
        raise UserError("the recipe names no seeds", where=recipe.name, hint=hint)
    if spec.path == "-":
        with spooled_stdin() as copy:
            yield copy, True
        return
    if spec.path.startswith("package:"):
        yield package_file(spec.path, "seeds"), False
        return
    path = builtins("seeds").get(spec.path, Path(spec.path))
    if (path / ".current" / RECORDS).is_file():
        # A dataset of kdgen's own: the version that is there now, whoever publishes another meanwhile.
        path = (path / ".current").resolve() / RECORDS
    if not path.exists():
        beside = [near.stem for near in path.parent.glob(f"*{path.suffix}")] if path.suffix else builtins("seeds")
        hint = did_you_mean(path.stem, beside) or "sets that ship: " + ", ".join(builtins("seeds"))
        raise UserError("there is no such file", where=str(path), hint=hint)
    yield path, False


def scanned(recipe: Recipe, path: Path, spooled: bool) -> Scan:
    """The first pass over a recipe's seeds; nothing where it takes none."""
    return Scan(0, "", {}) if recipe.seeds is None else scan(recipe.seeds, path, name="stdin" if spooled else "")
