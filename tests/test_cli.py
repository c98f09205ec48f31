"""The command line: exit codes, data on stdout and talk on stderr, and that the ledger answers without a key."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import server
import yaml
from server import ACK, FakeWire, leftovers

import kdgen as package
from kdgen.resources import builtins
from kdgen.teachers.openai import OpenAI

SEEDS = '{"instruction": "Name a river."}\n{"instruction": "Name a lake."}\n'
VERBS = ("label", "expand", "curate", "feature", "feedback", "self")
COMMANDS = (*VERBS, "run", "check", "recipes", "teachers")


def calls(ledger: Path) -> int:
    with closing(sqlite3.connect(ledger)) as db:
        return int(db.execute("SELECT count(*) FROM calls").fetchone()[0])


def test_version_and_help(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    assert kdgen("--version") == (0, f"kdgen {package.__version__}\n", "")
    for flag in ("--help", "-h"):
        said = kdgen(flag)
        assert said.code == 0 and said.err == "" and all(f"  {name} " in said.out for name in COMMANDS)
        assert "Exit codes: 0 done" in said.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(kdgen: Callable[..., Any], name: str) -> None:
    said = kdgen(name, "--help")
    assert said.code == 0 and said.err == "" and said.out.startswith("Usage: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("label", "s.jsonl", "--nosuch"),
        ("label", "s.jsonl", "--limit", "0"),
        ("recipes", "show"),
    ],
)
def test_wrong_usage_is_the_users_mistake(
    kdgen: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    said = kdgen(*arguments)
    assert said.code == 2 and said.out == "" and "Error: " in said.err and list(tmp_path.iterdir()) == []


def test_a_verb_without_seeds_says_where_they_come_from(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    said = kdgen("label")
    assert said.code == 2 and "names no seeds" in said.err and "hint: SEEDS after the verb" in said.err
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_listed_and_shown(kdgen: Callable[..., Any]) -> None:
    said = kdgen("recipes")
    assert said.code == 0 and said.err == ""
    assert [line.split()[0] for line in said.out.splitlines()] == list(builtins("configs"))
    for name, path in builtins("configs").items():
        assert kdgen("recipes", "show", name) == (0, path.read_text(), "")
    said = kdgen("recipes", "show", "label/anser")
    assert said.code == 2 and said.out == "" and "did you mean label/answer" in said.err


def test_a_recipe_that_was_shown_runs_as_a_file(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "s.jsonl").write_text(SEEDS)
    (tmp_path / "own.yaml").write_text(kdgen("recipes", "show", "label/answer").out)
    base = ("--seeds", "s.jsonl", "-t", script(), "--ledger", "l.db", "-q")
    assert kdgen("run", "own.yaml", *base, "-o", "a").code == 0
    assert kdgen("run", "label/answer", *base, "-o", "b").code == 0
    assert (tmp_path / "a/data.jsonl").read_bytes() == (tmp_path / "b/data.jsonl").read_bytes()
    assert calls(tmp_path / "l.db") == 2


def test_check_says_what_is_there(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> None:
    said = kdgen("check")
    assert said.code == 0 and said.err == ""
    assert [line.split()[1].rstrip(":") for line in said.out.splitlines() if line.startswith("ok")] == list(
        builtins("configs")
    )
    (tmp_path / "s.jsonl").write_text(SEEDS + SEEDS)
    said = kdgen("check", "label/answer", "--seeds", "s.jsonl", "-t", script())
    assert said.out.startswith("ok  label/answer: 1 stages, teachers: teacher = scripted:")
    assert said.out.endswith(", 4 seeds (2 not usable)\n")
    said = kdgen("check", "label/answer", "-t", "openai:gpt-x")
    assert said.code == 0 and "OPENAI_API_KEY is not set" in said.out
    (tmp_path / "s.jsonl").write_text("{\n")
    said = kdgen("check", "label/answer", "--seeds", "s.jsonl")
    assert said.code == 2 and "s.jsonl:1: invalid JSON" in said.err
    assert not (tmp_path / "out").exists() and not (tmp_path / ".kdgen").exists()


def test_teachers_are_listed(kdgen: Callable[..., Any]) -> None:
    said = kdgen("teachers")
    assert said.code == 0 and said.err == "" and "scripted:FILE" in said.out
    said = kdgen("teachers", "pull", "nosuch")
    assert said.code == 2 and said.out == "" and "nosuch" in said.err


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_runs_or_says_what_there_is(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path, verb: str
) -> None:
    (tmp_path / "s.jsonl").write_text(SEEDS)
    said = kdgen(verb, "s.jsonl", "-m", "nosuch", "-t", script(), "-o", "out")
    methods = [name.partition("/")[2] for name in builtins("configs") if name.startswith(f"{verb}/")]
    assert said.code == 2 and said.out == "" and "\n  hint: " in said.err and not (tmp_path / "out").exists()
    for method in methods or ("self-instruct", "answer"):
        assert method in said.err


def test_a_run_talks_on_stderr_alone(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", SEEDS)
    assert said.code == 0 and said.out == ""
    assert "2 rows in out/data.jsonl (from 2 seeds, 0 generated, 0 rejected)" in said.err
    assert "2 requests sent, 0 answered by the ledger, 0 failed" in said.err
    again = label("s.jsonl", None)
    assert "0 requests sent, 2 answered by the ledger, 0 failed" in again.err
    assert label("s.jsonl", None, "-q") == (0, "", "")
    assert leftovers(tmp_path / "out") == []


def test_json_is_the_manifest_alone(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", SEEDS, "--json")
    assert said.code == 0
    assert json.loads(said.out) == json.loads((tmp_path / "out/manifest.json").read_text())
    assert "2 rows in" in said.err
    quiet = label("s.jsonl", None, "--json", "-q")
    counted = {"sent": 0, "from_ledger": 2, "from_batches": 0, "failed": 0, "maybe_billed": 0}
    assert json.loads(quiet.out)["requests"] == counted
    assert quiet.err == ""


def test_rows_go_to_stdout_alone(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", SEEDS, "-o", "-")
    assert said.code == 0 and not (tmp_path / "out").exists() and not (tmp_path / "-").exists()
    assert [json.loads(line)["messages"][0]["content"] for line in said.out.splitlines()] == [
        "Name a river.",
        "Name a lake.",
    ]
    assert label("s.jsonl", None).code == 0
    assert said.out == (tmp_path / "out/data.jsonl").read_text()
    assert label("s.jsonl", None, "-o", "-", "-q").err == ""


def test_both_outputs_cannot_have_stdout(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", SEEDS, "-o", "-", "--json")
    assert (
        said.code == 2
        and said.out == ""
        and said.err == "error: -o - and --json both want stdout\n  hint: name a folder with -o DIR\n"
    )
    assert not (tmp_path / "ledger.db").exists()


def test_a_failed_run_leaves_stdout_empty(
    label: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    refusing = script({"reply": "no", "status": 400}, name="refusing")
    for output in ("-", "out"):
        said = label("s.jsonl", SEEDS, "-t", refusing, "-o", output, *(("--json",) if output == "out" else ()))
        assert said.code == 5 and said.out == "" and "no row was accepted: 2 endpoint_refused" in said.err
    assert not (tmp_path / "out/data.jsonl").exists()


def test_options_change_what_is_made(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", SEEDS, "--limit", "1", "--json", "-q")
    assert json.loads(said.out)["counts"]["seeds"] == 1
    said = label("s.jsonl", None, "--target", "1", "--json", "-q")
    manifest = json.loads(said.out)
    assert manifest["counts"]["rows"] == 1 and manifest["stopped"] == "target" and manifest["target"] == 1
    label("s.jsonl", None, "--set", "name=other", "-q", "--format", "sharegpt")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["name"] == "other"
    assert "conversations" in json.loads((tmp_path / "out/data.jsonl").read_text().splitlines()[0])


def test_rows_appear_under_the_recipes_name_without_o(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "s.jsonl").write_text(SEEDS)
    assert kdgen("label", "s.jsonl", "-t", script(), "-q").code == 0
    assert (tmp_path / "out/answer/data.jsonl").is_file() and (tmp_path / ".kdgen/ledger.db").is_file()


def test_a_folder_with_other_files_is_left_alone(label: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    said = label("s.jsonl", SEEDS)
    assert said.code == 2 and f"{Path('out')}: the folder holds other files\n  hint: name an empty" in said.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "ledger.db").exists()
    (tmp_path / "file").write_text("x")
    said = label("s.jsonl", None, "-o", "file")
    assert said.code == 2 and "file: cannot write there" in said.err and (tmp_path / "file").read_text() == "x"


def test_a_ledger_that_is_none(label: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, but more than a few bytes of text" * 99)
    said = label("s.jsonl", SEEDS)
    assert said.code == 2 and "ledger.db: the file is no ledger" in said.err and "hint: name another" in said.err
    assert not (tmp_path / "out/data.jsonl").exists()


def test_openai_needs_a_key_only_for_what_the_ledger_lacks(
    kdgen: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.jsonl").write_text(SEEDS)
    base = ("label", "s.jsonl", "-t", "openai:gpt-4o-mini", *ACK, "-o", "out", "--ledger", "ledger.db", "--json", "-q")
    said = kdgen(*base)
    assert said.code == 2 and said.out == "" and not (tmp_path / "out/data.jsonl").exists()
    assert "OPENAI_API_KEY is not set\n  hint: export OPENAI_API_KEY=" in said.err
    assert calls(tmp_path / "ledger.db") == 0

    wire = FakeWire()
    with monkeypatch.context() as patched:
        patched.setattr(OpenAI, "connect", wire.open)
        patched.setenv("OPENAI_API_KEY", "sk-planted")
        assert kdgen(*base).code == 0
    assert len(wire.requests) == 2
    rows = (tmp_path / "out/data.jsonl").read_bytes()
    said = kdgen(*base)
    assert said.code == 0 and json.loads(said.out)["requests"]["sent"] == 0
    assert (tmp_path / "out/data.jsonl").read_bytes() == rows and wire.opened == 1

    (tmp_path / "s.jsonl").write_text(SEEDS + '{"instruction": "Name a sea."}\n')
    said = kdgen(*base)
    assert said.code == 2 and "OPENAI_API_KEY is not set" in said.err
    assert (tmp_path / "out/data.jsonl").read_bytes() == rows and calls(tmp_path / "ledger.db") == 2


def test_a_bug_is_a_traceback(label: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("kdgen.cli.work.load_iterations", broken)
    with pytest.raises(ZeroDivisionError):
        label("s.jsonl", SEEDS)


def test_as_a_process(tmp_path: Path) -> None:
    """The same streams and exit codes through `python -m kdgen`, and a reader of stdout that goes away."""
    (tmp_path / "s.jsonl").write_text(SEEDS)
    (tmp_path / "t.jsonl").write_text('{"reply": "It is {digest}."}\n')
    base = ("label", "s.jsonl", "-t", "scripted:t.jsonl", "--ledger", "l.db")
    done = server.kdgen(*base, "-o", "-", cwd=tmp_path)
    assert done.returncode == 0 and len([json.loads(line) for line in done.stdout.splitlines()]) == 2
    assert "Traceback" not in done.stderr
    (tmp_path / "s.jsonl").write_text('{"instruction": ""}\n')
    done = server.kdgen(*base, "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "s.jsonl:1: the row has no text" in done.stderr
    assert yaml.safe_load(server.kdgen("recipes", "show", "label/answer", cwd=tmp_path).stdout)["name"] == "answer"
