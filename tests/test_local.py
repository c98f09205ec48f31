"""The local teacher on real models: seeds, schemas, logprobs, limits, and a process that ends when it should."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel, Field

from kdgen.errors import EndpointError, UserError
from kdgen.teachers import models
from kdgen.teachers.base import Call, Fault, Params, Reply, Wire
from kdgen.teachers.local import Local, LocalWire

pytest.importorskip("xllamacpp")
T = TypeVar("T")
CODER, TINY = "qwen2.5-coder-0.5b", "smollm2-135m"


class Open:
    """A teacher with its wire open; `ask` does what a run does with one request."""

    def __init__(self, **fields: Any) -> None:
        self.spec = Local(**fields)
        self.wire: Wire = self.spec.connect()

    async def raw(self, text: str, *, schema: dict[str, Any] | None = None, nth: int = 0, **params: Any) -> bytes:
        call = Call([{"role": "user", "content": text}], Params(**{"max_tokens": 24, **params}), schema, nth)
        return (await self.wire.send(self.spec.request(call))).body

    async def ask(self, text: str, *, schema: dict[str, Any] | None = None, **params: Any) -> Reply:
        call = Call([{"role": "user", "content": text}], Params(**{"max_tokens": 24, **params}), schema)
        request = self.spec.request(call)
        return self.spec.read(request, await self.wire.send(request))


@pytest.fixture(scope="module")
def coder() -> Iterator[Open]:
    teacher = Open(model=CODER)
    yield teacher
    asyncio.run(teacher.wire.close())


@pytest.fixture(scope="module")
def tiny() -> Iterator[Open]:
    teacher = Open(model=TINY, context=512)
    yield teacher
    asyncio.run(teacher.wire.close())


def closing(teacher: Open, work: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            return await work()
        finally:
            await teacher.wire.close()

    return asyncio.run(run())


def test_answers(coder: Open) -> None:
    reply = asyncio.run(coder.ask("What is 2+2? Answer with the number alone.", temperature=0))
    assert reply.text.strip().startswith("4")
    assert reply.finish == "stop"
    assert reply.model == coder.spec.identity == f"{CODER}@{models.MODELS[CODER].sha256[:12]}"
    assert reply.usage.input > 10 and reply.usage.output >= 1 and reply.usage.cached_input == 0


def test_max_tokens_ends_with_length(tiny: Open) -> None:
    reply = asyncio.run(tiny.ask("Write a long story about a fox.", max_tokens=7))
    assert reply.finish == "length"
    assert reply.usage.output == 7


def test_a_seed_is_the_answer(tiny: Open) -> None:
    async def draw() -> list[bytes]:
        prompt = "Write a story about a fox."
        return [
            await tiny.raw(prompt, temperature=1, seed=1),
            await tiny.raw(prompt, temperature=1, seed=2),
            await tiny.raw(prompt, temperature=1, seed=1),
            await tiny.raw(prompt, temperature=1),
            await tiny.raw(prompt, temperature=1),
            await tiny.raw(prompt, temperature=1, nth=1),
        ]

    first, other, again, bare, bare_again, second_draw = asyncio.run(draw())
    assert first == again
    assert first != other
    assert bare == bare_again  # a seed is sent even where nobody chose one
    assert bare != second_draw


def test_the_company_a_request_keeps_does_not_change_it(coder: Open) -> None:
    """Alone, among other requests, in another order, with another number of slots: the same bytes, logprobs too."""
    topics = ("a fox", "a river", "lists in Python", "a train " + "and a very long train " * 60, "bread")

    async def one(teacher: Open, number: int) -> bytes:
        return await teacher.raw(
            f"Write about {topics[number]}.", temperature=1, seed=number, max_tokens=12 + 4 * number, logprobs=2
        )

    async def compare() -> None:
        numbers = range(len(topics))
        alone = [await one(coder, number) for number in numbers]
        assert await asyncio.gather(*(one(coder, number) for number in numbers)) == alone
        assert await asyncio.gather(*(one(coder, number) for number in reversed(numbers))) == alone[::-1]
        few = Open(model=CODER, concurrency=2, threads=4)
        try:
            assert await asyncio.gather(*(one(few, number) for number in numbers)) == alone
        finally:
            await few.wire.close()

    asyncio.run(compare())


def test_requests_run_side_by_side(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests are in the runtime at once: none leaves the barrier before all have come to it."""
    barrier = threading.Barrier(4)
    generate = LocalWire._generate

    def meet(*arguments: Any) -> Any:
        barrier.wait(60)
        return generate(*arguments)

    monkeypatch.setattr(LocalWire, "_generate", meet)

    async def work() -> list[Reply]:
        return await asyncio.gather(*(tiny.ask("Say hello.", max_tokens=4, seed=number) for number in range(4)))

    assert all(reply.usage.output for reply in asyncio.run(work()))


