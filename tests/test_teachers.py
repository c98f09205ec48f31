"""`kdgen teachers` and `kdgen doctor`: what they say, and that nothing billed is ever asked."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_openai import Listener, listener

from kdgen.teachers import models
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import Params
from kdgen.teachers.ledger import VERSION
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.probe import read
from kdgen.teachers.vllm import Vllm

__all__ = ["listener"]
KEY = "sk-planted-91c4e07ab35d42f8"
VLLM = {"id": "Qwen3-8B", "object": "model", "owned_by": "vllm", "root": "Qwen/Qwen3-8B", "max_model_len": 40960}
LLAMA = {"id": "tiny", "aliases": ["small"], "owned_by": "llamacpp", "meta": {"n_ctx": 1024, "n_ctx_train": 8192}}
OPENAI = {"id": "gpt-6-luna", "object": "model", "created": 1, "owned_by": "system", "shutdown_date": "2027-04-01"}
CLAUDE = {
    "id": "claude-x",
    "type": "model",
    "lifecycle": "deprecated",
    "max_input_tokens": 200000,
    "max_tokens": 64000,
    "capabilities": {"batch": {"supported": True}, "structured_outputs": {"supported": False}},
}


@contextmanager
def listing(status: int, body: object, *, late: float = 0) -> Iterator[tuple[str, list[Any]]]:
    """A server that lists `body` for every path, and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.command, self.path, dict(self.headers)))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response_only(status)
            self.send_header("date", formatdate(usegmt=True) if not late else "Mon, 23 Nov 2026 00:00:00 GMT")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def teachers(kdgen: Callable[..., Any], *arguments: object) -> list[dict[str, Any]]:
    said = kdgen("teachers", *arguments, "--json")
    assert said.code == 0, said.err
    told: list[dict[str, Any]] = json.loads(said.out)["teachers"]
    return told


def told_of(row: dict[str, Any], spec: Any) -> Any:
    return read(spec, "http://x/v1", 200, {}, json.dumps({"data": [row]}).encode(), 0.0)


@pytest.mark.parametrize(
    ("row", "spec", "engine", "context", "notes"),
    [
        (VLLM, Vllm(model="Qwen3-8B", base_url="http://x/v1"), "vllm", 40960, ()),
        (LLAMA, OpenAI(model="small", base_url="http://x/v1"), "llamacpp", 1024, ()),
        (OPENAI, OpenAI(model="gpt-6-luna"), "system", None, ("it shuts down on 2027-04-01",)),
        (CLAUDE, Anthropic(model="claude-x"), "", 200000, ("it is deprecated", "it has no structured outputs")),
        (VLLM, OpenAI(model="m", base_url="http://x/v1"), "vllm", None, ("it does not list m, but Qwen3-8B",)),
        ({"id": "tuned"}, Vllm(model="m", lora="tuned", base_url="http://x/v1"), "", None, ()),
        ({"id": "m", "aliases": 3, "meta": [], "capabilities": []}, OpenAI(model="m"), "", None, ()),
    ],
)
def test_a_list_of_models_is_read(row: dict[str, Any], spec: Any, engine: str, context: int, notes: Any) -> None:
    told = told_of(row, spec)
    assert (told.trouble, told.engine, told.context, told.notes) == ("", engine, context, notes)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error": {"message": "no key"}}', "HTTP 401: no key"),
        (503, b"<html>busy</html>", "HTTP 503: <html>busy</html>"),
        (200, b"<html>", "not with a list of models"),
        (200, b"[]", "not with a list of models"),
        (200, b'{"data": 3}', "not with a list of models"),
    ],
)
def test_what_is_no_list_is_said(kdgen: Callable[..., Any], status: int, body: bytes, words: str) -> None:
    with listing(status, body) as (url, _):
        (told,) = teachers(kdgen, f"openai:m@{url}")
        assert told["reachable"][0]["ok"] is False and words in told["reachable"][0]["trouble"]
        assert f"no: {url}: " in kdgen("teachers", f"openai:m@{url}").out
    (told,) = teachers(kdgen, f"openai:m@{url}")
    assert "Cannot connect" in told["reachable"][0]["trouble"]


def test_a_server_that_lists_nothing_is_no_trouble(kdgen: Callable[..., Any]) -> None:
    with listing(404, b"") as (url, _):
        (told,) = teachers(kdgen, f"openai:m@{url}")
    assert told["reachable"][0]["ok"] and "does not list its models" in told["reachable"][0]["notes"][0]


