"""What the tests share: a loopback server that can fail on purpose, a wire that needs no server, and ways to run kdgen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sqlite3
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from aiohttp import web

from kdgen.cli import app
from kdgen.errors import KdgenError
from kdgen.teachers.base import Fault, Raw, Request
from kdgen.terms import table

# The word of a user who may train on the output of OpenAI's models.
ACK = ("--ack-terms", f"openai.api@{table().read}")
ROOT = Path(__file__).parent.parent
ROWS = ("data.jsonl", "records.jsonl", "rejects.jsonl")
# An evolution of one round, as a recipe's stage.
EVOL = {
    "stage": "expand",
    "method": "evol",
    "rounds": 1,
    "operations": {"deepen": "expand/evol/deepen"},
    "equal": "expand/evol/equal",
    "answer": "label/answer",
}
WORDS = (
    "amber basil cedar delta ember fjord grove haven ivory jewel kayak lemon maple north ocean pearl quartz river "
    "stone tulip umber violet willow xenon yacht zebra anchor bridge canyon desert engine falcon garden harbor"
).split()


def chat(
    text: str, *, finish: str = "stop", usage: tuple[int, int] | None = None, message: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A chat-completions reply."""
    said = {"role": "assistant", "content": text, **(message or {})}
    tokens = usage or (10, len(text.split()))
    return {
        "model": "stub",
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
    }


def invented(key: str, count: int = 8) -> str:
    """`count` words that depend on `key` alone."""
    made = hashlib.sha256(key.encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in made[:count])


@dataclass
class Answer:
    """What the server does with one request.

    `cut` sends half of the body and hangs up, `reset` sends nothing and breaks the connection, `hang` never ends.
    """

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay: float = 0.0
    cut: bool = False
    reset: bool = False
    hang: bool = False
    finish: str = "stop"
    usage: tuple[int, int] | None = None
    message: dict[str, Any] | None = None

    def body(self) -> bytes:
        """The bytes to send."""
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.text or "on purpose", "type": "test"}}).encode()
        return json.dumps(chat(self.text, finish=self.finish, usage=self.usage, message=self.message)).encode()


Script = Callable[[dict[str, Any], int], Answer]


def last(body: dict[str, Any]) -> str:
    """The last message of a request."""
    return str(body["messages"][-1]["content"])


def echo_answer(body: dict[str, Any], seen: int) -> Answer:
    """An answer that depends on the request's text alone."""
    return Answer(f"It is {invented(last(body))}.")


