"""OpenAI and every server that speaks its chat-completions dialect.

`openai:MODEL` is OpenAI itself, through the official SDK. With a `base_url` it is a compatible server
(llama.cpp, SGLang, Ollama, LiteLLM, …), through the lean wire.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import JsonValue

from kdgen.errors import UserError
from kdgen.teachers.base import BatchApi, Call, Fault, Params, Raw, Request, TeacherSpec, Wire, chat_body
from kdgen.teachers.http import HttpWire, checked

KEY = "OPENAI_API_KEY"


class OpenAI(TeacherSpec):
    """OpenAI's chat completions, or a compatible server at `base_url`.

    `extra` holds fields of the server's own (`top_k`, `min_p`, `chat_template_kwargs`, …); they are sent
    as they are. The key comes from the environment variable that `api_key_env` names.
    """

    provider: Literal["openai"] = "openai"
    base_url: str | None = None
    api_key_env: str = KEY
    extra: dict[str, JsonValue] = {}

    takes: ClassVar[frozenset[str]] = frozenset(Params.model_fields)

    def check(self) -> None:
        """A model must be named, a URL must be one, and OpenAI itself needs a key."""
        if not self.model:
            raise UserError("no model is named", where=self.label, hint="--teacher openai:MODEL")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise UserError(
                f"{self.base_url!r} is not a URL", where=self.label, hint="base_url looks like http://HOST:PORT/v1"
            )
        clash = sorted(set(self.extra) & {"model", "messages", *Params.model_fields, "stream", "n"})
        if clash:
            raise UserError(
                f"extra must not set {', '.join(clash)}", where=self.label, hint="kdgen has a field for it, or needs it"
            )

    def needs(self) -> list[str]:
        """The key, where one is needed."""
        missing = self.base_url is None and not os.environ.get(self.api_key_env)
        return [f"{self.api_key_env} is not set"] if missing else []

    def body(self, call: Call) -> dict[str, Any]:
        """OpenAI itself wants `max_completion_tokens`; compatible servers know `max_tokens`."""
        limit = "max_tokens" if self.base_url else "max_completion_tokens"
        return {**chat_body(self.model, call, limit=limit), **self.extra}

    def batches(self) -> BatchApi:
        """OpenAI's Batch API, or that of the server at `base_url`."""
        import openai

        from kdgen.teachers.batch_apis import OpenAIBatches

        key = self._key() or "none"
        client = openai.AsyncOpenAI(api_key=key, base_url=self.base_url, max_retries=0, timeout=self.timeout)
        return OpenAIBatches(client, "/chat/completions")

    def _key(self) -> str:
        for need in self.needs():
            hint = f"export {self.api_key_env}=…, or use the embedded teacher: --teacher local"
            raise UserError(need, where=self.label, hint=hint)
        return os.environ.get(self.api_key_env, "")

    def connect(self) -> Wire:
        """The SDK for OpenAI, the lean wire for a server at `base_url`."""
        key = self._key()
        if self.base_url is None:
            return SdkWire(key, timeout=self.timeout)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return HttpWire(self.base_url.rstrip("/") + "/chat/completions", headers, connections=self.concurrency)


class SdkWire:
    """The official SDK as a wire: its auth, address and transport, none of its retries or parsing."""

    path = "/chat/completions"

    def __init__(self, key: str, *, timeout: float) -> None:
        import openai

        self._sdk = openai
        self._client = openai.AsyncOpenAI(
            api_key=key, max_retries=0, timeout=timeout, http_client=openai.DefaultAioHttpClient()
        )
        self._options: Any = {"headers": {"content-type": "application/json"}}

    async def send(self, request: Request) -> Raw:
        """Send the request's own bytes once. Raises Fault."""
        sdk = self._sdk
        try:
            response: Any = await self._client.post(
                self.path, cast_to=RAW_RESPONSE(), content=request.body, options=self._options
            )
        except sdk.APIStatusError as error:
            headers: Mapping[str, str] = error.response.headers
            return checked(error.status_code, headers, error.response.content, self._client.api_key)
        except sdk.APITimeoutError:
            raise Fault("transient", "no reply in time", billed=True) from None
        except sdk.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Fault("transient", f"the connection broke: {cause}", billed=True) from None
        return checked(response.status_code, response.headers, response.content)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()


def RAW_RESPONSE() -> Any:
    """The class that tells the SDK to hand back the HTTP response unread."""
    import httpx2

    return httpx2.Response
