"""The batch interfaces of OpenAI and Anthropic, over their official SDKs.

OpenAI: a JSONL file of 50,000 requests and 200 MB at most, of one model; results in an output and an error file.
Anthropic: 100,000 requests or 256 MB in one call, results as JSONL.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, ClassVar

import orjson

from kdgen.teachers.base import Fault, Raw, Request, Sought, Status
from kdgen.teachers.batch_sdk import Result, Sdk, id_of, pages, queue_full, readable
from kdgen.teachers.http import HOPELESS, checked, excerpt, fault
from kdgen.teachers.responses import checked_response

SLACK = 3600.0  # seconds by which the clocks of a provider and of this machine may differ
SETTLES = 600.0  # a server may go on with what it was sent when the connection is gone
JSON = {"content-type": "application/json"}


class OpenAIBatches:
    """`/v1/files` and `/v1/batches`; the batch's name travels in its metadata."""

    max_requests: ClassVar[int] = 50_000
    max_bytes: ClassVar[int] = 190_000_000
    nameless: ClassVar[bool] = False
    settles: ClassVar[float] = SETTLES

    def __init__(self, client: Any, path: str, secret: str = "") -> None:
        """`client` is an AsyncOpenAI, `path` the endpoint of each request, as `/chat/completions`."""
        self._sdk = Sdk(client, secret)
        self._path = f"/v1{path}"

    async def submit(self, name: str, requests: Sequence[Request]) -> str:
        """Upload the file, then create the batch. Only the second can be in doubt: an orphaned file costs nothing."""
        file = await self._sdk.post(
            "/files",
            body={"purpose": "batch"},
            files=[("file", (f"{name}.jsonl", b"".join(request_lines(requests, self._path))))],
            options={"headers": {"content-type": "multipart/form-data"}},
        )
        batch = await self._sdk.post(
            "/batches",
            doubtful=True,
            body={
                "input_file_id": id_of(file),
                "endpoint": self._path,
                "completion_window": "24h",
                "metadata": {"kdgen": name},
            },
        )
        return id_of(batch)

    async def find(self, sought: Sought) -> str | None:
        """The batch whose metadata holds the name."""
        async for batch in pages(self._sdk, "/batches", "after"):
            if (batch.get("metadata") or {}).get("kdgen") == sought.name:
                return id_of(batch)
            if (batch.get("created_at") or time.time()) < sought.made_at - SLACK:
                break
        return None

    async def status(self, remote: str) -> Status:
        """completed, expired and cancelled batches have results; failed ones have errors."""
        batch = await self._sdk.get(f"/batches/{remote}")
        state = str(batch.get("status"))
        files = batch.get("output_file_id") or batch.get("error_file_id")
        if state in ("completed", "expired", "cancelled") or (state == "failed" and files):
            return Status("ended", f"the batch is {state}")
        if state != "failed":
            return Status("running")
        errors = [error for error in (batch.get("errors") or {}).get("data") or () if isinstance(error, dict)]
        told = "; ".join(excerpt(error.get("message") or error.get("code")) for error in errors[:3])
        full = any(queue_full(error.get("code"), error.get("message")) for error in errors)
        return Status("full" if full else "failed", told or "no reason was given")

    async def results(self, remote: str) -> AsyncGenerator[Result, None]:
        """The lines of the output file, then of the error file."""
        batch = await self._sdk.get(f"/batches/{remote}")
        for file in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
            async with aclosing(self._sdk.lines(f"/files/{file}/content")) as lines:
                async for line in lines:
                    if (result := readable(line, openai_result)) is not None:
                        yield result

    async def cancel(self, remote: str) -> None:
        """Ask for an early end."""
        await self._sdk.post(f"/batches/{remote}/cancel")

    async def close(self) -> None:
        """Close the client."""
        await self._sdk.close()


def request_lines(requests: Sequence[Request], path: str) -> Iterator[bytes]:
    """The lines of a batch file in OpenAI's format."""
    for item in requests:
        yield b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (
            item.key.encode(),
            path.encode(),
            item.body,
        )


