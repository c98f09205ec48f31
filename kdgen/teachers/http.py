"""The lean wire for vLLM and every OpenAI-compatible server, and how every wire classes what comes back.

The official SDK costs ten times the CPU of this (bench/); where a server is one's own and fast, that is the limit, so
only the providers' own endpoints go through their SDKs.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from kdgen.teachers.base import Fault, Raw, Request
from kdgen.teachers.keys import Key
from kdgen.teachers.turns import COMPLETIONS

KEPT = ("x-request-id", "request-id", "openai-processing-ms")
LIMITS = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-tokens-limit",
)
# A gateway that gave up on the model behind it: that may have answered, and billed, all the same.
TIMED_OUT = (408, 504, 524)
HOPELESS = frozenset(
    "insufficient_quota billing_hard_limit_reached billing_error account_deactivated organization_on_hold "
    "enforced_spend_limit_reached contract_spend_limit_reached model_not_found".split()
)


class HttpWire:
    """POSTs a request's bytes to one URL, or those of a raw completion to `completions`."""

    def __init__(self, url: str, headers: dict[str, str], *, connections: int, completions: str = "") -> None:
        import aiohttp

        self.url = url
        self.completions = completions
        self._keyed = "authorization" in headers
        self._key = Key(headers.get("authorization", "").removeprefix("Bearer "))
        _allow_files(connections)
        self._http = aiohttp
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=60),
            headers={"content-type": "application/json", "user-agent": "kdgen", **headers},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),  # what one reply sets must not be sent with another request
        )

    async def send(self, request: Request) -> Raw:
        """Send once. Raises Fault; a body that is cut or not JSON is transient and may have been billed."""
        try:
            url = self.completions if request.wire == COMPLETIONS else self.url
            async with self._session.post(url, data=request.body, allow_redirects=False) as response:
                body = self._key.strike(await response.read())
                return checked(response.status, self._key.headers(response.headers), body, keyed=self._keyed)
        except self._http.ClientConnectorError as error:
            hint = f"is a server listening at {self.url}?"
            raise Fault("transient", f"cannot connect: {error.os_error}", hint=hint) from None
        except self._http.InvalidURL as error:
            raise Fault("stop", f"not a URL: {error}", hint="base_url looks like http://HOST:PORT/v1") from None
        except (self._http.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
            text = f"the connection broke: {type(error).__name__} {error}".rstrip()
            raise Fault("transient", self._key.clean(text), billed=True) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def _allow_files(connections: int) -> None:
    """Let this process hold open as many connections as it may ask for; many systems start it with 1,024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def checked(status: int, headers: Mapping[str, str], body: bytes, *, keyed: bool = True) -> Raw:
    """A 2xx reply whose body is a JSON object, or the Fault that it is; `keyed`: whether a key was sent."""
    if 200 <= status < 300:
        try:
            reply = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise Fault(
                "transient", f"the body is not JSON: {excerpt(body, 80)!r}", status=status, billed=True
            ) from None
        if not isinstance(reply, dict):
            raise Fault("transient", f"the body is not a reply: {excerpt(body, 80)!r}", status=status, billed=True)
        if not (hidden := _hidden(reply)):
            return Raw(body, {name: headers[name] for name in KEPT if name in headers}, _told(headers))
        status = hidden
    wrong = fault(status, headers, body)
    if status == 401 and not keyed:
        wrong.hint = "no key was sent; name its variable: --set teachers.ROLE.api_key_env=NAME"
    raise wrong


def _hidden(reply: Mapping[str, Any]) -> int:
    """The status of an error that a gateway (OpenRouter, LiteLLM) sends as a success; 0 for a reply.

    A reply may speak of an error too: the Responses API has `error: null`, or the error beside its `output`.
    """
    error = reply.get("error")
    if not error or reply.get("choices") or reply.get("content") or "output" in reply:
        return 0
    try:
        code = int(error["code"])
    except (TypeError, ValueError, KeyError):
        return 502
    return code if 400 <= code < 600 else 502


def _told(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in LIMITS if name in headers}


def fault(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Class an error reply by status and error code (the codes of OpenAI, Anthropic and vLLM)."""
    code, message = error_of(body)
    if 300 <= status < 400:
        message = f"the server sends to {excerpt(headers.get('location', 'another place'), 200)}"
    text = f"HTTP {status}: {message}"
    if hint := _hopeless(status, code, message):
        return Fault("stop", text, status=status, hint=hint)
    after = retry_after(headers)
    if status == 429 or (status == 503 and "queue" in message.lower()):
        return Fault("rate", text, status=status, retry_after=after, limits=_told(headers))
    if status in (408, 409, 425) or status >= 500:
        return Fault("transient", text, status=status, retry_after=after, billed=status in TIMED_OUT)
    return Fault("never", text, status=status)


def _hopeless(status: int, code: str, message: str) -> str:
    """What to do where no request can succeed; empty where another may. Anthropic has no code for an account without credit."""
    if status in (401, 403):
        return "check the API key and what it may use"
    if code == "model_not_found":
        return "check the model's name"
    if status == 402 or code in HOPELESS or "credit balance is too low" in message:
        return "check the account's quota and billing"
    if status == 404:
        return "check the model's name and the base URL"
    return "put that address in base_url" if 300 <= status < 400 else ""


def error_of(body: bytes) -> tuple[str, str]:
    """(code, message) of an error body, whatever shape it has."""
    try:
        error = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", excerpt(body)
    error = error.get("error", error) if isinstance(error, dict) else error
    if not isinstance(error, dict):
        return "", excerpt(error)
    details = error.get("details")
    code = (details.get("error_code") if isinstance(details, dict) else None) or error.get("code") or error.get("type")
    return str(code or ""), excerpt(error.get("message") or error.get("detail") or error)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        return max(0.0, float(headers["retry-after"]))
    except ValueError:
        return _until(headers["retry-after"]) if "retry-after" in headers else None


def _until(date: str) -> float | None:
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def excerpt(body: object, limit: int = 300) -> str:
    """The start of a server's text, on one line."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
