"""How long rows are, in words or a tokenizer's tokens, and how many sequences they fill when packed."""

from __future__ import annotations

import importlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kdgen.errors import UserError
from kdgen.export.shapes import TEXT, WORDS, Shape, columns

# Texts that stand beside what a model reads.
BESIDE = {
    "chosen_model", "rejected_model", "models", "docid", "title", "query_id", "query-id", "corpus-id", "verifier", "answer",
    "solution", "ground_truth", "language", "type", "tools",
}  # fmt: skip
IDS = "input_ids"  # a row that is tokens already


def reader(shape: Shape, name: str = "") -> Callable[[Any], Iterator[str]] | None:
    """What gives the texts of a row that a model reads."""
    if name in BESIDE or name.startswith("orig_") or isinstance(shape, tuple):
        return None
    if isinstance(shape, str):
        return (lambda value: iter((value,) if value else ())) if shape in (TEXT, WORDS) else None
    if isinstance(shape, list):
        each = reader(shape[0], name)
        return (lambda items: (text for item in items for text in each(item))) if each else None
    parts = {key: read for key, inner in columns(shape).items() if (read := reader(inner, key))}
    if not parts:
        return None
    return lambda row: (text for key, read in parts.items() if row.get(key) is not None for text in read(row[key]))


def counter(tokenizer: str) -> Callable[[str], int]:
    """Words, or the tokens of a tokenizer: the path of a tokenizer.json or of a folder with one. Raises UserError."""
    if not tokenizer:
        return lambda text: len(text.split())
    path = Path(tokenizer).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            "no such tokenizer",
            where=f"--tokenizer {tokenizer}",
            hint="the path of a tokenizer.json; nothing is fetched",
        )
    try:
        tokenizers: Any = importlib.import_module("tokenizers")
    except ModuleNotFoundError:
        raise UserError(
            "counting tokens needs the tokenizers package", where="--tokenizer", hint="pip install 'kdgen[tokens]'"
        ) from None
    try:
        loaded = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise UserError(f"the tokenizer cannot be read: {error}", where=str(path)) from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def length_of(shape: dict[str, Any], tokenizer: str) -> Callable[[dict[str, Any]], int]:
    """What counts a row. The tokens that a chat template adds are not in it, unless the row is of tokens itself."""
    if IDS in shape:
        return lambda row: len(row[IDS])
    count, read = counter(tokenizer), reader(shape)
    if read is None:
        return lambda row: 0
    return lambda row: sum(count(text) for text in read(row))


def packs(lengths: Iterable[int], size: int) -> int:
    """How many sequences of `size` the rows fill, longest first, each where it leaves the least room (best-fit decreasing); a longer
    row is cut.
    """
    room: list[int] = []  # the rooms that sequences have left, each once, and how many have it
    having: dict[int, int] = {}
    made = 0
    for length in sorted((min(length, size) for length in lengths), reverse=True):
        place = bisect_left(room, length)
        if place == len(room):
            made += 1
            left = size - length
        else:
            held = room[place]
            having[held] -= 1
            if not having[held]:
                del room[place], having[held]
            left = held - length
        if left:
            if left not in having:
                insort(room, left)
            having[left] = having.get(left, 0) + 1
    return made


def told(lengths: list[int], unit: str, size: int | None) -> dict[str, Any]:
    """For the manifest."""
    ranked = sorted(lengths) or [0]
    parts = {
        name: ranked[min(len(ranked) - 1, int(len(ranked) * part))] for name, part in (("median", 0.5), ("p95", 0.95))
    }
    said: dict[str, Any] = {"unit": unit, "total": sum(lengths), **parts, "longest": ranked[-1]}
    if size:
        made = packs(lengths, size)
        filled = sum(min(length, size) for length in lengths)
        said |= {"packed_to": size, "sequences": made, "filled": round(filled / (made * size), 4) if made else 0.0}
    return said
