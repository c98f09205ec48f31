"""HTTP/1.1 by hand: POST to one URL over kept-alive connections, and nothing else that a client can do.

A general client spends more CPU on a request than all the rest of kdgen spends on a row (bench/), opens a connection
at three times the cost and takes 25 MiB to import. Here a request is one write, and a reply one parse of its bytes.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections.abc import Mapping
from typing import NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

CONNECT = 30.0
# The servers that close idle connections soonest (uvicorn, node, llama.cpp) do so after five seconds.
IDLE = 4.0
RESOLVED = 60.0
HEAD_MOST = 1 << 18


class NoConnection(Exception):
    """No connection could be made: nothing was sent."""


class Broken(Exception):
    """The connection broke after the request had gone out."""


class Response(NamedTuple):
    """A whole reply; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.open = False
        self._transport: asyncio.Transport
        self._reply: asyncio.Future[Response] | None = None
        self._reset()

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._chunks: bytearray | None = None
        self._size: int | None = None
        self._keep = True

    def request(self, data: bytes) -> asyncio.Future[Response]:
        """Send one request; its reply, or Broken."""
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._reply

    def abort(self) -> None:
        """Close at once."""
        self.open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._reply is None or self._reply.done():
            self.abort()  # what nobody asked for belongs to no request
            return
        self._buffer += data
        try:
            self._read()
        except ValueError as error:
            self._fail(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.open = False
        if self._reply is None or self._reply.done():
            return
        if self._status and self._size is None and self._chunks is None and exc is None:
            self._done(bytes(self._buffer))  # HTTP/1.0: the end of the connection is the end of the body
        else:
            got = "within its reply" if self._status or self._buffer else "without a reply"
            self._fail(f"the server hung up {got}" + (f": {exc}" if exc else ""))

    def _fail(self, why: str) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(Broken(why))
        self.abort()

    def _read(self) -> None:
        """Take what has come so far as far as it goes."""
        while not self._status:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > HEAD_MOST:
                    raise ValueError("the head of the reply has no end")
                return
            head = bytes(self._buffer[:end]).decode("latin-1")
            del self._buffer[: end + 4]
            self._read_head(head)
        if self._chunks is not None:
            if self._read_chunks():
                self._done(bytes(self._chunks))
        elif self._size is not None and len(self._buffer) >= self._size:
            self._keep &= len(self._buffer) == self._size
            self._done(bytes(self._buffer[: self._size]))

    def _read_head(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"{first[:40]!r} is no status line")
        status = int(rest[:3])
        if status < 200:
            return
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError(f"{line[:40]!r} is no header")
            headers[name.lower()] = value.strip()
        self._status, self._headers = status, headers
        kept = headers.get("connection", "").lower()
        self._keep = kept != "close" and (version != "HTTP/1.0" or kept == "keep-alive")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunks = bytearray()
        elif status in (204, 304):
            self._size = 0
        elif "content-length" in headers:
            self._size = _size(headers["content-length"], 10)

    def _read_chunks(self) -> bool:
        """Move whole chunks from the buffer to the body; True at the last."""
        assert self._chunks is not None
        place = 0
        while (end := self._buffer.find(b"\r\n", place)) >= 0:
            size = _size(self._buffer[place:end].split(b";", 1)[0], 16)
            if size == 0:
                # Trailers may follow; an empty line ends them.
                tail = self._buffer.find(b"\r\n\r\n", end)
                if tail < 0:
                    break
                self._keep &= tail + 4 == len(self._buffer)
                return True
            if len(self._buffer) < end + 2 + size + 2:
                break
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            place = end + 2 + size + 2
        del self._buffer[:place]
        return False

    def _done(self, body: bytes) -> None:
        if self._headers.get("content-encoding", "").lower() in ("gzip", "deflate"):
            try:
                body = zlib.decompress(body, 47)
            except zlib.error as error:
                self._fail(f"the body cannot be unpacked: {error}")
                return
        assert self._reply is not None
        self._reply.set_result(Response(self._status, self._headers, body))
        keep = self._keep and self.open
        self._reset()
        self.idle_since = asyncio.get_running_loop().time()
        if not keep:
            self.open = False
            self._transport.close()


class Client:
    """POSTs bodies to one URL, each over a connection of its own for as long as it takes."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """Raises ValueError where `url` is none."""
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("it needs http:// or https:// and a host")
        self._host = host
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._head = _head(parts, {"host": _named(host, parts.port), "accept": "application/json", **headers})
        self._idle: list[Connection] = []
        self._addresses: list[str] = []
        self._resolved = 0.0
        self._asking = asyncio.Lock()

    async def post(self, body: bytes) -> Response:
        """One request and its reply. Raises NoConnection, or Broken; cancelled, it closes its connection."""
        connection = self._kept() or await self._connect()
        try:
            response = await connection.request(self._head % len(body) + body)
        except BaseException:
            connection.abort()
            raise
        if connection.open:
            self._idle.append(connection)
        return response

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().abort()

    def _kept(self) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - IDLE
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        name = self._host if self._ssl else None
        failed: Exception = OSError("the host has no address")
        try:
            async with asyncio.timeout(CONNECT):
                for address in await self._lookup():
                    try:
                        _, connection = await loop.create_connection(
                            Connection, address, self._port, ssl=self._ssl, server_hostname=name
                        )
                    except (OSError, ssl.SSLError) as error:
                        failed = error
                        continue
                    return connection
        except (OSError, UnicodeError, TimeoutError) as error:
            failed = error if str(error) else TimeoutError(f"no answer within {CONNECT:g} s")
        self._resolved = 0.0
        raise NoConnection(str(failed)) from None

    async def _lookup(self) -> list[str]:
        """The host's addresses; asked for once a minute, or a thousand connections would be a thousand questions."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            if not self._resolved or loop.time() - self._resolved > RESOLVED:
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
                self._resolved = loop.time()
        return self._addresses


def _size(text: str | bytearray, base: int) -> int:
    size = int(text, base)
    if size < 0:
        raise ValueError(f"{size} is no size")
    return size


def _named(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name


def _head(parts: SplitResult, headers: Mapping[str, str]) -> bytes:
    """The head of every request, with a place for the body's length. Raises ValueError for what would break out of it."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    text = f"POST {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if not text.isascii() or any(mark in target for mark in " \r\n") or any("\n" in each for each in headers.values()):
        raise ValueError("it holds characters that a request cannot")
    return text.replace("%", "%%").encode() + b"content-length: %d\r\n\r\n"
