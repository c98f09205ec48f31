"""The vLLM teacher without vLLM: what it sends, how it spreads over servers, and its engine with a stand-in for vLLM's.

With the real engine and server: tests/vllm, by `make test-vllm`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from server import Answer, Server, chat, echo_answer, environment

from kdgen.errors import EndpointError, UserError
from kdgen.teachers.base import Call, Fault, Params, Raw, Reply, Request, Wire
from kdgen.teachers.least_loaded import LeastLoaded
from kdgen.teachers.vllm import Vllm

URL = "http://127.0.0.1:1/v1"
SCHEMA = {"title": "Reply", "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def call(text: str = "Hi", schema: dict[str, Any] | None = None, nth: int = 0, **params: Any) -> Call:
    return Call([{"role": "user", "content": text}], Params(**params), schema, nth)


def sent(spec: Vllm, asked: Call) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(spec.request(asked).body)
    return made


def unused() -> str:
    """The URL of a port where nobody listens."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


async def ask(spec: Vllm, wire: Wire, asked: Call) -> Reply:
    request = spec.request(asked)
    return spec.read(request, await wire.send(request))


# What is sent


def test_the_body_has_todays_fields() -> None:
    spec = Vllm(model="m", base_url=URL, prompt_logprobs=2, extra={"top_k": 5, "chat_template_kwargs": {"x": 1}})
    spec.check()
    asked = call(
        schema=SCHEMA, nth=3, seed=7, logprobs=4, temperature=0.5, top_p=0.9, max_tokens=9, stop=("END",),
        presence_penalty=0.1, frequency_penalty=0.2, effort="low",
    )  # fmt: skip
    assert sent(spec, asked) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "seed": 10,
        "logprobs": True,
        "top_logprobs": 4,
        "prompt_logprobs": 2,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 9,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Reply", "schema": SCHEMA, "strict": True},
        },
        "top_k": 5,
        "chat_template_kwargs": {"x": 1},
    }


def test_nothing_is_asked_for_that_is_not_wanted() -> None:
    plain = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    assert sent(Vllm(model="m", base_url=URL), call()) == plain
    assert sent(Vllm(model="m", base_url=URL, lora="tuned"), call()) == plain | {"model": "tuned"}


def test_options_of_structured_output_are_sent_where_there_is_something_to_structure() -> None:
    options, regex = {"disable_any_whitespace": True}, {"regex": "a+"}
    spec = Vllm(model="m", base_url=URL, extra={"structured_outputs": options})
    assert sent(spec, call(schema=SCHEMA))["structured_outputs"] == {"json": SCHEMA, **options}
    assert "structured_outputs" not in sent(spec, call())
    assert sent(spec.model_copy(update={"extra": {"structured_outputs": regex}}), call())["structured_outputs"] == regex


def test_addresses_and_speed_are_no_part_of_a_request_and_the_engine_is() -> None:
    here, there = Vllm(model="m", base_url=URL), Vllm(model="m", base_urls=(URL, "http://127.0.0.1:2/v1"))
    assert here.request(call()).key == there.request(call()).key
    engine = Vllm(model="m", engine={"dtype": "bfloat16", "max_num_seqs": 4})
    assert sent(engine, call())["engine"] == {"dtype": "bfloat16"}
    assert engine.request(call()).key != Vllm(model="m", engine={"dtype": "float32"}).request(call()).key
    assert engine.request(call()).key == Vllm(model="m", engine={"dtype": "bfloat16"}).request(call()).key


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    def key() -> str:
        return Vllm(model=str(model), lora=str(model)).request(call()).key

    model = tmp_path / "private" / "mine"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"one")
    first = key()
    assert key() == first
    (model / "notes.md").write_text("not the model")
    assert key() == first
    (model / "model.safetensors").write_bytes(b"other")
    assert key() != first
    spec = Vllm(model=str(model), lora=str(model))
    assert spec.label == "vllm:mine+mine" and "private" not in spec.request(call()).body.decode()


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"model": ""}, "no model"),
        ({"base_url": "localhost:8000"}, "is not a URL"),
        ({"base_urls": [URL, "h:1"]}, "is not a URL"),
        ({"base_urls": [URL, URL]}, "twice"),
        ({"base_url": URL, "base_urls": [URL]}, "both set"),
        ({"base_url": URL, "engine": {"dtype": "auto"}}, "no effect on a server"),
        ({"engine": {"generation_config": "auto"}}, "must not set generation_config"),
        ({"lora": "/no/such/folder"}, "is no folder"),
        ({"base_url": URL, "extra": {"temperature": 1}}, "must not set temperature"),
        ({"base_url": URL, "extra": {"response_format": {}}}, "must not set response_format"),
        ({"base_url": URL, "extra": {"guided_json": {}}}, "ignores guided_json"),
        ({"base_url": URL, "extra": {"topk": 5}}, "would ignore topk"),
        ({"extra": {"priority": 1}}, "would ignore priority"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(fields: dict[str, Any], cause: str) -> None:
    with pytest.raises(UserError, match=cause) as error:
        Vllm(**{"model": "m", **fields}).check()
    assert error.value.hint


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UserError, match="top_k"):
        Vllm(model="m", base_url=URL, extra={"topk": 5}).check()