class Server:
    """An OpenAI-compatible server on a loopback port. `script(body, times this body came before)` says what it does.

    It bills every answer with status 200: in `delivered` are the tokens of those that arrived whole, in `lost` those of
    the others; `again` counts requests that came after they had been answered.
    """

    def __init__(self, script: Script = echo_answer, *, latency: float = 0.0) -> None:
        self.script = script
        self.latency = latency
        self.held = False
        self.bodies: list[bytes] = []
        self.answered: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.tokens = self.busy = self.peak = self.again = 0
        self.times: Counter[bytes] = Counter()
        self.delivered: dict[bytes, int] = {}
        self.lost: list[int] = []
        self.url = ""
        self.arrived = threading.Condition()
        self._ready = threading.Event()

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def wait(self, count: int, timeout: float = 30) -> bool:
        """Wait until `count` requests came in all."""
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.bodies) >= count, timeout)

    def repeats(self) -> int:
        """Requests beyond the first of each body."""
        return len(self.bodies) - len(set(self.bodies))

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_post("/{path:.*}", self._post)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen = self.times[body]
        self.times[body] += 1
        self.again += body in self.delivered
        with self.arrived:
            self.bodies.append(body)
            self.arrived.notify_all()
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            answer = self.script(json.loads(body), seen)
            await asyncio.sleep(self.latency + answer.delay)
            while self.held:
                await asyncio.sleep(0.01)
            if answer.status == 200 and (answer.hang or answer.reset or answer.cut or answer.raw is not None):
                self.lost.append(sum(answer.usage or ()))
            if answer.hang:
                await self._end.wait()
        finally:
            self.busy -= 1
        content = answer.body()
        if answer.status == 200:
            self.answered.append(body)
            if answer.usage:
                self.tokens += sum(answer.usage)
        if answer.reset or answer.hang:
            if request.transport is not None:  # else the client went first
                request.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                request.transport.abort()
            return web.Response()
        if answer.cut:
            response = web.StreamResponse(status=200, headers={"content-length": str(len(content))})
            await response.prepare(request)
            await response.write(content[: len(content) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        if answer.status == 200 and answer.raw is None:
            self.delivered[body] = self.delivered.get(body, 0) + sum(answer.usage or ())
        return web.Response(
            status=answer.status, body=content, headers={"content-type": "application/json", **answer.headers}
        )


class FakeWire:
    """A wire that answers in this process and remembers what it was sent."""

    def __init__(self, script: Script = echo_answer, wait: Callable[[], float] | None = None) -> None:
        self.script = script
        self.wait = wait
        self.requests: list[Request] = []
        self.opened = self.closed = self.busy = self.peak = 0

    def open(self, *_: object) -> FakeWire:
        """In the place of a teacher's `connect`."""
        self.opened += 1
        return self

    async def send(self, request: Request) -> Raw:
        """Answer."""
        seen = sum(request.key == other.key for other in self.requests)
        self.requests.append(request)
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            if self.wait is not None:
                await asyncio.sleep(self.wait())
        finally:
            self.busy -= 1
        answer = self.script(json.loads(request.body) | {"nth": request.nth}, seen)
        if answer.status != 200:
            kind: Any = {429: "rate", 400: "never", 401: "stop"}.get(answer.status, "transient")
            raise Fault(kind, f"HTTP {answer.status}", status=answer.status)
        return Raw(answer.body(), answer.headers, answer.headers)

    async def close(self) -> None:
        """Nothing to release."""
        self.closed += 1

    def keys(self) -> list[str]:
        """The keys of what was sent, in order of their text."""
        return sorted(request.key for request in self.requests)


@dataclass
class Made:
    """What one run in this process left: its manifest and files where it published, else its error."""

    folder: Path
    error: KdgenError | None
    manifest: dict[str, Any]
    files: dict[str, bytes]

    def rows(self, name: str = "records.jsonl") -> list[dict[str, Any]]:
        """The rows of one file."""
        return [json.loads(line) for line in self.files.get(name, b"").splitlines()]


def make(*arguments: object, folder: Path, ledger: Path | None = None) -> Made:
    """Run the command line in this process; a KdgenError is kept, not raised."""
    book = ledger or folder.parent / f"{folder.name}.db"
    error: KdgenError | None = None
    try:
        app([*map(str, arguments), "-q", "-o", str(folder), "--ledger", str(book)], standalone_mode=False)
    except KdgenError as wrong:
        error = wrong
    if error is not None or not (folder / "manifest.json").exists():
        return Made(folder, error, {}, {})
    return Made(folder, None, json.loads((folder / "manifest.json").read_text()), published(folder, card=True))


def recipe_file(path: Path, recipe: dict[str, Any]) -> Path:
    """A recipe of a test's own."""
    path.write_text(json.dumps(recipe))
    return path


def write_seeds(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A seed file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tasks(count: int) -> list[dict[str, Any]]:
    """`count` different seeds with ids."""
    return [{"id": f"s{n:03}", "instruction": f"Say what {invented(str(n), 3)} number {n} is."} for n in range(count)]


def command(*arguments: str) -> list[str]:
    """kdgen as a process."""
    return [sys.executable, "-m", "kdgen", *arguments]


def environment(**more: str) -> dict[str, str]:
    """A plain environment in which the checkout is found."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}


def kdgen(*arguments: str, cwd: Path, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run kdgen as a process to its end."""
    return subprocess.run(
        command(*arguments),
        check=False,
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start kdgen as a process."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def published(folder: Path, *, card: bool = False) -> dict[str, bytes]:
    """The files of a dataset; of a loop's, those of its last iteration."""
    folder = max(folder.glob("M?"), default=folder)
    return {name: (folder / name).read_bytes() for name in (*ROWS, *(("README.md",) if card else ()))}


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(said: Any, folder: Path, code: int, *files: str) -> Any:
    """What a command ended with `code` left: its error, or with 0 its manifest and the rows of these files."""
    assert said.code == code, said.err
    return said.err if code else (json.loads(said.out), *(lines(folder / f"{name}.jsonl") for name in files))


def leftovers(folder: Path) -> list[str]:
    """What a run should not leave in a dataset folder."""
    if not folder.exists():
        return []
    odd = [str(path) for path in folder.rglob("*") if re.search(r"\.next|\.\d+$", path.name)]
    return sorted(odd)


def ledger_rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Read a ledger that nobody holds open."""
    with closing(sqlite3.connect(path, timeout=30)) as db:
        return db.execute(query).fetchall()


def paid(path: Path) -> set[bytes]:
    """The request bodies whose replies are in a ledger."""
    if not path.exists():
        return set()
    try:
        return {bytes(row[0]) for row in ledger_rows(path, "SELECT request FROM calls")}
    except sqlite3.OperationalError as error:
        assert "no such table" in str(error)
        return set()
