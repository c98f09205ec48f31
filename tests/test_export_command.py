"""`kdgen export`: what it writes, what it refuses, and that it writes the same again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets_made import answers, dataset, lines_of

from kdgen.bundle import dataset as reading
from kdgen.export import ALIASES, EXPORTS
from kdgen.export.chat import Messages
from kdgen.record import Candidate, Message, Record

Run = Callable[..., Any]
SPOKEN = Record(
    id="t", instruction="And?", output="6", system="S", reasoning="R", seeds=("t",),
    history=(Message(role="user", content="A"), Message(role="assistant", content="B")),
)  # fmt: skip
PAIR = Record(
    id="p", instruction="Q", output="yes", seeds=("p",),
    candidates=(Candidate(output="yes", score=2), Candidate(output="no", score=1)),
)  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_exported(label: Run, kdgen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder of a real run, with no network: rows are the format's, papers name the files' sums."""
    seeds = "".join(json.dumps({"instruction": f"Name bird {n}."}) + "\n" for n in range(5))
    assert label("s.jsonl", seeds).code == 0
    monkeypatch.setattr(socket, "socket", None)
    said = kdgen("export", "out", "--to", "prompt-completion", "-o", "x", "--json")
    manifest = json.loads(said.out)
    assert said.code == 0 and manifest == json.loads((tmp_path / "x/manifest.json").read_text())
    rows, records = lines_of(tmp_path / "x/train.jsonl"), lines_of(tmp_path / "out/records.jsonl")
    assert [row["completion"][0]["content"] for row in rows] == [record["output"] for record in records]
    assert manifest["counts"] == {"records": 5, "rows": 5, "no_place": 0, "too_long": 0, "not_drawn": 0}
    made = manifest["files"]["train.jsonl"]
    assert made["sha256"] == hashlib.sha256((tmp_path / "x/train.jsonl").read_bytes()).hexdigest() and made["rows"] == 5
    assert manifest["datasets"][0]["seeds"][0]["name"] == "s.jsonl"
    assert not [path for path in tmp_path.iterdir() if ".next-" in path.name]


def test_a_file_of_a_dataset_or_an_export_is_not_written_over(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(3))
    assert kdgen("export", "d", "--to", "messages", "-o", "x").code == 0
    before = content(tmp_path)
    for target in ("d/records.jsonl", "x/train.jsonl"):
        said = kdgen("export", "d", "--to", "messages", "-o", target)
        assert said.code == 2 and "part of a dataset or of an export" in said.err
    assert content(tmp_path) == before
    assert kdgen("export", "d", "--to", "messages", "-o", "d/more.jsonl").code == 0
    assert kdgen("export", "d", "--to", "alpaca", "-o", "d/more.jsonl").code == 0


