"""Numbers in bytes as DistillKit's `LogprobCompressor` reads them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float64]


def fit_terms() -> list[int | str]:
    """The terms of the curve."""
    return [0, 1, 2, 3, 4, "sqrt"]


def pack_bits(values: NDArray[np.int64], bits: int) -> Bytes:
    """[n, k] numbers of so many bits as [n, ceil(k · bits / 8)] bytes, the highest bit first."""
    import numpy as np

    places = np.arange(bits - 1, -1, -1, dtype=np.int64)
    stream = ((values[..., None] >> places) & 1).astype(np.uint8).reshape(len(values), -1)
    return np.packbits(stream, axis=1)


def compress(logprobs: Floats, exact: int, dtype: str) -> Bytes:
    """[n, k] logprobs, highest first: the first `exact` as `dtype`, of the rest the six coefficients (float32) of a curve over
    their places, from 0 to 1, fitted by least squares. Returns [n, bytes], little-endian.
    """
    import numpy as np

    parts = [_floats(logprobs[:, :exact], dtype)]
    if exact < logprobs.shape[1]:
        coefficients = logprobs[:, exact:] @ _solver(logprobs.shape[1] - exact).T
        parts.append(np.ascontiguousarray(coefficients.astype("<f4")).view(np.uint8).reshape(len(logprobs), -1))
    return np.concatenate(parts, axis=1)


def _floats(values: Floats, dtype: str) -> Bytes:
    """As bytes; numpy has no bfloat16, which is the upper half of a float32, rounded to even."""
    import numpy as np

    if dtype == "bfloat16":
        raw = np.ascontiguousarray(values.astype("<f4")).view(np.uint32)
        half = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype("<u2")
        return half.view(np.uint8).reshape(len(values), -1)
    whole = np.ascontiguousarray(values.astype("<f2" if dtype == "float16" else "<f4"))
    return whole.view(np.uint8).reshape(len(values), -1)


@cache
def _solver(count: int) -> Any:
    """[6, count]: what gives the coefficients of the curve nearest to so many values."""
    import numpy as np

    at = np.linspace(0, 1, count)
    terms = np.stack([np.sqrt(at) if term == "sqrt" else at ** int(term) for term in fit_terms()], axis=-1)
    return np.linalg.pinv(terms, rcond=1e-5)