def test_the_key_is_sent_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(spec: Vllm) -> None:
        with closing_wire(spec) as wire:
            await ask(spec, wire, call())
            await wire.close()

    with Server() as server:
        plain = Vllm(model="m", base_url=server.url)
        spec = Vllm(model="m", base_url=server.url, api_key_env="MY_KEY")
        for name in ("MY_KEY", "VLLM_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        asyncio.run(run(plain))
        with pytest.raises(UserError, match="MY_KEY is not set"):
            spec.connect()
        monkeypatch.setenv("MY_KEY", "sk-mine")
        monkeypatch.setenv("VLLM_API_KEY", "sk-vllm")
        asyncio.run(run(spec))
        asyncio.run(run(plain))
        sent = [headers.get("Authorization") for headers in server.headers]
        assert sent == [None, "Bearer sk-mine", "Bearer sk-vllm"]
        assert server.paths == ["/v1/chat/completions"] * 3


def closing_wire(spec: Vllm) -> Any:
    from contextlib import nullcontext

    return nullcontext(spec.connect())


def test_logprobs_of_a_server_read_like_those_of_the_engine() -> None:
    def entry(token: int, logprob: float, spelled: bytes | None = None) -> dict[str, Any]:
        name = f"token_id:{token}"
        return {"token": name, "logprob": logprob, "bytes": list(spelled or name.encode())}

    body = chat("Hé")
    content = {**entry(7, -0.5, "Hé".encode()), "top_logprobs": [entry(7, -0.5), entry(3, -0.1)]}
    body["choices"][0]["logprobs"] = {"content": [content]}
    spec = Vllm(model="m", base_url=URL)
    reply = spec.read(spec.request(call()), Raw(json.dumps(body).encode(), {}))
    assert reply.body["choices"][0]["logprobs"]["content"] == [
        {
            "id": 7,
            "token": "Hé",
            "logprob": -0.5,
            "top_logprobs": [{"id": 3, "token": None, "logprob": -0.1}, {"id": 7, "token": None, "logprob": -0.5}],
        }
    ]


# Several servers


def several(*urls: str) -> tuple[Vllm, LeastLoaded]:
    spec = Vllm(model="m", base_urls=urls)
    wire = spec.connect()
    assert isinstance(wire, LeastLoaded)
    return spec, wire


def test_each_request_goes_to_the_server_with_the_fewest_in_flight() -> None:
    async def run() -> None:
        spec, wire = several(slow.url, fast.url)
        waiting = [asyncio.create_task(ask(spec, wire, call(f"task {n}"))) for n in range(8)]
        while wire.busy != [4, 0] or len(slow.bodies) < 4:
            await asyncio.sleep(0.01)
        assert (len(slow.bodies), len(fast.bodies)) == (4, 4)
        for n in range(6):
            await ask(spec, wire, call(f"more {n}"))
        assert (len(slow.bodies), len(fast.bodies)) == (4, 10)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert wire.busy == [0, 0]
        await wire.close()

    with Server(latency=60) as slow, Server(latency=0.01) as fast:
        asyncio.run(run())


def test_idle_servers_take_turns() -> None:
    async def run() -> None:
        spec, wire = several(*(server.url for server in servers))
        for n in range(9):
            await ask(spec, wire, call(str(n)))
        await wire.close()

    with ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(3)]
        asyncio.run(run())
        assert [len(server.bodies) for server in servers] == [3, 3, 3]


def test_a_server_that_refuses_connections_is_stepped_over() -> None:
    async def run() -> None:
        spec, wire = several(unused(), server.url)
        replies = await asyncio.gather(*(ask(spec, wire, call(str(n))) for n in range(12)))
        assert len({reply.key for reply in replies}) == 12 and wire.sent[0] <= 6
        before = wire.sent[0]
        for n in range(5):
            await ask(spec, wire, call(f"later {n}"))
        assert wire.sent[0] == before
        await wire.close()

    with Server() as server:
        asyncio.run(run())
        assert len(server.bodies) == 17 and server.repeats() == 0


