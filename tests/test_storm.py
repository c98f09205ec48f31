"""A fault storm: no row is lost, nothing that arrived is paid twice, and the bill is the server's own."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from llmock.verdict import judge
from server import ACK, Answer, Script, Server, invented, kdgen, last, tasks, write_seeds

# Of a hundred requests; what is left is answered. All but the first three kinds are billed.
RATES = {"429": 10, "500": 3, "529": 2, "reset": 3, "cut": 3, "bad": 2, "hang": 1}


def fate(body: dict[str, Any], seen: int) -> str:
    """What befalls a request depends on its text and its number of tries alone."""
    draw = int.from_bytes(hashlib.sha256(f"{last(body)} {seen}".encode()).digest()[:8], "big") % 100
    for name, share in RATES.items():
        if draw < share:
            return name
        draw -= share
    return "answer"


def storm(fates: Counter[str]) -> Script:
    """A script that deals faults and counts them."""

    def script(body: dict[str, Any], seen: int) -> Answer:
        name = fate(body, seen)
        fates[name] += 1
        usage = (len(json.dumps(body)) // 4, 10 + len(last(body)))
        if name == "429":
            return Answer("slow down", status=429, headers={"retry-after": "1"})
        if name.isdigit():
            return Answer("not now", status=int(name))
        raw = b'{"choices": [{"message": {"content": "half' if name == "bad" else None
        whole = f"It is {invented(last(body))}."
        return Answer(whole, raw=raw, usage=usage, **({name: True} if name in ("reset", "cut", "hang") else {}))

    return script


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["lean", "sdk"])
def test_a_fault_storm_loses_nothing_and_its_bill_is_right(tmp_path: Path, wire: str) -> None:
    fates: Counter[str] = Counter()
    count = 2000
    write_seeds(tmp_path / "seeds.jsonl", tasks(count))
    with Server(storm(fates)) as server:
        teacher = f"openai:Qwen3-8B@{server.url}" if wire == "lean" else "openai:Qwen3-8B"
        sets = ["teachers.teacher.concurrency=64", "teachers.teacher.timeout=8"]
        done = kdgen(
            *["label", "seeds.jsonl", "-t", teacher, "-o", "out", "--ledger", "ledger.db", "--json", "-q"],
            *[part for each in sets for part in ("--set", each)],
            *(() if wire == "lean" else ACK),
            cwd=tmp_path,
            timeout=300,
            OPENAI_API_KEY="sk-none",
            OPENAI_BASE_URL=server.url,
        )
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    counts = manifest["counts"]
    assert counts["rows"] + sum(counts["rejects"].values()) == count
    assert set(counts["rejects"]) <= {"endpoint_failed"}
    assert counts["rows"] >= count - 5
    assert all(abs(fates[name] - share / 100 * fates.total()) < 40 for name, share in RATES.items()), fates

    assert server.again == 0, "what was answered was asked again"
    sent = manifest["requests"]
    assert sent["sent"] == len(server.bodies) == fates.total()
    assert sent["failed"] == fates.total() - fates["answer"]
    assert sent["maybe_billed"] == len(server.lost) == sum(fates[name] for name in ("reset", "cut", "bad", "hang"))
    tokens = manifest["tokens"]
    assert tokens["input"] + tokens["output"] == sum(server.delivered.values()), "the bill of what arrived"
    assert manifest["maybe_billed"]["tokens"] >= sum(server.lost), "the bill of what did not"
    assert manifest["dataset"]["replies"] == counts["rows"]


PRICE = {"input": 2.0, "output": 10.0}


@pytest.mark.parametrize("wire", ["lean", "sdk"])
def test_a_budget_holds_by_the_servers_own_count(tmp_path: Path, wire: str) -> None:
    """$0.50 for what would cost $2, where some of what is billed never arrives; with more, the run goes on to its end."""

    def script(body: dict[str, Any], seen: int) -> Answer:
        name = fate(body, seen)
        fault = {"reset": name == "reset", "cut": name == "cut"}
        raw = b"<html>" if name == "bad" else None
        return Answer(f"It is {last(body)}", raw=raw, usage=(100, 450), **fault)

    def cost(server: Server) -> float:
        answers = len(server.lost) + len(server.delivered)
        return answers * (100 * PRICE["input"] + 450 * PRICE["output"]) / 1e6

    count = 425
    write_seeds(tmp_path / "seeds.jsonl", tasks(count))
    (tmp_path / "prices.yaml").write_text(json.dumps({"models": {"Qwen3-8B": PRICE}}))
    with Server(script) as server:

        def label(budget: str) -> CompletedProcess[str]:
            return kdgen(
                *["label", "seeds.jsonl", "-o", "out", "--ledger", "ledger.db", "--json", "-q"],
                *["--prices", "prices.yaml", "--budget-usd", budget, "--set", "teachers.teacher.max_tokens=500"],
                *(["-t", f"openai:Qwen3-8B@{server.url}"] if wire == "lean" else ["-t", "openai:Qwen3-8B", *ACK]),
                cwd=tmp_path,
                OPENAI_API_KEY="sk-none",
                OPENAI_BASE_URL=server.url,
            )

        stopped = label("0.5")
        assert stopped.returncode == 4, stopped.stderr
        assert "budget is reached" in stopped.stderr and "raise the budget" in stopped.stderr
        assert 0.4 < cost(server) <= 0.5
        assert server.lost and not (tmp_path / "out" / "data.jsonl").exists()
        before = len(server.delivered)
        done = label("5")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["counts"]["rows"] == count and server.again == 0
    assert manifest["requests"]["from_ledger"] == before
    paid = (count - before) * (100 * PRICE["input"] + 450 * PRICE["output"]) / 1e6
    assert manifest["cost_usd"] == pytest.approx(paid, abs=1e-6)
    assert cost(server) > 2


@pytest.mark.parametrize("wire", ["lean", "sdk"])
def test_llmock_finds_nothing_wrong_with_how_kdgen_retries(tmp_path: Path, wire: str) -> None:
    """A server that others wrote, with its own faults, which judges its clients: see llmock.verdict."""
    from llmock.chaos import ChaosSettings
    from llmock.testing import LLMockServer

    count = 200
    write_seeds(tmp_path / "seeds.jsonl", tasks(count))
    chaos = ChaosSettings(error_rates={429: 0.1, 500: 0.03, 503: 0.02, 529: 0.02})
    with LLMockServer(chaos=chaos) as server:
        address = server.base_url("openai")
        done = kdgen(
            *["label", "seeds.jsonl", "-o", "out", "--ledger", "ledger.db", "--json", "-q"],
            *(["-t", f"openai:Qwen3-8B@{address}"] if wire == "lean" else ["-t", "openai:Qwen3-8B", *ACK]),
            cwd=tmp_path,
            OPENAI_API_KEY="sk-none",
            OPENAI_BASE_URL=address,
        )
        verdict = judge(server.state.journal.records(wait=5))
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    assert counts["rows"] + sum(counts["rejects"].values()) == count
    assert verdict.faults > count / 10
    assert len(verdict.calls) == count
    assert [finding.title for finding in verdict.errors] == []
    # Full jitter draws a second wait that is shorter than the first now and then, which reads as a constant interval.
    assert {finding.code for finding in verdict.warnings} <= {"no_backoff"}
    assert len(verdict.warnings) < count / 20
