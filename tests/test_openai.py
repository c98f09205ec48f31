"""The OpenAI teacher over real HTTP: what it sends on either API, what it reads, and what it refuses to send."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from server import ACK, Answer, Server, chat, write_seeds

from kdgen.errors import Rejected, UserError
from kdgen.teachers import models, models_table
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import Call, Fault, Params, Reply, Request, TeacherSpec
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.responses import strict_schema


class Reasoned(BaseModel):
    reasoning: str
    answer: str


@pytest.mark.parametrize("spec", [OpenAI(model="gpt-6-luna"), OpenAI(model="m", base_url="http://127.0.0.1:9/v1"),
                                  OpenAI(model="gpt-6-luna", api="responses"), Anthropic(model="claude-x")])  # fmt: skip
def test_a_schema_keeps_the_order_of_its_fields(spec: TeacherSpec) -> None:
    """A model writes them in that order, and what reasons stands first; the request's own keys are sorted."""
    call = Call([{"role": "user", "content": "hi"}], Params(), Reasoned.model_json_schema())
    body = spec.request(call).body
    found = [at for at in (body.find(b'"reasoning":{"'), body.find(b'"answer":{"')) if at >= 0]
    assert len(found) == 2 and found == sorted(found)
    assert list(json.loads(body)) == sorted(json.loads(body))


def test_a_variable_that_sends_requests_elsewhere_is_told(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gateways are set so; what they may hide is where the money and the key go."""
    write_seeds(tmp_path / "s.jsonl", [{"instruction": "Say so."}])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    asked = ("label", "s.jsonl", "-t", "openai:Qwen3-8B", *ACK, "--ledger", "l.db", "-q", "--json")
    with Server(lambda body, seen: Answer("So.")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("://", "://me:secret@"))
        wrong = kdgen(*asked)
        assert wrong.code == 2 and "OPENAI_BASE_URL: it holds a user name or a password" in wrong.err
        assert "secret" not in wrong.err and not server.bodies
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        said = kdgen(*asked)
        assert said.code == 0, said.err
        (told,) = json.loads(said.out)["notices"]
    assert told == "OPENAI_BASE_URL sends openai:MODEL to 127.0.0.1; prices and terms are counted as openai's own"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.openai.com/v1/")
    assert json.loads(kdgen(*asked).out)["notices"] == [], "what is in the ledger is sent nowhere"
    assert OpenAI(model="m").notes() == [] and OpenAI(model="m", base_url="http://127.0.0.1:9/v1").notes() == []
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://[gate")
    with pytest.raises(UserError, match=r"ANTHROPIC_BASE_URL: .* is not a URL"):
        Anthropic(model="claude-x").ready()


KEY = "sk-planted-91c4e07ab35d42f8"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a fjord?"}]


class Grade(BaseModel):
    score: int = Field(ge=1, le=5)
    why: str = Field("", min_length=2)


class Verdict(BaseModel):
    """A nested schema with a reference, an optional and a default."""

    grade: Grade = Field(description="the grade")
    kind: Literal["good", "bad"] = "good"
    note: str | None = None
    more: list[Grade] = []


def said(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A response of the Responses API."""
    usage = {
        "input_tokens": 40,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 8},
        "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 20},
    }
    return {"object": "response", "status": "completed", "model": "m-1", "output": list(items), "usage": usage, **more}


