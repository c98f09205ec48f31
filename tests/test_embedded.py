"""The embedded teacher, for real: a model generates in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from kdgen.teachers.base import Call, Fault, Params, Raw, Reply, TeacherSpec
from kdgen.teachers.local import Local
from kdgen.teachers.models import pull

TINY, REAL = "smollm2-135m", "qwen2.5-coder-0.5b"
WARM = Params(max_tokens=24, temperature=1.0, seed=3)


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    verdict: Literal["yes", "no"]


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    for name in (TINY, REAL):
        pull(name, print)


def ask(spec: TeacherSpec, *calls: Call) -> list[Raw | BaseException]:
    async def go() -> list[Raw | BaseException]:
        wire = spec.connect()
        try:
            return await asyncio.gather(*(wire.send(spec.request(call)) for call in calls), return_exceptions=True)
        finally:
            await wire.close()

    return asyncio.run(go())


def call(text: str, params: Params = WARM, **more: Any) -> Call:
    return Call([{"role": "user", "content": text}], params, **more)


def read(spec: TeacherSpec, came: Raw | BaseException) -> Reply:
    assert isinstance(came, Raw), came
    return spec.read(spec.request(call("x")), came)


def test_the_same_seed_gives_the_same_bytes_alone_or_in_company() -> None:
    spec = Local(model=TINY, context=512)
    alone = ask(spec, call("Name three colours."))[0]
    company = ask(spec, call("Name three colours."), call("Sing a song."), call("Count to ten."), call("Hello!"))[0]
    other = ask(spec, call("Name three colours.", WARM.model_copy(update={"seed": 4})))[0]
    assert isinstance(alone, Raw) and isinstance(company, Raw) and isinstance(other, Raw)
    assert alone.body == company.body != other.body
    assert read(spec, alone).usage.output > 0


def test_a_second_draw_moves_the_seed() -> None:
    spec = Local(model=TINY, context=512)
    first, second = ask(spec, call("Tell a story."), call("Tell a story.", nth=1))
    assert read(spec, first).text != read(spec, second).text


def test_schema_stop_length_and_logprobs() -> None:
    spec = Local(model=REAL, context=512)
    shaped, stopped, cut = ask(
        spec,
        call("Is water wet?", schema=Verdict.model_json_schema()),
        call("Repeat exactly: one two three four five", Params(max_tokens=32, temperature=0, stop=("three",))),
        call("Write a long story.", Params(max_tokens=5, temperature=0, logprobs=4)),
    )
    assert Verdict.model_validate_json(read(spec, shaped).text).verdict in ("yes", "no")
    assert "three" not in read(spec, stopped).text and read(spec, stopped).finish == "stop"
    reply = read(spec, cut)
    tokens = reply.body["choices"][0]["logprobs"]["content"]
    assert reply.finish == "length" and reply.usage.output == 5 == len(tokens)
    assert all(isinstance(token["id"], int) and len(token["top_logprobs"]) == 4 for token in tokens)


def test_a_prompt_over_the_context_is_refused_and_the_next_is_served() -> None:
    spec = Local(model=TINY, context=512)
    over, after = ask(spec, call("word " * 3000), call("Hello!"))
    assert isinstance(over, Fault) and over.kind == "never"
    assert read(spec, after).text


def test_a_generation_that_nobody_waits_for_is_stopped() -> None:
    async def go() -> str:
        spec = Local(model=TINY, context=2048, concurrency=1)
        wire = spec.connect()
        try:
            await wire.send(spec.request(call("Hello!", Params(max_tokens=1))))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await wire.send(spec.request(call("Write a novel.", Params(max_tokens=1900, temperature=0))))
            return read(spec, await wire.send(spec.request(call("Hello!")))).text
        finally:
            await wire.close()

    assert asyncio.run(go())


def test_a_dataset_from_the_embedded_model(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    asked = ("label", "general", "--limit", "3", "--json", "-q", "--ledger", "ledger.db")
    first = kdgen(*asked)
    made = json.loads(first.out)
    assert first.code == 0 and made["counts"]["seeds"] == 3 and made["requests"]["sent"] == 3
    assert made["teachers"]["teacher"]["licence"] == "Apache-2.0"
    rows = (tmp_path / "out/answer/records.jsonl").read_text()
    for line in rows.splitlines():
        row = json.loads(line)
        assert row["output"] and row["writers"]["output"].startswith("local:")
    again = json.loads(kdgen(*asked).out)
    assert again["requests"]["sent"] == 0 and (tmp_path / "out/answer/records.jsonl").read_text() == rows
