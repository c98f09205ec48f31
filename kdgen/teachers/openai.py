"""OpenAI and every server that speaks one of its dialects: chat completions or responses.

`openai:MODEL` is OpenAI itself, through the official SDK. With a `base_url` it is a compatible server
(llama.cpp, SGLang, Ollama, LiteLLM, …), through the lean wire.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import UserError
from kdgen.teachers import models_table, responses
from kdgen.teachers.base import BatchApi, Call, Fault, Params, Raw, Reply, Request, TeacherSpec, Wire, chat_body
from kdgen.teachers.calls import dumped
from kdgen.teachers.embeddings import EMBEDDINGS, read_vector
from kdgen.teachers.http import HttpWire, checked
from kdgen.teachers.keys import EnvName, check_key, guarded, key_needs, key_of, may_send_key
from kdgen.teachers.turns import completion_request, shut_server, wrong_template
from kdgen.teachers.urls import moved, unfit, wrong_url

KEY = "OPENAI_API_KEY"
PATHS = {"chat": "/chat/completions", "responses": "/responses", "embeddings": "/embeddings"}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
OWN = {"model", "messages", "stream", "n", "service_tier", "prompt_cache_key", "max_completion_tokens", "top_logprobs"}
OWN_RESPONSES = {"input", "instructions", "max_output_tokens", "reasoning", "text", "include", "store"}


class OpenAI(TeacherSpec):
    """OpenAI's models, or a compatible server at `base_url`.

    `extra` holds fields of the server's own (`top_k`, `min_p`, `chat_template_kwargs`, …); they are sent
    as they are. The key comes from the environment variable that `api_key_env` names, or from `api_key_file`; a server at
    `base_url` is sent one only where the recipe names it.
    """

    provider: Literal["openai"] = "openai"
    base_url: str | None = None
    api_key_env: EnvName = KEY
    api_key_file: str | None = Field(None, description="a file that holds the key alone, instead of a variable")
    api: Literal["auto", "chat", "responses", "embeddings"] = Field(
        "auto",
        description="the API that is asked; auto: chat, and responses for OpenAI's models that need it; embeddings: vectors",
    )
    summary: responses.Summary | None = Field(
        None, description="ask for a summary of the reasoning, which then stands apart from the answer"
    )
    service_tier: Literal["auto", "default", "flex", "priority"] = Field(
        "auto", description="flex: batch prices, slower, and now and then refused for a while"
    )
    template: str | None = Field(
        None,
        description="the chat template of the server's model, where it is to write a user's turn: chatml, llama-3, …",
    )
    prompt_cache_key: str | None = Field(None, description="requests with the same key share OpenAI's prompt cache")
    extra: dict[str, JsonValue] = {}

    metered: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset(Params.model_fields)

    @property
    def dialect(self) -> Literal["chat", "responses", "embeddings"]:
        """The API that is asked."""
        if self.api != "auto":
            return self.api
        own = self.base_url is None and (self.summary or models_table.RESPONSES_ONLY.match(self.model))
        return "responses" if own else "chat"

    def embeds(self) -> bool:
        """Where that is the API."""
        return self.api == "embeddings"

    def check(self) -> None:
        """A model must be named, a URL must be one, and no field may be without effect."""
        if not self.model:
            raise UserError("no model is named", where=self.label, hint="--teacher openai:MODEL")
        check_key(self)
        for cause, hint in wrong_url(self.base_url) if self.base_url is not None else ():
            raise UserError(cause, where=self.label, hint=hint)
        for cause, hint in wrong_template(self.template, self.base_url is not None):
            raise UserError(cause, where=self.label, hint=hint)
        if self.summary and self.dialect == "chat":
            raise UserError("summary has no effect in chat completions", where=self.label, hint="api: responses")
        own = OWN | {*Params.model_fields} | (OWN_RESPONSES if self.dialect == "responses" else {"reasoning_effort"})
        if self.embeds() and self.mode == "batch":
            raise UserError("embeddings are not asked for through batches", where=self.label, hint="mode: online")
        if clash := sorted(set(self.extra) & own):
            raise UserError(
                f"extra must not set {', '.join(clash)}", where=self.label, hint="kdgen has a field for it, or needs it"
            )

    def shut(self) -> tuple[str, str] | None:
        """OpenAI's own models take messages alone; a server may take raw completions."""
        return super().shut() if self.base_url is None else shut_server(self.template, self.mode)

    def needs(self) -> dict[str, str]:
        """The key, where one is sent, and an address that is one."""
        elsewhere = unfit("openai") if self.base_url is None else {}
        return elsewhere | (key_needs(self, needed=True) if may_send_key(self) else {})

    def notes(self) -> list[str]:
        """Where the environment sends it."""
        return [] if self.base_url else moved("openai")

    def accepts(self) -> frozenset[str]:
        """What the API takes, without what this model refuses at this effort."""
        return self.takes - set(self._refused())

    def _refused(self) -> dict[str, str]:
        if self.embeds():
            return dict.fromkeys(self.takes, "embeddings are not sampled")
        lacks = self.takes - responses.TAKES if self.dialect == "responses" else ()
        model = models_table.refused(self.model, self.effort) if self.base_url is None else {}
        return dict.fromkeys(lacks, "the Responses API has none") | model

    def settle(self, params: Params, where: str) -> tuple[Params, list[str]]:
        """See `TeacherSpec.settle`; what OpenAI's own models take depends on the effort that is asked for."""
        asked = self.model_copy(update={"effort": params.effort or self.effort})
        if self.base_url is None and asked.effort in models_table.gpt(self.model).not_effort:
            fits = [each for each in EFFORTS if each not in models_table.gpt(self.model).not_effort]
            raise UserError(
                f"{self.label} has no effort {asked.effort!r}", where=where, hint=f"one of {', '.join(fits)}"
            )
        try:
            return super(OpenAI, asked).settle(params, where)
        except UserError as error:
            refused = asked._refused()
            why = "; ".join(dict.fromkeys(refused[name] for name in params.over(self).given() if name in refused))
            raise UserError(
                f"{error.cause} ({why})" if why else error.cause, where=error.where, hint=error.hint
            ) from None

    def request(self, call: Call) -> Request:
        """The wire's own JSON for `call`."""
        if call.embed:
            body = {"model": self.model, "input": call.messages[-1]["content"], **self.extra}
            return Request(EMBEDDINGS, dumped(body), call.nth, 1)
        if call.open:
            return completion_request(self.body(call), self.template or "", call)
        return Request(f"openai.{self.dialect}", dumped(self.body(call)), call.nth, call.params.max_tokens or 0)

    def body(self, call: Call) -> dict[str, Any]:
        """OpenAI itself wants strict schemas and `max_completion_tokens`; other servers get schemas as they are."""
        if self.base_url is None and call.schema is not None:
            title = responses.schema_name(call.schema)
            call = replace(call, schema=responses.strict_schema({**call.schema, "title": title}))
        if self.dialect == "responses" and not call.open:
            body = responses.responses_body(self.model, call, summary=self.summary)
        else:
            body = chat_body(self.model, call, limit="max_tokens" if self.base_url else "max_completion_tokens")
        if self.service_tier != "auto":
            body["service_tier"] = self.service_tier
        if self.prompt_cache_key is not None:
            body["prompt_cache_key"] = self.prompt_cache_key
        return {**body, **self.extra}

    def read(self, request: Request, raw: Raw) -> Reply:
        """See `TeacherSpec.read`; the request says which API it was for."""
        if request.wire == EMBEDDINGS:
            return read_vector(request.key, self.label, raw)
        if request.wire == "openai.responses":
            return responses.read_responses(request.key, self.label, raw)
        return super().read(request, raw)

    def connect(self) -> Wire:
        """The SDK for OpenAI, the lean wire for a server at `base_url`."""
        path = PATHS[self.dialect]
        key = read_key(self)
        wire: Wire
        if self.base_url is None:
            import openai

            wire = SdkWire(openai, self._client(key), path, keyed=True)
        else:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            base = self.base_url.rstrip("/")
            wire = HttpWire(base + path, headers, connections=self.concurrency, completions=base + "/completions")
        return responses.ResponsesWire(wire) if self.dialect == "responses" else wire

    def batches(self) -> BatchApi:
        """OpenAI's Batch API, or that of the server at `base_url`."""
        from kdgen.teachers.batch_apis import OpenAIBatches

        path = "/responses" if self.dialect == "responses" else "/chat/completions"
        key = read_key(self)
        return OpenAIBatches(self._client(key or "none"), path, key)

    def _client(self, key: str) -> Any:
        import openai

        return openai.AsyncOpenAI(
            api_key=key,
            base_url=self.base_url,
            max_retries=0,
            timeout=self.timeout,
            http_client=guarded(openai, key),
        )


