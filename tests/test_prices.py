"""Prices: the table that ships, how a teacher finds its row, the user's own rows, and the bound of the worst case."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdgen.errors import UserError
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import TeacherSpec, Usage
from kdgen.teachers.local import Local
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.prices import FREE, Price, Rates, Row, price_of, prices_file, shipped
from kdgen.teachers.scripted import Scripted

MODELS = sorted(shipped().models)


def openai(model: str = "gpt-6-sol", **fields: object) -> OpenAI:
    return OpenAI.model_validate({"provider": "openai", "model": model, **fields})


def claude(model: str = "claude-opus-5-5", **fields: object) -> Anthropic:
    return Anthropic.model_validate({"provider": "anthropic", "model": model, **fields})


def spec_of(key: str, **fields: object) -> TeacherSpec:
    provider, _, model = key.partition(":")
    return openai(model, **fields) if provider == "openai" else claude(model, **fields)


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    return path


def test_the_table_is_dated_and_says_its_sources() -> None:
    table = shipped()
    assert table.read == datetime.date(2026, 11, 24)
    assert {key.partition(":")[0] for key in table.models} == set(table.sources) == {"openai", "anthropic"}
    assert all(source.startswith("https://") for source in table.sources.values())
    assert len(table.models) >= 40


@pytest.mark.parametrize("key", MODELS)
def test_a_row_is_sane(key: str) -> None:
    row = shipped().models[key]
    assert 0 < row.input < row.output
    assert (row.input if row.cached_input is None else row.cached_input) <= row.input
    if key.startswith("anthropic:"):
        assert row.batch == 0.5 and row.flex is row.priority is None
        assert row.cache_write == pytest.approx(1.25 * row.input)
        assert row.cache_write_1h == pytest.approx(2 * row.input)
    online = price_of(spec_of(key))
    assert online is not None
    for cheap in ("batch", "flex"):
        way = row.batch if cheap == "batch" else row.flex
        if way is None:
            continue
        fields = {"mode": "batch"} if cheap == "batch" else {"service_tier": "flex"}
        price = price_of(spec_of(key, **fields))
        assert price is not None
        assert (price.input, price.output) == pytest.approx((online.input / 2, online.output / 2))
        assert price.cached_input <= price.input


def test_facts_of_the_reference() -> None:
    astra = price_of(openai("gpt-6-astra"))
    assert astra is not None and (astra.input, astra.output) == (10, 50)
    flex = price_of(openai("gpt-6-astra", service_tier="flex"))
    assert flex is not None and (flex.input, flex.output, flex.cached_input) == (5, 25, 0.5)
    luna = price_of(openai("gpt-6-luna"))
    assert luna is not None and (luna.input, luna.output) == (0.1, 0.5)


@pytest.mark.parametrize("gone", ["gpt-4.1-nano", "o4-mini", "gpt-4", "gpt-3.5-turbo"])
def test_what_is_shut_down_has_no_price(gone: str) -> None:
    assert price_of(openai(gone)) is None


def test_a_snapshot_costs_what_its_model_costs() -> None:
    assert price_of(openai("gpt-5.5-2026-04-23")) == price_of(openai("gpt-5.5")) is not None
    assert price_of(claude("claude-haiku-4-5-20251001")) == price_of(claude("claude-haiku-4-5")) is not None
    assert price_of(openai("gpt-5.5-2026")) is None


def test_local_teachers_are_free_without_reading_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdgen.teachers.prices.shipped", lambda: pytest.fail("the table was read"))
    assert price_of(Local()) == price_of(Scripted(path="x.jsonl")) == FREE
    assert FREE.worst(10**9, 10**9) == 0


def test_another_server_has_a_price_of_its_own(tmp_path: Path) -> None:
    elsewhere = openai("gpt-6-sol", base_url="http://localhost:8000/v1")
    assert price_of(elsewhere) is None
    assert price_of(claude(base_url="https://proxy.example.com")) is None
    assert price_of(openai("gpt-6-sol", base_url="https://api.openai.com/v1")) == price_of(openai("gpt-6-sol"))
    prices = prices_file(own(tmp_path, "models: {gpt-6-sol: {input: 1, output: 2}}"))
    price = price_of(elsewhere, prices)
    assert price is not None and (price.input, price.output, price.cached_input, price.cache_write) == (1, 2, 1, 1)


def test_the_closest_of_the_users_rows_wins_and_stands_in_for_the_whole_row(tmp_path: Path) -> None:
    text = """
models:
  m: {input: 1, output: 1}
  openai:m: {input: 2, output: 2}
  openai:m@http://a/v1: {input: 3, output: 3}
  openai:m-2026-01-01: {input: 4, output: 4}
  local:qwen2.5-coder-0.5b: {input: 5, output: 5}
  gpt-6-luna: {input: 6, output: 6}
