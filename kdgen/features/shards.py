"""The features of a version as it is written: each name in shards of its own, beside an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from kdgen.errors import EndpointError, UserError
from kdgen.features import INDEX, Facts, Feature, Hidden, TopK, facts_data
from kdgen.features.disk import expected, guard
from kdgen.features.parquet import ParquetShard, need_parquet, read_rows
from kdgen.features.sink import Shard, Sink
from kdgen.features.tensors import TensorShard, read_tensors

SHARD = 512 << 20
GUARD = 16 << 20  # bytes after which the disk is looked at again


class Writer:
    """The features of a version that is being written, each name in shards of its own."""

    def __init__(self, folder: Path) -> None:
        need_parquet()
        self.folder = folder
        self.index: dict[str, dict[str, Any]] = {}
        self._open: dict[str, Shard] = {}
        self._wide: dict[str, tuple[int, str]] = {}
        self._facts: dict[str, dict[Facts, int]] = {}
        self._unguarded = 0
        folder.mkdir()

    def add(self, id: str, name: str, feature: Feature) -> None:
        """Add a record's feature. Raises EndpointError before the disk is full."""
        self._unguarded += expected(feature)
        if self._unguarded >= GUARD:
            guard(self.folder)
            self._unguarded = 0
        entry = self.index.setdefault(name, {"kind": feature.kind, "facts": [], "shards": []})
        if entry["kind"] != feature.kind:
            raise EndpointError(
                f"the feature {name} is {entry['kind']} of one row and {feature.kind} of another", hint="two names"
            )
        known = self._facts.setdefault(name, {})
        if (by := known.get(feature.facts)) is None:
            by = known[feature.facts] = len(known)
            entry["facts"].append(facts_data(feature.facts))
        if name not in self._open:
            tensors = isinstance(feature, Hidden)
            file = f"{name}-{len(entry['shards']):05d}.{'safetensors' if tensors else 'parquet'}"
            path = self.folder / file
            self._open[name] = TensorShard(path) if tensors else ParquetShard(path, feature)
            entry["shards"].append({"file": file, "rows": 0, "tokens": 0, "bytes": 0, "sha256": ""})
        if isinstance(feature, TopK) and self._wide.setdefault(name, _width(feature)) != _width(feature):
            cause = "has rows of one k or dtype, and of another: {} and {}".format(
                *map(str, (self._wide[name], _width(feature)))
            )
            raise EndpointError(f"the feature {name} {cause}", hint="two names, or the same k and dtype")
        shard, last = self._open[name], entry["shards"][-1]
        shard.add(id, feature, by)
        last["rows"] += 1
        last["tokens"] += feature.size
        if shard.sink.size >= SHARD:
            self._end(name)

    def close(self) -> dict[str, str]:
        """Bring all to disk; the SHA-256 of each file by its name within the folder."""
        for name in list(self._open):
            self._end(name)
        said = orjson.dumps(self.index, option=orjson.OPT_INDENT_2) + b"\n"
        index = Sink(self.folder / INDEX)
        index.write(said)
        index.close()
        shards = [shard for entry in self.index.values() for shard in entry["shards"]]
        return {**{shard["file"]: shard["sha256"] for shard in shards}, INDEX: index.sum.hexdigest()}

    def discard(self) -> None:
        """Let go of what is open."""
        for shard in self._open.values():
            shard.sink.drop()
        self._open.clear()

    def data(self) -> dict[str, dict[str, Any]]:
        """What a manifest says of each feature."""
        told = {}
        for name, entry in self.index.items():
            total = {key: sum(shard[key] for shard in entry["shards"]) for key in ("rows", "tokens", "bytes")}
            each = round(total["bytes"] / total["tokens"], 1) if total["tokens"] else None
            told[name] = {"kind": entry["kind"], **total, "bytes_per_token": each, "facts": entry["facts"]}
        return told

    def _end(self, name: str) -> None:
        shard = self._open.pop(name)
        try:
            shard.close()
        except BaseException:
            shard.sink.drop()
            raise
        self.index[name]["shards"][-1] |= {"bytes": shard.sink.size, "sha256": shard.sink.sum.hexdigest()}


def _width(feature: TopK) -> tuple[int, str]:
    return feature.topk_ids.shape[1], str(feature.topk_logprobs.dtype)


def read_shard(path: Path, kind: type[Feature], facts: Sequence[Facts]) -> Iterator[tuple[str, Feature]]:
    """(record's id, feature) of each row. Raises UserError where the shard cannot be read."""
    try:
        yield from (read_tensors if kind is Hidden else read_rows)(path, kind, facts)
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"the shard cannot be read: {error}", where=str(path), hint="make the dataset again") from None