def read_key(spec: Any) -> str:
    """The API key to send, if any. Raises UserError where it lacks or cannot be one."""
    spec.ready()
    return key_of(spec) if may_send_key(spec) else ""


class SdkWire:
    """An official SDK as a wire: its auth, address and transport, none of its retries or parsing.

    The SDKs of OpenAI and Anthropic are made by one generator and have the same names for the same things.
    """

    def __init__(self, sdk: Any, client: Any, path: str, *, keyed: bool) -> None:
        import httpx2

        self._sdk = sdk
        self._client = client
        self._path = path
        self._keyed = keyed
        self._http: Any = httpx2
        self._options: Any = {"headers": {"content-type": "application/json"}}

    async def send(self, request: Request) -> Raw:
        """Send the request's own bytes once. Raises Fault."""
        sdk = self._sdk
        try:
            response = await self._client.post(
                self._path, cast_to=self._http.Response, content=request.body, options=self._options
            )
        except sdk.APIStatusError as error:
            response = error.response
        except sdk.APIConnectionError as error:
            raise self._broken(error.__cause__ or error) from None
        return checked(response.status_code, response.headers, response.content, keyed=self._keyed)

    def _broken(self, cause: BaseException) -> Fault:
        """The Fault of a request without a reply: only one that may have arrived may have been billed."""
        http = self._http
        text = f"{type(cause).__name__} {cause}".rstrip()
        if isinstance(cause, http.InvalidURL | http.UnsupportedProtocol):
            return Fault("stop", f"not a URL: {text}", hint="base_url looks like https://HOST")
        if isinstance(cause, http.ConnectError | http.ConnectTimeout | http.PoolTimeout) and _unsent(cause):
            return Fault("transient", f"cannot connect: {text}", hint=f"is there a way to {self._client.base_url}?")
        if isinstance(cause, http.TimeoutException) and not isinstance(cause, http.ConnectTimeout):
            return Fault("transient", "no reply in time", billed=True)
        return Fault("transient", f"the connection broke: {text}", billed=True)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()


def _unsent(cause: BaseException) -> bool:
    """Whether no connection was made. The SDKs' aiohttp transport calls one that broke later a ConnectTimeout too."""
    import aiohttp

    origin = cause.__cause__
    return origin is None or isinstance(origin, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
