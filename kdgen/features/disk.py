"""How much disk features take, and the guard that ends a run before the disk is full."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdgen.errors import EndpointError, disk_error
from kdgen.features import Embedding, Feature, Hidden, TextTopK, TopK

RESERVE = 512 << 20
LEAST_TOKENS = 64  # an answer is seldom shorter
# Bytes that one likely token takes in a shard, its id and its logprob: measured on real ones.
KEPT = {"float16": 3.0, "float32": 5.2}
WIDTH = 2048  # of hidden states, where it is not known yet


def expected(feature: Feature, *, invented: bool = False) -> int:
    """About how many bytes a feature takes in a shard; of `invented` hidden states the width is none."""
    if isinstance(feature, TopK):
        n, k = feature.topk_ids.shape
        return int(n * (9 + k * KEPT[str(feature.topk_logprobs.dtype)]) + 2 * len(feature.prompt_ids))
    if isinstance(feature, TextTopK):
        return sum(12 + 10 * len(row) for row in feature.topk_tokens)
    if isinstance(feature, Hidden):
        layers, n, width = feature.states.shape
        return int(layers * n * (WIDTH if invented else width) * feature.states.dtype.itemsize)
    assert isinstance(feature, Embedding)
    return 4 * len(feature.vector)


def row_bytes(k: int, dtype: str) -> int:
    """What a row with a short answer takes at the least."""
    return round(LEAST_TOKENS * k * KEPT[dtype])


def human(size: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def guard(folder: Path, need: int = 0) -> None:
    """Raise EndpointError where the disk of a folder has no room for `need` bytes beside what must stay free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error(error, folder) from None
    if free - need >= RESERVE:
        return
    wants = f"at least {human(need)} of features would be written there, and " if need else ""
    raise EndpointError(
        f"the disk is nearly full: {wants}{human(free)} are free, of which {human(RESERVE)} stay free",
        where=str(folder),
        hint="free some, write elsewhere (-o DIR, --ledger PATH), or keep less (a smaller k, fewer layers), then run the "
        "same command: what was paid is in the ledger",
    )
