"""Features in Parquet: lists of numbers of a fixed width, compressed with zstd."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from kdgen.errors import UserError
from kdgen.features import Facts, Feature, TextTopK, TopK, columns
from kdgen.features.sink import Sink

GROUP = 16 << 20
INSTALL = "pip install 'kdgen[parquet]'"
SPLIT = "BYTE_STREAM_SPLIT"


def need_parquet() -> None:
    """Raise UserError where Parquet cannot be written or read."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("features are kept in Parquet, and pyarrow is not installed", hint=INSTALL)


class ParquetShard:
    """Rows of `id`, `by` and the arrays of a kind, in row groups of about GROUP bytes in memory."""

    def __init__(self, path: Path, like: Feature) -> None:
        self.sink = Sink(path)
        self.k = like.topk_ids.shape[1] if isinstance(like, TopK) else 0
        self.dtype = like.topk_logprobs.dtype if isinstance(like, TopK) else None
        self._schema = _schema(like)
        self._rows: list[tuple[str, int, Feature]] = []
        self._held = 0
        self._writer: Any = None

    def add(self, id: str, feature: Feature, by: int) -> None:
        """See `Shard`."""
        if isinstance(feature, TopK):
            assert (feature.topk_ids.shape[1], feature.topk_logprobs.dtype) == (self.k, self.dtype), "k is fixed"
        self._rows.append((id, by, feature))
        self._held += _size(feature)
        if self._held >= GROUP:
            self._flush()

    def close(self) -> None:
        """See `Shard`."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self.sink.close()

    def _flush(self) -> None:
        pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        if not self._rows:
            return
        if self._writer is None:
            split = {f"{name}.list.element{inner}": SPLIT for name, inner in _split(self._schema)}
            self._writer = parquet.ParquetWriter(
                pa.PythonFile(self.sink, mode="w"), self._schema, compression="zstd", compression_level=9,
                use_dictionary=["id", "by"], column_encoding=split, write_statistics=False, store_schema=True,
            )  # fmt: skip
        ids, bys, features = zip(*self._rows, strict=True)
        arrays = [pa.array(ids, pa.string()), pa.array(bys, pa.int16())]
        arrays += [_column(self._schema.field(name).type, name, features) for name in columns(features[0])]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._held = [], 0


def _schema(like: Feature) -> Any:
    pa = importlib.import_module("pyarrow")
    ints, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    head = [pa.field("id", pa.string()), pa.field("by", pa.int16())]
    if isinstance(like, TopK):
        k = like.topk_ids.shape[1]
        wide = pa.from_numpy_dtype(like.topk_logprobs.dtype)
        kinds = [ints, ints, floats, pa.list_(pa.list_(pa.int32(), k)), pa.list_(pa.list_(wide, k)), floats]
    elif isinstance(like, TextTopK):
        kinds = [pa.list_(pa.binary()), floats, pa.list_(pa.list_(pa.binary())), pa.list_(floats)]
    else:
        kinds = [floats]
    return pa.schema([*head, *(pa.field(name, kind) for name, kind in zip(columns(like), kinds, strict=True))])


def _split(schema: Any) -> Iterator[tuple[str, str]]:
    """The columns whose bytes compress better when the first bytes of all numbers stand together."""
    types = importlib.import_module("pyarrow").types
    for each in schema:
        if not types.is_list(each.type):
            continue
        inner, path = each.type.value_type, ""
        while types.is_list(inner) or types.is_fixed_size_list(inner):
            inner, path = inner.value_type, f"{path}.list.element"
        if types.is_floating(inner) or types.is_integer(inner):
            yield each.name, path


def _column(kind: Any, name: str, features: Sequence[Feature]) -> Any:
    """One column of many features, from their arrays without a Python object a number."""
    import numpy as np

    pa = importlib.import_module("pyarrow")
    arrays = [getattr(each, name) for each in features]
    if isinstance(arrays[0], list):
        return pa.array(arrays, kind)
    offsets = np.zeros(len(arrays) + 1, np.int32)
    np.cumsum([len(each) for each in arrays], out=offsets[1:])
    flat = np.concatenate([np.ascontiguousarray(each).reshape(-1) for each in arrays])
    values = pa.array(flat, _leaf(kind))
    if arrays[0].ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, type=kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


def _leaf(kind: Any) -> Any:
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind


def _size(feature: Feature) -> int:
    if isinstance(feature, TextTopK):
        return 64 * feature.size + sum(64 * len(row) for row in feature.topk_tokens)
    return sum(int(getattr(feature, name).nbytes) for name in columns(feature))


def read_rows(path: Path, kind: type[Feature], facts: Sequence[Facts]) -> Iterator[tuple[str, Feature]]:
    """(record's id, feature) of each row, a row group in memory at a time."""
    need_parquet()
    parquet = importlib.import_module("pyarrow.parquet")
    names = columns(kind)
    with parquet.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            ids, bys = group["id"].to_pylist(), group["by"].to_pylist()
            held = [_cut(group[name].combine_chunks()) for name in names]
            for place, (id, by) in enumerate(zip(ids, bys, strict=True)):
                arrays = {name: column(place) for name, column in zip(names, held, strict=True)}
                yield id, cast(Any, kind)(**arrays, facts=facts[by])


def _cut(column: Any) -> Any:
    """What gives the array of one row of a column, without a copy where it is numbers of a fixed width."""
    column = column.chunk(0) if hasattr(column, "chunks") else column
    inner, kind = column.values, column.type.value_type
    wide = getattr(kind, "list_size", 0)
    if not wide and (str(kind) == "binary" or hasattr(kind, "value_type")):
        return lambda place: column[place].as_py()
    offsets = column.offsets.to_numpy()
    flat = (inner.values if wide else inner).to_numpy(zero_copy_only=False)
    flat = flat.reshape(-1, wide) if wide else flat
    return lambda place: flat[offsets[place] : offsets[place + 1]]