def test_only_lists_are_asked_for_and_without_a_key_that_nobody_named(
    kdgen: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "VLLM_API_KEY", "PLANTED"):
        monkeypatch.setenv(name, KEY)
    recipe = {
        "name": "r",
        "use": "redistribute",
        "teachers": {
            "teacher": {"provider": "vllm", "model": "Qwen3-8B", "base_url": "", "api_key_env": "PLANTED"},
            "judge": {"provider": "openai", "model": "gpt-6-luna"},
        },
        "stages": [
            {"stage": "label", "method": "answer", "prompt": "label/answer"},
            {"stage": "label", "method": "rationale", "prompt": "label/rationale", "to": "judge"},
        ],
    }
    with listing(200, {"data": [VLLM], "version": "0.32.0"}) as (url, asked):
        specs = (f"openai:Qwen3-8B@{url}", f"anthropic:Qwen3-8B@{url}", f"vllm:Qwen3-8B@{url}", "openai:gpt-6-luna")
        told = teachers(kdgen, *specs, "local")
        assert sorted({(method, path) for method, path, _ in asked}) == [
            ("GET", "/v1/models"),
            ("GET", "/v1/models?limit=1000"),
            ("GET", "/version"),
        ]
        assert not any(KEY in value for _, _, headers in asked for value in headers.values())
        assert [None if each["reachable"] is None else each["reachable"][0]["ok"] for each in told] == [
            True, True, True, None, None,
        ]  # fmt: skip
        assert told[2]["reachable"][0]["engine"] == "vllm 0.32.0" and told[2]["reachable"][0]["context"] == 40960
        recipe["teachers"]["teacher"]["base_url"] = url  # type: ignore[index]
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        asked.clear()
        first, second = teachers(kdgen, "r.yaml")
    assert asked[0][2]["authorization"] == f"Bearer {KEY}"
    assert (first["role"], first["key"]) == ("teacher", {"from": "PLANTED", "set": True})
    assert (second["role"], second["terms"]["use"]) == ("judge", "redistribute")
    assert second["key"] == {"from": "OPENAI_API_KEY", "set": True} and second["reachable"] is None


