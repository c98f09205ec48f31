"""Features of tokens: what a reply told of them, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from kdgen.errors import Rejected, UserError
from kdgen.features import Facts, Feature, TextTopK, TopK
from kdgen.features.parquet import need_parquet
from kdgen.teachers.base import Told

DType = Literal["float16", "float32"]
FeatureName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")]


def need_shards(where: str) -> None:
    """Raise UserError where features cannot be kept."""
    try:
        need_parquet()
    except UserError as error:
        raise UserError(error.cause, where=where, hint=error.hint) from None


def feature_of(told: Told, k: int, dtype: DType, facts: Facts, *, unknown: bool = False) -> Feature:
    """The k likeliest tokens in each place, with the mass of all others.

    Raises Rejected where a token has no logprob, which may be only where it is `unknown`.
    """
    import numpy as np

    rows: Sequence[Sequence[tuple[int | bytes, float]]] = told.top if told.words is None else told.words
    most = max((len(row) for row in rows), default=k)
    facts = replace(facts, k=k, dtype=dtype, notes=f"the teacher tells {most} at most" if most < k else None)
    own = np.array(told.logprobs, np.float32)
    if (np.isnan(own).any() and not unknown) or (own > 1e-3).any():
        raise Rejected("bad_logprobs", "a logprob is no number, or more than 0")
    if told.words is not None:
        ranked = [sorted(row, key=lambda pair: -pair[1])[:k] for row in told.words]
        words = [[word for word, _ in row] for row in ranked]
        return TextTopK(list(told.pieces or ()), own, words, [[value for _, value in row] for row in ranked], facts)
    n = len(told.ids)
    ids, values = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float64)
    for place, row in enumerate(told.top):
        best = sorted(row, key=lambda pair: -pair[1])[:k]
        ids[place, : len(best)] = [id for id, _ in best]
        values[place, : len(best)] = [value for _, value in best]
    with np.errstate(divide="ignore"):
        tail = np.log1p(-np.minimum(np.exp(values).sum(axis=1), 1.0)).astype(np.float32)
    prompt, given = np.array(told.prompt_ids, np.int32), np.array(told.ids, np.int32)
    return TopK(prompt, given, own, ids, values.astype(dtype), tail, facts)
