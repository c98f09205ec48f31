"""Bad input: one clear error with file and line, exit code 2, nothing sent, nothing written."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import ACK

GOOD = '{"instruction": "Name a colour."}\n'
RECIPE = """name: mine
teachers:
  teacher: {provider: scripted, path: teacher.rules.jsonl}
stages:
  - {stage: label, method: answer, prompt: label/answer}
"""
PROMPT = "---\nabout: x\nvariables: {instruction: the task}\n---\n[[user]]\n{{ instruction }}\n"


def calls(folder: Path) -> int:
    book = folder / "ledger.db"
    if not book.exists():
        return 0
    with sqlite3.connect(book) as db:
        return int(db.execute("SELECT count(*) FROM calls").fetchone()[0])


def refused(said: Any, folder: Path, *parts: str) -> None:
    assert said.code == 2, said
    assert said.err.startswith("error: ") and "Traceback" not in said.err
    for part in parts:
        assert part in said.err, f"{part!r} is not in:\n{said.err}"
    assert calls(folder) == 0
    assert not (folder / "out" / "data.jsonl").exists()


SEEDS: list[tuple[str, str, bytes, tuple[str, ...]]] = [
    ("invalid_json", "s.jsonl", GOOD.encode() + b'{"instruction": "x"\n', ("s.jsonl:2", "invalid JSON")),
    (
        "invalid_utf8",
        "s.jsonl",
        GOOD.encode() + b'{"instruction": "caf\xe9"}\n',
        ("s.jsonl:2", "invalid UTF-8", "UTF-8"),
    ),
    ("utf16", "s.jsonl", GOOD.encode("utf-16"), ("s.jsonl:1", "UTF-16")),
    ("empty", "s.jsonl", b"", ("s.jsonl", "no seed")),
    ("blank_lines", "s.jsonl", b"\n \n", ("s.jsonl", "no seed")),
    ("no_text", "s.jsonl", GOOD.encode() + b'{"instruction": "  "}\n', ("s.jsonl:2", "no text")),
    ("no_column", "s.jsonl", b'{"Instruction": "x"}\n', ("s.jsonl:1", "did you mean instruction")),
    ("unknown_column", "s.jsonl", b'{"foo": "x"}\n', ("s.jsonl:1", "--map instruction=COLUMN")),
    ("nan", "s.jsonl", GOOD.encode() + b'{"instruction": "x", "score": NaN}\n', ("s.jsonl:2", "NaN is not JSON")),
    ("infinity", "s.jsonl", b'{"instruction": "x", "score": -Infinity}\n', ("s.jsonl:1", "Infinity")),
    ("duplicate_ids", "s.jsonl", b'{"id": 1, "text": "a"}\n\n{"id": 1, "text": "b"}\n', ("s.jsonl:3", "line 1")),
    ("not_an_object", "s.jsonl", b'["x"]\n', ("s.jsonl:1", "not a JSON object")),
    ("a_number", "s.jsonl", b'{"instruction": 7}\n', ("s.jsonl:1", "instruction is a number")),
    (
        "no_user_turn",
        "s.jsonl",
        b'{"messages": [{"role": "assistant", "content": "x"}]}\n',
        ("s.jsonl:1", "no user turn"),
    ),
    ("bad_turn", "s.jsonl", b'{"messages": [{"role": "robot", "content": "x"}]}\n', ("s.jsonl:1", "turn 1")),
    (
        "big_number",
        "s.jsonl",
        b'{"instruction": "x", "n": 99999999999999999999}\n',
        ("s.jsonl:1", "'n' is beyond 64", "quotes"),
    ),
    (
        "big_number_below",
        "s.jsonl",
        b'{"instruction": "x", "n": [{"a": -9223372036854775809}]}\n',
        ("s.jsonl:1", "'n' is beyond"),
    ),
    ("big_id", "s.jsonl", b'{"instruction": "x", "id": 99999999999999999999}\n', ("s.jsonl:1", "'id' is beyond 64")),
    (
        "big_in_json",
        "s.json",
        b'[{"instruction": "x"}, {"instruction": "y", "n": 18446744073709551616}]',
        ("row 2", "'n' is beyond"),
    ),
    (
        "deep",
        "s.jsonl",
        b'{"instruction": "x", "id": "a", "n": ' + b"[" * 252 + b"]" * 252 + b"}\n",
        ("s.jsonl:1", "nested deeper"),
    ),
    ("csv_cells", "s.csv", b"instruction,input\nx,y\nz\n", ("s.csv:3", "1 cells")),
    ("csv_utf8", "s.csv", b"instruction\ncaf\xe9\n", ("s.csv", "UTF-8")),
    ("json_syntax", "s.json", b'[{"instruction": "x"},\n{]', ("s.json:2",)),
    ("suffix", "s.docx", b"x", ("s.docx", "not read")),
]


@pytest.mark.parametrize(("name", "content", "parts"), [case[1:] for case in SEEDS], ids=[case[0] for case in SEEDS])
def test_bad_seeds(
    label: Callable[..., Any], tmp_path: Path, name: str, content: bytes, parts: tuple[str, ...]
) -> None:
    refused(label(name, content), tmp_path, *parts)


def test_a_line_of_50_mb(label: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(
        GOOD.encode() + b'{"instruction": "' + b"x" * 50_000_000 + b'"}\n' + GOOD.encode()
    )
    refused(label("s.jsonl"), tmp_path, "s.jsonl:2", "50 MB")
    said = label("s.jsonl", None, "--on-bad-seed", "skip")
    assert said.code == 0
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert sorted(reasons) == ["bad_seed", "duplicate_seed"]


def test_bom_and_crlf_are_no_mistakes(label: Callable[..., Any], tmp_path: Path) -> None:
    plain = '{"instruction": "Name a colour."}\n{"instruction": "Name a bird."}\n'
    label("s.jsonl", plain)
    rows = (tmp_path / "out/records.jsonl").read_bytes()
    assert label("s.jsonl", b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode()).code == 0
    assert (tmp_path / "out/records.jsonl").read_bytes() == rows


def test_skip_makes_rejects_with_file_and_line(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", GOOD + "{oops\n" + '{"foo": 1}\n', "--on-bad-seed", "skip", "--json")
    counts = json.loads(said.out)["counts"]
    assert said.code == 0 and counts["seeds"] == 3 and counts["rejects"] == {"bad_seed": 2} and counts["rows"] == 1
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert "s.jsonl:2" in rejects[0]["detail"] and "s.jsonl:3" in rejects[1]["detail"]


OPTIONS: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("missing_mapped_column", ("--map", "instruction=task"), ("s.jsonl:1", "no column 'task'")),
    ("map_unknown_field", ("--map", "instructoin=task"), ("--map", "did you mean instruction")),
    ("bad_skip", ("--on-bad-seed", "ignore"), ("--on-bad-seed",)),
    ("format", ("--format", "alpacca"), ("--format", "did you mean alpaca")),
    ("set_no_value", ("--set", "seed"), ("--set", "key.path=value")),
    ("set_unknown", ("--set", "stages.0.promt=x"), ("--set stages.0.promt", "did you mean prompt")),
    ("set_index", ("--set", "stages.7.to=x"), ("--set stages.7.to", "1 items")),
    ("set_type", ("--set", "target=many"), ("--set target", "integer")),
    ("provider", ("-t", "opennai:x"), ("--teacher", "did you mean openai")),
    ("no_model", ("-t", "openai:"), ("--teacher", "names no model")),
    ("role", ("-t", "judge=local"), ("--teacher", "no role 'judge'")),
    ("no_script", ("-t", "scripted:none.jsonl"), ("none.jsonl", "cannot read")),
    ("param", ("--set", "stages.0.params.effort=high", "-t", "local"), ("does not take effort", "unsupported=drop")),
    ("no_batches", ("--set", "teachers.teacher.mode=batch"), ("has no batches",)),
    ("map_is_a_second_task", ("--map", "output=gold"), ("s.jsonl:1", "no column 'gold'")),
    ("no_wait", ("--no-wait",), ("--no-wait", "no teacher of this recipe is asked through batches")),
    ("max_wait", ("--max-wait", "9"), ("--max-wait", "no teacher of this recipe is asked through batches")),
    (
        "batch_dir",
        ("-t", "vllm:Qwen3-8B@http://127.0.0.1:9/v1", "--set", "teachers.teacher.batch_dir=x"),
        ("batch_dir has no effect online",),
    ),
    ("two_outputs", ("-o", "-", "--json"), ("both want stdout",)),
    ("method", ("--method", "anser"), ("--method", "did you mean answer")),
    ("stage_role", ("--set", "stages.0.to=judge"), ("asks 'judge'", "teachers has: teacher")),
]


@pytest.mark.parametrize(("options", "parts"), [case[1:] for case in OPTIONS], ids=[case[0] for case in OPTIONS])
def test_bad_options(
    label: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (tmp_path / "out-of-it").mkdir()
    said = label("s.jsonl", GOOD, *options)
    refused(said, tmp_path, *parts)
    assert "secret" not in said.err


RECIPES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("top_key", "stages:", "stagse: []\nstages:", ("mine.yaml:4", "unknown key 'stagse'", "did you mean stages")),
    ("stage_key", "prompt:", "exsting: keep, prompt:", ("mine.yaml:5", "did you mean existing")),
    ("teacher_key", "path:", "temprature: 1, path:", ("mine.yaml:3", "did you mean temperature")),
    ("method", "method: answer", "method: anwser", ("mine.yaml:5", "did you mean label/answer")),
    ("provider", "scripted", "scriptd", ("mine.yaml:3", "scripted")),
    ("twice", "name: mine", "name: mine\nname: other", ("mine.yaml:2", "stands twice")),
    ("broken", "name: mine", "name: [mine", ("mine.yaml:", "YAML is broken")),
    ("no_stage", "stages:\n  - {stage: label, method: answer, prompt: label/answer}\n", "", ("stages is missing",)),
    ("no_prompt", "label/answer}", "label/anser}", ("did you mean label/answer",)),
    ("value", "provider: scripted", "provider: scripted, temperature: 9", ("mine.yaml:3", "less than or equal to 2")),
    (
        "team_of_text",
        "{provider: scripted, path: teacher.rules.jsonl}",
        "scripted",
        ("mine.yaml:3", "a mapping belongs here"),
    ),
    ("filter", "name: mine", "name: mine\nfilters: [{filter: lenght}]", ("mine.yaml:2", "did you mean length")),
]


@pytest.mark.parametrize(("old", "new", "parts"), [case[1:] for case in RECIPES], ids=[case[0] for case in RECIPES])
def test_bad_recipes(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    script()
    (tmp_path / "s.jsonl").write_text(GOOD)
    (tmp_path / "mine.yaml").write_text(RECIPE.replace(old, new))
    for command in (("run", "./mine.yaml", "--seeds", "s.jsonl", "-o", "out"), ("check", "./mine.yaml")):
        refused(kdgen(*command), tmp_path, *parts)


@pytest.mark.parametrize("given", ["scripted", "", "{}", "[a]"])
def test_a_teacher_takes_the_place_of_what_is_none(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path, given: str
) -> None:
    (tmp_path / "s.jsonl").write_text(GOOD)
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("{provider: scripted, path: teacher.rules.jsonl}", given))
    said = kdgen("run", "./mine.yaml", "--seeds", "s.jsonl", "-o", "out", "--ledger", "ledger.db", "-t", script())
    assert said.code == 0, said.err


def test_a_role_may_have_a_hyphen(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(GOOD)
    (tmp_path / "mine.yaml").write_text(
        RECIPE.replace("teacher:", "my-judge:").replace("label/answer}", "label/answer, to: my-judge}")
    )
    asked = ("run", "./mine.yaml", "--seeds", "s.jsonl", "-o", "out", "--ledger", "ledger.db", "-t")
    assert kdgen(*asked, f"my-judge={script(name='a=b')}").code == 0
    refused(
        kdgen(*asked, "my-jugde=local", "-o", "other"),
        tmp_path / "other",
        "no role 'my-jugde'",
        "the recipe has: my-judge",
    )


SCRIPTS = [
    ("group", {"regex": "x", "reply": "\\1"}, "t.jsonl:2: reply: invalid group reference 1"),
    ("name", {"regex": "x", "reply": "\\g<n>"}, "t.jsonl:2: reply: unknown group name 'n'"),
    ("escape", {"regex": "x", "reply": "\\d"}, "t.jsonl:2: reply: bad escape"),
]


@pytest.mark.parametrize(("rule", "part"), [case[1:] for case in SCRIPTS], ids=[case[0] for case in SCRIPTS])
def test_bad_scripts(label: Callable[..., Any], tmp_path: Path, rule: dict[str, str], part: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"contains": "y", "reply": "\\\\1"}\n' + json.dumps(rule) + "\n")
    refused(label("s.jsonl", GOOD, "-t", "scripted:t.jsonl"), tmp_path, part)


PROMPTS: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("undeclared", "{{ instruction }}", "{{ instruction }} {{ inptu }}", ("p.md:6", "uses 'inptu'")),
    ("unused", "{instruction: the task}", "{instruction: x, input: y}", ("p.md:3", "declares 'input'")),
    ("not_given", "instruction", "instructoin", ("p.md", "asks for 'instructoin'", "did you mean instruction")),
    ("syntax", "{{ instruction }}", "{{ instruction }", ("p.md:6", "template is broken")),
    ("no_front", PROMPT, "hello", ("p.md:1", "front matter")),
    ("front_key", "about: x", "abuot: x", ("p.md:2", "did you mean about")),
    ("no_role", "[[user]]\n", "", ("p.md:5", "[[user]]")),
]


@pytest.mark.parametrize(("old", "new", "parts"), [case[1:] for case in PROMPTS], ids=[case[0] for case in PROMPTS])
def test_bad_prompts(label: Callable[..., Any], tmp_path: Path, old: str, new: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "p.md").write_text(PROMPT.replace(old, new))
    refused(label("s.jsonl", GOOD, "--set", "stages.0.prompt=./p.md"), tmp_path, *parts)


def test_a_verb_whose_method_is_not_said(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(GOOD)
    refused(kdgen("curate", "s.jsonl"), tmp_path, "say how to curate", "--method", "dialogue")
    refused(kdgen("self", "s.jsonl"), tmp_path, "say how to self", "--method", "star")
    refused(kdgen("feature", "s.jsonl"), tmp_path, "say how to feature", "--method", "logprobs")


def test_seed_text_is_never_a_template(label: Callable[..., Any], tmp_path: Path) -> None:
    assert label("s.jsonl", '{"instruction": "{{ 7 * 7 }} {% for %}"}\n').code == 0
    assert json.loads((tmp_path / "out/data.jsonl").read_text())["messages"][0]["content"] == "{{ 7 * 7 }} {% for %}"


def test_a_folder_with_other_files_is_left_alone(label: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    refused(label("s.jsonl", GOOD), tmp_path, "holds other files")
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


def test_a_key_is_needed_only_to_ask(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(GOOD)
    said = kdgen("label", "s.jsonl", "-t", "openai:gpt-x", *ACK, "-o", "out", "--ledger", "ledger.db")
    refused(said, tmp_path, "OPENAI_API_KEY is not set", "--teacher local")


def test_no_accepted_row_publishes_nothing(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", GOOD, "--set", "filters=[{filter: length, min_words: 99}]")
    assert said.code == 5 and "no row was accepted: 1 too_short" in said.err
    assert not (tmp_path / "out/data.jsonl").exists()
