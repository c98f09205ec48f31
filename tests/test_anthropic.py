"""The Anthropic teacher over real HTTP: what it sends, what it reads, and what it refuses to send."""

from __future__ import annotations

import json
import socket
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field, ValidationError
from server import Answer
from test_openai import ASKED, KEY, Listener, answers, ask, listener, settled

from kdgen.errors import Rejected, UserError
from kdgen.teachers import models_table
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import Call, Fault, Params, Raw, Request

__all__ = ["listener"]
CALL = Call(ASKED, Params())
KEYED = {"api_key_env": "ANTHROPIC_API_KEY"}


class Grade(BaseModel):
    score: int = Field(ge=1, le=5)
    note: str | None = None


def message(*blocks: dict[str, Any], stop: str = "end_turn", **more: Any) -> dict[str, Any]:
    """A message of Anthropic's."""
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 200,
        "cache_read_input_tokens": 3000,
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 25},
    }
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-5-5", "stop_sequence": None}
    return {**head, "content": list(blocks), "stop_reason": stop, "stop_details": None, "usage": usage, **more}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "citations": None}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def test_it_sends_the_hashed_bytes_and_reads_the_reply() -> None:
    thought = {"type": "thinking", "thinking": "A Norwegian word.", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "zzz"}
    with answers(message(thought, hidden, text("A sea"), text(" inlet."))) as server:
        # The address may end in /v1 or not: OpenAI's does, Anthropic's does not.
        fields = {"cache": "1h", "thinking": "adaptive", "effort": "low"} | KEYED
        spec = Anthropic.model_validate({"model": "claude-haiku-5-5", "base_url": server.url, **fields})
        params = settled(spec, stop=("\n\n",))[0]
        call = Call([*ASKED, {"role": "assistant", "content": "Hm?"}, {"role": "user", "content": "Well?"}], params)
        reply = ask(spec, call)
        sent = json.loads(server.bodies[0])
    assert server.bodies == [spec.request(call).body]
    assert server.paths == ["/v1/messages"]
    headers = {name.lower(): value for name, value in server.headers[0].items()}
    assert headers["authorization"] == f"Bearer {KEY}" and "x-api-key" not in headers
    assert headers["anthropic-version"] == "2026-10-21"
    assert headers["content-type"] == "application/json"
    assert sent == {
        "model": "claude-haiku-5-5",
        "max_tokens": 4096,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": call.messages[1:],
        "stop_sequences": ["\n\n"],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low"},
    }
    assert (reply.text, reply.reasoning, reply.finish) == ("A sea inlet.", "A Norwegian word.", "stop")
    assert reply.usage == (3210, 3000, 40, 200, 25)
    assert (reply.model, reply.teacher) == ("claude-haiku-5-5", "anthropic:claude-haiku-5-5")


def test_its_own_address_is_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    with answers(message(text("Hi."))) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url.removesuffix("/v1"))
        # Over 21,333 tokens the SDK's own `messages.create` refuses not to stream; a plain POST does not.
        assert ask(Anthropic(model="claude-opus-5", max_tokens=64000), CALL).text == "Hi."
        assert json.loads(server.bodies[0])["max_tokens"] == 64000


def test_a_server_gets_a_key_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    with answers(message(text("Hi."))) as server:
        assert ask(Anthropic(model="m", base_url=server.url), CALL).text == "Hi."
        assert not {"authorization", "x-api-key"} & {name.lower() for name in server.headers[0]}
        assert KEY not in str(server.headers)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY is not set"):
        Anthropic(model="m", base_url="http://127.0.0.1:9", **KEYED).connect()
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY is not set"):
        Anthropic(model="claude-opus-5").connect()


def test_requests_differ_by_draw_alone_in_the_ledger() -> None:
    spec = Anthropic(model="claude-opus-5")
    first, second = spec.request(CALL), spec.request(Call(ASKED, Params(), nth=1))
    assert first.body == second.body and first.key != second.key
    assert first.wire == "anthropic.messages" and first.room == 4096
    assert spec.request(Call(ASKED, Params(max_tokens=7))).room == 7


def test_schemas_are_what_the_api_takes() -> None:
    schema = Grade.model_json_schema()
    made = Anthropic(model="claude-opus-5").body(Call(ASKED, Params(effort="high"), schema))["output_config"]
    assert made["effort"] == "high"
    assert made["format"]["type"] == "json_schema"
    assert made["format"]["schema"]["additionalProperties"] is False
    score = made["format"]["schema"]["properties"]["score"]
    assert "maximum" not in score and "maximum: 5" in score["description"]
    assert schema == Grade.model_json_schema()