"""
    prices = prices_file(own(tmp_path, text))
    asked = [
        claude("m"),
        openai("m"),
        openai("m", base_url="http://a/v1"),
        openai("m-2026-01-01"),
        Local(),
        openai("gpt-6-luna-2026-09-09"),
    ]
    assert [price.input if (price := price_of(spec, prices)) else None for spec in asked] == [1, 2, 3, 4, 5, 6]
    assert price_of(openai("gpt-6-luna", mode="batch"), prices) is None
    assert price_of(openai("gpt-6-sol"), prices) == price_of(openai("gpt-6-sol"))


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("models:\n  m: {input: 1, output: 2, outputs: 2}", 2, "unknown key 'models.m.outputs'"),
        ("models:\n  m: {input: 1, output: 2}\nmodel: {}", 3, "unknown key 'model'"),
        ("models:\n\n  m: {input: 1}", 3, "models.m.output is missing"),
        ("models:\n  m: {input: -1, output: 2}", 2, "greater than or equal to 0"),
        ("models:\n  m: {input: .nan, output: 2}", 2, "finite"),
        ("models:\n  m: {input: 1, output: 2, batch: half}", 2, "models.m.batch"),
        ("models:\n  m:\n    input: 1\n    output: 2\n    batch: {input: 1, output: 1, cached: 0}", 5, "cached"),
        ("models:\n  m: {input: 1, output: 2}\n  m: {input: 1, output: 2}", 3, "stands twice"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, cause: str) -> None:
    path = own(tmp_path, text)
    with pytest.raises(UserError) as error:
        prices_file(path)
    assert error.value.where == f"{path}:{line}" and cause in error.value.cause


def test_the_mode_that_was_used_can_differ_from_the_one_that_was_asked_for() -> None:
    batch = openai(mode="batch")
    assert price_of(batch, mode="online") == price_of(openai())
    assert price_of(batch) == price_of(openai(), mode="batch") != price_of(openai())
    assert price_of(openai(mode="batch", service_tier="flex")) == price_of(batch)
    assert price_of(openai("gpt-5.3-codex", mode="batch")) is None, "a way without a price is not guessed"
    assert price_of(openai("gpt-4o", service_tier="flex")) is None
    assert price_of(openai("gpt-4o", service_tier="default")) == price_of(openai("gpt-4o"))


def test_writing_to_a_cache_costs_by_how_long_it_is_kept() -> None:
    def written(cache: str) -> float:
        price = price_of(claude(cache=cache))
        assert price is not None
        return price.cache_write

    assert (written("off"), written("5m"), written("1h")) == (4, 5, 8)
    usage = Usage(input=1_000_000, cached_input=300_000, output=100_000, cache_write=200_000)
    price = price_of(claude(cache="5m"))
    assert price is not None
    assert price.of(usage) == pytest.approx(0.5 * 4 + 0.3 * 0.2 + 0.2 * 5 + 0.1 * 20)


def test_a_long_input_makes_all_of_the_request_dearer() -> None:
    price = price_of(openai("gpt-6-sol"))
    assert price is not None
    at, over = price.of(Usage(input=272_000, output=1000)), price.of(Usage(input=272_001, output=1000))
    assert at == pytest.approx((272_000 * 2 + 1000 * 10) / 1e6)
    assert over == pytest.approx((272_001 * 4 + 1000 * 15) / 1e6)


rates = st.floats(0, 200)
tokens = st.integers(0, 600_000)
prices = st.builds(Price, rates, rates, rates, rates, st.sampled_from([1000, 272_000, float("inf")]), rates, rates)
usages = st.builds(Usage, tokens, tokens, tokens, tokens, tokens)


@given(prices, usages, tokens, tokens)
def test_the_worst_case_is_never_passed(price: Price, usage: Usage, more_in: int, more_out: int) -> None:
    bound = price.worst(usage.input + more_in, usage.output + more_out)
    assert 0 <= price.of(usage) <= bound * (1 + 1e-12)


@given(st.sampled_from(MODELS), st.sampled_from(["online", "batch"]), usages)
def test_the_worst_case_of_every_row_is_never_passed(key: str, mode: str, usage: Usage) -> None:
    for fields in ({}, {"cache": "1h"} if key.startswith("anthropic:") else {"service_tier": "flex"}):
        price = price_of(spec_of(key, mode=mode, **fields))
        if price is not None:
            assert price.of(usage) <= price.worst(usage.input, usage.output) * (1 + 1e-12)


def test_every_field_of_a_row_has_an_effect() -> None:
    plain = Row(input=1, output=2)
    changes: dict[str, object] = {
        "input": 3,
        "output": 3,
        "cached_input": 0.5,
        "cache_write": 4,
        "cache_write_1h": 5,
        "batch": 0.25,
        "flex": 0.25,
        "priority": Rates(input=9, output=9),
        "long": {"over": 5, "input": 2, "output": 2},
    }
    assert set(changes) == set(Row.model_fields)
    asked = [openai(), openai(mode="batch"), openai(service_tier="flex"), openai(service_tier="priority")]
    asked_all: list[TeacherSpec] = [*asked, claude(cache="5m"), claude(cache="1h")]

    def told(row: Row) -> list[Price | None]:
        return [row.by(spec, spec.mode) for spec in asked_all]

    for name, value in changes.items():
        assert told(Row.model_validate({**plain.model_dump(), name: value})) != told(plain), name