def test_the_same_again_is_the_same_and_another_takes_its_place(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(20))
    for to, target in (("messages", "x"), ("messages", "y"), ("alpaca", "y"), ("messages", "y")):
        assert kdgen("export", "d", "--to", to, "-o", target).code == 0
        if to == "alpaca":
            assert "instruction" in lines_of(tmp_path / "y/train.jsonl")[0]
    assert content(tmp_path / "x") == content(tmp_path / "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "x", "y"]


def test_one_file_has_the_same_rows(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(9))
    assert kdgen("export", "d", "--to", "messages", "-o", "x").code == 0
    assert kdgen("export", "d", "--to", "messages", "-o", "deep/rows.jsonl").code == 0
    assert (tmp_path / "deep/rows.jsonl").read_bytes() == (tmp_path / "x/train.jsonl").read_bytes()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rows.jsonl"]


def test_stdout_has_the_rows(kdgen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path / "d", answers(3))
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream:
        monkeypatch.setattr("kdgen.bundle.folder.sys.stdout", type("Out", (), {"buffer": stream}))
        assert kdgen("export", "d", "--to", "messages", "-o", "-", "-q").code == 0
    with os.fdopen(reader, "rb") as stream:
        rows = [json.loads(line) for line in stream]
    assert rows == [Messages().row(record) for record in answers(3)]


def test_the_default_place_is_named_by_dataset_and_format(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(3), name="zephyr")
    assert kdgen("export", "d", "--to", "unsloth").code == 0
    assert (tmp_path / "out/zephyr.messages/train.jsonl").is_file() and ALIASES["unsloth"] == "messages"
    assert kdgen("export", "d", "--to", "messages", "--name", "mine").code == 0
    assert "pretty_name: mine\n" in (tmp_path / "out/mine.messages/README.md").read_text()


def test_the_straight_way_is_the_formats_own(tmp_path: Path) -> None:
    """What is read without pydantic makes the rows that validated records make, for each kind of record."""
    records = [*answers(2), SPOKEN, PAIR]
    made = reading.Dataset.at(str(dataset(tmp_path / "d", records)))
    for number, (line, record) in enumerate(zip(made.lines(), records, strict=True)):
        light = reading.record_of(line, made, number)
        for kind in EXPORTS.values():
            if not any(piece.is_required() for piece in kind.model_fields.values()):
                form = kind(format=kind.model_fields["format"].default)
                assert form.row(light) == form.row(Record.model_validate_json(line)) == form.row(record)


def test_what_has_no_place_is_counted_and_nothing_at_all_is_exit_5(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", [*answers(3), PAIR])
    said = kdgen("export", "d", "--to", "preference", "-o", "x", "--json")
    assert said.code == 0 and "3 records have no place in the format" in said.err
    assert json.loads(said.out)["counts"]["no_place"] == 3
    said = kdgen("export", "d", "--to", "stepwise", "-o", "y")
    assert said.code == 5 and "none of 4 records has a place in stepwise" in said.err
    assert "messages" in said.err and "preference" in said.err and not (tmp_path / "y").exists()
    said = kdgen("export", "d", "--to", "stepwise", "--split", "train=1,test=1", "-o", "x")
    assert said.code == 5 and lines_of(tmp_path / "x/train.jsonl")[0]["score_chosen"] == 2


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (b"{", "d/records.jsonl:2: no record"),
        (b"[]\n", "d/records.jsonl:2: no record"),
        (b'{"id": "x", "output": "y", "colour": 1}\n', "d/records.jsonl:2: no record"),
    ],
)
def test_a_line_that_is_no_record_is_named(kdgen: Run, tmp_path: Path, broken: bytes, says: str) -> None:
    path = dataset(tmp_path / "d", answers(1)) / "records.jsonl"
    path.write_bytes(path.read_bytes() + broken)
    said = kdgen("export", "d", "--to", "messages", "-o", "x")
    assert said.code == 2 and says in said.err and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("to", "change", "says"),
    [
        (
            "messages",
            {"system": 5},
            "record r1: messages.0.content of its row in messages: Input should be a valid string",
        ),
        ("bedrock", {"system": ["x"]}, "record r1: system.0.text"),
        ("reward", {"meta": {"score": float("inf")}}, ""),
        ("stepwise", {"meta": {"steps": {"labelled": [{"text": 1, "label": True}]}}}, "record r1: completions.0"),
        ("stepwise", {"meta": {"steps": {"labelled": [{"text": "x"}]}}}, "record r1: not what a stage of kdgen leaves"),
    ],
)
def test_a_bad_row_is_an_error_that_names_its_record(
    kdgen: Run, tmp_path: Path, to: str, change: dict[str, Any], says: str
) -> None:
    folder = dataset(tmp_path / "d", answers(2))
    rows = lines_of(folder / "records.jsonl")
    rows[1] |= change
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = kdgen("export", "d", "--to", to, "-o", "x")
    assert said.code == 2 and "d/records.jsonl:2: " in said.err and says in said.err
    assert not (tmp_path / "x").exists()


