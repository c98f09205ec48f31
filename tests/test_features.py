"""Features: from a record through the store's shards and back, and what a version without them is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server import leftovers, published

from kdgen import features
from kdgen.errors import EndpointError, UserError
from kdgen.features import Embedding, Facts, Feature, Hidden, TextTopK, TopK, disk, parquet, shards
from kdgen.record import Record
from kdgen.store import Staging, Store

FACTS = Facts("test:a", k=4, dtype="float16", source="scored")


def topk(seed: int, n: int = 5, k: int = 4, dtype: str = "float16", facts: Facts = FACTS) -> TopK:
    rng = np.random.default_rng(seed)
    rows = -np.sort(rng.exponential(3, (n, k))).astype(dtype)
    ids = rng.integers(0, 150_000, (n, k)).astype(np.int32)
    given = rng.integers(0, 9, n).astype(np.int32)
    plain = rows.astype(np.float32)[:, 0]
    return TopK(np.arange(3, dtype=np.int32), given, plain, ids, rows, plain, facts)


def same(one: Feature, other: Feature) -> bool:
    names = features.columns(one)
    if type(one) is not type(other) or one.facts != other.facts:
        return False
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(
        a == b if isinstance(a, list) else (a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True))
        for a, b in pairs
    )


def other_kinds(seed: int) -> dict[str, Feature]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 5))
    return {
        "text": TextTopK(
            [b"\xe5\x9b"] * n, np.full(n, np.nan, np.float32), [[b"a", b""]] * n, [[-0.5, -np.inf]] * n, FACTS
        ),
        "hidden": Hidden(
            np.int32([0, 2]), np.arange(n, dtype=np.int32), rng.normal(size=(2, n, 3)).astype(np.float16), FACTS
        ),
        "vector": Embedding(rng.normal(size=7).astype(np.float32), FACTS),
    }


def written(folder: Path, rows: list[dict[str, Feature]]) -> dict[str, str]:
    staging = Staging(folder)
    try:
        for number, each in enumerate(rows):
            staging.row(Record(id=f"r{number}").featured(each), {"n": number})
        return staging.close()
    finally:
        staging.discard()


def test_what_is_written_is_read_in_the_order_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several shards and row groups, of records of which some lack a feature."""
    monkeypatch.setattr(parquet, "GROUP", 400)
    monkeypatch.setattr(shards, "SHARD", 700)
    other = Facts("test:b", k=4, dtype="float16")
    rows: list[dict[str, Feature]] = []
    for number in range(60):
        made: dict[str, Feature] = (
            {} if number % 7 == 3 else {"top": topk(number, n=number % 9, facts=[FACTS, other][number % 2])}
        )
        rows.append(made | (other_kinds(number) if number % 2 else {}))
    sums = written(tmp_path, rows)
    read = features.open(tmp_path)
    assert read.names == ["top", "text", "hidden", "vector"]
    assert len(read.index["top"]["shards"]) > 1 and len(read.index["hidden"]["shards"]) > 1
    for name in read.names:
        back = list(read.read(name))
        assert [id for id, _ in back] == [f"r{n}" for n, row in enumerate(rows) if name in row]
        assert all(same(feature, rows[int(id[1:])][name]) for id, feature in back), name
        assert read.tokens(name) == sum(row[name].size for row in rows if name in row)
    assert read.facts("top") == [FACTS, other] and read.kind("hidden") == "hidden"
    made = {f"features/{file.name}" for file in (tmp_path / "features").iterdir()}
    assert made <= set(sums) and not [name for name in made if name.endswith(".part")]
    first = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[1])
    assert first["meta"]["features"]["top"] == {"tokens": 1, "kind": "topk"}
    (tmp_path / "again").mkdir()
    assert written(tmp_path / "again", rows) == sums, "the same rows make the same bytes"