@pytest.mark.parametrize(
    ("thinking", "sent"),
    [
        ("disabled", {"type": "disabled"}),
        ("between_tools", {"type": "between_tools"}),
        ({"budget": 2000}, {"type": "enabled", "budget_tokens": 2000}),
        (None, None),
    ],
)
def test_thinking(thinking: Any, sent: Any) -> None:
    spec = Anthropic.model_validate({"model": "m", "thinking": thinking})
    assert spec.body(CALL).get("thinking") == sent
    if isinstance(thinking, dict):
        assert spec.model_copy(update={"display": "omitted"}).body(CALL)["thinking"]["display"] == "omitted"


def test_the_cache_is_off_in_yaml_too() -> None:
    spec = Anthropic.model_validate({"model": "m", **yaml.safe_load("cache: off")})
    assert spec.cache == "off" and spec.body(CALL)["system"] == "Be brief."
    assert "system" not in spec.body(Call(ASKED[1:], Params()))
    with pytest.raises(ValidationError):
        Anthropic.model_validate({"model": "m", "cache": True})


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool"),
        ("pause_turn", "unknown"),
        ("something_new", "unknown"),
    ],
)
def test_how_messages_end(stop: str, finish: str) -> None:
    with answers(message(text("A sea"), stop=stop)) as server:
        assert ask(Anthropic(model="m", base_url=server.url), CALL).finish == finish


def test_a_refusal_says_its_category() -> None:
    details = {"type": "refusal", "category": "frontier_llm", "explanation": "It may train another model."}
    with answers(message(stop="refusal", stop_details=details)) as server:
        reply = ask(Anthropic(model="m", base_url=server.url), CALL)
    assert (reply.finish, reply.detail) == ("refusal", "frontier_llm: It may train another model.")
    with answers(message(stop="refusal", stop_details={**details, "category": None, "explanation": None})) as server:
        assert ask(Anthropic(model="m", base_url=server.url), CALL).detail == ""


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"content": 3}', b'{"content": [{"text": "x"}]}', b'{"content": "x"}']
)
def test_a_malformed_message_rejects_its_record(body: bytes) -> None:
    with pytest.raises(Rejected, match="malformed_reply"):
        Anthropic(model="m").read(Request("anthropic.messages", b"{}"), Raw(body, {}))


@pytest.mark.parametrize(
    ("status", "kind", "code", "error"),
    [
        (401, "authentication_error", "", "stop"),
        (402, "billing_error", "linked_organization_spend_limit_reached", "stop"),
        (403, "permission_error", "", "stop"),
        (404, "not_found_error", "", "stop"),
        (400, "invalid_request_error", "", "never"),
        (400, "invalid_request_error", "organization_on_hold", "stop"),
        (413, "request_too_large", "", "never"),
        (429, "rate_limit_error", "", "rate"),
        (429, "rate_limit_error", "ramp_limit_exceeded", "rate"),
        (429, "rate_limit_error", "enforced_spend_limit_reached", "stop"),
        (429, "rate_limit_error", "contract_spend_limit_reached", "stop"),
        (500, "api_error", "", "transient"),
        (504, "timeout_error", "", "transient"),
        (529, "overloaded_error", "", "transient"),
    ],
)
def test_errors_are_classed_and_hold_no_key(status: int, kind: str, code: str, error: str) -> None:
    body = {"type": "error", "error": {"type": kind, "message": f"no, {KEY}"}, "request_id": "req_1"}
    if code:
        body["error"]["details"] = {"error_code": code}  # type: ignore[index]
    with answers(Answer(status=status, raw=json.dumps(body).encode(), headers={"retry-after": "2"})) as server:
        with pytest.raises(Fault) as found:
            ask(Anthropic(model="m", base_url=server.url, **KEYED), CALL)
        assert len(server.bodies) == 1, "the SDK retried"
    assert (found.value.kind, found.value.status, found.value.billed) == (error, status, status == 504)
    assert found.value.retry_after == (2 if error in ("rate", "transient") else None)
    assert KEY not in str(found.value) + found.value.hint