def test_records_that_the_run_did_not_write_are_refused(kdgen: Run, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", answers(2))
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace("Answer 1", "Answer 7"))
    for more in ((), ("--split", "a=1,b=1")):
        said = kdgen("export", "d", "--to", "messages", "-o", "x", *more)
        assert said.code == 2 and "is not what the run wrote" in said.err and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say which format"),
        (("--to", "mesages"), "'mesages' is no format"),
        (("--to", "messages", "--set", "reasoning=thnk"), "reasoning"),
        (("--to", "messages", "--set", "colour=red"), "unknown key"),
        (("--to", "messages", "--set", "reasoning"), "is not FIELD=VALUE"),
        (("--to", "messages", "--set", "format=alpaca"), "is not FIELD=VALUE"),
        (("--to", "messages", "--as", "csv"), "'csv' is no kind of files"),
        (("--to", "messages", "--split", "train"), "is not NAME=PART"),
        (("--to", "messages", "--split", "train=0.9"), "two names at least"),
        (("--to", "messages", "--split", "train=1,test=0"), "more than 0"),
        (("--to", "messages", "--split", "train=1,te-st=1"), "letters, digits and _"),
        (("--to", "messages", "--split", "train=1,test=nan"), "more than 0"),
        (("--to", "messages", "--subsets", "10,x"), "--subsets"),
        (("--to", "messages", "--subsets", "0"), "from 1"),
        (("--to", "messages", "--subsets", "99"), "a subset of 99 rows is more than train has: 3"),
        (("--to", "messages", "--order", "colour"), "--order"),
        (("--to", "messages", "--order", "length:up"), "--order"),
        (("--to", "messages", "--seed", "3"), "--seed has no effect"),
        (("--to", "messages", "--tokenizer", "none.json"), "no such tokenizer"),
        (("--to", "messages", "--mix", "d=1"), "give it its share too"),
        (("--to", "messages", "--rehearse", "d=1"), "is not DATASET=SHARE"),
        (("--to", "messages", "--rehearse", "nothing=0.1"), "no dataset that kdgen made"),
        (("--to", "messages", "-o", "x.jsonl", "--split", "a=1,b=1"), "several files"),
        (("--to", "messages", "-o", "x.jsonl", "--as", "hf"), "makes a folder"),
        (("--to", "beir", "--as", "parquet"), "folder of several files"),
        (("--to", "messages", "-o", "-", "--json"), "both want stdout"),
        (("--to", "messages", "--name", "../x"), "is no name"),
        (("--to", "messages", "-o", "d"), "holds other files"),
        (("--to", "evaluator"), "rubric is missing"),
        (("--to", "evaluator", "--set", "rubric=accuracy", "--set", "aspect=colour"), "none of the rubric's: accuracy"),
    ],
)
def test_what_does_not_go_is_said_before_anything_is_written(
    kdgen: Run, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    dataset(tmp_path / "d", answers(3))
    said = kdgen("export", "d", *words)
    assert said.code == 2 and says in said.err, said.err
    assert sorted(path.name for path in tmp_path.rglob("*")) in (
        ["d", "manifest.json", "records.jsonl"],
        ["d", "manifest.json", "out", "records.jsonl"],
    )


def test_a_folder_that_is_no_dataset_says_what_is(kdgen: Run, tmp_path: Path) -> None:
    assert "there is no such folder" in kdgen("export", "d", "--to", "messages").err
    dataset(tmp_path / "loop/M1", answers(1))
    said = kdgen("export", "loop", "--to", "messages")
    assert said.code == 2 and "it holds datasets: loop/M1" in said.err
    (tmp_path / "loop/M1/manifest.json").write_text('{"counts": {}}')
    assert "no dataset that kdgen made" in kdgen("export", "loop/M1", "--to", "messages").err
    assert "name a dataset" in kdgen("export", "--to", "messages").err


def test_a_failure_leaves_the_old_export(kdgen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path / "d", answers(3))
    assert kdgen("export", "d", "--to", "messages", "-o", "x").code == 0
    before = content(tmp_path / "x")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdgen.bundle.folder.sync_folder", full)
    said = kdgen("export", "d", "--to", "alpaca", "-o", "x")
    assert said.code == 3 and "No space left" in said.err and content(tmp_path / "x") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "x"]


def test_what_a_kill_left_is_cleared_and_who_writes_is_let_be(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(3))
    (tmp_path / ".x.next/data").mkdir(parents=True)
    (tmp_path / ".x.next/old.jsonl").write_text("{}")
    assert kdgen("export", "d", "--to", "messages", "-o", "x").code == 0
    assert "old.jsonl" not in content(tmp_path / "x") and not (tmp_path / ".x.next").exists()
    (tmp_path / ".x.next").mkdir()
    held = os.open(tmp_path / ".x.next", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    said = kdgen("export", "d", "--to", "alpaca", "-o", "x")
    os.close(held)
    assert said.code == 6 and "another export writes there" in said.err
    assert "messages" in lines_of(tmp_path / "x/train.jsonl")[0]


def test_without_an_atomic_exchange_the_folder_is_still_replaced(
    kdgen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path / "d", answers(3))
    monkeypatch.setattr("kdgen.bundle.folder.ctypes.CDLL", lambda *_, **__: object())
    for to in ("messages", "alpaca"):
        assert kdgen("export", "d", "--to", to, "-o", "x").code == 0
    assert "instruction" in lines_of(tmp_path / "x/train.jsonl")[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "x"]


def test_every_format_is_listed_with_a_row_that_it_writes(kdgen: Run) -> None:
    said = kdgen("export", "--list")
    assert said.code == 0
    for name in EXPORTS:
        assert f"\n{name}: " in f"\n{said.out}", name
    assert said.out.count("\n  {") == len(EXPORTS)
    only = kdgen("export", "--list", "--to", "kto").out
    assert only.startswith("kto: TRL KTO") and '"label":true' in only and "alpaca: " not in only
    assert kdgen("export", "--list", "--to", "nothing").code == 2
