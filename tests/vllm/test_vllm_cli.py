"""The command line with the engine in its process: vLLM's workers start, stdout stays data, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("kdgen")
STARTS = {"module": [sys.executable, "-m", "kdgen"], "script": [str(SCRIPT)]}


@pytest.fixture
def arguments(model: str, tmp_path: Path) -> list[str]:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"instruction": f"What is {n} and {n}?"}) + "\n" for n in range(3)))
    sets = {"max_tokens": 40, "engine": '{"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": true}'}
    chosen = [part for name, value in sets.items() for part in ("--set", f"teachers.teacher.{name}={value}")]
    ledger = ["--ledger", str(tmp_path / "ledger.db")]
    return ["label", str(seeds), "-t", f"vllm:{model}", *chosen, *ledger]


def family(session: int) -> list[str]:
    """The command lines of the running processes of one session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (path / "stat").read_text().rpartition(") ")[2].split()[:4]
            text = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(own) == session and state != "Z":
            found.append(text)
    return found


def gone(session: int) -> bool:
    """Whether a session has no process left, a few seconds after its leader ended."""
    for _ in range(100):
        if not family(session):
            return True
        time.sleep(0.1)
    return False


Start = Callable[[list[str]], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command in a session of its own, where Ctrl-C reaches it and what it starts; it ends with the test."""
    with ExitStack() as stack:

        def run(command: list[str]) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            made = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
            stack.enter_context(made)
            stack.callback(lambda: family(made.pid) and os.killpg(made.pid, signal.SIGKILL))
            return made

        yield run


@pytest.mark.parametrize("how", STARTS)
def test_a_run(how: str, start: Start, arguments: list[str]) -> None:
    began = time.monotonic()
    process = start([*STARTS[how], *arguments, "-o", "-"])
    out, talk = process.communicate(timeout=900)
    print(f"\n{how}: {time.monotonic() - began:.1f} s")
    assert process.returncode == 0, talk[-3000:]
    assert [json.loads(line) for line in out.splitlines()] and "Traceback" not in talk, talk[-3000:]
    assert gone(process.pid), family(process.pid)


def test_ctrl_c_while_it_answers(start: Start, arguments: list[str]) -> None:
    """What the engine spawned does not see the signal, so that replies on their way arrive."""
    more = {"extra": "{ignore_eos: true}", "max_tokens": 900}
    slow = [part for name, value in more.items() for part in ("--set", f"teachers.teacher.{name}={value}")]
    process = start([*STARTS["module"], *arguments, *slow, "-o", "out"])
    assert process.stderr is not None
    began = time.monotonic()
    for line in process.stderr:  # the weights are loaded: it is about to answer
        if "100% Completed" in line:
            break
    time.sleep(0.3 * (time.monotonic() - began))
    assert any("EngineCore" in each for each in family(process.pid)), family(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, talk = process.communicate(timeout=300)
    assert process.returncode == 130 and "SIGINT" in talk and "EngineDead" not in talk, talk[-3000:]
    assert gone(process.pid), family(process.pid)


def test_ctrl_c_while_it_loads(start: Start, arguments: list[str]) -> None:
    process = start([*STARTS["module"], *arguments, "-o", "out"])
    while len(family(process.pid)) < 3 and process.poll() is None:  # itself, multiprocessing's tracker, the engine
        time.sleep(0.1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, talk = process.communicate(timeout=300)
    assert process.returncode == 130, talk[-3000:]
    assert gone(process.pid), family(process.pid)


def test_nothing_outlives_a_run_that_is_killed(start: Start, arguments: list[str]) -> None:
    process = start([*STARTS["module"], *arguments, "-o", "out"])
    assert process.stderr is not None
    for line in process.stderr:
        if "100% Completed" in line:
            break
    assert any("EngineCore" in each for each in family(process.pid)), family(process.pid)
    process.kill()
    assert gone(process.pid), family(process.pid)
