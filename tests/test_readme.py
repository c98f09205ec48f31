"""What README shows works: its commands run on the scripted teacher, its recipe loads and makes rows, its tables are whole."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets_made import dataset
from pydantic import TypeAdapter
from server import FakeWire
from typer.testing import CliRunner

from kdgen import errors
from kdgen.cli import app
from kdgen.config import load_iterations, load_recipe
from kdgen.export import EXPORTS, FORMATS, AnyExport
from kdgen.export.examples import example_of
from kdgen.record import Candidate, Record
from kdgen.resources import builtins
from kdgen.teachers.openai import OpenAI

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("kdgen ") and not line.startswith("kdgen export ")]
EXPORTED = [line for line in LINES if line.startswith("kdgen export ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs(
    kdgen: Callable[..., Any],
    script: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"instruction": "Name three uses of vinegar."}\n')
    words = shlex.split(line, comments=True)[1:]
    listed = "\n".join(
        f"{n}. Tell {'{digest}'} about number {n} of the things that matter to {n * 7} people" for n in range(9, 17)
    )
    teacher = script({"contains": "numbered 9 to 16", "reply": listed}, "Because.\nAnswer: {digest}")
    paid = "-t" in words
    if paid:  # as it stands, with a wire in the place of the network
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        monkeypatch.setattr(OpenAI, "connect", FakeWire().open)
    said = kdgen(*words, *(() if paid else ("-t", teacher)), "--ledger", "l.db", "-o", "out")
    assert said.code == 0, said.err
    assert (tmp_path / "out/data.jsonl").read_text()


def test_the_recipe_makes_rows(kdgen: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = next(block for kind, block in BLOCKS if kind == "yaml")
    (tmp_path / "mine.yaml").write_text(recipe)
    (tmp_path / "mine.md").write_text("---\nvariables: {instruction: x}\n---\n[[user]]\n{{ instruction }}\n")
    (tmp_path / "questions.csv").write_text("question\nWhere is my parcel?\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setattr(OpenAI, "connect", FakeWire().open)
    said = kdgen("run", "./mine.yaml", "--json", "-q", "--ledger", "l.db", "--set", "stages.0.prompt=./mine.md")
    assert said.code == 0 and json.loads(said.out)["counts"]["rows"] == 1, said.err


def test_the_loop_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, in the recipe that it goes with; each iteration is what it says."""
    shown = next(block for kind, block in BLOCKS if kind == "yaml" and block.startswith("loop:"))
    plain = builtins("configs")["self/star"].read_text()
    (tmp_path / "mine.yaml").write_text(plain[: plain.index("loop:")] + shown)
    monkeypatch.chdir(tmp_path)
    first, second, third = load_iterations("./mine.yaml")
    assert [each.teachers["teacher"].label for each in (first, second, third)] == [
        "local:qwen2.5-coder-0.5b", "openai:mine-1", "openai:mine-2",
    ]  # fmt: skip
    assert third.stages[0].model_dump()["tries"] == 2 and second.stages[0] == first.stages[0]


@pytest.mark.parametrize("line", EXPORTED)
def test_an_export_runs(kdgen: Callable[..., Any], tmp_path: Path, line: str) -> None:
    pairs = [
        Record(
            id=f"r{n}", instruction=f"Task {n}", output="yes", reasoning="Because.", seeds=(f"s{n}",), meta={"score": n},
            candidates=(Candidate(output="yes"), Candidate(output="no")),
        )
        for n in range(10_100 if "--subsets" in line else 40)
    ]  # fmt: skip
    for place in re.findall(r"out/\w+", line):
        dataset(tmp_path / place, pairs, name=Path(place).name)
    said = kdgen(*shlex.split(line, comments=True)[1:])
    assert said.code == 0, said.err


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_is_listed_with_its_row(name: str) -> None:
    """As `kdgen export --list` has it; a long row is cut."""
    record, settings = example_of(name)
    form = TypeAdapter[Any](AnyExport).validate_python(settings, context={"base": Path.cwd()})
    row = form.row(record)
    form.check(row)
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    shown = line if len(line) <= 240 else line[:240] + "…"
    assert f"| `{name}` | {EXPORTS[name].TRAINERS} | `{shown}` |" in README


def test_every_format_is_named_where_a_run_takes_it() -> None:
    told = CliRunner().invoke(app, ["label", "--help"], terminal_width=1000).output
    for name in FORMATS:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", told), name


def test_every_exit_code_is_documented() -> None:
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    assert codes <= listed


def test_every_recipe_is_listed() -> None:
    for name in builtins("configs"):
        family, method = name.split("/")
        default = {"expand": "self-instruct", "label": "answer"}.get(family) == method
        if load_recipe(name).seed_free:
            assert f"kdgen {family} --method {method}`" in README, name
            continue
        assert (f"kdgen {family} SEEDS`" if default else f"kdgen {family} SEEDS --method {method}`") in README, name
