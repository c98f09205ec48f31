"""HTTP/1.1 by hand: every way a reply may be framed, cut and split, and what becomes of its connection."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdgen.teachers import http1
from kdgen.teachers.http1 import Broken, Client, Connection, NoConnection, Response

BODY = b'{"text": "\xc3\xa9"}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKS = b"5;ext=1\r\n" + BODY[:5] + b"\r\n%X\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n"
PACKED = gzip.compress(BODY)
OK = b"HTTP/1.1 200 OK\r\n"
# name: (bytes, whether the connection can be used again)
WHOLE: dict[str, tuple[bytes, bool]] = {
    "length": (OK + LENGTH + b"\r\n" + BODY, True),
    "capitals": (OK + LENGTH.upper() + b"X-One:1\r\n\r\n" + BODY, True),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS + b"\r\n", True),
    "trailers": (OK + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS + b"x-sum: 1\r\n\r\n", True),
    "informed": (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY, True),
    "gzip": (OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(PACKED) + PACKED, True),
    "closing": (OK + LENGTH + b"connection: close\r\n\r\n" + BODY, False),
    "old": (b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY, False),
    "old-kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + BODY, True),
    "more": (OK + LENGTH + b"\r\n" + BODY + b"HTTP/1.1 200 what nobody asked for", False),
}
UNTIL_CLOSED = OK + b"\r\n" + BODY
CUT = {
    "nothing": b"",
    "head": OK + b"content-le",
    "body": OK + LENGTH + b"\r\n" + BODY[:-1],
    "chunk": OK + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS[:9],
    "last-chunk": OK + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS[:-3],
    "not-http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no-status": b"HTTP/1.1 OK\r\n\r\n",
    "no-header": OK + b"nonsense\r\n\r\n",
    "no-number": OK + b"content-length: ten\r\n\r\n",
    "negative": OK + b"content-length: -1\r\n\r\n" + BODY,
    "negative-chunk": OK + b"transfer-encoding: chunked\r\n\r\n-3\r\n" + BODY,
    "no-chunk": OK + b"transfer-encoding: chunked\r\n\r\nten\r\n",
    "endless-head": OK + b"x: " + b"y" * http1.HEAD_MOST,
    "not-gzip": OK + LENGTH + b"content-encoding: gzip\r\n\r\n" + BODY,
}


class Fake(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.shut = False

    def write(self, data: Any) -> None:
        """Forget it."""

    def close(self) -> None:
        """Remember it."""
        self.shut = True

    abort = close


def read(*parts: bytes, closed: bool = False) -> tuple[Connection, Response]:
    """What a connection makes of bytes that come in parts."""

    async def go() -> tuple[Connection, Response]:
        connection = Connection()
        connection.connection_made(Fake())
        reply = connection.request(b"")
        for part in parts:
            connection.data_received(part)
        if closed:
            connection.connection_lost(None)
        assert reply.done()
        return connection, reply.result()

    return asyncio.run(go())


@pytest.mark.parametrize(("data", "kept"), WHOLE.values(), ids=list(WHOLE))
def test_a_whole_reply_is_read(data: bytes, kept: bool) -> None:
    connection, response = read(data)
    assert (response.status, response.body, connection.open) == (200, BODY, kept)
    assert all(name == name.lower() for name in response.headers)


def test_without_a_length_the_end_of_the_connection_is_the_end() -> None:
    assert read(UNTIL_CLOSED, closed=True)[1].body == BODY


def test_some_replies_have_no_body() -> None:
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n")[1] == (204, {}, b"")


@pytest.mark.parametrize("data", CUT.values(), ids=list(CUT))
def test_a_cut_or_odd_reply_is_broken(data: bytes) -> None:
    with pytest.raises(Broken):
        read(data, closed=True)


@settings(max_examples=60)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(0, 200), max_size=6))
def test_it_does_not_matter_how_a_reply_is_split(name: str, cuts: list[int]) -> None:
    data = WHOLE[name][0]
    places = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
    parts = [data[start:end] for start, end in pairwise(places)]
    if name == "more":
        parts = [data]  # what comes later than the reply finds the connection closed
    assert read(*parts)[1].body == BODY


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def served(handler: Handler, use: Callable[[Client], Coroutine[Any, Any, Any]], **headers: str) -> Any:
    """Use a client of a server on loopback."""

    async def go() -> Any:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Client(f"http://127.0.0.1:{port}/v1/x?y=1%20z", headers)
        try:
            return await asyncio.wait_for(use(client), 20)
        finally:
            client.close()
            server.close()

    return asyncio.run(go())


class Echo:
    """Answers with what it was sent; counts connections."""

    def __init__(self, after: str = "") -> None:
        self.connections = 0
        self.heads: list[bytes] = []
        self.after = after

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
                writer.write(OK + b"content-length: %d\r\n\r\n" % size + body)
                await writer.drain()
                if self.after == "close":
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def test_connections_are_kept_and_requests_are_what_they_should_be() -> None:
    echo = Echo()

    async def use(client: Client) -> None:
        for number in range(5):
            assert (await client.post(b"%d" % number)).body == b"%d" % number
        many = await asyncio.gather(*(client.post(b"x" * size) for size in (0, 1, 100_000)))
        assert [len(each.body) for each in many] == [0, 1, 100_000]

    served(echo, use, authorization="Bearer 100%")
    assert echo.connections == 3
    lines = echo.heads[0].decode().split("\r\n")
    assert lines[0] == "POST /v1/x?y=1%20z HTTP/1.1"
    assert "authorization: Bearer 100%" in lines and lines[1].startswith("host: 127.0.0.1:")


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    echo = Echo("close")

    async def use(client: Client) -> None:
        for _ in range(3):
            assert (await client.post(b"x")).body == b"x"
            while any(connection.open for connection in client._idle):
                await asyncio.sleep(0.001)

    served(echo, use)
    assert echo.connections == 3


def test_a_connection_that_was_idle_for_long_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()

    async def use(client: Client) -> None:
        await client.post(b"x")
        monkeypatch.setattr(http1, "IDLE", -1.0)
        await client.post(b"x")

    served(echo, use)
    assert echo.connections == 2


def test_a_request_that_is_given_up_takes_its_connection_along() -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()
        writer.close()

    async def use(client: Client) -> None:
        asking = asyncio.create_task(client.post(b"x"))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await gone.wait()
        assert not client._idle

    served(silent, use)


def test_where_nobody_listens_nothing_was_sent() -> None:
    async def go() -> None:
        server = await asyncio.start_server(Echo(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(NoConnection, match="Connect call failed"):
                await Client(f"http://{host}:{port}/", {}).post(b"x")

    asyncio.run(go())


@pytest.mark.parametrize(
    "url",
    ["", "host:80", "ftp://h/", "http://", "http://h:port/", "http://h/a b", "http://h/\r\nx: y", "http://h:99999/"],
)
def test_what_is_no_url_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError):
        Client(url, {})


def test_a_header_cannot_break_out() -> None:
    with pytest.raises(ValueError):
        Client("http://h/", {"authorization": "Bearer x\r\nevil: 1"})