def test_a_server_comes_back_after_its_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdgen.teachers.least_loaded.REST", 0.1)

    def broken(body: dict[str, Any], seen: int) -> Answer:
        return Answer("out of order", status=500) if not served else echo_answer(body, seen)

    async def run() -> None:
        spec, wire = several(ill.url, well.url)
        with pytest.raises(Fault) as fault:
            await ask(spec, wire, call("first"))
        assert fault.value.kind == "transient" and fault.value.message.startswith(
            f"{ill.url}/chat/completions: HTTP 500"
        )
        await ask(spec, wire, call("second"))
        await ask(spec, wire, call("third"))
        assert (len(ill.bodies), len(well.bodies)) == (1, 2)
        served.append(True)
        await asyncio.sleep(0.15)
        await ask(spec, wire, call("fourth"))
        assert len(ill.bodies) == 2
        await wire.close()

    served: list[bool] = []
    with Server(broken) as ill, Server() as well:
        asyncio.run(run())


def test_nobody_listening_is_one_fault_that_names_a_server() -> None:
    async def run() -> None:
        spec, wire = several(unused(), unused())
        with pytest.raises(Fault, match="cannot connect") as fault:
            await ask(spec, wire, call())
        assert fault.value.kind == "transient" and not fault.value.billed and wire.sent == [1, 1]
        await wire.close()

    asyncio.run(run())


def test_what_may_have_been_answered_is_not_sent_to_another_server() -> None:
    async def run() -> None:
        spec, wire = several(cut.url, well.url)
        with pytest.raises(Fault) as fault:
            await ask(spec, wire, call())
        assert fault.value.billed and not well.bodies
        await wire.close()

    with Server(lambda body, seen: Answer("half", cut=True)) as cut, Server() as well:
        asyncio.run(run())


# The engine, with a stand-in for vLLM


class Asked(SimpleNamespace):
    """A class of vLLM that keeps what it was made with."""


class FakeLLM:
    """AsyncLLM: answers with the prompt's length, waits on "wait", dies on "die", is killed by a bad request on "bad"."""

    made: list[FakeLLM] = []

    def __init__(self, arguments: Any) -> None:
        if arguments.model == "broken":
            raise RuntimeError("no room for it")
        self.arguments, self.errored, self.stopped = arguments, False, False
        self.asked: list[tuple[str, Any, str, Any]] = []
        self.aborted: list[str] = []
        self.model_config = SimpleNamespace(max_model_len=arguments.max_model_len)
        FakeLLM.made.append(self)

    from_engine_args = classmethod(lambda cls, arguments: cls(arguments))

    def get_tokenizer(self) -> Any:
        return self

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool, **options: Any) -> str:
        self.options = options
        return messages[-1]["content"]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]

    async def generate(self, prompt: Any, sampling: Any, name: str, lora_request: Any = None) -> Any:
        text = "".join(map(chr, prompt["prompt_token_ids"]))
        self.asked.append((text, sampling, name, lora_request))
        if text == "wait":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.aborted.append(name)
                raise
        if text == "die":
            self.errored = True
            raise RuntimeError("EngineCore died")
        if text == "bad":
            raise ValueError("no such thing")
        said = text if text.startswith("<think>") else f"{len(text)} letters"
        likely = {5: logprob(-0.5, 2), 9: logprob(float("-inf"), 3), 4: logprob(-0.1, 1)}
        yield SimpleNamespace(
            prompt_token_ids=prompt["prompt_token_ids"],
            prompt_logprobs=[None, likely] if sampling.prompt_logprobs is not None else None,
            outputs=[
                SimpleNamespace(
                    text=said,
                    token_ids=[5],
                    finish_reason="stop",
                    stop_reason=None,
                    logprobs=[likely] if sampling.logprobs is not None else None,
                )
            ],
        )

    def shutdown(self, timeout: float) -> None:
        self.stopped = True


def logprob(value: float, rank: int) -> Any:
    return SimpleNamespace(logprob=value, rank=rank, decoded_token=f"t{rank}")