def test_other_libraries_read_the_shards(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    row = topk(1)
    written(tmp_path, [{"top": row, "hidden": other_kinds(3)["hidden"]}])
    table = pq.read_table(tmp_path / "features/top-00000.parquet")
    assert table["topk_ids"].to_pylist() == [row.topk_ids.tolist()]
    assert str(table.schema.field("topk_logprobs").type) == "list<element: fixed_size_list<element: halffloat>[4]>"
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(tmp_path / "features/hidden-00000.safetensors")
    assert tensors["r0.states"].shape[0] == 2


def test_a_feature_that_is_two_things_is_said(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="topk of one row and embedding of another"):
        written(tmp_path, [{"x": topk(1)}, {"x": other_kinds(1)["vector"]}])


def test_a_broken_shard_is_said(tmp_path: Path) -> None:
    written(tmp_path, [{"top": topk(1), "hidden": other_kinds(1)["hidden"]}])
    for name in ("top-00000.parquet", "hidden-00000.safetensors"):
        (tmp_path / "features" / name).write_bytes(b"\1" * 30)
    read = features.open(tmp_path)
    for name in read.names:
        with pytest.raises(UserError, match="cannot be read"):
            list(read.read(name))
    with pytest.raises(UserError, match="no feature 'tops'"):
        list(read.read("tops"))
    assert features.open(tmp_path / "nowhere").names == []
    (tmp_path / "features/index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        features.open(tmp_path)


def test_features_stay_with_the_record_until_its_text_changes() -> None:
    plain = Record(id="a", instruction="x")
    made = plain.featured({"top": topk(1)})
    assert plain.features == {} and plain == plain.featured({}) and made.id == plain.id
    child = made.child(stage="s", method="m", meta={"score": 1})
    assert list(child.features) == ["top"] and list(made.model_copy(update={"meta": {}}).features) == ["top"]
    assert child.id == plain.child(stage="s", method="m", meta={"score": 1}).id, "no digest knows of features"
    assert made.child(stage="s", method="m", output="new").features == {}
    assert made.child(stage="s", method="m", parents=[made]).features == {}
    assert "features" not in made.model_dump() and "features" not in made.__dict__
    assert list(made.featured(other_kinds(1)).features) == ["top", "text", "hidden", "vector"]


def publish(folder: Path, rows: list[dict[str, Feature]]) -> str:
    store = Store(folder)
    with store.locked(), store.staging() as staging:
        for number, each in enumerate(rows):
            staging.row(Record(id=f"r{number}").featured(each), {"n": number})
        store.publish(staging, staging.close(), "{}", "card")
    return (folder / ".current").resolve().name


def test_versions_with_and_without_features(tmp_path: Path) -> None:
    """Shards are part of what names a version, are mended like every file, and go when a version has none."""
    out = tmp_path / "out"
    plain = publish(out, [{}])
    assert not (out / "features").exists() and sorted(p.name for p in (out / ".current").resolve().iterdir()) == [
        "README.md", "data.jsonl", "manifest.json", "records.jsonl", "rejects.jsonl"
    ]  # fmt: skip
    with_features = publish(out, [{"top": topk(1)}])
    assert with_features != plain and features.open(out).names == ["top"]
    assert publish(out, [{"top": topk(2)}]) != with_features
    shard = (out / ".current").resolve() / "features/top-00000.parquet"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1])
    publish(out, [{"top": topk(2)}])
    assert shard.read_bytes() == good
    assert publish(out, [{}]) == plain and not (out / "features").is_symlink()
    assert leftovers(out) == []


def test_a_run_that_ends_early_leaves_no_shard(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    with store.locked(), pytest.raises(RuntimeError), store.staging() as staging:
        staging.row(Record(id="a").featured({"top": topk(1), "hidden": other_kinds(1)["hidden"]}), {})
        raise RuntimeError
    assert leftovers(tmp_path / "out") == [] and not (tmp_path / "out/features").exists()


def test_without_pyarrow_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pyarrow is not installed"):
        written(tmp_path, [{"top": topk(1)}])


def test_rows_without_features_pay_nothing(label: Callable[..., Any], tmp_path: Path) -> None:
    assert label("s.jsonl", '{"instruction": "Name a colour."}\n').code == 0
    assert "features" not in json.loads((tmp_path / "out/manifest.json").read_text())
    assert b"features" not in published(tmp_path / "out", card=True)["README.md"]


SCORED = ("run", "feature/score", "--seeds", "s.jsonl", "-o", "out", "--ledger", "l.db")


def scored_seeds(tmp_path: Path, count: int = 3, words: int = 5) -> None:
    texts = [" ".join(hex(n * 1000 + word) for word in range(words)) for n in range(count)]
    rows = [{"id": f"s{n}", "instruction": f"Say {n}.", "output": text} for n, text in enumerate(texts)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_disk_without_room_is_said_before_anything_is_sent(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_seeds(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=disk.RESERVE + 1000))
    said = kdgen(*SCORED, "-t", script(""))
    assert said.code == 3 and "the disk is nearly full" in said.err and "hint: free some" in said.err
    assert "11.5 kB of features" in said.err and not (tmp_path / "out/data.jsonl").exists()


def test_a_disk_that_fills_up_ends_the_run_and_nothing_is_lost(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_seeds(tmp_path, 20, 60)
    usage, looked = shutil.disk_usage(tmp_path), iter([1 << 40] * 4)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "GUARD", 20_000)
        patched.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=next(looked, 1000)))
        said = kdgen(*SCORED, "-t", script(""))
        assert said.code == 3 and "1.0 kB are free" in said.err and leftovers(tmp_path / "out") == []
    said = kdgen(*SCORED, "-t", script(""), "--json")
    requests = json.loads(said.out)["requests"]
    assert said.code == 0 and requests["from_ledger"] > 0 and requests["sent"] + requests["from_ledger"] == 20


def test_a_plan_says_how_much_disk_it_takes(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    scored_seeds(tmp_path, 50, 30)
    asked = ("plan", "feature/score", "s.jsonl", "-t", script(""), "--ledger", "none.db")
    planned = json.loads(kdgen(*asked, "--json").out)["features"]["score"]
    assert "features: about" in kdgen(*asked).out
    made = json.loads(kdgen(*SCORED, "-t", script(""), "--json").out)["features"]["score"]["bytes"]
    assert planned / 4 < made < 1.5 * planned, "invented logprobs compress better than real ones"
    assert "features" not in json.loads(kdgen("plan", "label/answer", "s.jsonl", "-t", script(""), "--json").out)
    hidden = ("plan", "feature/hidden", "s.jsonl", "--ledger", "none.db", "--json")
    told = json.loads(kdgen(*hidden).out)["features"]["hidden"]
    assert told == json.loads(kdgen(*hidden, "--set", "stages.0.layers=[0,-1]").out)["features"]["hidden"] / 2