def message(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": list(parts), **more}


def text(words: str) -> dict[str, Any]:
    return {"type": "output_text", "text": words, "annotations": []}


def ask(spec: TeacherSpec, call: Call | Request) -> Reply:
    """One call through the wire that the spec opens."""

    async def go() -> Reply:
        request = spec.request(call) if isinstance(call, Call) else call
        wire = spec.connect()
        try:
            raw = await wire.send(request)
        finally:
            await wire.close()
        assert KEY.encode() not in raw.body
        return spec.read(request, raw)

    return asyncio.run(asyncio.wait_for(go(), 60))


def answers(answer: dict[str, Any] | bytes | Answer) -> Server:
    """A server that always answers this."""
    if isinstance(answer, dict):
        answer = json.dumps(answer).encode()
    made = answer if isinstance(answer, Answer) else Answer(raw=answer)
    return Server(lambda body, seen: made)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The SDK's own address is the server that is given to this; a planted key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return lambda server: monkeypatch.setenv("OPENAI_BASE_URL", server.url)


def settled(spec: TeacherSpec, **params: Any) -> tuple[Params, list[str]]:
    return spec.settle(Params(**params), "recipe.yaml: stages.0 asking teacher")


def test_chat_sends_the_hashed_bytes_and_reads_the_reply(official: Any) -> None:
    spec = OpenAI(model="gpt-4.1-mini", service_tier="flex", prompt_cache_key="k1", extra={"verbosity": "low"})
    call = Call(ASKED, Params(max_tokens=50, temperature=0.5, seed=3, stop=("\n",), logprobs=2), nth=2)
    with answers(chat("A narrow sea inlet.", usage=(9, 5), message={"reasoning": "hm"})) as server:
        official(server)
        reply = ask(spec, call)
        sent = json.loads(server.bodies[0])
    assert server.bodies == [spec.request(call).body]
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert sent == {
        "model": "gpt-4.1-mini",
        "messages": ASKED,
        "max_completion_tokens": 50,
        "temperature": 0.5,
        "seed": 5,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 2,
        "service_tier": "flex",
        "prompt_cache_key": "k1",
        "verbosity": "low",
    }
    assert (reply.text, reply.reasoning, reply.finish, reply.usage[:3]) == (
        "A narrow sea inlet.",
        "hm",
        "stop",
        (9, 0, 5),
    )


def test_strict_schemas_go_to_openai_alone(official: Any) -> None:
    schema = Verdict.model_json_schema()
    call = Call(ASKED, Params(), schema)
    own = OpenAI(model="gpt-4.1").body(call)["response_format"]["json_schema"]
    assert (own["name"], own["strict"]) == ("Verdict", True)
    objects = [own["schema"], own["schema"]["properties"]["grade"], own["schema"]["$defs"]["Grade"]]
    for each in objects:
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])
    assert '"default":' not in json.dumps(own["schema"]) and '"minLength":' not in json.dumps(own["schema"])
    assert own["schema"]["$defs"]["Grade"]["properties"]["why"]["description"] == "(minLength: 2)"
    assert own["schema"]["properties"]["grade"]["description"] == "the grade"
    assert own["schema"]["$defs"]["Grade"]["properties"]["score"]["maximum"] == 5
    good = {"grade": {"score": 3, "why": "ok"}, "kind": "bad", "note": None, "more": []}
    assert Verdict.model_validate(good).grade.score == 3
    assert schema == Verdict.model_json_schema()
    server = OpenAI(model="m", base_url="http://h/v1").body(call)["response_format"]["json_schema"]
    assert server["schema"] == schema
    own = OpenAI(model="gpt-5-pro").body(call)["text"]["format"]
    assert own["name"] == "Verdict" and own["schema"]["required"] == ["grade", "kind", "note", "more"]


def test_strict_schema_knows_unions_and_properties_named_like_keywords() -> None:
    class Odd(BaseModel):
        default: int = 3
        title: str

    made = strict_schema(Odd.model_json_schema())
    assert made["required"] == ["default", "title"] and set(made["properties"]) == {"default", "title"}
    union = strict_schema({"oneOf": [{"type": "object", "properties": {}}], "discriminator": {"propertyName": "x"}})
    assert union == {"anyOf": [{"type": "object", "properties": {}, "additionalProperties": False, "required": []}]}