def from_optional(**given: Any) -> Asked:
    return Asked(**{"logprobs": None, "prompt_logprobs": None, **given})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeLLM]]:
    """A stand-in where `import vllm` looks."""
    names = "model generation_config max_logprobs disable_log_stats enable_lora max_num_seqs max_model_len dtype"
    arguments = type("AsyncEngineArgs", (Asked,), {"__dataclass_fields__": dict.fromkeys(names.split())})
    params = {
        "SamplingParams": SimpleNamespace(from_optional=from_optional),
        "StructuredOutputsParams": Asked,
        "RepetitionDetectionParams": Asked,
        "RequestOutputKind": SimpleNamespace(FINAL_ONLY="final"),
    }
    for name, holds in {
        "vllm": {"AsyncEngineArgs": arguments},
        "vllm.v1.engine.async_llm": {"AsyncLLM": FakeLLM},
        "vllm.sampling_params": params,
        "vllm.lora.request": {"LoRARequest": lambda *given: given},
    }.items():
        module: Any = ModuleType(name)
        module.__dict__.update(holds)
        module.__spec__ = SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("VLLM_LOGGING_STREAM", "VLLM_LOGGING_LEVEL", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "as-set")
    FakeLLM.made = []
    yield FakeLLM
    gc.collect()


def engine(**fields: Any) -> Vllm:
    return Vllm(**{"model": "org/m", "engine": {"max_model_len": 40}, **fields})


def with_engine(spec: Vllm, *asked: Call) -> list[Any]:
    """The replies, or the errors in their places, and the engine shut down."""

    async def run() -> list[Any]:
        wire = spec.connect()
        try:
            return await asyncio.gather(*(ask(spec, wire, each) for each in asked), return_exceptions=True)
        finally:
            await wire.close()

    return asyncio.run(run())


def test_one_engine_answers_every_request(fake: type[FakeLLM]) -> None:
    replies = with_engine(engine(concurrency=12), *(call("x" * n) for n in range(1, 9)))
    assert [reply.text for reply in replies] == [f"{n} letters" for n in range(1, 9)]
    (made,) = fake.made
    assert made.stopped and len({name for _, _, name, _ in made.asked}) == 8
    assert vars(made.arguments) == {
        "model": "org/m",
        "generation_config": "vllm",
        "max_logprobs": -1,
        "disable_log_stats": True,
        "max_num_seqs": 12,
        "max_model_len": 40,
    }
    assert replies[2].usage[:3] == (3, 0, 1) and replies[0].model == "org/m"


def test_every_parameter_reaches_the_engine(fake: type[FakeLLM], tmp_path: Path) -> None:
    extra = {
        "top_k": 5, "min_tokens": 1, "bad_words": ["no"], "chat_template_kwargs": {"x": 1}, "documents": [],
        "repetition_detection": {"max_pattern_size": 3}, "structured_outputs": {"disable_any_whitespace": True},
    }  # fmt: skip
    spec = engine(extra=extra, prompt_logprobs=1, lora=str(tmp_path))
    spec.check()
    asked = call(
        schema=SCHEMA, nth=2, seed=7, logprobs=4, temperature=0.5, top_p=0.9, max_tokens=9, stop=("END",),
        presence_penalty=0.1, frequency_penalty=0.2, effort="none",
    )  # fmt: skip
    (reply,) = with_engine(spec, asked)
    assert isinstance(reply, Reply)
    (made,) = fake.made
    _, sampling, _, lora = made.asked[0]
    assert {name: vars(value) if isinstance(value, Asked) else value for name, value in vars(sampling).items()} == {
        "max_tokens": 9, "seed": 9, "logprobs": 4, "prompt_logprobs": 1, "temperature": 0.5, "top_p": 0.9,
        "stop": ["END"], "presence_penalty": 0.1, "frequency_penalty": 0.2, "top_k": 5, "min_tokens": 1,
        "bad_words": ["no"], "output_kind": "final", "repetition_detection": {"max_pattern_size": 3},
        "structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True},
    }  # fmt: skip
    assert made.options == {
        "add_generation_prompt": True, "documents": [], "reasoning_effort": "none", "enable_thinking": False, "x": 1,
    }  # fmt: skip
    assert lora[1:] == (1, str(tmp_path)) and lora[0].startswith(tmp_path.name) and made.arguments.enable_lora