def test_providers_are_asked_where_one_says_so(kdgen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with listing(200, {"data": [OPENAI, CLAUDE, {"echo": KEY}]}) as (url, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url.removesuffix("/v1"))
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        said = kdgen("teachers", "openai:gpt-6-luna", "anthropic:claude-x", "--probe")
    assert said.code == 0 and KEY not in said.out + said.err
    assert "it shuts down on 2027-04-01" in said.out and "context of 200,000 tokens" in said.out
    headers = {path: sent for _, path, sent in asked}
    assert headers["/v1/models"]["authorization"] == f"Bearer {KEY}"
    assert headers["/v1/models?limit=1000"]["anthropic-version"] == "2026-10-21"


def test_a_teacher_is_described(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    said = kdgen("teachers", "openai:gpt-6-luna", "anthropic:claude-opus-5-5", "vllm:Qwen3-8B@http://127.0.0.1:9/v1")
    assert said.code == 0 and said.err == ""
    luna, claude, qwen = said.out.split("\n\n")
    assert "installed  openai 3." in luna and "OPENAI_API_KEY is not set" in luna and "not asked; --probe" in luna
    assert "$0.1 in, $0.5 out, $0.01 cached in; batch: $0.05 in" in luna
    assert "not temperature, top_p, logprobs" in luna
    assert "restricted for use: internal" in luna and "--ack-terms openai.api@" in luna
    assert "blocked for use" in claude and "takes      max_tokens, stop, effort\n" in claude
    assert "price      nothing" in qwen and "allowed" in qwen and "installed  aiohttp" in qwen and "not set" not in qwen
    (told,) = teachers(kdgen, "openai:gpt-6-luna")
    assert set(told["takes"]) | set(told["takes_not"]) == set(Params.model_fields)
    assert told["usd_per_million"]["batch"]["output"] == 0.25
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {mine: {input: 3, output: 4}}\n")
    (told,) = teachers(kdgen, "openai:mine@http://127.0.0.1:9/v1", "--prices", prices)
    assert told["usd_per_million"]["online"]["input"] == 3.0
    said = kdgen("teachers", "opnai:x")
    assert said.code == 2 and "did you mean openai" in said.err


def test_what_is_not_installed_is_said(kdgen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdgen.teachers.probe.importlib.util.find_spec", lambda name: None)
    for spec, install in (
        ("anthropic:m", "'kdgen[anthropic]'"),
        ("vllm:m", "'kdgen[vllm]'"),
        ("local", "'kdgen[local]'"),
    ):
        (told,) = teachers(kdgen, spec)
        assert told["installed"]["ok"] is False and told["installed"]["install"] == f"pip install {install}"


def test_every_kind_of_teacher_is_listed(kdgen: Callable[..., Any]) -> None:
    said = kdgen("teachers")
    for spec in (
        "openai:MODEL@BASE_URL",
        "anthropic:MODEL",
        "vllm:MODEL",
        "transformers:MODEL",
        "scripted:FILE",
        *(f"local:{n}" for n in models.MODELS),
    ):
        assert spec in said.out
    told = json.loads(kdgen("teachers", "--json").out)
    assert set(told["providers"]) == {"openai", "lean", "anthropic", "vllm", "transformers", "local"}
    assert kdgen("teachers", "--help").out.startswith("Usage: ")


def test_a_real_server_is_described(kdgen: Callable[..., Any], listener: Listener) -> None:
    (told,) = teachers(kdgen, f"openai:smollm2@{listener.url}/v1")
    (answer,) = told["reachable"]
    assert answer["ok"] or "401" in answer["trouble"]
    if answer["ok"]:
        assert answer["engine"] == "llamacpp" and answer["models"]


# The doctor


def checks(kdgen: Callable[..., Any], *arguments: object) -> tuple[int, dict[str, list[dict[str, str]]]]:
    said = kdgen("doctor", *arguments, "--json")
    found: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(said.out)["checks"]:
        found.setdefault(each["name"], []).append(each)
    return said.code, found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, which the run of a command does not take away again."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("kdgen.cli.doctor.cache_dir", lambda: folder)
    return folder


def test_a_healthy_set_up(kdgen: Callable[..., Any], cache: Path, tmp_path: Path) -> None:
    code, found = checks(kdgen)
    assert code == 0 and not any(each["level"] == "fail" for rows in found.values() for each in rows)
    assert found["model"][0]["level"] == "warn" and "kdgen teachers pull" in found["model"][0]["hint"]
    assert "not there yet" in found["ledger"][0]["said"]
    assert [each["said"] for each in found["key"]] == [
        f"{name} is not set" for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "VLLM_API_KEY")
    ]
    assert list(tmp_path.iterdir()) == [], "it looks and leaves nothing"
    said = kdgen("doctor")
    assert said.code == 0 and said.err == "" and said.out.startswith("ok    python     3.")
    assert "\n                 hint: " in said.out


def test_keys_and_settings_are_named_and_never_shown(
    kdgen: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my.env").write_text(f"OPENAI_API_KEY={KEY}\nANTHROPIC_API_KEY='two words'\n")
    monkeypatch.setenv("https_proxy", f"http://me:{KEY}@127.0.0.1:9")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:9/{KEY}")
    said = kdgen("doctor", "--env-file", "my.env")
    assert KEY not in said.out + said.err and "two words" not in said.out
    assert "OPENAI_API_KEY is set" in said.out and "ANTHROPIC_API_KEY holds characters" in said.out
    assert said.code == 2
    assert "https_proxy: anthropic: and openai: go through it" in said.out
    assert "OPENAI_BASE_URL sends openai:MODEL, and its key, to another address" in said.out


def test_a_model_that_rotted_fails(kdgen: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.MODELS["smollm2-135m"]
    (cache / "models").mkdir(parents=True)
    (cache / "models" / model.file).write_bytes(b"GGUF")
    code, found = checks(kdgen)
    assert code == 2 and [each["level"] for each in found["model"]] == ["warn", "fail"]
    assert "remove " in found["model"][1]["hint"]


def test_ledgers(kdgen: Callable[..., Any], label: Callable[..., Any], cache: Path, tmp_path: Path) -> None:
    assert label("s.jsonl", '{"instruction": "Name a river."}\n').code == 0
    code, found = checks(kdgen, "--ledger", "ledger.db")
    assert code == 0 and "ledger.db: 1 replies" in found["ledger"][0]["said"]
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        code, found = checks(kdgen, "--ledger", "ledger.db")
        assert code == 0 and found["ledger"][0]["level"] == "warn" and "another process" in found["ledger"][0]["said"]
        db.execute("ROLLBACK")
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    code, found = checks(kdgen, "--ledger", "ledger.db")
    assert code == 2 and f"version {VERSION + 1}" in found["ledger"][0]["said"]
    (tmp_path / "ledger.db").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    code, found = checks(kdgen, "--ledger", "ledger.db")
    assert code == 2 and found["ledger"][0]["level"] == "fail"
    code, found = checks(kdgen, "--ledger", "/proc/none/ledger.db")
    assert code == 2 and "cannot be written" in found["ledger"][0]["said"]


def test_servers_and_their_clocks(kdgen: Callable[..., Any], cache: Path) -> None:
    with listing(200, {"data": [VLLM]}) as (url, _):
        code, found = checks(kdgen, f"vllm:Qwen3-8B@{url}")
        assert code == 0 and found["server"][0]["level"] == found["clock"][0]["level"] == "ok"
        code, found = checks(kdgen, f"vllm:other@{url}")
        assert (
            code == 0 and found["server"][0]["level"] == "warn" and "does not list other" in found["server"][0]["said"]
        )
    with listing(200, {"data": [VLLM]}, late=1) as (url, _):
        code, found = checks(kdgen, f"vllm:Qwen3-8B@{url}")
        assert code == 0 and found["clock"][0]["level"] == "warn" and "ahead of" in found["clock"][0]["said"]
    code, found = checks(kdgen, f"vllm:Qwen3-8B@{url}")
    assert code == 2 and found["server"][0]["level"] == "fail"


def test_old_tables_and_full_disks_are_said(
    kdgen: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdgen.cli.doctor.OLD", -1)
    monkeypatch.setattr("kdgen.cli.doctor.SCARCE", 1e18)
    code, found = checks(kdgen)
    assert code == 0 and found["terms"][0]["level"] == found["prices"][0]["level"] == "warn"
    assert {each["level"] for each in found["disk"]} == {"warn"}
    monkeypatch.setattr("kdgen.cli.doctor.FULL", 1e18)
    assert checks(kdgen)[0] == 2