def test_stop(tiny: Open) -> None:
    prompt = "Count: one, two, three, four, five, six."
    whole = asyncio.run(tiny.ask(prompt, temperature=0, max_tokens=40)).text
    word = whole.split()[3]
    cut = asyncio.run(tiny.ask(prompt, temperature=0, max_tokens=40, stop=(word,)))
    assert cut.text == whole[: whole.index(word)]
    assert cut.finish == "stop"


class Part(BaseModel):
    name: str = Field(max_length=20)
    count: int = Field(ge=1, le=9)


class Kit(BaseModel):
    title: str = Field(max_length=30)
    kind: str = Field(pattern="^(red|blue)$")
    parts: list[Part] = Field(min_length=2, max_length=3)


def test_a_schema_holds(coder: Open) -> None:
    schema = Kit.model_json_schema()
    reply = asyncio.run(coder.ask("Invent a small toy kit with parts.", schema=schema, temperature=1, max_tokens=300))
    assert reply.finish == "stop"
    assert len(Kit.model_validate_json(reply.text).parts) in (2, 3)


def test_a_bad_schema_is_this_request_s_fault(tiny: Open) -> None:
    with pytest.raises(Fault) as caught:
        asyncio.run(tiny.ask("Hello", schema={"type": "banana"}))
    assert caught.value.kind == "never"
    assert "banana" in caught.value.message


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (0, 1)])
def test_logprobs(tiny: Open, asked: int, given: int) -> None:
    reply = asyncio.run(tiny.ask("Say hello.", logprobs=asked, temperature=0, max_tokens=6))
    tokens = reply.body["choices"][0]["logprobs"]["content"]
    assert len(tokens) in (reply.usage.output, reply.usage.output - 1)  # the end token is counted and not listed
    assert "".join(token["token"] for token in tokens) == reply.text
    for token in tokens:
        assert isinstance(token["id"], int)
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == given
        assert all(isinstance(other["id"], int) for other in token["top_logprobs"])
        assert token["top_logprobs"][0]["id"] == token["id"]  # greedy


def test_a_prompt_that_does_not_fit_is_never_sent_again(tiny: Open) -> None:
    with pytest.raises(Fault) as caught:
        asyncio.run(tiny.ask("word " * 600))
    assert (caught.value.kind, caught.value.status) == ("never", 400)
    assert "512" in caught.value.message


def test_a_late_answer_is_stopped_and_the_next_one_served() -> None:
    teacher = Open(model=TINY, context=4096, concurrency=1, threads=1, timeout=0.4)

    async def work() -> None:
        began = time.monotonic()
        with pytest.raises(Fault) as caught:
            await teacher.ask("Write a very long story.", max_tokens=4000, logprobs=5)
        assert caught.value.kind == "transient"
        assert "0.4 s" in caught.value.message
        assert time.monotonic() - began < 60
        teacher.wire.timeout = 60  # type: ignore[attr-defined]
        assert (await teacher.ask("Say hello.", max_tokens=4)).usage.output >= 1

    closing(teacher, work)


