"""vLLM for real, on the CPU: `make test-vllm`, in an environment of its own. Minutes, and nothing without KDGEN_TEST_VLLM=1.

The model is the folder that KDGEN_TEST_VLLM_MODEL names, else the embedded teacher's, converted (see convert.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convert import convert

from kdgen.teachers.base import Call, Params, Reply, TeacherSpec, Wire

WANTED = os.environ.get("KDGEN_TEST_VLLM") == "1"
collect_ignore_glob = [] if WANTED else ["test_*.py"]
HERE = Path(__file__).parent

# What vLLM's CPU engine needs to know; its own default reserves one core, which is kind to a shared machine.
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
ENGINE: dict[str, Any] = {"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": True}
SCHEMA = {
    "title": "City",
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "inland": {"type": "boolean"}},
    "required": ["city", "inland"],
    "additionalProperties": False,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of other people's heavy libraries are no errors here."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def settings() -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def model() -> str:
    """The folder of the model."""
    return os.environ.get("KDGEN_TEST_VLLM_MODEL") or str(convert("qwen2.5-coder-0.5b"))


def call(text: str, schema: dict[str, Any] | None = None, nth: int = 0, **params: Any) -> Call:
    return Call([{"role": "user", "content": text}], Params(**params), schema, nth)


async def ask(spec: TeacherSpec, wire: Wire, asked: Call) -> Reply:
    request = spec.request(asked)
    return spec.read(request, await wire.send(request))


def told(body: dict[str, Any]) -> None:
    """Check what the logprobs of a greedy reply tell, wherever it comes from."""
    (choice,) = body["choices"]
    content = choice["logprobs"]["content"]
    assert [entry["id"] for entry in content] == choice["token_ids"]
    assert len(content) == body["usage"]["completion_tokens"]
    for entry in content:
        tops = entry["top_logprobs"]
        assert len(tops) == 5 and len({top["id"] for top in tops}) == 5
        assert [top["logprob"] for top in tops] == sorted((top["logprob"] for top in tops), reverse=True)
        assert tops[0]["logprob"] == entry["logprob"] <= 0 and entry["id"] in {top["id"] for top in tops}
    prompt, ids = body["prompt_logprobs"], body["prompt_token_ids"]
    assert len(prompt) == len(ids) == body["usage"]["prompt_tokens"] and prompt[0] is None
    for token, found in zip(ids[1:], prompt[1:], strict=True):
        assert str(token) in found and 2 <= len(found) <= 3
        assert set(found[str(token)]) == {"logprob", "rank", "decoded_token"}


Together = Callable[..., list[Any]]


@pytest.fixture
def together() -> Together:
    """Ask for several replies at once; an error stands in its reply's place."""

    def run(spec: TeacherSpec, wire: Wire, *asked: Call) -> list[Any]:
        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(ask(spec, wire, each) for each in asked), return_exceptions=True)

        return asyncio.run(all_of_them())

    return run
