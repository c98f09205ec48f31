"""A dataset over HTTP from a server that we did not write: llama.cpp's listener with the embedded model, on each wire."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server import ledger_rows, write_seeds
from test_openai import KEY, Listener

from kdgen.teachers.models import pull

pytestmark = pytest.mark.slow
ACK = ("--ack-terms", "openai.api@2026-11-24")


@pytest.fixture(autouse=True)
def seeds(tmp_path: Path) -> None:
    words = ("Name three colours.", "What is the capital of France?", "Say hello in Spanish.")
    write_seeds(tmp_path / "s.jsonl", ({"instruction": each} for each in words))


@pytest.fixture(scope="module")
def server() -> Iterator[Listener]:
    yield Listener(pull("qwen2.5-coder-0.5b", print))


@pytest.mark.parametrize(
    ("spec", "sets", "wire"),
    [
        ("openai:Qwen3-8B@{url}/v1", ("logprobs=2", "seed=1"), "openai.chat"),
        ("openai:Qwen3-8B@{url}/v1", ("api=responses",), "openai.responses"),
        ("anthropic:Qwen3-8B@{url}", ("unsupported=drop",), "anthropic.messages"),
        ("vllm:Qwen3-8B@{url}/v1", ("logprobs=2", "seed=1"), "openai.chat"),
    ],
)
def test_three_seeds_are_labelled(
    server: Listener,
    kdgen: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    sets: tuple[str, ...],
    wire: str,
) -> None:
    monkeypatch.setenv("PLANTED", KEY)
    named = ("api_key_env=PLANTED", "max_tokens=150", "concurrency=2", *sets)
    knobs = [part for each in named for part in ("--set", f"teachers.teacher.{each}")]
    asked = ("label", "s.jsonl", "-t", spec.format(url=server.url), *knobs, "--ledger", "ledger.db")
    said = kdgen(*asked, "--json", "-q")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert made["counts"]["seeds"] == 3 and made["counts"]["rows"] + sum(made["counts"]["rejects"].values()) == 3
    assert made["requests"] == {**made["requests"], "sent": 3, "failed": 0, "maybe_billed": 0}
    assert made["tokens"]["input"] > 60 and made["tokens"]["output"] > 5
    rows = (tmp_path / "out/answer/records.jsonl").read_text().splitlines()
    assert "Paris" in "".join(rows) and all(json.loads(row)["output"] for row in rows)
    assert ledger_rows(tmp_path / "ledger.db", "SELECT DISTINCT wire FROM calls") == [(wire,)]
    again = json.loads(kdgen(*asked, "--json", "-q").out)
    assert again["requests"]["sent"] == 0 and again["requests"]["from_ledger"] == 3
    assert (tmp_path / "out/answer/records.jsonl").read_text().splitlines() == rows


def test_the_official_sdk_is_answered_too(
    server: Listener, kdgen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    said = kdgen("label", "s.jsonl", "-t", "openai:Qwen3-8B", *ACK, "--json", "-q")
    assert said.code == 0, said.err
    assert json.loads(said.out)["requests"]["sent"] == 3


def test_a_schema_is_kept_to(server: Listener, kdgen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Evol's judge answers in JSON."""
    monkeypatch.setenv("PLANTED", KEY)
    asked = ("expand", "s.jsonl", "-m", "evol", "--limit", 1, "-t", f"openai:Qwen3-8B@{server.url}/v1")
    knobs = ("--set", "teachers.teacher.api_key_env=PLANTED", "--set", "stages.0.rounds=1")
    knobs += ("--set", "teachers.teacher.max_tokens=300")
    said = kdgen(*asked, *knobs, "--json", "-q")
    assert said.code in (0, 5), said.err
    if said.code == 0:
        assert "invalid_output" not in json.loads(said.out)["counts"]["rejects"]


@pytest.mark.parametrize("provider", ["openai", "vllm"])
def test_a_user_turn_is_written(
    server: Listener, kdgen: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """Magpie over raw completions: no seeds, tasks that differ, answers in messages."""
    monkeypatch.setenv("PLANTED", KEY)
    named = ("api_key_env=PLANTED", "max_tokens=40", "concurrency=2", "template=chatml", "seed=1")
    knobs = [part for each in named for part in ("--set", f"teachers.teacher.{each}")]
    loose = ("--set", "filters=[]", "--set", "stages.0.filters=[]", "--set", "stages.1.params.max_tokens=400")
    asked = ("expand", "-m", "magpie", "-t", f"{provider}:Qwen3-8B@{server.url}/v1", *knobs, *loose, "--target", 2)
    said = kdgen(*asked, "--ledger", "ledger.db", "--json", "-q")
    assert said.code == 0, said.err
    wires = ledger_rows(tmp_path / "ledger.db", "SELECT DISTINCT wire FROM calls ORDER BY wire")
    assert wires == [("openai.chat",), ("openai.completions",)]
    rows = [json.loads(row) for row in (tmp_path / "out/magpie/records.jsonl").read_text().splitlines()]
    assert len({row["instruction"] for row in rows}) == 2 and all("<|" not in row["instruction"] for row in rows)
    assert json.loads(kdgen(*asked, "--ledger", "ledger.db", "--json", "-q").out)["requests"]["sent"] == 0
