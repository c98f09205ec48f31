"""A second opinion: aimock, another server that we did not write, with its own faults and its own journal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server import ACK, tasks, write_seeds

from kdgen.teachers.halt import Halt

BIN = Path(sys.executable).parent
CLI = BIN.parent / "node_modules/@copilotkit/aimock/dist/cli.js"
FIXTURES = {"fixtures": [{"match": {"userMessage": ""}, "response": {"content": "It is a bird that sings at night."}}]}
FAULTS = {"drop": 0.06, "malformed": 0.05, "disconnect": 0.05, "ratelimit": 0.08}
KEY = "sk-aimock-0123456789abcdef"

pytestmark = pytest.mark.skipif(not CLI.exists(), reason="aimock is installed by `make test`")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    fixtures = tmp_path / "fixtures.json"
    fixtures.write_text(json.dumps(FIXTURES))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    faults = [part for name, rate in FAULTS.items() for part in (f"--chaos-{name}", str(rate))]
    asked = [str(BIN / "node"), str(CLI), "-p", str(port), "-f", str(fixtures), "--journal-max", "0", *faults]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    with (
        (tmp_path / "aimock.log").open("wb") as log,
        subprocess.Popen(asked, stdout=log, stderr=log, env=environment, start_new_session=True) as it,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 60
            while not _listens(port):
                assert it.poll() is None and time.monotonic() < end, (tmp_path / "aimock.log").read_text()
                time.sleep(0.05)
            yield url
        finally:
            os.killpg(it.pid, signal.SIGTERM)  # the server itself is a child of the command


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def journal(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/__aimock/journal?limit=10000") as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


@pytest.mark.parametrize(
    ("spec", "variable", "suffix"),
    [
        ("openai:Qwen3-8B@{url}/v1", "", ""),
        ("openai:Qwen3-8B", "OPENAI_BASE_URL", "/v1"),
        ("anthropic:Qwen3-8B@{url}", "", ""),
    ],
    ids=["lean", "openai", "anthropic"],
)
def test_its_faults_lose_nothing_and_its_journal_agrees(
    address: str,
    kdgen: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    variable: str,
    suffix: str,
) -> None:
    count = 120
    write_seeds(tmp_path / "s.jsonl", tasks(count))
    monkeypatch.setenv("PLANTED", KEY)

    async def sleep(self: Halt, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))  # its Retry-After is real, and nothing here is refused for its pace
        self.check()

    monkeypatch.setattr(Halt, "sleep", sleep)
    knobs = ["api_key_env=PLANTED"]
    if variable:
        monkeypatch.setenv(variable, address + suffix)
    if spec.startswith("anthropic"):
        knobs.append("unsupported=drop")
    sets = [part for knob in knobs for part in ("--set", f"teachers.teacher.{knob}")]
    asked = ("label", "s.jsonl", "-t", spec.format(url=address), *sets, *(ACK if variable else ()))
    said = kdgen(*asked, "--ledger", "ledger.db", "--json", "-q")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert made["counts"]["rows"] + sum(made["counts"]["rejects"].values()) == count
    assert set(made["counts"]["rejects"]) <= {"endpoint_failed"} and made["counts"]["rows"] >= count - 2

    entries = journal(address)
    faults = Counter(entry["response"].get("chaosAction") for entry in entries)
    assert len(entries) == made["requests"]["sent"]
    assert faults.total() - faults[None] == made["requests"]["failed"] > 5, faults
    answered = Counter(
        json.dumps(entry["body"]["messages"]) for entry in entries if not entry["response"].get("chaosAction")
    )
    assert set(answered.values()) == {1}, "what was answered was asked again"
    again = json.loads(kdgen(*asked, "--ledger", "ledger.db", "--json", "-q").out)
    assert again["requests"]["from_ledger"] >= made["counts"]["rows"] and len(journal(address)) - len(entries) <= 3 * 8
