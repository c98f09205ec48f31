"""Programs that teachers write, in whole runs: where they cannot be isolated nothing is sent, none runs twice, each end has its reason."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server import published, write_seeds

from kdgen.config import load_recipe
from kdgen.errors import UserError
from kdgen.sandbox import box as boxes
from kdgen.sandbox.box import Outcome, Sandbox
from kdgen.stages.program import near_answer
from kdgen.teachers.local import cpus
from kdgen.teachers.scripted import ScriptedWire


def isolated() -> bool:
    """Whether programs can be isolated here."""
    try:
        Sandbox().ready()
    except UserError:
        return False
    return True


needs_walls = pytest.mark.skipif(not isolated(), reason="programs cannot be isolated here")
FREE = ("--set", "sandbox.isolation=none")
SEEDS = [{"id": name, "instruction": f"Question {name}?"} for name in "abcd"]


def block(source: str) -> str:
    return f"So.\n```python\n{source}\n```"


@pytest.fixture
def program(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen label --method program` over SEEDS; the rules answer by question, the last in general."""

    def run(*arguments: str, rules: list[Any], seeds: list[dict[str, Any]] = SEEDS, method: str = "program") -> Any:
        write_seeds(tmp_path / "s.jsonl", seeds)
        asked = (
            "label",
            "s.jsonl",
            "-m",
            method,
            "-t",
            script(*rules),
            "-o",
            "out",
            "--ledger",
            "l.db",
            "--json",
            "-q",
        )
        return kdgen(*asked, *arguments)

    return run


ALONE = ("--set", "stages.0={stage: label, method: program, prompt: label/program}")
PRINTS = [{"regex": r"(?s)Question (\w)\?.*", "reply": block(r"print('it is \1')")}]


