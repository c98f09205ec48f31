"""What a server does not support: found out by the first requests, and said with a way out that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server import Answer, Made, Server, make, recipe_file, tasks, write_seeds
from test_openai import KEY, Listener, listener

from kdgen.errors import EndpointError, UserError
from kdgen.teachers.base import Fault, Params, Reply, Request, Usage
from kdgen.teachers.heed import refused, unheeded, way_out

__all__ = ["listener"]
BODY = {
    "model": "m", "messages": [], "seed": 1, "stop": ["x"], "logprobs": True, "top_logprobs": 2, "temperature": 0.5,
    "max_tokens": 5, "reasoning_effort": "low", "top_k": 3, "response_format": {"type": "json_schema"},
}  # fmt: skip
LABEL = {"stage": "label", "method": "answer", "prompt": "label/answer"}
EVOL = {
    "stage": "expand", "method": "evol", "rounds": 1, "operations": {"deepen": "expand/evol/deepen"},
    "equal": "expand/evol/equal", "answer": "label/answer",
}  # fmt: skip


def run(
    folder: Path,
    url: str,
    *sets: str,
    stage: dict[str, Any] = LABEL,
    provider: str = "openai",
    seeds: int = 3,
    **own: Any,
) -> Made:
    recipe = {
        "name": "heed",
        "seeds": {"path": "seeds.jsonl"},
        "teachers": {"teacher": {"provider": provider, "model": "Qwen3-8B", "base_url": url, "max_tokens": 400, **own}},
        "stages": [stage],
    }
    write_seeds(folder / "seeds.jsonl", tasks(seeds))
    path = recipe_file(folder / "heed.yaml", recipe)
    return make("run", path, *(part for each in sets for part in ("--set", each)), folder=folder / "out")


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("Unsupported parameter: 'temperature' is not supported with this model.", ["temperature"]),
        ("'logprobs' is not supported with reasoning models", ["logprobs"]),
        ("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.", ["max_tokens"]),
        ("litellm.UnsupportedParamsError: x does not support parameters: ['logprobs', 'seed']", ["logprobs", "seed"]),
        ("[{'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Extra inputs are not permitted'}]", ["seed"]),
        ("stop: Extra inputs are not permitted", ["stop"]),
        ('Invalid JSON payload received. Unknown name "seed": Cannot find field.', ["seed"]),
        ("Unrecognized request argument supplied: top_k", ["top_k"]),
        ("This response_format type is unavailable now", ["schema"]),
        ("top_logprobs requires logprobs to be set to true", ["logprobs"]),
        (
            "Requested sample logprobs of 30, which is greater than max allowed: 20 (parameter=logprobs, value=30)",
            ["logprobs"],
        ),
        ("`temperature` is deprecated for this model.", ["temperature"]),
        ("unknown field `reasoning_effort`", ["effort"]),
        ("max_tokens is too large: 99999. This model supports at most 16384 completion tokens", []),
        ("This model's maximum context length is 8192 tokens; reduce the length of the messages or max_tokens", []),
        ("Unsupported language in the prompt, please stop", []),
        ("the seed of the plant is not allowed here", []),
        ("temperature must be between 0 and 2", []),
        ("not supported", []),
    ],
)
def test_an_error_that_names_a_parameter(message: str, names: list[str]) -> None:
    request = Request("openai.chat", json.dumps(BODY).encode())
    assert refused(request, Fault("never", f"HTTP 400: {message}", status=400)) == names
    assert refused(request, Fault("never", f"HTTP 413: {message}", status=413)) == []
    plain = Request("openai.chat", b'{"model": "m", "messages": []}')
    assert refused(plain, Fault("never", f"HTTP 400: {message}", status=400)) == []


def test_the_responses_api_and_claude_name_theirs() -> None:
    request = Request("openai.responses", json.dumps({"model": "m", "input": [], "text": {}, "reasoning": {}}).encode())
    fault = Fault("never", "HTTP 400: Unsupported parameter: 'text.format' is not supported", status=400)
    assert refused(request, fault) == ["schema"]
    fault.message = "HTTP 400: Unsupported parameter: 'reasoning.effort' is not supported with this model."
    assert refused(request, fault) == ["effort"]
    request = Request("anthropic.messages", json.dumps({"model": "m", "output_config": {}}).encode())
    assert "schema" in refused(
        request, Fault("never", "HTTP 400: output_config: Extra inputs are not permitted", status=400)
    )


@pytest.mark.parametrize("status", [400, 422])
def test_a_parameter_that_is_refused_ends_the_run_with_the_way_out(tmp_path: Path, status: int) -> None:
    def script(body: dict[str, Any], seen: int) -> Answer:
        if "seed" in body:
            return Answer("Unsupported parameter: 'seed' is not supported by this server.", status=status)
        return Answer("It is so.")

    with Server(script) as server:
        made = run(tmp_path, server.url, "teachers.teacher.seed=3", seeds=40)
        assert isinstance(made.error, EndpointError)
        assert "openai:Qwen3-8B does not take seed (HTTP 4" in str(made.error)
        assert len(server.bodies) <= 8, "what is refused once is not asked 40 times"
        # Each way out that the hint names works.
        assert "to null" in made.error.hint and "lacks=[seed]" in made.error.hint
        assert run(tmp_path, server.url, "teachers.teacher.seed=null").error is None
        sets = ("teachers.teacher.seed=3", "teachers.teacher.lacks=[seed]")
        lacking = run(tmp_path, server.url, *sets)
        assert isinstance(lacking.error, UserError) and "does not take seed" in str(lacking.error)
        dropped = run(tmp_path, server.url, *sets, "teachers.teacher.unsupported=drop")
    assert dropped.manifest["notices"] == ["label/answer: teacher does not take seed; left out"]


def test_what_others_were_served_with_rejects_its_record_alone(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Answer:
        if "number 2 " in body["messages"][-1]["content"]:
            return Answer("'temperature' is not supported with this prompt", status=400)
        return Answer("It is so.")

    with Server(script) as server:
        made = run(tmp_path, server.url, concurrency=1, temperature=0.5)
    assert made.manifest["counts"]["rows"] == 2 and made.manifest["counts"]["rejects"] == {"endpoint_refused": 1}
    assert "does not take temperature" in made.rows("rejects.jsonl")[0]["detail"]


def test_a_schema_that_is_refused_can_be_left_out(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Answer:
        if "response_format" in body:
            return Answer("response_format: json_schema is not supported", status=400)
        wants = "JSON" in json.dumps(body["messages"])
        return Answer(
            '{"verdict": "different"}' if wants else f"Explain rust in {len(json.dumps(body))} steps, then stop."
        )

    with Server(script) as server:
        made = run(tmp_path, server.url, stage=EVOL)
        assert made.error is None or "schema" in str(made.error)
        told = " ".join(row["detail"] for row in made.rows("rejects.jsonl")) + str(made.error)
        assert "does not take schema (HTTP 400: response_format" in told
        free = run(tmp_path, server.url, "teachers.teacher.lacks=[schema]", stage=EVOL)
    assert free.error is None and free.manifest["counts"]["generated"] >= 3
    assert any("JSON" in json.dumps(json.loads(body)["messages"]) for body in server.answered)


@pytest.mark.parametrize(("knob", "name"), [("logprobs=2", "logprobs"), ("stop=[so]", "stop")])
def test_a_parameter_that_is_ignored_ends_the_run_or_is_noted(tmp_path: Path, knob: str, name: str) -> None:
    with Server(lambda body, seen: Answer("It is so, and on it goes.")) as server:
        made = run(tmp_path, server.url, f"teachers.teacher.{knob}", seeds=40)
        assert isinstance(made.error, EndpointError) and f"openai:Qwen3-8B ignores {name}" in str(made.error)
        assert f"lacks=[{name}]" in made.error.hint and len(server.bodies) <= 16
        asked = len(server.bodies)
        again = run(tmp_path, server.url, f"teachers.teacher.{knob}", "teachers.teacher.concurrency=1", seeds=1)
        assert isinstance(again.error, EndpointError) and len(server.bodies) == asked, "the ledger says the same"
        noted = run(tmp_path, server.url, f"teachers.teacher.{knob}", "teachers.teacher.unsupported=drop", seeds=40)
    assert noted.manifest["notices"] == [f"teacher ignores {name}: its replies show it"]
    assert noted.manifest["counts"]["rows"] == 40


def test_what_a_reply_shows() -> None:
    def reply(text: str, body: Any, finish: Any = "stop") -> Reply:
        return Reply("k", text, finish, Usage(), body)

    asked, told = Params(logprobs=2, stop=("END",)), {"content": [{"token": "a"}]}
    for body in ({"choices": [{"logprobs": told}]}, {"choices": [{"logprobs": {"tokens": ["a"]}}]},
                 {"output": [{"type": "reasoning"}, {"content": [{"logprobs": [1]}]}]}):  # fmt: skip
        assert list(unheeded(asked, reply("It ends. END", body))) == []
    for body in ({"choices": [{}]}, {"choices": [{"logprobs": {"content": []}}]}, {"output": [{"content": [{}]}]},
                 {"content": []}, {"output": 3}):  # fmt: skip
        assert list(unheeded(asked, reply("A END B", body))) == ["logprobs", "stop"]
        assert list(unheeded(asked, reply("", body))) == []
        assert list(unheeded(asked, reply("A END B", body, "refusal"))) == []
        assert list(unheeded(Params(), reply("A END B", body))) == []


def test_the_way_out_of_each() -> None:
    assert way_out(["top_k"]) == "take top_k out of the recipe"
    assert "checked against the schema" in way_out(["schema", "seed"]) and "lacks=[seed]" in way_out(["schema", "seed"])


# A server that we did not write


@pytest.mark.parametrize("provider", ["openai", "vllm"])
def test_a_real_server_heeds_what_it_is_asked(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setenv("PLANTED", KEY)
    knobs = {
        "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["\n\n\n"], "presence_penalty": 0.5, "frequency_penalty": 0.5,
        "logprobs": 2, "effort": "low", "api_key_env": "PLANTED", "max_tokens": 200,
    }  # fmt: skip
    made = run(tmp_path, f"{listener.url}/v1", provider=provider, **knobs)
    assert made.error is None or "cut at 200 tokens" in str(made.error), made.error


def test_a_real_server_without_logprobs_says_so(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's Responses API has none, by its own words."""
    monkeypatch.setenv("PLANTED", KEY)
    own = {"api": "responses", "api_key_env": "PLANTED", "logprobs": 2}
    made = run(tmp_path, f"{listener.url}/v1", **own)
    assert isinstance(made.error, EndpointError) and "openai:Qwen3-8B does not take logprobs (HTTP 400" in str(
        made.error
    )
    sets = ("teachers.teacher.lacks=[logprobs]", "teachers.teacher.unsupported=drop")
    assert run(tmp_path, f"{listener.url}/v1", *sets, **own).error is None
