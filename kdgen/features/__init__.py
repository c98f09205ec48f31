"""What a teacher tells beside words: of tokens the likeliest ones, hidden states, embeddings; and how they are read back.

A record carries `features` by name while it flows. The store writes them to the shards of the dataset folder's `features/`,
beside an `index.json`, and leaves them out of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import orjson

from kdgen.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int32]
    Floats = NDArray[np.floating[Any]]

Kind = Literal["topk", "text", "hidden", "embedding"]
FOLDER, INDEX = "features", "index.json"
AGAIN = "make the dataset again"


@dataclass(frozen=True, slots=True)
class Facts:
    """What made a feature: the same for all rows of one name and teacher. What is not known is None, never guessed.

    `model` is the model's identity with its digest, `mode` whether logprobs are the model's own (raw_logprobs) or those
    sampled from (processed_logprobs), `source` whether the teacher wrote the tokens (generated) or was shown them (scored).
    """

    teacher: str
    model: str | None = None
    tokenizer_sha256: str | None = None
    chat_template_sha256: str | None = None
    vocab_size: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    mode: str | None = None
    source: str | None = None
    k: int | None = None
    dtype: str | None = None
    notes: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """The k likeliest tokens at each of the n tokens of an answer, with the logprobs in nats.

    Row j is p(· | prompt_ids, ids[:j]), the distribution from which `ids[j]` is drawn; likeliest first, a short row padded
    with id -1 and -inf. `ids` are the answer's tokens as the model reads them, closing tokens of the template included;
    `logprobs` is of each of them, NaN where it is not known. `tail` is log(1 - Σp) of the k.
    """

    prompt_ids: Ints
    ids: Ints
    logprobs: Floats
    topk_ids: Ints
    topk_logprobs: Floats
    tail: Floats
    facts: Facts
    kind: ClassVar[Kind] = "topk"

    def __post_init__(self) -> None:
        n, k = self.topk_ids.shape
        assert self.topk_logprobs.shape == (n, k) and len(self.ids) == len(self.logprobs) == len(self.tail) == n

    @property
    def size(self) -> int:
        """n."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class TextTopK:
    """The same of a teacher that tells tokens by their bytes alone: no ids, and rows of any length."""

    tokens: list[bytes]
    logprobs: Floats
    topk_tokens: list[list[bytes]]
    topk_logprobs: list[list[float]]
    facts: Facts
    kind: ClassVar[Kind] = "text"

    @property
    def size(self) -> int:
        """n."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """Hidden states of L layers at n tokens: `states` is [L, n, d]. Layer 0 is the embedding, layer i what block i leaves.

    State j is what the model holds after it has read `ids[j]`, from which token j + 1 is predicted.
    """

    layers: Ints
    ids: Ints
    states: Floats
    facts: Facts
    kind: ClassVar[Kind] = "hidden"

    def __post_init__(self) -> None:
        assert self.states.shape[:2] == (len(self.layers), len(self.ids))

    @property
    def size(self) -> int:
        """n."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One vector of d numbers for a text."""

    vector: Floats
    facts: Facts
    kind: ClassVar[Kind] = "embedding"

    @property
    def size(self) -> int:
        """0: it is of the whole text."""
        return 0


Feature = TopK | TextTopK | Hidden | Embedding
KINDS: dict[str, type[Feature]] = {each.kind: each for each in (TopK, TextTopK, Hidden, Embedding)}


def columns(feature: Feature | type[Feature]) -> list[str]:
    """The names of a feature's arrays, in the order of its fields."""
    return [each.name for each in fields(feature) if each.name != "facts"]


def summary(features: Mapping[str, Feature]) -> dict[str, dict[str, Any]]:
    """What a row says of its features, under `meta.features`."""
    return {name: {"tokens": each.size, "kind": each.kind} for name, each in features.items()}


class Features:
    """The features of a dataset folder. `index` is its index.json, `names` are in the order in which they were first made."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.index = index

    @property
    def names(self) -> list[str]:
        """The names of the features."""
        return list(self.index)

    def kind(self, name: str) -> Kind:
        """What a feature is."""
        kind: Kind = self._of(name)["kind"]
        return kind

    def facts(self, name: str) -> list[Facts]:
        """What made a feature, one for each teacher."""
        return [Facts(**each) for each in self._of(name)["facts"]]

    def tokens(self, name: str) -> int:
        """The tokens of all rows that have it."""
        return sum(int(shard["tokens"]) for shard in self._of(name)["shards"])

    def read(self, name: str) -> Iterator[tuple[str, Feature]]:
        """(record's id, feature) in the order of the records, a row group at a time. Raises UserError for a broken shard."""
        from kdgen.features.shards import read_shard

        entry, facts = self._of(name), self.facts(name)
        for shard in entry["shards"]:
            path, number = self.folder / shard["file"], 0
            for each in read_shard(path, KINDS[entry["kind"]], facts):
                yield each
                number += 1
            if number != shard["rows"]:
                cause = f"the shard has {number:,} rows, and the index says {shard['rows']:,}"
                raise UserError(cause, where=str(path), hint=AGAIN)

    def _of(self, name: str) -> dict[str, Any]:
        if name not in self.index:
            hint = f"it has: {', '.join(self.index) or 'none'}"
            raise UserError(f"the dataset has no feature {name!r}", where=str(self.folder), hint=hint)
        entry: dict[str, Any] = self.index[name]
        return entry


def open(folder: Path | str) -> Features:
    """The features of a dataset folder, of the version that it has now; none where it has none. Raises UserError."""
    made = (Path(folder) / FOLDER).resolve()
    if not made.is_dir():
        return Features(made, {})
    try:
        index = orjson.loads((made / INDEX).read_bytes())
        for entry in index.values():
            sums = [(shard["file"], shard["rows"] + shard["tokens"]) for shard in entry["shards"]]
            assert entry["kind"] in KINDS and [Facts(**each) for each in entry["facts"]] and sums
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"the features cannot be read: {error}", where=str(made / INDEX)) from None
    except (AssertionError, AttributeError, LookupError, TypeError) as error:
        cause = f"the index is none of kdgen's: {type(error).__name__} {error}".rstrip()
        raise UserError(cause, where=str(made / INDEX), hint=AGAIN) from None
    return Features(made, index)


def facts_data(facts: Facts) -> dict[str, Any]:
    """Facts for the index."""
    return asdict(facts)
