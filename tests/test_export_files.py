"""The files of an export as others read them: `datasets`, Parquet, Croissant's own checker, in-toto."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import yaml
from datasets_made import TERMS, answers, dataset, lines_of

from kdgen.bundle import arrow, sinks
from kdgen.export import EXPORTS, FeatureFormat
from kdgen.export.examples import example_of
from kdgen.export.shapes import FLAG, JSON, NUMBER, TEXT, WHOLE
from kdgen.record import Record

Run = Callable[..., Any]
CONTAINERS = ("jsonl", "parquet", "hf")
PLAIN = [
    name for name, kind in EXPORTS.items() if not issubclass(kind, FeatureFormat)
]  # test_export_features has the others
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`datasets`, with its cache here and no network."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    yield lambda folder, name=None: datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("container", CONTAINERS)
def test_datasets_opens_the_folder(kdgen: Run, hub: Any, tmp_path: Path, container: str) -> None:
    """With its splits and a configuration for each subset; a column that only a late row has is there for all."""
    late = Record(id="late", instruction="Task late", output="y", system="S", seeds=("late",))
    dataset(tmp_path / "d", [*answers(200), late])
    words = ("--split", "train=0.8,test=0.2", "--subsets", "5,50", "--as", container, "-o", "x")
    assert kdgen("export", "d", "--to", "alpaca", *words).code == 0
    opened = hub(tmp_path / "x")
    manifest = json.loads((tmp_path / "x/manifest.json").read_text())
    assert {name: len(rows) for name, rows in opened.items()} == {
        name: made["rows"] for name, made in manifest["splits"].items()
    }
    small = hub(tmp_path / "x", "train_5")
    assert len(small["train"]) == 5 and len(small["test"]) == len(opened["test"])
    rows = [dict(row) for split in opened.values() for row in split]
    (found,) = [row for row in rows if row["instruction"] == "Task late"]
    assert found["system"] == "S" and all(row["system"] is None for row in rows if row is not found)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("beir", "llamafactory", "triples")])
def test_every_format_is_opened_in_every_container(
    kdgen: Run, hub: Any, tmp_path: Path, name: str, container: str
) -> None:
    record, settings = example_of(name)
    more = [f"--set={key}={value}" for key, value in settings.items() if key != "format"]
    dataset(tmp_path / "d", [record])
    assert kdgen("export", "d", "--to", name, *more, "--as", container, "-o", "x").code == 0
    assert kdgen("export", "d", "--to", name, *more, "-o", "rows.jsonl").code == 0
    (row,) = hub(tmp_path / "x")["train"]
    (plain,) = lines_of(tmp_path / "rows.jsonl")
    assert {key for key, value in row.items() if value is not None} == set(plain)
    texts = ("scores", "edit_ops", "token_rewards")  # what may be anything
    assert without_nulls({key: row[key] for key in plain if key not in texts}) == {
        key: value for key, value in plain.items() if key not in texts
    }


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def test_beir_is_opened(kdgen: Run, hub: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "d", [example_of("beir")[0]])
    assert kdgen("export", "d", "--to", "beir", "-o", "x").code == 0
    assert hub(tmp_path / "x", "corpus")["corpus"][0]["title"] == "Water"
    assert hub(tmp_path / "x", "queries")["queries"][0]["_id"] == "q2"


def test_parquet_holds_the_rows_of_the_lines(kdgen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In row groups as they come, and in shards; the sums in the manifest are the files'."""
    monkeypatch.setattr(sinks, "GROUP", 2000)
    monkeypatch.setattr(sinks, "SHARD", 9000)
    dataset(tmp_path / "d", answers(300))
    assert kdgen("export", "d", "--to", "preference", "-o", "n").code == 5
    assert kdgen("export", "d", "--to", "prompt-completion", "-o", "rows.jsonl").code == 0
    assert kdgen("export", "d", "--to", "prompt-completion", "-o", "rows.parquet").code == 0
    assert kdgen("export", "d", "--to", "prompt-completion", "--as", "hf", "-o", "x").code == 0
    plain = [{**row, "tools": None} for row in lines_of(tmp_path / "rows.jsonl")]
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == plain
    shards = sorted((tmp_path / "x/data").iterdir())
    assert len(shards) > 2 and shards[0].name == f"train-00000-of-{len(shards):05}.parquet"
    assert [row for shard in shards for row in parquet.read_table(shard).to_pylist()] == plain
    assert parquet.ParquetFile(tmp_path / "rows.parquet").num_row_groups > 5
    assert parquet.ParquetFile(shards[0]).metadata.row_group(0).column(0).compression == "ZSTD"
    told = json.loads((tmp_path / "x/manifest.json").read_text())["files"]
    for shard in shards:
        made = told[f"data/{shard.name}"]
        assert (
            made["sha256"] == hashlib.sha256(shard.read_bytes()).hexdigest() and made["bytes"] == shard.stat().st_size
        )
    assert sum(made["rows"] for made in told.values()) == 300