def test_connections_that_fail() -> None:
    for answer, words in (
        (Answer("cut", cut=True), "broke"),
        (Answer(raw=b"<html>"), "not JSON"),
        (Answer("late", delay=2), "in time"),
    ):
        with answers(answer) as server, pytest.raises(Fault, match=words) as found:
            ask(Anthropic(model="m", base_url=server.url, timeout=0.5), CALL)
        assert found.value.kind == "transient" and found.value.billed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(Fault, match="cannot connect") as found:
            ask(Anthropic(model="m", base_url=f"http://127.0.0.1:{free.getsockname()[1]}"), CALL)
    assert found.value.kind == "transient" and not found.value.billed


def test_what_claude_does_not_take_is_said_before_anything_is_sent() -> None:
    with pytest.raises(UserError) as found:
        settled(Anthropic(model="claude-opus-5-5", temperature=0.7), seed=1)
    assert str(found.value) == (
        "recipe.yaml: stages.0 asking teacher: anthropic:claude-opus-5-5 does not take temperature, seed\n"
        "  hint: set them to null there, or leave out what the teacher does not take with "
        "--set teachers.teacher.unsupported=drop"
    )
    every = {
        "temperature": 1.0,
        "top_p": 0.5,
        "seed": 1,
        "presence_penalty": 1.0,
        "frequency_penalty": 1.0,
        "logprobs": 1,
    }
    for name, value in every.items():
        with pytest.raises(UserError, match=f"does not take {name}"):
            settled(Anthropic(model="m"), **{name: value})
    params, dropped = settled(Anthropic(model="m", unsupported="drop"), **every, stop=("x",))
    assert set(dropped) == set(every) and params.given() == {"max_tokens": 4096, "stop": ("x",)}


@pytest.mark.parametrize(
    ("model", "fields", "cause"),
    [
        ("claude-opus-5", {"effort": "none"}, "has no effort 'none'"),
        ("claude-opus-4-7", {"thinking": {"budget": 2000}}, "does not take thinking: budget"),
        ("claude-opus-5-5", {"thinking": "disabled"}, "does not take thinking: disabled"),
        ("claude-fable-5-2", {"thinking": "disabled"}, "does not take thinking: disabled"),
        ("claude-sonnet-5-5", {"thinking": "disabled"}, "does not take thinking: disabled"),
        ("claude-opus-5", {"thinking": "disabled", "effort": "max"}, "has no effort 'max' without thinking"),
        ("claude-sonnet-4-6", {"effort": "xhigh"}, "has no effort 'xhigh'"),
        ("claude-haiku-4-5-20251001", {"thinking": "adaptive"}, "does not take thinking: adaptive"),
        ("claude-haiku-4-5", {"thinking": {"budget": 4096}}, "cannot think 4096 of 4096 tokens"),
    ],
)
def test_what_one_model_does_not_take(model: str, fields: dict[str, Any], cause: str) -> None:
    spec = Anthropic.model_validate({"model": model, **fields})
    with pytest.raises(UserError, match=cause) as found:
        settled(spec)
    assert found.value.hint
    effort: Literal["high"] = "high"
    settled(Anthropic(model=model, effort=effort))


def test_the_table_knows_the_sdks_models() -> None:
    from typing import get_args

    from anthropic.types.model_param import ModelParam

    names = {name for part in get_args(ModelParam) for name in get_args(part)}
    assert {name for name in names if models_table.claude(name) is None} == {"claude-mythos-preview"}


def test_fields_without_effect_are_errors() -> None:
    for fields, cause in (
        ({}, "no model is named"),
        ({"model": "m", "base_url": "host:80"}, "not a URL"),
        ({"model": "m", "display": "summarized"}, "display has no effect"),
        ({"model": "m", "display": "summarized", "thinking": "disabled"}, "display has no effect"),
    ):
        with pytest.raises(UserError, match=cause):
            Anthropic.model_validate(fields).check()
    Anthropic(model="m", display="summarized", thinking="adaptive").check()


def test_a_real_server(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Anthropic(model="smollm2", base_url=listener.url, cache="5m", max_tokens=12, **KEYED)
    reply = ask(spec, CALL)
    assert reply.text and reply.finish in ("stop", "length") and reply.usage.input > 5 and 0 < reply.usage.output <= 12
    again = ask(spec, CALL)
    assert again.usage.input == reply.usage.input
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-another-key-0123456789")
    with pytest.raises(Fault) as found:
        ask(spec, CALL)
    assert found.value.kind == "stop" and "sk-another" not in str(found.value)