def test_a_user_turn_is_the_template_up_to_the_users_words(
    fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def template(self: FakeLLM, messages: list[dict[str, str]], *, tokenize: bool, **options: Any) -> str:
        assert options["add_generation_prompt"] is False
        return "".join(f"<{message['role']}>{message['content']}</s>" for message in messages)

    monkeypatch.setattr(fake, "apply_chat_template", template)
    (reply,) = with_engine(engine(), Call([{"role": "system", "content": "Be."}], Params(max_tokens=9), open=True))
    assert isinstance(reply, Reply) and fake.made[0].asked[0][0] == "<system>Be.</s><user>"


def test_logprobs_have_ids_and_the_likeliest_first(fake: type[FakeLLM]) -> None:
    (reply,) = with_engine(engine(prompt_logprobs=2), call("ab", logprobs=2))
    (entry,) = reply.body["choices"][0]["logprobs"]["content"]
    assert entry == {
        "id": 5,
        "token": "t2",
        "logprob": -0.5,
        "top_logprobs": [{"id": 4, "token": "t1", "logprob": -0.1}, {"id": 5, "token": "t2", "logprob": -0.5}],
    }
    first, second = reply.body["prompt_logprobs"]
    assert first is None and list(second) == ["5", "9", "4"]
    assert second["9"] == {"logprob": -9999.0, "rank": 3, "decoded_token": "t3"}
    assert reply.body["prompt_token_ids"] == [97, 98] and reply.body["choices"][0]["token_ids"] == [5]


def test_thinking_stands_apart(fake: type[FakeLLM]) -> None:
    whole, cut = with_engine(engine(), call("<think>\nhm\n</think>\n\nYes."), call("<think>hm, hm"))
    assert (whole.reasoning, whole.text) == ("hm", "Yes.") and (cut.reasoning, cut.text) == ("hm, hm", "")


def test_what_the_engine_refuses_is_the_requests_fault(fake: type[FakeLLM]) -> None:
    long, bad, room, good = with_engine(engine(), call("x" * 40), call("bad"), call("xx", max_tokens=39), call("good"))
    assert [fault.kind for fault in (long, bad)] == ["never"] * 2 and good.text == "4 letters"
    assert "context of 40" in long.message and room.text == "2 letters"
    asked = {text: sampling.max_tokens for text, sampling, *_ in fake.made[0].asked}
    assert asked == {"bad": 37, "xx": 38, "good": 36}


def test_a_dead_engine_ends_the_run(fake: type[FakeLLM]) -> None:
    (fault,) = with_engine(engine(), call("die"))
    assert fault.kind == "stop" and "died" in fault.message and fault.hint


def test_an_engine_that_cannot_be_loaded_is_tried_once(fake: type[FakeLLM]) -> None:
    errors = with_engine(engine(model="broken"), call("a"), call("b"))
    assert all(isinstance(error, EndpointError) and "no room for it" in error.cause for error in errors)
    (error,) = with_engine(engine(engine={"max_model_length": 40}), call("a"))
    assert isinstance(error, UserError) and "max_model_length" in error.cause


def test_a_cancelled_request_is_aborted(fake: type[FakeLLM]) -> None:
    async def run() -> None:
        spec = engine()
        wire = spec.connect()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await ask(spec, wire, call("wait"))
        under_way = asyncio.create_task(ask(spec, wire, call("wait")))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await wire.close()
        assert time.monotonic() - started < 2 and len(fake.made[0].aborted) == 2
        with pytest.raises(asyncio.CancelledError):
            await under_way

    asyncio.run(run())


def test_a_field_that_the_engine_cannot_use_is_an_error(fake: type[FakeLLM]) -> None:
    async def run() -> None:
        wire = engine().connect()
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "watermarking": True}
        with pytest.raises(Fault, match="watermarking") as fault:
            await wire.send(Request("openai.chat", json.dumps(body).encode()))
        assert fault.value.kind == "never"
        await wire.close()

    asyncio.run(run())


def test_vllm_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(engine().needs()) == ["vllm is not installed"] and not Vllm(model="m", base_url=URL).needs()
    with pytest.raises(UserError, match=r"kdgen\[vllm\]"):
        engine().connect()


def test_vllm_that_does_not_import_is_said(fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("kdgen.teachers.engine.importlib.import_module", fails)
    (error,) = with_engine(engine(), call())
    assert isinstance(error, UserError) and "torchvision" in error.cause and "kdgen[vllm]" in error.hint


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at /proc")
@pytest.mark.parametrize("well", [True, False])
def test_what_the_engine_spawned_dies_with_a_killed_run(well: bool) -> None:
    script = """
import subprocess, sys, time
from kdgen.teachers.engine import Guard
guard = Guard()
with guard.marking():
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
if sys.argv[1] == "True":
    guard.close()
else:
    time.sleep(60)
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(well)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        if well:
            assert process.wait(20) == 0
        else:
            process.kill()
    until = time.monotonic() + (0.5 if well else 20)
    while running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert running(child) is well
    if well:
        os.kill(child, signal.SIGKILL)


def running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