def test_what_may_be_anything_is_a_text_in_parquet() -> None:
    shape = {"a": JSON, "b?": [JSON, 0], "c": {"d": JSON, "e": FLAG}, "f": NUMBER, "g": [[WHOLE]], "h?": TEXT}
    pack = arrow.packer(shape)
    assert pack is not None and arrow.packer({"a": TEXT, "b": [{"c": NUMBER}]}) is None
    row = {"a": {"x": 1}, "b": [1, None], "c": {"d": [1], "e": True}, "f": 1, "g": [[1]]}
    assert pack(row) == {"a": '{"x":1}', "b": ["1", "null"], "c": {"d": "[1]", "e": True}, "f": 1, "g": [[1]]}
    assert [str(field.type) for field in arrow.schema_of(shape)] == [
        "string", "list<element: string>" if "element" in str(arrow.type_of([TEXT])) else "list<item: string>",
        "struct<d: string, e: bool>", "double", str(arrow.type_of([[WHOLE]])), "string",
    ]  # fmt: skip


def test_without_pyarrow_the_way_out_is_said(kdgen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(arrow.importlib, "import_module", missing)
    dataset(tmp_path / "d", answers(3))
    said = kdgen("export", "d", "--to", "messages", "--as", "hf", "-o", "x")
    assert said.code == 2 and "pip install 'kdgen[parquet]'" in said.err and not (tmp_path / "x").exists()
    assert kdgen("export", "d", "--to", "messages", "-o", "x").code == 0


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", PLAIN)
def test_croissant_is_valid(kdgen: Run, tmp_path: Path, name: str, container: str) -> None:
    """By mlcroissant: no error, the context is its own for 1.1, and the rows come out."""
    import mlcroissant

    logging.getLogger("absl").setLevel(logging.ERROR)
    if name in ("beir", "llamafactory") and container != "jsonl":
        return
    record, settings = example_of(name)
    records = [record, *([Record(id="o", instruction="q", text="other", seeds=("o",))] if name == "triples" else [])]
    more = [f"--set={key}={value}" for key, value in settings.items() if key != "format"]
    dataset(tmp_path / "d", records)
    assert kdgen("export", "d", "--to", name, *more, "--as", container, "-o", "x").code == 0
    told = json.loads((tmp_path / "x/croissant.json").read_text())
    opened = mlcroissant.Dataset(str(tmp_path / "x/croissant.json"))
    assert not opened.metadata.issues.errors, opened.metadata.issues.report()
    assert [warning for warning in opened.metadata.issues.warnings if "datePublished" not in warning] == []
    assert told["conformsTo"][0] == "http://mlcommons.org/croissant/1.1"
    assert told["rai:dataLimitations"] == ["Built with T.", "Say so."]
    if name in ("bedrock", "openai-preference", "prompt") or (name == "reward" and container == "jsonl"):
        return  # mlcroissant reads lists of objects, and neither lists in those nor objects whose keys nobody names
    for columns in told["recordSet"]:
        row, *_ = opened.records(columns["@id"])
        assert len(row) == len(columns["field"])


def test_licences_and_notices_go_along(kdgen: Run, tmp_path: Path) -> None:
    """Into the card, the manifest, Croissant and the provenance of a mix: of each dataset, its teachers and its seeds."""
    dataset(tmp_path / "a", answers(20, of="a"), name="a", licence="CC-BY-4.0")
    dataset(tmp_path / "b", answers(20, of="b"), name="b", licence="")
    assert kdgen("export", "--mix", "a=1", "--mix", "b=1", "--to", "messages", "-o", "x").code == 0
    card = (tmp_path / "x/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["license_name"], front["size_categories"]) == ("other", "see-terms", ["n<1K"])
    assert {"synthetic", "distillation", "kdgen", "messages"} == set(front["tags"])
    for said in (
        "| a | s.jsonl | CC-BY-4.0 |", "| b | s.jsonl | not stated |", "| a | teacher | scripted:t | apache-2.0 | https://example.com/t |",
        "## Terms of b", "- Built with T.", "Say so.", "About a.",
    ):  # fmt: skip
        assert said in card, said
    statement = json.loads((tmp_path / "x/provenance.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    sums = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert sums == {"train.jsonl": hashlib.sha256((tmp_path / "x/train.jsonl").read_bytes()).hexdigest()}
    build = statement["predicate"]["buildDefinition"]
    depends = {each["name"]: each for each in build["resolvedDependencies"]}
    assert (
        depends["a/records.jsonl"]["digest"]["sha256"]
        == hashlib.sha256((tmp_path / "a/records.jsonl").read_bytes()).hexdigest()
    )
    assert [each["annotations"]["licence"] for each in build["resolvedDependencies"] if each["name"].startswith("seeds/")] == [
        "CC-BY-4.0", "not stated",
    ]  # fmt: skip
    assert build["internalParameters"]["notices"] == ["Built with T."]
    assert build["internalParameters"]["datasets"][0]["terms"] == [TERMS]
    assert "note: Built with T." in kdgen("export", "a", "--to", "messages", "-o", "y").err
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "x").glob("*.*"))
