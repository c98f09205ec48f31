"""Keys: where they come from, where they may not stand, and that none is ever written, whatever a server sends back."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from server import Answer, Server, chat, start, tasks, write_seeds

from kdgen import terms
from kdgen.config import load_recipe
from kdgen.errors import UserError
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import Call, Fault, Params
from kdgen.teachers.keys import Key, load_env_file, looks_like_key, masked
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.vllm import Vllm

KEY = "sk-planted/91c4e07ab35d42f8+Zq"
PASTED = "sk-planted-91c4e07ab35d42f8-Zq"
MODEL = "Qwen3-8B"
CALL = Call([{"role": "user", "content": "Hi"}], Params(max_tokens=9))


def forms(key: str) -> list[str]:
    """The key as servers may repeat it: plain, in base64 by itself and inside a header, in URLs, in hex."""
    raw = [key.encode(), f"Bearer {key}".encode(), f"x:{key}".encode(), f"xy:{key}\n".encode()]
    coded = [base64.b64encode(each).decode() for each in raw] + [
        base64.urlsafe_b64encode(each).decode() for each in raw
    ]
    percent = "".join(f"%{byte:02x}" for byte in key.encode())
    return [key, *coded, quote(key, safe=""), percent, percent.upper(), key.encode().hex(), key.encode().hex().upper()]


def traces(content: bytes) -> list[str]:
    """What of the key is in `content`, JSON's escapes undone."""
    plain = re.sub(rb"\\u00([0-9a-fA-F]{2})|\\(/)", lambda m: bytes.fromhex(m[1].decode()) if m[1] else b"/", content)
    found = [form for form in forms(KEY) if form.encode() in content or form.encode() in plain]
    for word in re.findall(rb"[A-Za-z0-9+/_-]{20,}", plain):
        for start_at in range(4):
            text = word[start_at:].replace(b"-", b"+").replace(b"_", b"/")
            try:
                decoded = binascii.a2b_base64(text[: len(text) // 4 * 4])
            except binascii.Error:
                continue
            if KEY[4:20].encode() in decoded:
                found.append(f"in base64: {word.decode()}")
    return found


def grep(folder: Path, *texts: str, allowed: tuple[Path, ...] = ()) -> dict[str, list[str]]:
    """Every file under `folder`, and `texts`, that holds the key."""
    found = {f"text {place}": traces(text.encode()) for place, text in enumerate(texts)}
    for path in folder.rglob("*"):
        if path.is_file() and path not in allowed:
            found[str(path.relative_to(folder))] = traces(path.read_bytes())
    return {name: hits for name, hits in found.items() if hits}


class Hostile:
    """A server of both dialects that repeats the key it is sent wherever it can. `how` says how it answers."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.keys: list[str] = []
        self.hits = 0
        self.held = threading.Event()
        self.url = ""
        self._ready = threading.Event()

    def __enter__(self) -> Hostile:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=10**8)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        sent = await request.read()
        self.hits += 1
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        self.keys.append(key)
        spread = " ".join(forms(key))
        headers = {"x-request-id": key, "request-id": forms(key)[2], "openai-processing-ms": spread, "retry-after": "0"}
        if "batch" in request.path or "/files" in request.path:
            return self._json(self._batch(request, sent, spread, key), headers, key)
        if self.how == "held" and self.hits > 2:
            self.held.set()
            await self._end.wait()
        if self.how in ("400", "401", "429", "500"):
            words = {"error": {"message": f"no @@ {spread}", "type": f"t-{key}", "code": f"c-{key}", "param": key}}
            return self._json(words, headers, key, status=int(self.how))
        if self.how == "html":
            return web.Response(body=f"{'x' * 66}{key}<html>{spread}".encode(), headers=headers)
        if self.how == "redirect":
            return web.Response(
                status=307, headers={"location": f"http://localhost:{request.url.port}/v1/{quote(key)}"}
            )
        if self.how == "broken":
            assert (
                request.transport is not None
            )  # no chunk has this size; in one piece, for aiohttp waits for more else
            head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\n"
            request.transport.write(f"{head}{key}\r\n".encode())
            request.transport.close()
            return web.Response()
        return self._json(self._reply(request.path, f"Hello @@ {spread}", key), headers, key)

    @staticmethod
    def _reply(path: str, text: str, key: str) -> dict[str, Any]:
        if path.endswith("/messages"):
            usage = {"input_tokens": 3, "output_tokens": 3}
            block = {"type": "text", "text": text}
            return {"id": key, "model": f"m {key}", "content": [block], "stop_reason": "end_turn", "usage": usage}
        if path.endswith("/responses"):
            part = {"type": "output_text", "text": text, "annotations": []}
            item = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
            usage = {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6}
            return {"id": key, "status": "completed", "model": key, "output": [item], "usage": usage}
        return {**chat(text, message={"reasoning": text}), "id": key, "model": f"m {key}", "system_fingerprint": key}

    def _batch(self, request: web.Request, sent: bytes, spread: str, key: str) -> Any:
        path = request.path
        if path.endswith("/files"):
            self.lines = [json.loads(line) for line in sent.splitlines() if line.startswith(b"{")]
            return {"id": "f1", "object": "file", "bytes": 1, "created_at": 1, "filename": key, "purpose": "batch"}
        if path.endswith("/content") or path.endswith("/results"):
            return b"\n".join(self._lines(path, spread, key))
        if "messages" in path:
            if request.method == "POST":
                self.lines = json.loads(sent)["requests"]
            made = {
                "id": "b1",
                "type": "message_batch",
                "processing_status": "ended",
                "created_at": "2026-11-24T00:00:00Z",
            }
            counts = {"processing": 0, "succeeded": 1, "errored": 1, "canceled": 0, "expired": 0}
            return {**made, "expires_at": "2026-11-25T00:00:00Z", "request_counts": counts, "results_url": key}
        counts = {"total": 3, "completed": 2, "failed": 1}
        state = "failed" if self.how == "failed" else "completed"
        errors = {"object": "list", "data": [{"code": key, "message": spread, "line": 1, "param": key}]}
        made = {"id": "b1", "object": "batch", "endpoint": "/v1/chat/completions", "created_at": 1, "status": state}
        more = {"completion_window": "24h", "input_file_id": "f1", "request_counts": counts}
        more["output_file_id"] = "o1" if state == "completed" else None
        return {**made, **more, "errors": errors if state == "failed" else None}

    def _lines(self, path: str, spread: str, key: str) -> Iterator[bytes]:
        for place, line in enumerate(self.lines):
            if path.endswith("/results"):
                reply = self._reply("/messages", f"Hello @@ {spread}", key)
                wrong = {"type": "error", "error": {"type": "invalid_request_error", "message": f"no {spread}"}}
                result = {"type": "succeeded", "message": reply} if place else {"type": "errored", "error": wrong}
                yield self._bytes({"custom_id": line["custom_id"], "result": result}, key)
                continue
            body = (
                self._reply("/chat/completions", f"Hello @@ {spread}", key) if place else {"error": {"message": spread}}
            )
            response = {"status_code": 200 if place else 400, "request_id": key, "body": body}
            yield self._bytes({"id": key, "custom_id": line["custom_id"], "response": response, "error": None}, key)

    @staticmethod
    def _bytes(body: Any, key: str) -> bytes:
        escaped = "".join(f"\\u{ord(mark):04x}" for mark in key)
        return body if isinstance(body, bytes) else json.dumps(body).replace("@@", escaped).encode()

    def _json(self, body: Any, headers: dict[str, str], key: str, status: int = 200) -> web.Response:
        more = {"content-type": "application/json", **headers}
        return web.Response(status=status, body=self._bytes(body, key), headers=more)


WIRES = {
    "lean": ("openai", {"base_url": "{url}"}),
    "lean responses": ("openai", {"base_url": "{url}", "api": "responses"}),
    "vllm": ("vllm", {"base_url": "{url}"}),
    "sdk": ("openai", {}),
    "sdk responses": ("openai", {"api": "responses"}),
    "anthropic": ("anthropic", {"base_url": "{url}"}),
}
SOURCES = ("environment", "env file", "key file")


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdgen: Any) -> Callable[..., Any]:
    """Plant the key and label three seeds, asking a hostile server."""
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "PLANTED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kdgen.teachers.dispatch.BASE", 0.001)
    monkeypatch.setattr("kdgen.cli.job.POLL", 0.001)
    secrets = (tmp_path / ".env", tmp_path / "mine.key")

    def run(wire: str, source: str, server: Hostile, *more: str, **fields: Any) -> Any:
        provider, own = WIRES[wire]
        teacher = {name: value.format(url=server.url) for name, value in own.items()}
        options: tuple[str, ...] = ()
        if source == "key file":
            secrets[1].write_text(f"{KEY}\n")
            teacher["api_key_file"] = secrets[1].name
        else:
            teacher["api_key_env"] = "PLANTED"
            if source == "environment":
                monkeypatch.setenv("PLANTED", KEY)
            else:
                secrets[0].write_text(f"# mine\nexport PLANTED='{KEY}'\n")
                options = ("--env-file", str(secrets[0]))
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        knobs = {"model": MODEL, "max_tokens": 50, "patience": 0, "attempts": 2, "concurrency": 1, **fields}
        recipe = {
            "name": "planted",
            "seeds": {"path": "seeds.jsonl"},
            "teachers": {"teacher": {"provider": provider, **teacher, **knobs}},
            "stages": [{"stage": "label", "method": "answer", "prompt": "label/answer"}],
        }
        if wire.startswith("sdk"):
            recipe["terms"] = {"openai.api": {"date": str(terms.table().read), "why": "a test"}}
        (tmp_path / "planted.yaml").write_text(json.dumps(recipe))
        write_seeds(tmp_path / "seeds.jsonl", tasks(3))
        said = kdgen("run", "./planted.yaml", "--json", "-o", "out", "--ledger", "ledger.db", *options, *more)
        assert server.keys and set(server.keys) <= {KEY, ""} and KEY in server.keys
        assert grep(tmp_path, said.out, said.err, allowed=secrets) == {}
        return said

    return run


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("wire", WIRES)
def test_no_reply_brings_the_key_in(plant: Callable[..., Any], tmp_path: Path, wire: str, source: str) -> None:
    with Hostile("200") as server:
        said = plant(wire, source, server)
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["output"].startswith("Hello [key] [key]") for row in rows)


@pytest.mark.parametrize("how", ["400", "401", "429", "500", "html", "redirect", "broken"])
@pytest.mark.parametrize("wire", ["lean", "vllm", "sdk", "anthropic"])
def test_no_error_brings_the_key_in(plant: Callable[..., Any], wire: str, how: str) -> None:
    with Hostile(how) as server:
        said = plant(wire, "environment", server)
    assert said.code in (3, 5), said.err
    assert said.code == 3 or "[key]" in said.err


@pytest.mark.parametrize("wire", ["sdk", "anthropic"])
def test_no_batch_brings_the_key_in(plant: Callable[..., Any], tmp_path: Path, wire: str) -> None:
    with Hostile("200") as server:
        said = plant(wire, "key file", server, mode="batch")
        assert said.code == 0, said.err
        assert "[key]" in (tmp_path / "out/rejects.jsonl").read_text()


def test_no_failed_batch_brings_the_key_in(plant: Callable[..., Any]) -> None:
    with Hostile("failed") as server:
        said = plant("sdk", "env file", server, mode="batch")
    assert said.code == 3 and "batch b1 failed: [key]" in said.err


def test_nothing_is_left_of_the_key_by_a_kill(tmp_path: Path) -> None:
    """The ledger's write-ahead log is there then, and its lock files."""
    write_seeds(tmp_path / "seeds.jsonl", tasks(3))
    with Hostile("held") as server:
        asked = ("label", "seeds.jsonl", "-t", f"openai:{MODEL}@{server.url}", "-o", "out", "--ledger", "ledger.db")
        sets = ("--set", "teachers.teacher.api_key_env=PLANTED", "--set", "teachers.teacher.concurrency=1")
        process = start(*asked, *sets, cwd=tmp_path, PLANTED=KEY)
        assert server.held.wait(60)
        log = tmp_path / "ledger.db-wal"
        while b"[key]" not in log.read_bytes():  # the third request may go out before the second reply is on disk
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=30)
    assert set(server.keys) == {KEY}
    assert b"[key]" in log.read_bytes()
    assert grep(tmp_path, out, err) == {}


def test_the_grep_sees_a_key(tmp_path: Path) -> None:
    """The watch itself."""
    escaped = "".join(f"\\u{ord(mark):04x}" for mark in KEY)
    for place, form in enumerate([*forms(KEY), escaped, json.dumps(KEY), KEY.replace("/", "\\/")]):
        (tmp_path / str(place)).write_text(f"x{form}y")
    assert len(grep(tmp_path)) == place + 1


def test_a_redirect_takes_the_key_nowhere() -> None:
    """To another host the request may go, but not the key."""

    async def ask(spec: Any) -> None:
        wire = spec.connect()
        try:
            await wire.send(spec.request(CALL))
        except Fault:
            pass
        finally:
            await wire.close()

    for spec in (OpenAI, Vllm, Anthropic):
        with Server(lambda body, seen: Answer("Hi")) as other:
            away = other.url.replace("127.0.0.1", "localhost") + "/taken"
            with Server(lambda body, seen, to=away: Answer(status=307, headers={"location": to})) as server:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("PLANTED", KEY)
                    asyncio.run(ask(spec(model=MODEL, base_url=server.url, api_key_env="PLANTED")))
                assert any(KEY in value for value in server.headers[0].values())
            assert not any(KEY in value for headers in other.headers for value in headers.values())


def test_a_key_is_struck_out_and_words_are_not() -> None:
    body = b'{"a": "' + KEY.encode() + b'", "b": "caf\\u00e9 \\"x\\" a\\/b"}'
    assert Key(KEY).strike(body) == b'{"a": "[key]", "b": "caf\\u00e9 \\"x\\" a\\/b"}'
    plain = b"password, none, x and not-needed stay"
    for short in ("", "x", "none", "password", "not-needed"):
        assert Key(short).strike(plain) is plain
    headers = {"X-Request-Id": "1", "other": "2"}
    assert Key(KEY).headers(headers) is headers
    assert Key(KEY).headers({"X-Request-Id": KEY}) == {"x-request-id": "[key]"}
    assert Key(KEY).clean(f"é {KEY}\udcff") == "é [key]\udcff"


# Where keys come from


def test_a_file_of_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.env"
    path.write_text("# keys\n\nONE=a$b # said so\nexport TWO='x y'\nTHREE=3\nFOUR=\n")
    for name in ("ONE", "TWO", "FOUR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("THREE", "mine")
    assert load_env_file(path) == ["ONE", "TWO", "FOUR"]
    assert [os.environ[name] for name in ("ONE", "TWO", "THREE", "FOUR")] == ["a$b", "x y", "mine", ""]
    for line, at in (("ONE=1\nnonsense\n", 2), ("'A B'=1\n", 1), ("ONE='never closed\n", 1), (KEY, 1)):
        path.write_text(line)
        with pytest.raises(UserError, match=f"my.env:{at}: this line is not NAME=VALUE") as found:
            load_env_file(path)
        assert KEY not in str(found.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        load_env_file(path)


def test_a_file_of_variables_stands_before_or_after_the_command(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "my.env").write_text("OPENAI_API_KEY=sk-x\n")
    lacking = kdgen("check", "label/answer", "-t", "openai:m")
    assert "OPENAI_API_KEY is not set" in lacking.out
    for place in (("--env-file", "my.env", "check"), ("check", "--env-file", "my.env")):
        assert "is not set" not in kdgen(*place, "label/answer", "-t", "openai:m").out
    assert "OPENAI_API_KEY is not set" in kdgen("check", "label/answer", "-t", "openai:m").out
    said = kdgen("check", "--env-file", "none.env")
    assert said.code == 2 and "--env-file none.env: cannot be read: No such file" in said.err


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content, cause in (("two words", "holds characters that no key has"), ("ké", "holds characters")):
        path.write_text(content)
        with pytest.raises(UserError, match=cause):
            OpenAI(model="m", api_key_file=str(path)).connect()
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="cannot be read: it is not text"):
        OpenAI(model="m", api_key_file=str(path)).connect()
    for cls in (OpenAI, Anthropic, Vllm):
        url = {"base_url": "http://127.0.0.1:1/v1"}
        assert "cannot be read: No such file" in next(
            iter(cls(model="m", api_key_file=str(tmp_path / "no"), **url).needs())
        )
        with pytest.raises(UserError, match="both set"):
            cls(model="m", api_key_file=str(path), api_key_env="MINE", **url).check()


def test_a_key_file_is_relative_to_its_recipe_and_no_part_of_it(tmp_path: Path) -> None:
    recipe = {
        "name": "r",
        "teachers": {"teacher": {"provider": "openai", "model": "m", "api_key_file": "mine.key"}},
        "stages": [{"stage": "label", "method": "answer", "prompt": "label/answer"}],
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe))
    made = load_recipe(str(path))
    assert made.teachers["teacher"].api_key_file == str(tmp_path / "mine.key")  # type: ignore[union-attr]
    assert made.digest == load_recipe(str(path), sets=["teachers.teacher.api_key_file=null"]).digest


# Where they may not stand


@pytest.mark.parametrize(
    "given",
    [
        ("--set", f"teachers.teacher.api_key_env={PASTED}"),
        ("--set", f"teachers.teacher.api_key_file={PASTED}"),
        ("--set", "teachers.teacher.api_key_file=0f3c91c4e07ab35d42f80f3c91c4e07a"),
        ("--set", "teachers.teacher.api_key_env=0f3c91c4e07ab35d42f80f3c91c4e07a"),
        ("--set", "teachers.teacher.api_key_env=a91c4e07ab35d42f80f3c91c4e07a"),
        ("--set", "teachers.teacher.api_key_env=91c4e07ab/35d42f8"),
        ("--set", f"teachers.teacher.api_key={PASTED}"),
        ("--set", f"teachers.teacher.extra={{api_key: {PASTED}}}"),
        ("--set", f"teachers.teacher.extra={{{PASTED}: 1}}"),
        ("--set", f"teachers.teacher.extra={{headers: {{authorization: Bearer {PASTED}}}}}"),
        ("--set", PASTED),
        ("--set", f"about=with {PASTED}"),
        ("-t", PASTED),
        ("-t", f"openai:{PASTED}"),
        ("-t", "openai:m@http://me:91c4e07ab35d42f8@127.0.0.1:1/v1"),
        ("-t", f"openai:m@http://{PASTED}@127.0.0.1:1/v1"),
    ],
)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(
    kdgen: Callable[..., Any], tmp_path: Path, given: tuple[str, ...]
) -> None:
    base = () if given[0] == "-t" else ("-t", "openai:m@http://127.0.0.1:1/v1")
    said = kdgen("label", "general", *base, *given)
    assert said.code == 2 and said.out == ""
    assert "91c4e07ab" not in said.err and PASTED not in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_a_recipe_is_refused_with_its_line(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    text = (
        "name: r\nteachers:\n  teacher:\n    provider: openai\n    model: m\n    api_key_env: {}\n"
        "stages: [{{stage: label, method: answer, prompt: label/answer}}]\n"
    )
    for value, words in (
        (PASTED, "looks like an API key"),
        ("91c4e07ab35d-42f8", "no name of an environment variable"),
    ):
        (tmp_path / "r.yaml").write_text(text.format(value))
        said = kdgen("run", "./r.yaml", "--seeds", "general")
        assert said.code == 2 and "r.yaml:6: " in said.err and words in said.err and "keys come from" in said.err
        assert "91c4e07ab" not in said.err


def test_names_and_paths_are_no_keys() -> None:
    for word in (
        "OPENAI_API_KEY", "MY_KEY_2024_FOR_THE_TEAM", "Qwen/Qwen2.5-Coder-0.5B-Instruct", "claude-haiku-4-5-20251001",
        "./keys/mine.key", "~/.config/kdgen/openai", "sk-learn", "task-planted-91c4e07ab35d42f8", "hf_q05",
    ):  # fmt: skip
        assert not looks_like_key(word) and masked(word) == word
    for word in (PASTED, "sk-proj-abc_DEF-0123456789abcdef", "hf_" + "a1" * 17, "AIza" + "b2" * 17, "gsk_" + "c3" * 20):
        assert looks_like_key(word) and masked(f"so: {word}!").startswith("so: [key]")
    assert masked("http://me:pw@host:1/v1") == "http://[key]@host:1/v1"


def test_a_port_that_answers_no_http_keeps_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no HTTP at all is quoted in errors."""
    monkeypatch.setenv("PLANTED", KEY)

    def serve(listener: socket.socket) -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            asked = connection.recv(65536).decode(errors="replace")
            found = re.search(r"(?i)bearer (\S+)", asked)
            connection.sendall(f"{found[1] if found else '?'} HTTP/9 {KEY}\r\n\r\n".encode())
            connection.close()

    async def ask(spec: Any) -> str:
        wire = spec.connect()
        try:
            await wire.send(spec.request(CALL))
        except Fault as fault:
            return fault.message
        finally:
            await wire.close()
        raise AssertionError

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        for spec in (OpenAI, Vllm, Anthropic):
            said = asyncio.run(ask(spec(model=MODEL, base_url=url, api_key_env="PLANTED")))
            assert traces(said.encode()) == [] and "broke" in said
