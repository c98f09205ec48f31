"""The engine in this process, with a real model."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator

import jsonschema
import pytest
from conftest import ENGINE, SCHEMA, Together, ask, call, told

from kdgen.errors import EndpointError, UserError
from kdgen.teachers.base import Wire
from kdgen.teachers.vllm import Vllm


@pytest.fixture(scope="module")
def spec(model: str) -> Vllm:
    made = Vllm(model=model, engine=ENGINE, concurrency=16)
    made.check()
    return made


@pytest.fixture(scope="module")
def wire(spec: Vllm) -> Iterator[Wire]:
    opened = spec.connect()
    yield opened
    asyncio.run(opened.close())
    left = [child.name for child in multiprocessing.active_children()]
    assert not left, left


def test_it_answers(spec: Vllm, wire: Wire, together: Together) -> None:
    started = time.monotonic()
    (reply,) = together(spec, wire, call("What is the capital of France?", max_tokens=24, temperature=0))
    print(f"\nfirst answer after {time.monotonic() - started:.1f} s: {reply.text!r}")
    assert "Paris" in reply.text and reply.finish == "stop" and reply.usage.output < 24
    assert reply.model == spec.identity and "logprobs" not in reply.body["choices"][0]


def test_logprobs_have_token_ids(spec: Vllm, wire: Wire, together: Together) -> None:
    wide = spec.model_copy(update={"prompt_logprobs": 2})
    (reply,) = together(wide, wire, call("Say hello.", max_tokens=6, temperature=0, logprobs=5))
    told(reply.body)
    content = reply.body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content).startswith(reply.text)
    (many,) = together(spec, wire, call("Say hello.", max_tokens=1, temperature=0, logprobs=50))
    assert len(many.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 50


def test_output_follows_a_schema(spec: Vllm, wire: Wire, together: Together) -> None:
    asked = [call(f"Describe {city} as JSON.", SCHEMA, max_tokens=48, seed=1) for city in ("Paris", "Oslo")]
    for reply in together(spec, wire, *asked):
        assert reply.finish == "stop", reply
        jsonschema.validate(json.loads(reply.text), SCHEMA)


def test_seeds_repeat_themselves(spec: Vllm, wire: Wire) -> None:
    async def run() -> list[bytes]:
        draws = [call("Invent a name for a cat.", nth=nth, seed=5, max_tokens=12, temperature=1.5) for nth in (0, 1, 0)]
        return [(await wire.send(spec.request(draw))).body for draw in draws]

    first, other, again = asyncio.run(run())
    assert first == again != other


def test_parameters_have_their_effect(spec: Vllm, wire: Wire, together: Together) -> None:
    count = "Count from 1 to 9, separated by commas."
    (stopped,) = together(spec, wire, call(count, max_tokens=24, temperature=0, stop=("4",)))
    assert "3" in stopped.text and "4" not in stopped.text and stopped.finish == "stop"
    assert stopped.body["choices"][0]["stop_reason"] == "4"
    wordless = spec.model_copy(update={"extra": {"ignore_eos": True, "min_tokens": 9, "bad_words": ["Paris"]}})
    (reply,) = together(wordless, wire, call("What is the capital of France?", max_tokens=16, temperature=0))
    assert reply.finish == "length" and reply.usage.output == 16 and "Paris" not in reply.text
    shouting = spec.model_copy(update={"extra": {"chat_template": "Q: {{ messages[0].content }}{{ mark }}",
                                                 "chat_template_kwargs": {"mark": "!!"}}})  # fmt: skip
    (reply,) = together(shouting.model_copy(update={"prompt_logprobs": 0}), wire, call("Hi", max_tokens=1))
    spelled = "".join(next(iter(found.values()))["decoded_token"] for found in reply.body["prompt_logprobs"][1:])
    assert spelled == ": Hi!!"


def test_requests_are_batched(spec: Vllm, wire: Wire, together: Together) -> None:
    loose = spec.model_copy(update={"extra": {"ignore_eos": True}})
    asked = [call(f"Tell me about the number {n}.", max_tokens=16, seed=n) for n in range(8)]
    together(loose, wire, asked[0])
    started = time.monotonic()
    replies = together(loose, wire, *asked)
    batched = time.monotonic() - started
    assert [reply.usage.output for reply in replies] == [16] * 8
    started = time.monotonic()
    for each in asked:
        together(loose, wire, each)
    single = time.monotonic() - started
    print(f"\n8 at once {128 / batched:.1f} tokens/s, one by one {128 / single:.1f} tokens/s")
    assert batched < 0.7 * single


def test_faults(spec: Vllm, wire: Wire, together: Together) -> None:
    bad = spec.model_copy(update={"extra": {"allowed_token_ids": [10_000_000]}})
    long, room = together(spec, wire, call("word " * 1100), call("Say hello.", max_tokens=1020, temperature=0))
    (odd,) = together(bad, wire, call("Hi", max_tokens=1))
    assert [fault.kind for fault in (long, odd)] == ["never"] * 2, (long, odd)
    assert "context of 1024" in long.message and room.finish == "stop"


def test_a_cancelled_request_leaves_the_engine_well(spec: Vllm, wire: Wire, together: Together) -> None:
    async def run() -> None:
        endless = spec.model_copy(update={"extra": {"ignore_eos": True}})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await ask(endless, wire, call("Go on for ever.", max_tokens=900))

    asyncio.run(run())
    time.sleep(1)
    assert wire._engine.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]
    (reply,) = together(spec, wire, call("Say hello.", max_tokens=4))
    assert reply.text


def test_what_cannot_be_loaded_is_said(spec: Vllm, together: Together, tmp_path: object) -> None:
    for fields, kind, cause in (
        ({"engine": {"max_model_length": 5}}, UserError, "max_model_length"),
        ({"engine": {"dtype": "float17"}}, EndpointError, "float17"),
    ):
        broken = spec.model_copy(update=fields)
        opened = broken.connect()
        (error,) = together(broken, opened, call("Hi"))
        asyncio.run(opened.close())
        assert isinstance(error, kind) and cause in error.cause, error