def test_responses_sends_and_reads(official: Any) -> None:
    spec = OpenAI(model="gpt-5.6-sol", api="responses", summary="auto", effort="none", service_tier="priority")
    params = settled(spec, max_tokens=64, temperature=0.3, logprobs=2)[0]
    call = Call([*ASKED, {"role": "assistant", "content": "Hm?"}, {"role": "user", "content": "Well?"}], params)
    thought = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "A"}, {"type": "summary_text", "text": "B"}],
    }
    body = said(
        thought,
        message(text("Let me think."), phase="commentary"),
        message(text("An inlet"), text(" of the sea."), phase="final_answer"),
    )
    with answers(body) as server:
        official(server)
        reply = ask(spec, call)
        sent = json.loads(server.bodies[0])
    assert server.paths == ["/v1/responses"]
    assert server.bodies == [spec.request(call).body]
    assert spec.request(call).wire == "openai.responses" and spec.request(call).room == 64
    assert sent == {
        "model": "gpt-5.6-sol",
        "store": False,
        "instructions": "Be brief.",
        "input": call.messages[1:],
        "max_output_tokens": 64,
        "temperature": 0.3,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "reasoning": {"effort": "none", "summary": "auto"},
        "service_tier": "priority",
    }
    assert (reply.text, reply.reasoning, reply.finish) == ("An inlet of the sea.", "A\n\nB", "stop")
    assert reply.usage == (40, 16, 30, 8, 20) and reply.model == "m-1"


@pytest.mark.parametrize(
    ("body", "finish", "detail"),
    [
        (said(message({"type": "refusal", "refusal": "I cannot."})), "refusal", "I cannot."),
        (said(message(text("An in")), status="incomplete", incomplete_details={"reason": "max_output_tokens"}), "length", ""),
        (said(status="incomplete", incomplete_details={"reason": "content_filter"}), "filter", "content_filter"),
        (said(status="failed", error={"code": "bio_policy", "message": "no"}), "filter", "bio_policy: no"),
        (said({"type": "function_call", "name": "f"}), "tool", ""),
    ],
)  # fmt: skip
def test_how_responses_end(official: Any, body: dict[str, Any], finish: str, detail: str) -> None:
    with answers(body) as server:
        official(server)
        reply = ask(OpenAI(model="o3-pro"), Call(ASKED, Params()))
    assert reply.finish == finish and detail in reply.detail


def test_a_response_that_failed_is_tried_again_or_rejects_its_record(official: Any) -> None:
    for code, kind in (("server_error", "transient"), ("rate_limit_exceeded", "rate")):
        with answers(said(status="failed", error={"code": code, "message": "later"})) as server:
            official(server)
            with pytest.raises(Fault, match=code) as found:
                ask(OpenAI(model="o3-pro"), Call(ASKED, Params()))
        assert found.value.kind == kind
    for body in (said(status="failed", error={"code": "invalid_image", "message": "x"}), said(status="queued"), {}):
        with answers(body) as server:
            official(server)
            with pytest.raises(Rejected):
                ask(OpenAI(model="o3-pro"), Call(ASKED, Params()))


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}"}, "stop"),
        (429, {"message": "Resource Unavailable", "code": "resource_unavailable"}, "rate"),
        (429, {"message": "quota", "code": "insufficient_quota"}, "stop"),
        (400, {"message": "bad", "code": "context_length_exceeded"}, "never"),
        (413, {"message": "large"}, "never"),
        (500, {"message": f"oops {KEY}"}, "transient"),
    ],
)
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_errors_are_classed_and_hold_no_key(
    official: Any, api: Literal["chat", "responses"], status: int, error: dict[str, str], kind: str
) -> None:
    with answers(
        Answer(status=status, raw=json.dumps({"error": error}).encode(), headers={"retry-after": "3"})
    ) as server:
        official(server)
        with pytest.raises(Fault) as found:
            ask(OpenAI(model="gpt-4.1", api=api), Call(ASKED, Params()))
        assert len(server.bodies) == 1, "the SDK retried"
    assert (found.value.kind, found.value.status) == (kind, status)
    assert found.value.retry_after == (3 if kind in ("rate", "transient") else None)
    assert KEY not in str(found.value) + found.value.hint and not found.value.billed


def test_a_reply_that_repeats_the_key_loses_it(official: Any) -> None:
    with answers(chat(f"You are {KEY}.")) as server:
        official(server)
        assert ask(OpenAI(model="gpt-4.1"), Call(ASKED, Params())).text == "You are [key]."