def openai_result(line: Mapping[str, Any]) -> Result:
    """A line of an output or error file. An error without a response, or in words alone, is bad luck."""
    key, response, error = str(line["custom_id"]), line.get("response"), line.get("error")
    body = response.get("body") if response else None
    if body is None and (response is None or not isinstance(error, dict)):
        code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else ("", error)
        text = f"{code}: {excerpt(message)}" if code else excerpt(message)
        return key, Fault(
            "stop" if code in HOPELESS else "transient", text, hint="check the account's quota and billing"
        )
    assert response is not None
    content = orjson.dumps(error if body is None else body)
    try:
        raw = checked(int(response["status_code"]), {"x-request-id": str(response.get("request_id") or "")}, content)
        return key, checked_response(raw)
    except Fault as wrong:
        return key, wrong


class AnthropicBatches:
    """`/v1/messages/batches`. A batch carries no name: one in doubt is told by its size and time, and then by its keys."""

    max_requests: ClassVar[int] = 100_000
    max_bytes: ClassVar[int] = 240_000_000
    nameless: ClassVar[bool] = True
    settles: ClassVar[float] = SETTLES
    path: ClassVar[str] = "/v1/messages/batches"

    def __init__(self, client: Any, secret: str = "") -> None:
        """`client` is an AsyncAnthropic."""
        self._sdk = Sdk(client, secret)

    async def submit(self, name: str, requests: Sequence[Request]) -> str:
        """One call."""
        items = b",".join(b'{"custom_id":"%s","params":%s}' % (item.key.encode(), item.body) for item in requests)
        options = {"headers": JSON, "timeout": 600.0}
        return id_of(
            await self._sdk.post(self.path, doubtful=True, content=b'{"requests":[%s]}' % items, options=options)
        )

    async def find(self, sought: Sought) -> str | None:
        """The batch of that size made at about that time that has our keys, or has not ended and so may have them.

        Should it turn out to be another's, its results hold none of our keys, and it is looked for again.
        """
        found = []
        async for batch in pages(self._sdk, self.path, "after_id"):
            made = datetime.fromisoformat(batch["created_at"]).timestamp()
            counts = sum(count for count in (batch.get("request_counts") or {}).values() if isinstance(count, int))
            if made < sought.made_at - SLACK:
                break
            if id_of(batch) not in sought.known and made < sought.made_at + SLACK and counts in (0, sought.size):
                found.append((abs(made - sought.made_at), id_of(batch), batch.get("processing_status") == "ended"))
        maybe = None
        for _, remote, ended in sorted(found):
            if not ended:
                maybe = maybe or remote
            elif await self._holds(remote, sought.mine):
                return remote
        return maybe

    async def _holds(self, remote: str, mine: Callable[[str], bool]) -> bool:
        async with aclosing(self.results(remote)) as results:
            async for key, _ in results:
                return mine(key)
        return False

    async def status(self, remote: str) -> Status:
        """A batch that has ended has results, however it ended."""
        batch = await self._sdk.get(f"{self.path}/{remote}")
        return Status("ended" if batch.get("processing_status") == "ended" else "running")

    async def results(self, remote: str) -> AsyncGenerator[Result, None]:
        """The lines of the results."""
        async with aclosing(self._sdk.lines(f"{self.path}/{remote}/results")) as lines:
            async for line in lines:
                if (result := readable(line, _anthropic_result)) is not None:
                    yield result

    async def cancel(self, remote: str) -> None:
        """Ask for an early end."""
        await self._sdk.post(f"{self.path}/{remote}/cancel")

    async def close(self) -> None:
        """Close the client."""
        await self._sdk.close()


STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def _anthropic_result(line: Mapping[str, Any]) -> Result:
    key, result = str(line["custom_id"]), line["result"]
    if result["type"] == "succeeded":
        return key, Raw(orjson.dumps(result["message"]), {})
    if result["type"] != "errored":
        return key, Fault("transient", f"the request was {result['type']}")
    error = result.get("error") or {}
    inner = error.get("error") or error
    return key, fault(STATUS.get(str(inner.get("type")), 500), {}, orjson.dumps(error))
