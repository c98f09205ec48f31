"""A loopback server with the batch endpoints of OpenAI and Anthropic: what is submitted is counted, any answer can be held."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from server import chat, invented

Line = dict[str, Any]


@dataclass
class Submitted:
    """A batch as the server has it; `lines` are its results."""

    id: str
    requests: list[tuple[str, dict[str, Any]]]
    name: str = ""
    state: str = "running"
    made_at: float = field(default_factory=time.time)
    looked: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def text_of(body: dict[str, Any]) -> str:
    """The last message of a request."""
    return str(body["messages"][-1]["content"])


def chat_line(key: str, body: dict[str, Any], status: int = 200) -> Line:
    """A result in OpenAI's format; with a status over 200, an error."""
    said: Any = chat(f"It is {invented(text_of(body))}.")
    if status != 200:
        said = {"error": {"message": f"status {status} on purpose", "type": "test"}}
    return {
        "id": "r",
        "custom_id": key,
        "response": {"status_code": status, "request_id": "q", "body": said},
        "error": None,
    }


def expired_line(key: str, body: dict[str, Any], code: str = "batch_expired") -> Line:
    """A request that OpenAI had no time for."""
    return {"id": "r", "custom_id": key, "response": None, "error": {"code": code, "message": "not executed"}}


def message(body: dict[str, Any]) -> dict[str, Any]:
    """A message of Anthropic's."""
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "stub",
        "content": [{"type": "text", "text": f"It is {invented(text_of(body))}."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 10},
    }


def message_line(key: str, body: dict[str, Any], kind: str = "succeeded") -> Line:
    """A result in Anthropic's format; `kind` may be an error's type."""
    if kind == "succeeded":
        return {"custom_id": key, "result": {"type": kind, "message": message(body)}}
    if kind in ("expired", "canceled"):
        return {"custom_id": key, "result": {"type": kind}}
    error = {"type": "error", "error": {"type": kind, "message": f"{kind} on purpose"}}
    return {"custom_id": key, "result": {"type": "errored", "error": error}}