def test_connections_that_fail(official: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, call = OpenAI(model="gpt-4.1", timeout=0.5), Call(ASKED, Params())
    for answer, words in (
        (Answer("cut", cut=True), "broke"),
        (Answer(raw=b"<html>"), "not JSON"),
        (Answer("late", delay=2), "in time"),
    ):
        with answers(answer) as server:
            official(server)
            with pytest.raises(Fault, match=words) as found:
                ask(spec, call)
        assert found.value.kind == "transient" and found.value.billed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}/v1")
        with pytest.raises(Fault, match="cannot connect") as found:
            ask(spec, call)
    assert found.value.kind == "transient" and not found.value.billed


def test_a_key_that_cannot_be_one_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("sk-two words", "sk-ключ"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(UserError, match="characters that no key has") as found:
            OpenAI(model="gpt-4.1").connect()
        assert value not in str(found.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        OpenAI(model="gpt-4.1").connect()


@pytest.mark.parametrize(
    ("model", "effort", "refused"),
    [
        ("gpt-4.1-mini", None, set()),
        ("ft:gpt-4o-2024-08-06:org::id", "low", {"effort"}),
        ("o1", None, {"temperature", "top_p", "logprobs"}),
        ("o3-2025-04-16", None, {"temperature", "top_p", "logprobs", "stop"}),
        ("gpt-5-mini", "low", {"temperature", "top_p", "logprobs"}),
        ("gpt-5.1", None, set()),
        ("gpt-5.4-mini", "none", set()),
        ("gpt-5.2", "high", {"temperature", "top_p", "logprobs"}),
        ("gpt-5.5", None, {"temperature", "top_p", "logprobs"}),
        ("gpt-5.6-luna", "none", set()),
        ("gpt-6.2-sol", None, {"temperature", "top_p", "logprobs"}),
        ("gpt-6-luna", "none", set()),
        ("gpt-6-astra", None, {"temperature", "top_p", "logprobs"}),
        ("gpt-6.1-sol-2026-11-01", None, {"temperature", "top_p", "logprobs"}),
        ("something-new", "max", set()),
    ],
)
def test_what_models_take(model: str, effort: Any, refused: set[str]) -> None:
    everything = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 9, "seed": 1, "stop": ("x",), "logprobs": 1}
    asked = {**everything, **({"effort": effort} if effort else {})}
    _, dropped = settled(OpenAI(model=model, api="chat", unsupported="drop"), **asked)
    assert set(dropped) == refused
    # The effort may as well stand in the teacher.
    _, dropped = settled(OpenAI(model=model, api="chat", unsupported="drop", effort=effort), **everything)
    assert set(dropped) == refused
    # A server of one's own may call its models as it likes.
    assert settled(OpenAI(model=model, base_url="http://h/v1"), **asked)[1] == []


def test_what_is_not_taken_is_said_before_anything_is_sent() -> None:
    with pytest.raises(UserError) as found:
        settled(OpenAI(model="gpt-5.5", temperature=0.7))
    assert str(found.value) == (
        "recipe.yaml: stages.0 asking teacher: openai:gpt-5.5 does not take temperature "
        "(it has that only without reasoning: effort: none)\n"
        "  hint: set it to null there, or leave out what the teacher does not take with "
        "--set teachers.teacher.unsupported=drop"
    )
    with pytest.raises(UserError, match=r"does not take seed, stop \(the Responses API has none\)"):
        settled(OpenAI(model="gpt-5-codex"), seed=1, stop=("x",))
    for model, effort in (("o3", "none"), ("gpt-5.5", "max"), ("gpt-6-astra", "none"), ("gpt-6-sol", "minimal")):
        with pytest.raises(UserError, match=f"has no effort '{effort}'") as found:
            settled(OpenAI(model=model, unsupported="drop"), effort=effort)
        assert "low, medium, high" in found.value.hint
    assert settled(OpenAI(model="gpt-6-sol"), effort="max")[0].effort == "max"


def test_which_api_is_asked() -> None:
    for model in ("o1-pro", "o3-deep-research-2025-06-26", "gpt-5-pro", "gpt-5.5-pro-2026-04-23", "gpt-5.1-codex-max"):
        assert OpenAI(model=model).dialect == "responses", model
        assert OpenAI(model=model, base_url="http://h/v1").dialect == "chat"
        assert OpenAI(model=model, api="chat").dialect == "chat"
    for model in ("gpt-4.1", "o3", "gpt-5.6-sol", "gpt-6-astra", "my-project"):
        assert OpenAI(model=model).dialect == "chat", model
    assert OpenAI(model="gpt-5.6-sol", summary="auto").dialect == "responses"
    with pytest.raises(UserError, match="summary has no effect"):
        OpenAI(model="gpt-5.6-sol", summary="auto", api="chat").check()
    for extra in ({"service_tier": "flex"}, {"reasoning_effort": "low"}):
        with pytest.raises(UserError, match="extra must not set"):
            OpenAI(model="m", base_url="http://h/v1", extra=extra).check()
    OpenAI(model="m", base_url="http://h/v1", extra={"reasoning": {"effort": "low"}}).check()


def test_the_table_agrees_with_the_sdk() -> None:
    from typing import get_args

    from openai.types.shared.chat_model import ChatModel
    from openai.types.shared.responses_model import ResponsesModel

    both = set(get_args(ChatModel))
    only = {name for part in get_args(ResponsesModel) for name in get_args(part)} - both
    assert only and all(models_table.RESPONSES_ONLY.match(name) for name in only)
    odd = {name for name in both if models_table.RESPONSES_ONLY.match(name)}
    assert odd == {"codex-mini-latest", "gpt-5.1-codex", "gpt-5.2-pro", "gpt-5.2-pro-2025-12-11"}
    tested = [name for name in both if name.startswith(("gpt", "o"))]
    assert all(models_table.gpt(name).prefix for name in tested if "audio" not in name)


class Listener:
    """xllamacpp's own HTTP server with the smallest model: a server that we did not write."""

    def __init__(self, path: Path) -> None:
        runtime = pytest.importorskip("xllamacpp")
        params = runtime.CommonParams()
        params.model.path = str(path)
        params.n_parallel, params.n_ctx, params.verbosity = 1, 2048, 0
        params.fit_params = params.ui = False
        params.port = 0
        params.api_keys = [KEY]
        self._server = runtime.Server(params)
        self.url = str(self._server.listening_address)


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    path = models.find("smollm2-135m")
    if path is None:
        pytest.skip("kdgen teachers pull smollm2-135m")
    yield Listener(path)


@pytest.mark.parametrize("sdk", [True, False], ids=["sdk", "lean"])
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_real_server(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, api: Literal["chat", "responses"], sdk: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{listener.url}/v1")
    spec = OpenAI(
        model="smollm2", api=api, base_url=None if sdk else f"{listener.url}/v1", api_key_env="OPENAI_API_KEY"
    )
    reply = ask(spec, Call(ASKED, Params(max_tokens=12, temperature=0.0)))
    assert reply.text and reply.finish in ("stop", "length") and reply.usage.input > 5 and 0 < reply.usage.output <= 12
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-0123456789")
    with pytest.raises(Fault) as found:
        ask(spec, Call(ASKED, Params(max_tokens=12)))
    assert found.value.kind == "stop" and "sk-another" not in str(found.value)


def test_a_real_server_keeps_to_a_strict_schema(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{listener.url}/v1")
    for base in (None, f"{listener.url}/v1"):
        call = Call(ASKED, Params(max_tokens=400, temperature=0.0, logprobs=2), Grade.model_json_schema())
        reply = ask(OpenAI(model="smollm2", base_url=base, api_key_env="OPENAI_API_KEY"), call)
        assert reply.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert reply.finish == "length" or 1 <= json.loads(reply.text)["score"] <= 5
