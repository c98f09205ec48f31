"""Features in safetensors files, which numpy reads as they lie there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import orjson

from kdgen.features import Facts, Feature, columns
from kdgen.features.sink import Sink


class TensorShard:
    """A safetensors file: `ID.layers`, `ID.ids` and `ID.states` of each row, in the order of the rows.

    Its header tells where each tensor lies and so can only be written at the end; until then the numbers wait in a file
    beside it.
    """

    def __init__(self, path: Path) -> None:
        self.sink = Sink(path.with_name(path.name + ".part"))
        self._path = path
        self._header: dict[str, Any] = {}

    def add(self, id: str, feature: Feature, by: int) -> None:
        """See `Shard`."""
        import numpy as np

        for name in (*columns(feature), "by"):
            array = np.array([by], np.int32) if name == "by" else np.ascontiguousarray(getattr(feature, name))
            start = self.sink.size
            self.sink.write(array.tobytes())
            kind = {"int32": "I32", "float16": "F16", "float32": "F32"}[str(array.dtype)]
            self._header[f"{id}.{name}"] = {
                "dtype": kind, "shape": list(array.shape), "data_offsets": [start, self.sink.size]
            }  # fmt: skip

    def close(self) -> None:
        """See `Shard`."""
        self.sink.close()
        header = orjson.dumps({"__metadata__": {"format": "np"}, **self._header})
        header += b" " * (-len(header) % 8)
        part, self.sink = self.sink.path, Sink(self._path)
        self.sink.write(len(header).to_bytes(8, "little") + header)
        with part.open("rb") as data:
            while piece := data.read(1 << 20):
                self.sink.write(piece)
        self.sink.close()
        part.unlink()


def read_tensors(path: Path, kind: type[Feature], facts: Sequence[Facts]) -> Iterator[tuple[str, Feature]]:
    """(record's id, feature) of each row, a row in memory at a time."""
    import numpy as np

    kinds: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is no safetensors file")
        header = orjson.loads(file.read(size))
    header.pop("__metadata__", None)

    def tensor(entry: dict[str, Any]) -> Any:
        start, end = entry["data_offsets"]
        dtype = kinds[entry["dtype"]]
        count = (end - start) // dtype.itemsize
        return np.fromfile(path, dtype, count, offset=8 + size + start).reshape(entry["shape"])

    for name in [name for name in header if name.endswith(".ids")]:
        id = name.removesuffix(".ids")
        arrays = {each: tensor(header[f"{id}.{each}"]) for each in columns(kind)}
        yield id, cast(Any, kind)(**arrays, facts=facts[int(tensor(header[f"{id}.by"])[0])])
