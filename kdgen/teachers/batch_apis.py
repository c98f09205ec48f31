"""The batch interfaces of OpenAI and Anthropic, through their official SDKs.

OpenAI: a JSONL file of 50,000 requests and 200 MB at most, one model a file, results in an output and an error file.
Anthropic: 100,000 requests or 256 MB in one call, results as JSONL.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, ClassVar

import orjson

from kdgen.teachers.base import Fault, Raw, Request, Status
from kdgen.teachers.http import checked, excerpt, fault

SLACK = 3600.0


class OpenAIBatches:
    """`/v1/files` and `/v1/batches`; the batch's name travels in its metadata."""

    max_requests: ClassVar[int] = 50_000
    max_bytes: ClassVar[int] = 190_000_000

    def __init__(self, client: Any, path: str) -> None:
        """`client` is an AsyncOpenAI, `path` the endpoint of each request, as `/chat/completions`."""
        self._client = client
        self._path = f"/v1{path}"

    async def submit(self, name: str, requests: Sequence[Request]) -> str:
        """Upload the file, then create the batch. Only the second can be in doubt: an orphaned file costs nothing."""
        path = self._path.encode()
        lines = b"".join(
            b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (item.key.encode(), path, item.body)
            for item in requests
        )
        with translated(doubtful=False):
            file = await self._client.files.create(file=(f"{name}.jsonl", lines), purpose="batch")
        with translated(doubtful=True):
            batch = await self._client.batches.create(
                input_file_id=file.id, endpoint=self._path, completion_window="24h", metadata={"kdgen": name}
            )
        return str(batch.id)

    async def find(self, name: str, made_at: float, size: int, known: set[str]) -> str | None:
        """The batch whose metadata holds the name."""
        with translated():
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get("kdgen") == name:
                    return str(batch.id)
                if batch.created_at < made_at - SLACK:
                    break
        return None

    async def status(self, remote: str) -> Status:
        """completed, expired and cancelled batches have results; failed ones have errors."""
        with translated():
            batch = await self._client.batches.retrieve(remote)
        done = batch.request_counts.completed if batch.request_counts else 0
        if batch.status == "failed":
            errors = [
                excerpt(each.message or each.code) for each in (batch.errors.data if batch.errors else None) or ()
            ]
            return Status("failed", done, "; ".join(errors[:3]) or "no reason was given")
        ended = batch.status in ("completed", "expired", "cancelled")
        return Status("ended" if ended else "running", done, batch.status)

    async def results(self, remote: str) -> AsyncIterator[tuple[str, Raw | Fault]]:
        """The lines of the output file, then of the error file."""
        with translated():
            batch = await self._client.batches.retrieve(remote)
        for file in (batch.output_file_id, batch.error_file_id):
            if not file:
                continue
            with translated():
                content = (await self._client.files.content(file)).content
            for line in content.splitlines():
                if line.strip():
                    yield _openai_line(orjson.loads(line))

    async def cancel(self, remote: str) -> None:
        """Ask for an early end."""
        with translated():
            await self._client.batches.cancel(remote)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()


def _openai_line(line: dict[str, Any]) -> tuple[str, Raw | Fault]:
    key, response = str(line["custom_id"]), line.get("response")
    if response is None:
        error = line.get("error") or {}
        return key, Fault("transient", f"{error.get('code')}: {excerpt(error.get('message'))}")
    body = orjson.dumps(response["body"])
    try:
        return key, checked(response["status_code"], {"x-request-id": response.get("request_id") or ""}, body)
    except Fault as wrong:
        return key, wrong


class AnthropicBatches:
    """`/v1/messages/batches`. A batch carries no name: one in doubt is known by its size, its time and nobody's else."""

    max_requests: ClassVar[int] = 100_000
    max_bytes: ClassVar[int] = 240_000_000

    def __init__(self, client: Any, cast_to: Any) -> None:
        """`client` is an AsyncAnthropic, `cast_to` the class that hands back its HTTP response unread."""
        self._client = client
        self._raw = cast_to

    async def submit(self, name: str, requests: Sequence[Request]) -> str:
        """One call."""
        items = b",".join(b'{"custom_id":"%s","params":%s}' % (item.key.encode(), item.body) for item in requests)
        options = {"headers": {"content-type": "application/json"}, "timeout": 600.0}
        with translated(doubtful=True):
            response = await self._client.post(
                "/v1/messages/batches", cast_to=self._raw, content=b'{"requests":[%s]}' % items, options=options
            )
        return str(orjson.loads(response.content)["id"])

    async def find(self, name: str, made_at: float, size: int, known: set[str]) -> str | None:
        """The batch of that size made at about that time which no other batch of the ledger is."""
        with translated():
            async for batch in self._client.messages.batches.list(limit=100):
                made = batch.created_at.timestamp() if isinstance(batch.created_at, datetime) else time.time()
                counts = batch.request_counts
                total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                if batch.id not in known and made >= made_at - 60 and total in (0, size):
                    return str(batch.id)
                if made < made_at - SLACK:
                    break
        return None

    async def status(self, remote: str) -> Status:
        """A batch that has ended has results, however it ended."""
        with translated():
            batch = await self._client.messages.batches.retrieve(remote)
        return Status("ended" if batch.processing_status == "ended" else "running", batch.request_counts.succeeded)

    async def results(self, remote: str) -> AsyncIterator[tuple[str, Raw | Fault]]:
        """The lines of the results."""
        with translated():
            response = await self._client.get(f"/v1/messages/batches/{remote}/results", cast_to=self._raw)
        for line in response.content.splitlines():
            if line.strip():
                yield _anthropic_line(orjson.loads(line))

    async def cancel(self, remote: str) -> None:
        """Ask for an early end."""
        with translated():
            await self._client.messages.batches.cancel(remote)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()


def _anthropic_line(line: dict[str, Any]) -> tuple[str, Raw | Fault]:
    key, result = str(line["custom_id"]), line["result"]
    if result["type"] == "succeeded":
        return key, Raw(orjson.dumps(result["message"]), {})
    if result["type"] == "errored":
        error = result.get("error") or {}
        inner = error.get("error") or error
        kind = "never" if inner.get("type") == "invalid_request_error" else "transient"
        return key, Fault("never" if kind == "never" else "transient", excerpt(inner.get("message") or inner))
    return key, Fault("transient", f"the request was {result['type']}")


class translated:
    """Turn an SDK's exception into a Fault. `doubtful`: the provider may have done it although no reply came."""

    def __init__(self, *, doubtful: bool = False) -> None:
        self.doubtful = doubtful

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        response = getattr(error, "response", None)
        if error is None or not type(error).__module__.startswith(("openai", "anthropic")):
            return
        if response is not None:
            raise fault(response.status_code, response.headers, response.content) from None
        raise Fault("transient", f"the connection broke: {error.__cause__ or error}", billed=self.doubtful) from None
