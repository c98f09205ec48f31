"""Anthropic's messages, through the official SDK, from Anthropic itself or a server that speaks its dialect."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import BeforeValidator, Field

from kdgen.errors import UserError
from kdgen.record import Frozen
from kdgen.teachers import models_table
from kdgen.teachers.base import BatchApi, Call, Finish, Params, Raw, Reply, Request, TeacherSpec, Usage, Wire
from kdgen.teachers.calls import dumped
from kdgen.teachers.chat import MALFORMED, count_of, malformed, table_of, text_of
from kdgen.teachers.keys import EnvName, check_key, guarded, key_needs, may_send_key
from kdgen.teachers.openai import EFFORTS, SdkWire, read_key
from kdgen.teachers.urls import moved, unfit, wrong_url

KEY = "ANTHROPIC_API_KEY"
INSTALL = "pip install 'kdgen[anthropic]'"
FINISHES: dict[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
    "tool_use": "tool",
}


class Budget(Frozen):
    """Thinking of at most so many tokens, which older models take."""

    budget: int = Field(ge=1024)


def _off(value: object) -> object:
    return "off" if value is False else value  # an unquoted `off` is a boolean in YAML


class Anthropic(TeacherSpec):
    """Claude, or a server at `base_url` that speaks Anthropic's dialect.

    There are no sampling parameters: Claude's API has none since its version 2026-10-21. Answers to one prompt differ by
    themselves; what should differ more, differs by prompt or effort.
    """

    provider: Literal["anthropic"] = "anthropic"
    base_url: str | None = None
    api_key_env: EnvName = KEY
    api_key_file: str | None = Field(None, description="a file that holds the key alone, instead of a variable")
    max_tokens: int = Field(4096, ge=1)
    cache: Annotated[Literal["off", "5m", "1h"], BeforeValidator(_off)] = Field(
        "off", description="keep the system message, which all requests of a stage share, in Anthropic's prompt cache"
    )
    thinking: Literal["adaptive", "disabled", "between_tools"] | Budget | None = Field(
        None, description="adaptive, disabled, between_tools or {budget: TOKENS}; unset: as the model has it"
    )
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="whether thinking comes back, as a summary; unset: as the model has it"
    )

    wire: ClassVar[str] = "anthropic.messages"
    metered: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"max_tokens", "stop", "effort"})

    def check(self) -> None:
        """A model must be named, a URL must be one, and no field may be without effect."""
        if not self.model:
            raise UserError("no model is named", where=self.label, hint="--teacher anthropic:MODEL")
        check_key(self)
        for cause, hint in wrong_url(self.base_url) if self.base_url is not None else ():
            raise UserError(cause, where=self.label, hint=hint)
        if self.display and not (self.thinking == "adaptive" or isinstance(self.thinking, Budget)):
            hint = "thinking: adaptive, or {budget: TOKENS}"
            raise UserError("display has no effect without thinking", where=self.label, hint=hint)

    def needs(self) -> dict[str, str]:
        """The SDK, the key where one is sent, and an address that is one."""
        missing = {} if importlib.util.find_spec("anthropic") else {"anthropic is not installed": INSTALL}
        missing |= unfit("anthropic") if self.base_url is None else {}
        return missing | (key_needs(self, needed=True) if may_send_key(self) else {})

    def notes(self) -> list[str]:
        """Where the environment sends it."""
        return [] if self.base_url else moved("anthropic")

    def settle(self, params: Params, where: str) -> tuple[Params, list[str]]:
        """See `TeacherSpec.settle`; effort and thinking must be ones that this model has."""
        settled, dropped = super().settle(params, where)
        for cause, hint in self._impossible(settled):
            raise UserError(f"{self.label} {cause}", where=where, hint=hint)
        return settled, dropped

    def _impossible(self, params: Params) -> Iterator[tuple[str, str]]:
        """What cannot be sent: the cause and the way out."""
        effort, kind = params.effort, "budget" if isinstance(self.thinking, Budget) else self.thinking
        if effort in ("none", "minimal"):
            yield f"has no effort {effort!r}", "low is the least; thinking: disabled turns thinking off"
        room = params.max_tokens or self.max_tokens
        if isinstance(self.thinking, Budget) and self.thinking.budget >= room:
            yield f"cannot think {self.thinking.budget} of {room} tokens", "raise max_tokens over the budget"
        row = models_table.claude(self.model) if self.base_url is None else None
        if row is None:
            return
        if kind is not None and kind not in row.thinking:
            yield f"does not take thinking: {kind}", f"it takes {', '.join(sorted(row.thinking))}, or leave it unset"
        if effort in row.not_effort:
            fits = [each for each in EFFORTS[2:] if each not in row.not_effort]
            yield f"has no effort {effort!r}", f"one of {', '.join(fits)}"
        if row.top_needs_thinking and kind in ("disabled", "between_tools") and effort in ("xhigh", "max"):
            yield f"has no effort {effort!r} without thinking", "effort: high, or thinking: adaptive"

    def request(self, call: Call) -> Request:
        """The wire's own JSON for `call`, which always bounds the output."""
        return Request(self.wire, dumped(self.body(call)), call.nth, call.params.max_tokens or self.max_tokens)

    def body(self, call: Call) -> dict[str, Any]:
        """The body of `POST /v1/messages`."""
        params = call.params
        turns = [message for message in call.messages if message["role"] != "system"]
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": params.max_tokens or self.max_tokens,
            "messages": [{"role": message["role"], "content": message["content"]} for message in turns],
        }
        system = "\n\n".join(message["content"] for message in call.messages if message["role"] == "system")
        if system and self.cache != "off":
            kept = {"type": "ephemeral", "ttl": self.cache}
            body["system"] = [{"type": "text", "text": system, "cache_control": kept}]
        elif system:
            body["system"] = system
        if params.stop is not None:
            body["stop_sequences"] = list(params.stop)
        output: dict[str, Any] = {} if params.effort is None else {"effort": params.effort}
        if call.schema is not None:
            output["format"] = {"type": "json_schema", "schema": self._sdk().transform_schema(call.schema)}
        if output:
            body["output_config"] = output
        if isinstance(self.thinking, Budget):
            body["thinking"] = {"type": "enabled", "budget_tokens": self.thinking.budget}
        elif self.thinking is not None:
            body["thinking"] = {"type": self.thinking}
        if self.display is not None and "thinking" in body:
            body["thinking"]["display"] = self.display
        return body

    def read(self, request: Request, raw: Raw) -> Reply:
        """The reply inside `raw`: text and thinking apart, and a refusal with its category."""
        try:
            body = orjson.loads(raw.body)
            blocks = body["content"]
            text = "".join(block["text"] for block in blocks if block["type"] == "text")
            thoughts = [text_of(block["thinking"]) for block in blocks if block["type"] == "thinking"]
            details, usage = table_of(body.get("stop_details")), table_of(body.get("usage"))
        except MALFORMED as error:
            raise malformed("content", error) from None
        end = str(body.get("stop_reason"))
        finish = FINISHES.get(end, "unknown")
        detail = ": ".join(str(details[name]) for name in ("category", "explanation") if details.get(name))
        read, written = (count_of(usage.get(f"cache_{name}_input_tokens")) for name in ("read", "creation"))
        return Reply(
            key=request.key,
            text=text,
            finish=finish,
            usage=Usage(
                input=count_of(usage.get("input_tokens")) + read + written,
                cached_input=read,
                output=count_of(usage.get("output_tokens")),
                cache_write=written,
                reasoning=count_of(table_of(usage.get("output_tokens_details")).get("thinking_tokens")),
            ),
            body=body,
            reasoning="\n\n".join(thought for thought in thoughts if thought),
            model=str(body.get("model") or ""),
            teacher=self.label,
            detail=detail or (end if finish == "unknown" else ""),
        )

    def connect(self) -> Wire:
        """The official SDK, with its own address or that of `base_url`."""
        sdk, key = self._sdk(), read_key(self)
        return SdkWire(sdk, self._client(key), "/v1/messages", keyed=bool(key))

    def batches(self) -> BatchApi:
        """Anthropic's Message Batches."""
        from kdgen.teachers.batch_apis import AnthropicBatches

        key = read_key(self)
        return AnthropicBatches(self._client(key), key)

    def _sdk(self) -> Any:
        try:
            import anthropic
        except ImportError:
            raise UserError("the anthropic teacher needs its SDK", where=self.label, hint=INSTALL) from None
        return anthropic

    def _client(self, key: str) -> Any:
        sdk = self._sdk()
        return sdk.AsyncAnthropic(
            api_key=key,
            max_retries=0,
            base_url=self.base_url.rstrip("/").removesuffix("/v1") if self.base_url else None,
            default_headers=None if key else {"authorization": sdk.omit},
            timeout=self.timeout,
            http_client=guarded(sdk, key),
            open_telemetry=False,
        )