class BatchServer:
    """`result(key, body)` makes the line of a request, None where there is none. A batch ends at once, or by `finish`, or
    after so many `looks`. Where more than `queue` requests would run, it fails.

    `hold` names a point at which no answer is given before `release`, and every request that comes there is told by
    `wait`: upload, create, status, results (which stop after `cut` lines). What is held at "arrive" is not taken in
    where its sender is gone, but by a `slow` server.
    """

    def __init__(self, result: Callable[..., Line | None] | None = None, *, anthropic: bool = False) -> None:
        self.anthropic = anthropic
        self.result: Callable[..., Line | None] = result or (message_line if anthropic else chat_line)
        self.at_once = True
        self.looks = 0
        self.queue = 1 << 30
        self.most = 0  # requests that ran at a time
        self.hold = ""
        self.cut = 0
        self.slow = False  # what is held at "arrive" is taken in later, whoever is gone
        self.faults = 0  # looks that fail
        self.lose = 0  # batches that are taken in and answered with an error
        self.keys_sent: set[tuple[str, str]] = set()
        self.more: Callable[[], object] = lambda: None  # done at each look
        self.refuse: Callable[[int], web.Response | None] = lambda size: None
        self.batches: dict[str, Submitted] = {}
        self.files: dict[str, bytes] = {}
        self.online: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.keys: list[str] = []
        self.url = ""
        self._arrived = threading.Condition()
        self._ready = threading.Event()

    @property
    def asked(self) -> tuple[str, ...]:
        """The options that ask this server through batches."""
        spec = f"anthropic:Qwen3-8B@{self.url}" if self.anthropic else f"openai:Qwen3-8B@{self.url}/v1"
        own = "teachers.teacher."
        return ("-t", spec, "--set", f"{own}mode=batch", "--set", f"{own}unsupported=drop")

    def __enter__(self) -> BatchServer:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def release(self) -> None:
        """Answer what is held, and hold nothing more."""
        self.hold = ""
        self._loop.call_soon_threadsafe(self._released.set)

    def wait(self, point: str, count: int = 1, timeout: float = 60) -> bool:
        """Wait until `count` requests have come to a point."""
        with self._arrived:
            return self._arrived.wait_for(lambda: self.seen[point] >= count, timeout)

    def finish(self, state: str = "completed") -> None:
        """End every batch that runs."""
        for batch in self.batches.values():
            if batch.state == "running":
                self._finish(batch, state)

    def repeats(self) -> int:
        """Requests that were submitted more than once."""
        return len(self.keys) - len(set(self.keys))

    def _finish(self, batch: Submitted, state: str) -> None:
        batch.state = state
        batch.lines = [line for key, body in batch.requests if (line := self.result(key, body)) is not None]

    def add(
        self, requests: list[tuple[str, dict[str, Any]]], name: str = "", made_at: float | None = None
    ) -> Submitted:
        """Take a batch in."""
        batch = Submitted(f"batch-{len(self.batches)}", requests, name, made_at=made_at or time.time())
        run = sum(len(each.requests) for each in self.batches.values() if each.state == "running") + len(requests)
        self.batches[batch.id] = batch
        if run > self.queue:
            told = "Enqueued token limit reached for Qwen3-8B. Please try again once some batches have been completed."
            batch.state, batch.errors = "failed", [{"code": "token_limit_exceeded", "message": told}]
            return batch
        self.most = max(self.most, run)
        if self.at_once:
            self._finish(batch, "completed")
        return batch

    async def _serve(self) -> None:
        self._loop, self._end, self._released = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _at(self, point: str) -> None:
        with self._arrived:
            self.seen[point] += 1
            self._arrived.notify_all()
        if self.hold == point:
            await self._released.wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, get = request.path, request.method == "GET"
        self.keys_sent.add((path, request.headers.get("authorization", "").removeprefix("Bearer ")))
        if path in ("/v1/chat/completions", "/v1/messages"):
            body = await request.json()
            self.online.append(body)
            return web.json_response(message(body) if self.anthropic else chat(f"It is {invented(text_of(body))}."))
        if path == "/v1/files":
            return await self._upload(request)
        if path in ("/v1/batches", "/v1/messages/batches"):
            return self._list() if get else await self._create(request)
        if found := re.fullmatch(r"/v1/(?:messages/)?batches/([\w-]+)(/cancel)?", path):
            batch = self.batches.get(found[1], Submitted("", []))
            if not batch.id:
                return web.json_response({"error": {"message": "no such batch"}}, status=404)
            if self.faults:
                self.faults -= 1
                return web.json_response({"error": {"message": "out of order"}}, status=503)
            batch.looked += 1
            self.more()
            if found[2]:
                self._finish(batch, "cancelled")
            elif batch.state == "running" and 0 < self.looks <= batch.looked:
                self._finish(batch, "completed")
            await self._at("cancel" if found[2] else "status")
            return web.json_response(self._told(batch))
        if found := re.fullmatch(r"/v1/files/([\w-]+)-(out|err)/content", path):
            lines = [line for line in self.batches[found[1]].lines if (line["response"] is None) == (found[2] == "err")]
            return await self._results(request, lines)
        if found := re.fullmatch(r"/v1/messages/batches/([\w-]+)/results", path):
            return await self._results(request, self.batches[found[1]].lines)
        return web.json_response({"error": {"message": f"no {path}"}}, status=404)

    async def _upload(self, request: web.Request) -> web.Response:
        # Read by hand: aiohttp's own reader warns of itself now and then, and a warning is an error here.
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n")[::2] for part in (await request.read()).split(b"--" + boundary)]
        form = {re.findall(rb'name="(\w+)"', head)[0].decode(): body[:-2] for head, body in parts if body}
        await self._at("upload")
        assert form["purpose"] == b"batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"]
        return web.json_response({"id": name, "object": "file"})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        await self._at("arrive")
        if not self.slow and (request.transport is None or request.transport.is_closing()):
            return web.Response()  # who asked is gone
        if self.anthropic:
            requests, name = [(item["custom_id"], item["params"]) for item in asked["requests"]], ""
        else:
            lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
            assert {(line["method"], line["url"]) for line in lines} == {("POST", asked["endpoint"])}
            self.seen[asked["endpoint"]] += 1
            assert len({line["body"]["model"] for line in lines}) == 1
            requests, name = [(line["custom_id"], line["body"]) for line in lines], asked["metadata"]["kdgen"]
        if (refusal := self.refuse(len(requests))) is not None:
            return refusal
        batch = self.add(requests, name)
        self.keys += [key for key, _ in requests if batch.state != "failed"]
        await self._at("create")
        if self.lose:
            self.lose -= 1
            return web.json_response({"error": {"message": "something broke"}}, status=502)
        return web.json_response(self._told(batch))

    def _list(self) -> web.Response:
        data = sorted(self.batches.values(), key=lambda batch: -batch.made_at)
        return web.json_response({"data": [self._told(batch) for batch in data], "has_more": False})

    async def _results(self, request: web.Request, lines: list[Line]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number, line in enumerate(lines):
            if self.hold == "results" and number == self.cut:
                await self._at("results")
            await response.write(json.dumps(line).encode() + b"\n")
        with self._arrived:
            self.seen["read"] += 1
        return response

    def _told(self, batch: Submitted) -> dict[str, Any]:
        count = len(batch.requests)
        if self.anthropic:
            ended = batch.state != "running"
            names = ("processing", "succeeded", "errored", "canceled", "expired")
            return {
                "id": batch.id,
                "type": "message_batch",
                "processing_status": "ended" if ended else "in_progress",
                "created_at": datetime.fromtimestamp(batch.made_at, UTC).isoformat().replace("+00:00", "Z"),
                "request_counts": dict.fromkeys(names, 0) | {"succeeded" if ended else "processing": count},
            }
        failed = any(line["response"] is None for line in batch.lines)
        return {
            "id": batch.id,
            "object": "batch",
            "status": "in_progress" if batch.state == "running" else batch.state,
            "created_at": int(batch.made_at),
            "metadata": {"kdgen": batch.name} if batch.name else None,
            "errors": {"data": batch.errors} if batch.errors else None,
            "output_file_id": f"{batch.id}-out" if len(batch.lines) > failed else None,
            "error_file_id": f"{batch.id}-err" if failed else None,
        }
