"""A fast OpenAI-compatible server on loopback, in a process of its own, so that it is never the limit.

POST /v1/chat/completions answers about 1 KB of text that depends on the body, after `latency` ms.
GET /stats counts what came since GET /reset?latency=MS&rpm=N. With `rpm` it allows so many requests in any minute, says
so in headers, and refuses the others with a 429; those count as requests too, as OpenAI counts them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import parse_qs, urlsplit

WORDS = (
    "light water stone river engine model teacher student answer question number table field sound metal glass"
    " north winter garden letter market signal memory season window bridge circle weight colour engine planet crystal"
).split()
CHUNKS = [" ".join(WORDS[(start * 5 + step * 7) % len(WORDS)] for step in range(12)) for start in range(256)]
BODY = (
    b'{"id":"chatcmpl-%s","object":"chat.completion","created":1790000000,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%s","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":0}}}'
)
HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %s\r\n\r\n%s"
LIMIT = b"\r\nx-ratelimit-limit-requests: %d\r\nretry-after: %d\r\n\r\n"
REFUSAL = b'{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}'
MINUTE = 60.0
OUTPUT = 120


@dataclass
class State:
    """What came in since the last reset, and the replies that are due later."""

    latency: float = 0.0
    rpm: int = 0
    requests: int = 0
    limited: int = 0
    tokens: int = 0
    flying: int = 0
    most: int = 0
    connections: int = 0
    first_at: float | None = None
    last_at: float | None = None
    cpu: float = 0.0
    bodies: set[int] = field(default_factory=set)
    due: deque[tuple[float, asyncio.Transport, bytes]] = field(default_factory=deque)
    minute: deque[float] = field(default_factory=deque)

    def stats(self) -> dict[str, float | int | None]:
        """The counts, times as CLOCK_MONOTONIC, and the CPU seconds that this server used."""
        return {
            "requests": self.requests,
            "limited": self.limited,
            "distinct": len(self.bodies),
            "tokens": self.tokens,
            "most_in_flight": self.most,
            "connections": self.connections,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "cpu": time.process_time() - self.cpu,
        }

    def reply(self, transport: asyncio.Transport, body: bytes) -> None:
        """Answer now, or when the latency is over."""
        now = time.monotonic()
        self.first_at = self.first_at or now
        self.last_at = now
        self.requests += 1
        if self.rpm and self.over(now):
            self.limited += 1
            wait = int(self.minute[0] + MINUTE - now) + 1
            transport.write(
                (HEAD % (429, len(REFUSAL), b"none", REFUSAL)).replace(b"\r\n\r\n", LIMIT % (self.rpm, wait), 1)
            )
            return
        made = hashlib.blake2b(body, digest_size=8)
        self.bodies.add(int.from_bytes(made.digest(), "big"))
        name, asked = made.hexdigest().encode(), len(body) // 4
        text = ". ".join([made.hexdigest(), *(CHUNKS[byte] for byte in made.digest())]).encode()
        content = BODY % (name, text, asked, OUTPUT, asked + OUTPUT)
        self.tokens += asked + OUTPUT
        answer = HEAD % (200, len(content), name, content)
        if self.rpm:
            answer = answer.replace(b"\r\n\r\n", LIMIT % (self.rpm, 0), 1)
        if not self.latency:
            transport.write(answer)
            return
        self.flying += 1
        self.most = max(self.most, self.flying)
        loop = asyncio.get_running_loop()
        self.due.append((loop.time() + self.latency, transport, answer))
        if len(self.due) == 1:
            loop.call_at(self.due[0][0], self.flush)

    def over(self, now: float) -> bool:
        """Whether a request that comes now is more than a minute allows."""
        while self.minute and self.minute[0] <= now - MINUTE:
            self.minute.popleft()
        self.minute.append(now)
        return len(self.minute) > self.rpm

    def flush(self) -> None:
        """Send what is due; every reply has the same latency, so one timer and a queue do."""
        loop = asyncio.get_running_loop()
        while self.due and self.due[0][0] <= loop.time() + 0.0005:
            _, transport, answer = self.due.popleft()
            self.flying -= 1
            if not transport.is_closing():
                transport.write(answer)
        if self.due:
            loop.call_at(self.due[0][0], self.flush)

    def reset(self, latency: float, rpm: int) -> None:
        """Forget the counts; `latency` is in seconds."""
        self.__init__(latency, rpm, cpu=time.process_time())  # type: ignore[misc]


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.state.connections += 1

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            place = head.find(b"\r\ncontent-length:")
            size = int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self.buffer) < end + 4 + size:
                return
            body = self.buffer[end + 4 : end + 4 + size]
            target = self.buffer[: self.buffer.find(b"\r\n")].split(b" ", 2)
            self.buffer = self.buffer[end + 4 + size :]
            self._answer(target[0], target[1].decode(), body)

    def _answer(self, verb: bytes, target: str, body: bytes) -> None:
        url = urlsplit(target) if verb == b"GET" else None
        if url is None and target == "/v1/chat/completions":
            self.state.reply(self.transport, body)
            return
        if url is not None and url.path == "/reset":
            asked = parse_qs(url.query)
            self.state.reset(float(asked.get("latency", ["0"])[0]) / 1000, int(asked.get("rpm", ["0"])[0]))
        known = url is not None and url.path in ("/stats", "/reset")
        content = json.dumps(self.state.stats() if known else {"error": {"message": "no such path"}}).encode()
        self.transport.write(HEAD % (200 if known else 404, len(content), b"none", content))


async def serve(port: int, latency: float) -> None:
    """Serve on loopback until killed; the port is the first line on stdout."""
    state = State(latency / 1000)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Parse the options and serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--latency", type=float, default=0, help="ms that each reply takes")
    options = parser.parse_args()
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(serve(options.port, options.latency))
    else:
        uvloop.run(serve(options.port, options.latency))


if __name__ == "__main__":
    main()