def rows(folder: Path, name: str = "records.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which no namespace can be had."""
    said = 'print(\'{"error": "unshare : not permitted"}\')'
    monkeypatch.setattr(boxes, "_jail", lambda: [sys.executable, "-c", said])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    boxes._mode.cache_clear()
    yield
    boxes._mode.cache_clear()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the scripted teacher is asked."""
    seen: list[Any] = []
    plain = ScriptedWire.send

    async def spy(self: ScriptedWire, request: Any) -> Any:
        seen.append(json.loads(request.body))
        return await plain(self, request)

    monkeypatch.setattr(ScriptedWire, "send", spy)
    return seen


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that are run, in place of running them: each prints its length."""
    seen: list[str] = []

    async def run(self: Sandbox, source: str, stdin: str = "", files: Any = None) -> Outcome:
        seen.append(source)
        return Outcome("ok", 0, f"{len(source)}\n", "")

    monkeypatch.setattr(Sandbox, "run", run)
    return seen


@pytest.mark.parametrize("method", ["program", "tora"])
def test_where_programs_cannot_be_isolated_nothing_is_sent(
    nowhere: None, program: Callable[..., Any], sent: list[Any], method: str
) -> None:
    said = program(rules=PRINTS, method=method)
    assert said.code == 2 and "programs cannot be isolated here" in said.err and "sandbox.isolation to none" in said.err
    assert sent == []


def test_check_and_doctor_say_so_too(nowhere: None, kdgen: Callable[..., Any]) -> None:
    said = kdgen("check", "label/program")
    assert said.code == 0 and "sandbox: programs cannot be isolated here" in said.out
    assert "isolated" not in kdgen("check", "label/answer").out
    assert "warn  sandbox" in kdgen("doctor").out


def test_what_ran_before_needs_no_sandbox_and_no_program_runs_twice(
    program: Callable[..., Any], ran: list[str], sent: list[Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert program(*ALONE, rules=PRINTS).code == 0
    assert (len(ran), len(sent)) == (4, 4)
    before = published(tmp_path / "out", card=True)
    request.getfixturevalue("nowhere")
    assert program(*ALONE, rules=PRINTS).code == 0
    assert published(tmp_path / "out", card=True) == before and (len(ran), len(sent)) == (4, 4)
    boxes._mode.cache_clear()
    changed = [*SEEDS[:3], {"id": "d", "instruction": "Question e?"}]
    assert program(*ALONE, *FREE, rules=PRINTS, seeds=changed).code == 0
    assert len(sent) == 5, "one changed seed asks again only about itself"
    assert len(ran) == 8, "in another sandbox a program may end otherwise"


def test_a_plan_runs_nothing(kdgen: Callable[..., Any], ran: list[str], tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [{**SEEDS[0], "output": "7"}])
    for method in ("program", "tora"):
        said = kdgen("plan", f"label/{method}", "s.jsonl", "--json", "--ledger", "none.db")
        assert said.code == 0 and json.loads(said.out)["rows"] == 1, said.err
    assert ran == []


def test_as_many_run_at_once_as_there_are_cpus(program: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = 0, 0

    async def run(self: Sandbox, source: str, stdin: str = "", files: Any = None) -> Outcome:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return Outcome("ok", 0, source, "")

    monkeypatch.setattr(Sandbox, "run", run)
    many = [{"id": str(n), "instruction": f"Question {n}?"} for n in range(40)]
    assert (
        program(
            *ALONE, *FREE, rules=[{"regex": r"(?s)Question (\d+)\?.*", "reply": block(r"print(\1)")}], seeds=many
        ).code
        == 0
    )
    assert most == cpus()


HOSTILE = {
    "program_failed": "raise ValueError('no')",
    "program_timeout": "while True: pass",
    "program_memory": "x = bytearray(10 << 30)",
    "program_output": "while True: print('x' * 1000)",
    "program_processes": "import os\nwhile True: os.fork()",
    "program_killed": "import os; os.kill(os.getpid(), 11)",
    "program_silent": "x = 3",
    "program_silent: it printed None": "print(print(end=''))",
}
BLOCKED = {
    "a socket": "import socket; socket.create_connection(('192.0.2.1', 80), 2)",
    "a name": "import socket; socket.getaddrinfo('example.org', 80)",
    "a page": "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
    "a file": "open('/usr/new', 'w')",
    "another user": "import os; os.setuid(0)",
}


@needs_walls
@pytest.mark.parametrize("name", [*HOSTILE, *BLOCKED])
def test_each_end_of_a_program_has_its_reason(program: Callable[..., Any], tmp_path: Path, name: str) -> None:
    source = HOSTILE.get(name) or BLOCKED[name]
    reason, _, detail = name.partition(": ") if name in HOSTILE else ("program_blocked", "", "")
    rules = [{"contains": "Question a", "reply": block(source)}, block("print(1)")]
    limits = ("--set", "sandbox.cpu=1", "--set", "sandbox.memory=192")
    said = program(*ALONE, *limits, rules=rules, seeds=SEEDS[:2])
    assert said.code == 0, said.err
    (reject,) = rows(tmp_path / "out", "rejects.jsonl")
    assert (reject["reason"], len(reject["calls"])) == (reason, 1) and detail in reject["detail"] != "", reject


def test_a_machine_without_room_ends_the_run(program: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "_jail", lambda: [sys.executable, "-c", 'print(\'{"error": "no memory"}\')'])
    said = program(*ALONE, *FREE, rules=PRINTS)
    assert said.code == 3 and "the sandbox could not run a program: no memory" in said.err


@pytest.mark.parametrize(
    ("recipe", "sets", "cause"),
    [
        ("label/answer", ["sandbox.cpu=2"], "sandbox has no effect"),
        ("label/program", ["stages.0={stage: label, method: program, prompt: label/program, thoughts: both}"], "thoughts has no effect"),
        ("label/tora", ["stages.0.prompt=label/rationale"], "does not show what a program printed"),
        ("label/program", ["sandbox.wall=0"], "greater than 0"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_an_error(
    kdgen: Callable[..., Any], recipe: str, sets: list[str], cause: str
) -> None:
    said = kdgen("check", recipe, *[part for each in sets for part in ("--set", each)])
    assert said.code == 2 and cause in said.err


def test_a_python_is_found_from_the_recipe(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    text = kdgen("recipes", "show", "label/program").out
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/mine.yaml").write_text(text + "sandbox: {python: ../venv/bin/python}\n")
    assert Path(load_recipe("./deep/mine.yaml").sandbox.python).resolve() == tmp_path / "venv/bin/python"


@pytest.mark.parametrize(
    ("thoughts", "calls", "ways"),
    [("both", 4, ["program", "thought", "thought"]), ("fallback", 3, ["program", "thought"])],
)
def test_thoughts_beside_programs_or_in_their_place(
    program: Callable[..., Any], tmp_path: Path, thoughts: str, calls: int, ways: list[str]
) -> None:
    rules = [
        {"regex": "(?s)Question a.*First explain", "reply": "It is seven.\nAnswer: 7"},
        {"regex": "(?s)Question b.*First explain", "reply": "It is eight.\nAnswer: 8"},
        {"contains": "Question a", "reply": block("print(7)")},
        {"contains": "Question b", "reply": block("print(9)")},
    ]
    seeds = [{**SEEDS[0], "output": "7"}, {**SEEDS[1], "output": "8"}]
    said = program(*FREE, "--set", f"stages.0.thoughts={thoughts}", rules=rules, seeds=seeds)
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert made["requests"]["sent"] == calls and made["counts"]["rejects"] == {"disagrees_with_gold": 1}
    kept = rows(tmp_path / "out")
    assert [row["meta"]["way"] for row in kept] == ways and all(row["meta"]["agrees"] for row in kept)
    assert [row["instruction"].endswith("Let's write a program.") for row in kept] == [way == "program" for way in ways]


def test_both_ways_go_into_one_batch(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", SEEDS)
    sets = ("teachers.teacher.mode=batch", f"teachers.teacher.batch_dir={tmp_path / 'files'}", "stages.0.thoughts=both")
    asked = ("label", "s.jsonl", "-m", "program", "-t", "vllm:Qwen3-8B", *FREE)
    said = kdgen(*asked, *[part for each in sets for part in ("--set", each)], "--no-wait", "-q")
    assert said.code == 75, said.err
    (file,) = (tmp_path / "files").glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("28.700000000000003", "28.70", True),
        ("$28.7000000001", "28.70", True),
        ("28.71", "28.70", False),
        ("1,048,576.0", "1048576", True),
        ("0.3333333333", "1/3", False),
        ("nan", "7", False),
        ("3 4", "3", False),
        ("banana", "the banana.", True),
    ],
)
def test_numbers_agree_but_for_floating_point(left: str, right: str, same: bool) -> None:
    assert near_answer(left, right) is same


TALK = [
    {"regex": r"(?s)```output\n42\n```", "reply": "It is 42.\nAnswer: 42"},
    {"contains": "Question", "reply": block("print(6 * 7)") + "\n```output\n43\n```\nAnswer: 43"},
]


def test_the_teacher_is_shown_what_ran_and_not_what_it_said_would_come_out(
    program: Callable[..., Any], sent: list[Any], tmp_path: Path
) -> None:
    seeds = [{"id": "a", "messages": [
        {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Question a?"}, {"role": "assistant", "content": "42"},
    ]}]  # fmt: skip
    said = program(*FREE, rules=TALK, seeds=seeds, method="tora")
    assert said.code == 0, said.err
    first, second = (body["messages"] for body in sent)
    assert second[: len(first)] == first, "a server's prefix cache has the first turn"
    assert [turn["role"] for turn in second] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert second[4]["content"] == block("print(6 * 7)") and "```output\n42\n```" in second[5]["content"]
    assert "43" not in json.dumps(second)
    (row,) = rows(tmp_path / "out", "data.jsonl")
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "user", "assistant", "tool", "assistant"]
    assert [turn["content"] for turn in row["messages"][-2:]] == ["42", "It is 42.\nAnswer: 42"]
    assert program(*FREE, "-f", "alpaca", rules=TALK, seeds=seeds, method="tora").code == 5, "no place for tools there"
    assert program(*FREE, "-f", "sharegpt", rules=TALK, seeds=seeds, method="tora").code == 0
    (row,) = rows(tmp_path / "out", "data.jsonl")
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt", "human", "gpt", "observation", "gpt"]


def test_a_conversation_ends_after_its_rounds(program: Callable[..., Any], sent: list[Any], tmp_path: Path) -> None:
    rules = [{"contains": "Question", "reply": block("print(1)")}]
    said = program(*FREE, "--set", "stages.0.rounds=2", rules=rules, seeds=SEEDS[:1], method="tora")
    assert said.code == 5 and len(sent) == 3 + 1 and "no last line" in said.err
    assert "No more programs" in sent[2]["messages"][-1]["content"]


def reply(solution: str, tests: str) -> str:
    return f"[Problem]\nSay {{digest}}.\n\n[Solution]\n```python\n{solution}\n```\n\n[Tests]\n```python\n{tests}\n```\n"


PASSES = reply("def f(x):\n    return x", "assert f(1) == 1\nassert f(2) == 2\nassert f(3) == 3")
CODE = [{"id": name, "text": "\n".join(f"{name}{n} = {n}" for n in range(40))} for name in "pqr"]


@pytest.fixture
def curate(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen curate --method oss-instruct` over CODE, unisolated."""

    def run(*sets: str, rules: list[Any], seeds: list[dict[str, Any]] = CODE) -> Any:
        write_seeds(tmp_path / "c.jsonl", seeds)
        knobs = [part for each in ("sandbox.isolation=none", "dedupe=[]", *sets) for part in ("--set", each)]
        asked = ("curate", "c.jsonl", "-m", "oss-instruct", "-t", script(*rules), "-o", "out", "--ledger", "c.db")
        return kdgen(*asked, *knobs, "--json", "-q")

    return run


def test_snippets_stay_where_they_are_when_a_seed_is_added(curate: Callable[..., Any], tmp_path: Path) -> None:
    assert json.loads(curate("stages.0.n=6", rules=[PASSES], seeds=CODE[:2]).out)["requests"]["sent"] == 12
    before = {(row["seeds"][0], row["meta"]["nth"]): row for row in rows(tmp_path / "out")}
    assert json.loads(curate("stages.0.n=6", rules=[PASSES]).out)["requests"]["sent"] == 6
    after = {(row["seeds"][0], row["meta"]["nth"]): row for row in rows(tmp_path / "out")}
    assert len(after) == 18 and {key: after[key] for key in before} == before
    again = published(tmp_path / "out", card=True)
    assert json.loads(curate("stages.0.n=6", rules=[PASSES]).out)["requests"]["sent"] == 0
    assert published(tmp_path / "out", card=True) == again
    sources = {seed["id"]: seed["text"].splitlines() for seed in CODE}
    sizes = set()
    for (seed, _), row in after.items():
        first, last = row["meta"]["lines"]
        assert row["meta"]["snippet"].splitlines() == sources[seed][first - 1 : last]
        sizes.add(last - first + 1)
        assert (row["text"], row["parents"]) == ("", [seed])
    assert min(sizes) >= 1 and max(sizes) <= 15 and len(sizes) > 4


CHEATS = {
    "ends early": (reply("import os\nos._exit(0)", "assert f(1)\nassert f(2)\nassert f(3)"), "tests_not_run"),
    "says that all is well": (
        reply("print('all tests passed')\nraise SystemExit", "assert f(1)\nassert f(2)\nassert f(3)"),
        "tests_not_run",
    ),
    "tests its own copy": (
        reply("def f(x):\n    return x", "def f(x):\n    return x\nassert f(1)\nassert f(2)\nassert f(3)"),
        "tests_check_nothing",
    ),
    "tests nothing": (reply("def f(x):\n    return x", "assert True\nassert 1\nassert 2"), "tests_check_nothing"),
    "is wrong": (reply("def f(x):\n    return x", "assert f(1)\nassert f(2)\nassert f(3) == 4, 'no'"), "tests_failed"),
    "does not end": (reply("def f(x):\n    while True: x += 1", "assert f(1)\nassert f(2)\nassert f(3)"), "program_timeout"),
    "is no Python": (reply("function f(x) { return x }", "assert f(1)\nassert f(2)\nassert f(3)"), "program_failed"),
    "has no tests": ("[Problem]\nSay so.\n[Solution]\n```python\nx = 1\n```\n", "invalid_output"),
    "is out of order": ("[Tests]\n[Solution]\n[Problem]\n", "invalid_output"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_a_solution_that_has_not_passed_tests_of_its_own_is_a_reject(
    curate: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    text, reason = CHEATS[name]
    seeds = [{"id": "bad", "text": "bad = 1"}, {"id": "good", "text": "good = 1"}]
    said = curate("sandbox.cpu=1", rules=[{"contains": "bad = 1", "reply": text}, PASSES], seeds=seeds)
    assert said.code == 0, said.err
    (reject,) = rows(tmp_path / "out", "rejects.jsonl")
    assert (reject["reason"], reject["seeds"], len(reject["calls"])) == (reason, ["bad"], 1), reject
    if name == "is wrong":
        assert reject["detail"] == "assert f(3) == 4, 'no'"