def test_a_cancelled_request_frees_its_slot() -> None:
    teacher = Open(model=TINY, context=4096, concurrency=1, threads=1)

    async def work() -> None:
        await teacher.ask("Say hello.", max_tokens=2)
        long = asyncio.create_task(teacher.ask("Write a very long story.", max_tokens=4000))
        await asyncio.sleep(0.3)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        before = await teacher.raw("Say hello.", temperature=1, seed=3)
        assert before == await teacher.raw("Say hello.", temperature=1, seed=3)

    closing(teacher, work)


def test_closing_stops_what_runs() -> None:
    teacher = Open(model=TINY, context=4096, concurrency=2)

    async def work() -> None:
        running = [asyncio.create_task(teacher.ask("Write a very long story.", max_tokens=4000)) for _ in range(2)]
        await asyncio.sleep(2)
        await asyncio.wait_for(teacher.wire.close(), 60)
        for task in running:
            with pytest.raises(Fault) as caught:
                await task
            assert caught.value.kind == "transient"

    asyncio.run(work())


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.gguf"
    own.symlink_to(models.pull(TINY, print))
    spec = Local(model=str(own))
    spec.check()
    assert spec.label == "local:mine.gguf"  # a folder of this machine does not belong in a dataset
    assert spec.identity == f"mine.gguf@{models.MODELS[TINY].sha256[:12]}"
    teacher = Open(model=str(own), context=512, concurrency=1, threads=1)

    async def work() -> Reply:
        return await teacher.ask("Say hello.", max_tokens=3)

    assert closing(teacher, work).model == spec.identity


def test_what_is_wrong_is_said_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"did you mean qwen2\.5-coder-0\.5b\?"):
        Local(model="qwen2.5-coder-0.5").check()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Local(model=str(tmp_path / "none.gguf")).check()
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(UserError, match="is not a GGUF model"):
        Local(model=str(text)).check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(Local().needs()) == ["xllamacpp is not installed"]
    with pytest.raises(UserError, match=r"pip install 'kdgen\[local\]'"):
        Local().connect()


def test_a_broken_model_ends_the_run(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(4000))
    teacher = Open(model=str(broken))

    async def work() -> None:
        with pytest.raises(EndpointError, match="cannot be loaded"):
            await teacher.ask("Hello")

    closing(teacher, work)


def test_origin_and_body() -> None:
    assert Local().origin()["licence"] == "Apache-2.0"
    call = Call([{"role": "user", "content": "Hi"}], Params(), None, nth=2)
    body = Local().body(call)
    assert body["seed"] == 2
    assert body["cache_prompt"] is False
    assert not Local().needs()


SCRIPT = """
import asyncio, sys
from kdgen.teachers.base import Call, Params
from kdgen.teachers.local import Local

async def main():
    spec = Local(model="smollm2-135m", concurrency=2)
    wire = spec.connect()
    def ask(tokens):
        return wire.send(spec.request(Call([{"role": "user", "content": "Write a long story."}], Params(max_tokens=tokens))))
    await ask(2)
    print("ready", flush=True)
    if sys.argv[1] == "close":
        await wire.close()
    elif sys.argv[1] == "run":
        await asyncio.gather(ask(3500), ask(3500))

asyncio.run(main())
"""


@pytest.mark.parametrize(("mode", "interrupt"), [("close", False), ("leave", False), ("run", True)])
def test_the_process_ends(mode: str, interrupt: bool) -> None:
    models.pull(TINY, print)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        if interrupt:
            time.sleep(1)
            process.send_signal(signal.SIGINT)
        try:
            code = process.wait(60)
        finally:
            process.kill()
        err = process.stderr.read()
        assert (code == 0, err == "") == (not interrupt, not interrupt), err
        if interrupt:
            assert err.rstrip().endswith("KeyboardInterrupt")
        assert process.stdout.read() == ""
