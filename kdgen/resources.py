"""Where recipes, prompts and seeds are found: a path is relative to what names it, a bare name is a built-in."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from kdgen.errors import UserError

KINDS = {
    "configs": ".yaml",
    "prompts": ".md",
    "banks": ".yaml",
    "codebooks": ".yaml",
    "rubrics": ".yaml",
    "seeds": ".jsonl",
}
FOLDERS = {"banks": "prompts/banks", "codebooks": "prompts/codebooks", "rubrics": "prompts/rubrics"}


@cache
def home() -> Path:
    """The folder that holds configs/, prompts/ and seeds/: inside the wheel, or the checkout."""
    package = Path(__file__).parent
    return package / "data" if (package / "data").is_dir() else package.parent


@cache
def builtins(kind: str) -> dict[str, Path]:
    """The built-ins of one kind by name (`label/answer`), sorted."""
    root, suffix = home() / FOLDERS.get(kind, kind), KINDS[kind]
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob(f"*{suffix}"))}


def find(kind: str, name: str, base: Path, where: str = "") -> Path:
    """The file that `name` means: a built-in's bare name, or a path relative to `base`.

    A name with the kind's suffix, or one that begins with `.`, `~` or `/`, is a path.
    """
    looks_like_path = name.startswith((".", "/", "~")) or Path(name).suffix != ""
    if looks_like_path:
        path = (base / os.path.expanduser(name)).resolve()
        if path.is_file():
            return path
        raise UserError(f"no such file: {path}", where=where, hint=did_you_mean(name, builtins(kind)))
    known = builtins(kind)
    if name in known:
        return known[name]
    raise UserError(
        f"no built-in {kind.removesuffix('s')} is named {name!r}",
        where=where,
        hint=did_you_mean(name, known) or "a path of your own ends in " + KINDS[kind],
    )


def package_file(spec: str, where: str = "") -> Path:
    """The data file that an installed package carries: `package:NAME/path/in/it`. Nothing is imported."""
    name, _, inner = spec.removeprefix("package:").partition("/")
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the package {name} is not installed", where=where, hint=f"pip install --no-deps {name}"
        ) from None
    for file in files:
        if file.as_posix() == inner or file.as_posix().endswith("/" + inner):
            return Path(str(file.locate()))
    raise UserError(f"the package {name} carries no {inner}", where=where)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else ""
