"""What the batch interfaces share: an SDK as a plain JSON client, and the lines of files of results."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from kdgen.teachers.base import Fault, Full, Raw
from kdgen.teachers.http import error_of, excerpt, fault
from kdgen.teachers.keys import Key

# The header by which an SDK hands back a body unread (its `with_streaming_response`).
UNREAD = {"x-stainless-raw-response": "stream"}
Result = tuple[str, Raw | Fault]


class Sdk:
    """A provider's client: every answer is read here, or is the Fault that it is. It sees no key, but in files, where it is struck out."""

    def __init__(self, client: Any, secret: str) -> None:
        import httpx2

        self._client = client
        self._key = Key(secret)
        self._http = httpx2

    async def get(self, path: str, **params: object) -> dict[str, Any]:
        """The JSON object at `path`."""
        with self._faults():
            answer = await self._client.get(path, cast_to=self._http.Response, options={"params": params})
        return self._read(answer.content)

    async def post(self, path: str, *, doubtful: bool = False, **how: Any) -> dict[str, Any]:
        """The JSON object that `path` answers. `doubtful`: without an answer it may have been done all the same."""
        with self._faults(doubtful):
            answer = await self._client.post(path, cast_to=self._http.Response, **how)
        return self._read(answer.content, doubtful)

    async def lines(self, path: str) -> AsyncGenerator[bytes, None]:
        """The lines of a file, as they come."""
        with self._faults():
            answer = await self._client.get(path, cast_to=self._http.Response, options={"headers": UNREAD})
        rest = b""
        try:
            with self._faults():
                async for chunk in answer.aiter_bytes():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        yield self._key.strike(line)
            yield self._key.strike(rest)
        finally:
            await answer.aclose()

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    def _read(self, body: bytes, doubtful: bool = False) -> dict[str, Any]:
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            text = excerpt(body, 80)
            raise Fault("transient", f"the answer is no JSON object: {text!r}", billed=doubtful)
        return found

    @contextmanager
    def _faults(self, doubtful: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            sdk = type(error).__module__.startswith(("openai", "anthropic"))
            if not sdk and not isinstance(error, self._http.HTTPError):
                raise
            response = getattr(error, "response", None)
            if response is None:
                cause = error.__cause__ or error
                text = self._key.clean(f"{type(cause).__name__} {cause}".rstrip())
                never = isinstance(cause, self._http.ConnectError | self._http.ConnectTimeout)
                raise Fault("transient", f"the connection broke: {text}", billed=doubtful and not never) from None
            code, message = error_of(response.content)
            if queue_full(code, message):
                raise Full("rate", message, status=response.status_code) from None
            wrong = fault(response.status_code, response.headers, response.content)
            wrong.billed = doubtful and response.status_code >= 500
            raise wrong from None


def queue_full(code: object, message: object) -> bool:
    """Whether an error says that more tokens are enqueued than may be."""
    return code == "token_limit_exceeded" or "enqueued token" in str(message).lower()


def readable(line: bytes, read: Callable[[Mapping[str, Any]], Result]) -> Result | None:
    """The result that a line holds; None for a blank or broken one, whose request is then asked for again."""
    try:
        return read(orjson.loads(line)) if line.strip() else None
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
        return None


def id_of(found: Mapping[str, Any]) -> str:
    """The id of what was made. Raises Fault, in doubt, where the answer names none."""
    if not (made := found.get("id")):
        raise Fault("transient", f"the answer has no id: {excerpt(found, 80)}", billed=True)
    return str(made)


async def pages(sdk: Sdk, path: str, cursor: str) -> AsyncIterator[dict[str, Any]]:
    """Every batch of the account, the youngest first."""
    more: dict[str, object] = {}
    while True:
        page = await sdk.get(path, limit=100, **more)
        data = page.get("data") or []
        for batch in data:
            yield batch
        if not page.get("has_more") or not data or more.get(cursor) == id_of(data[-1]):
            return
        more = {cursor: id_of(data[-1])}
