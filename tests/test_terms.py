"""Terms: the table that ships, which rows are a teacher's, and the gate that asks for a person's word."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from kdgen.errors import TermsNotAcknowledged, UserError
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.local import Local
from kdgen.teachers.models import MODELS
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.scripted import Scripted
from kdgen.terms import SEVERITY, Ack, Conditions, Ruling, Use, gate, judge, parse_ack, table

READ = datetime.date(2026, 11, 24)
USES: tuple[Use, ...] = ("research", "internal", "commercial", "redistribute")


class Served(TeacherSpec):
    """A teacher whose weights the user serves, as the vllm teacher does."""

    provider: str = "vllm"
    base_urls: tuple[str, ...] = ()


def openai(model: str = "gpt-6-luna", url: str | None = None) -> OpenAI:
    return OpenAI(model=model, base_url=url)


def one(spec: TeacherSpec, use: Use = "internal", student: str = "") -> Ruling:
    (ruling,) = judge({"teacher": spec}, use, student)
    return ruling


def keys(ruling: Ruling) -> list[str]:
    return [each.key for each in ruling.verdicts]


def test_the_table_is_dated_and_says_its_sources() -> None:
    rows = table().rows
    assert table().read == READ
    assert len({row.key for row in rows}) == len(rows) >= 30
    for row in rows:
        assert row.source.startswith("https://") and " " not in row.source, row.key
        read = row.read or table().read
        assert read <= table().read and (row.since is None or row.since <= read), row.key
        for status, asks in [(row.status, row.asks), *((case.status, case.asks) for case in row.when)]:
            assert status in SEVERITY and asks.endswith(".") and "\n" not in asks, row.key
        assert row.hosts or row.providers or row.models, f"{row.key} is of no teacher"
        assert bool(row.hosts) == (row.route == "api"), row.key
        assert not row.passes or row.hosts, row.key
        names = [*row.hosts, *row.models, *row.owners]
        assert names == [name.lower() for name in names], row.key
        assert not row.models or row.owners, f"{row.key} does not say whose its models are"


def test_what_runs_here_is_allowed_and_says_its_licence() -> None:
    for name in MODELS:
        ruling = one(Local(model=name), "redistribute")
        assert ruling.status == "allowed" and keys(ruling) == ["embedded.apache"]
        assert ruling.notices == (MODELS[name].notice,)
        assert gate([ruling], {}) == [ruling]
    assert one(Scripted(path="x.jsonl"), "redistribute").status == "allowed"


@pytest.mark.parametrize(
    ("spec", "status", "key"),
    [
        (openai(), "restricted", "openai.api"),
        (openai("gpt-oss-20b"), "restricted", "openai.api"),
        (openai(url="https://api.openai.com/v1"), "restricted", "openai.api"),
        (Anthropic(model="claude-opus-5-5"), "blocked", "anthropic.api"),
        (openai("gemini-3-pro", "https://generativelanguage.googleapis.com/v1beta/openai"), "restricted", "google.gemini-api"),
        (openai("grok-5", "https://api.x.ai/v1"), "blocked", "xai.api"),
        (openai("deepseek-chat", "https://api.deepseek.com"), "allowed", "deepseek.api"),
        (openai("mistral-large-2411", "https://api.mistral.ai/v1"), "allowed", "mistral.api"),
        (openai("qwen3-32b", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"), "restricted", "alibaba.modelstudio"),
        (openai("command-a", "https://api.cohere.com/v2"), "unknown", "cohere.api"),
        (openai("Qwen/Qwen3-8B", "http://localhost:8000/v1"), "allowed", "qwen.apache"),
        (openai("llama3.1:8b", "http://10.0.0.7:11434/v1"), "allowed", "meta.llama3.1"),
        (Served(model="Qwen/Qwen3-8B"), "allowed", "qwen.apache"),
        (Served(model="unsloth/Qwen3-8B-GGUF"), "allowed", "qwen.apache"),
        (Served(model="/models/Qwen3-8B"), "allowed", "qwen.apache"),
        (Served(model="Qwen/Qwen3-8B", base_urls=("https://gpu.example.com/v1",)), "allowed", "qwen.apache"),
        (Served(model="Qwen/Qwen2.5-3B-Instruct"), "restricted", "qwen.research"),
        (Served(model="google/gemma-4-12b-it"), "allowed", "google.gemma4"),
        (Served(model="openai/gpt-oss-20b"), "allowed", "openai.gpt-oss"),
        (Served(model="microsoft/phi-4"), "allowed", "microsoft.phi"),
        (Served(model="HuggingFaceTB/SmolLM3-3B"), "allowed", "hf.smollm"),
        (Served(model="mistralai/Mistral-7B-Instruct-v0.3"), "allowed", "mistral.apache"),
        (Served(model="deepseek-ai/DeepSeek-V3.1"), "allowed", "deepseek.weights"),
        (Served(model="meta-llama/Meta-Llama-3-8B-Instruct"), "blocked", "meta.llama3"),
        (Served(model="zai-org/GLM-5.3-Flash"), "allowed", "zhipu.glm-mit"),
        (Served(model="zai-org/GLM-5.3-FP8"), "allowed", "zhipu.glm"),
        (Local(model="/models/SmolLM2-1.7B-Instruct-Q4_K_M.gguf"), "allowed", "hf.smollm"),
    ],
)  # fmt: skip
def test_a_teacher_finds_its_row(spec: TeacherSpec, status: str, key: str) -> None:
    ruling = one(spec)
    assert (ruling.status, ruling.key) == (status, key)


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (Served(model="my/finetune"), "vllm:my/finetune"),
        (Served(model="someone/Qwen3-8B-chatty"), "vllm:someone/Qwen3-8B-chatty"),
        (Local(model="/models/mine.gguf"), "local:mine.gguf"),
        (openai("mine", "http://localhost:8000/v1"), "openai:mine@localhost"),
        (openai("Qwen/Qwen3-8B", "https://llm.example.com/v1"), "openai:Qwen/Qwen3-8B@llm.example.com"),
        (openai("Qwen/Qwen3-8B", "https://notapi.openai.com.evil.example/v1"), "openai:Qwen/Qwen3-8B@notapi.openai.com.evil.example"),
        (openai("acme/new-model", "https://openrouter.ai/api/v1"), "openai:acme/new-model@openrouter.ai"),
    ],
)  # fmt: skip
def test_what_no_row_covers_is_unknown_and_can_be_acknowledged(spec: TeacherSpec, key: str) -> None:
    ruling = one(spec)
    assert (ruling.status, ruling.key) == ("unknown", key)
    with pytest.raises(TermsNotAcknowledged):
        gate([ruling], {})
    name, ack = parse_ack(ruling.verdicts[0].flag.removeprefix("--ack-terms "))
    assert gate([ruling], {name: ack})[0].ack == ack


def test_the_most_restrictive_of_several_rows_wins() -> None:
    resold = one(openai("anthropic/claude-opus-5", "https://openrouter.ai/api/v1"))
    assert keys(resold) == ["anthropic.api", "openrouter.api"] and resold.status == "blocked"
    open_weights = one(openai("qwen/qwen3-32b", "https://openrouter.ai/api/v1"))
    assert keys(open_weights) == ["openrouter.api", "qwen.apache"] and open_weights.status == "conditional"
    built_on = one(Served(model="nvidia/Llama-3_3-Nemotron-Super-49B-v1"), "commercial")
    assert set(keys(built_on)) == {"meta.llama3.1", "nvidia.nemotron"} and built_on.status == "conditional"
    distilled = one(Served(model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B"), "redistribute")
    assert distilled.key == "meta.llama3.1" and "deepseek.weights" in keys(distilled)
    mixed = one(Served(model="Qwen/Qwen3-8B", base_urls=("http://localhost/v1", "https://openrouter.ai/v1")))
    assert mixed.key == "openrouter.api"
    azure = one(openai("gpt-6-luna", "https://mine.openai.azure.com/openai/v1"))
    assert keys(azure) == ["openai.api", "azure.api"] and azure.status == "restricted"


def test_the_use_matters() -> None:
    llama = Served(model="meta-llama/Llama-3.1-8B-Instruct")
    assert [one(llama, use).status for use in USES] == ["allowed", "allowed", "conditional", "conditional"]
    gemma = Served(model="google/gemma-3-27b-it")
    assert [one(gemma, use).status for use in USES] == ["allowed", "allowed", "conditional", "conditional"]
    assert any("gemma/terms" in notice for notice in one(gemma, "redistribute").notices)
    minimax = Served(model="MiniMaxAI/MiniMax-M3")
    assert [one(minimax, use).status for use in USES] == ["conditional", "restricted", "blocked", "restricted"]
    assert one(openai(), "internal").lines() != one(openai(), "redistribute").lines()


def test_the_student_matters() -> None:
    old = Served(model="meta-llama/Meta-Llama-3-8B-Instruct")
    assert one(old, "research", "Qwen2.5-0.5B").status == "blocked"
    assert one(old, "research", "meta-llama/Llama-3.2-1B").status == "conditional"
    new = Served(model="meta-llama/Llama-3.3-70B-Instruct")
    assert "'Qwen2.5-0.5B' does not begin so" in " ".join(one(new, "commercial", "org/Qwen2.5-0.5B").lines())
    assert "does not begin" not in " ".join(one(new, "commercial", "meta-llama/Llama-3.2-1B").lines())
    assert '"Built with Llama"' in " ".join(one(new, "commercial").notices)


def test_without_an_acknowledgement_nothing_is_sent() -> None:
    specs = {"teacher": Local(), "judge": openai(), "user": Anthropic(model="claude-opus-5-5")}
    with pytest.raises(TermsNotAcknowledged) as error:
        gate(judge(specs), {})
    assert error.value.exit_code == 7
    said = str(error.value)
    for part in (
        "judge (openai:gpt-6-luna): restricted",
        "user (anthropic:claude-opus-5-5): blocked",
        "https://openai.com/policies/services-agreement",
        "read 2026-11-24",
        "--ack-terms openai.api@2026-11-24 --ack-terms anthropic.api@2026-11-24",
    ):
        assert part in said
    assert "local:" not in said


def test_an_acknowledgement_of_the_row_as_it_stands_passes_and_is_kept() -> None:
    ack = Ack(date=READ, why="our student only sorts mail and stays here")
    passed = gate(judge({"teacher": openai(), "judge": openai(), "local": Local()}), {"openai.api": ack})
    assert [ruling.ack for ruling in passed] == [ack, ack, None]
    data = passed[0].data()
    assert data["ack"] == {"date": "2026-11-24", "why": ack.why}
    assert (data["role"], data["key"], data["status"], data["use"]) == (
        "teacher",
        "openai.api",
        "restricted",
        "internal",
    )
    assert ack.why in " ".join(passed[0].lines())


@pytest.mark.parametrize("date", ["2026-11-23", "2026-11-25", "2026-01-01"])
def test_an_acknowledgement_of_another_day_is_refused(date: str) -> None:
    with pytest.raises(TermsNotAcknowledged, match=f"acknowledged as of {date}, but read anew on 2026-11-24") as error:
        gate(judge({"teacher": openai()}), dict([parse_ack(f"openai.api@{date}")]))
    assert "--ack-terms openai.api@2026-11-24" in error.value.hint


def test_a_row_with_a_day_of_its_own_is_acknowledged_by_that_day() -> None:
    rulings = judge({"teacher": openai("grok-5", "https://api.x.ai/v1")})
    assert gate(rulings, dict([parse_ack("xai.api@2026-10-05")]))[0].ack
    with pytest.raises(TermsNotAcknowledged):
        gate(rulings, dict([parse_ack("xai.api@2026-11-24")]))


@pytest.mark.parametrize(
    "text", ["", "openai.api", "@2026-11-24", "openai.api@", "openai.api@yesterday", "a@2026-13-01"]
)
def test_what_is_no_acknowledgement(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_ack(text)
    assert error.value.where == "--ack-terms" and "KEY@DATE" in error.value.cause


def test_every_condition_is_said_in_the_card() -> None:
    values: dict[str, Any] = {
        "notice": "N",
        "attribution": "A",
        "name_prefix": "P",
        "passthrough": ("https://x",),
        "non_competing": True,
        "disclose": True,
    }
    assert set(values) == set(Conditions.model_fields)
    for name, value in values.items():
        assert len(Conditions(**{name: value}).notices()) == 1, name
