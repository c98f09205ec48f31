"""The chat-completions dialect: OpenAI's, and that of nearly every other server."""

from __future__ import annotations

from typing import Any

import orjson

from kdgen.errors import Rejected
from kdgen.teachers.calls import Call, Finish, Raw, Reply, Usage


def chat_body(model: str, call: Call, *, limit: str = "max_tokens") -> dict[str, Any]:
    """A body of OpenAI's chat-completions dialect; `limit` is the name of its output cap.

    A drawn repeat (nth > 0) of a seeded request moves the seed, or the endpoint would repeat itself.
    """
    body: dict[str, Any] = {"model": model, "messages": list(call.messages)}
    for name, value in call.params.given().items():
        if name == "max_tokens":
            body[limit] = value
        elif name == "seed":
            body["seed"] = value + call.nth
        elif name == "stop":
            body["stop"] = list(value)
        elif name == "logprobs":
            body["logprobs"] = True
            body["top_logprobs"] = value
        elif name == "effort":
            body["reasoning_effort"] = value
        else:
            body[name] = value
    if call.schema is not None:
        name = str(call.schema.get("title", "reply"))
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": call.schema, "strict": True},
        }
    return body


FINISHES: dict[str | None, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "content_filter": "filter",
    "tool_calls": "tool",
    "function_call": "tool",
}


def read_chat(key: str, label: str, raw: Raw) -> Reply:
    """Read a chat-completions reply: text, reasoning, refusal, finish and usage kept apart."""
    try:
        body = orjson.loads(raw.body)
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise Rejected("malformed_reply", f"no choices[0].message in the reply ({type(error).__name__})") from None
    usage = body.get("usage") or {}
    inputs = usage.get("prompt_tokens_details") or {}
    outputs = usage.get("completion_tokens_details") or {}
    refusal = message.get("refusal") or ""
    return Reply(
        key=key,
        text=text,
        finish="refusal" if refusal else FINISHES.get(choice.get("finish_reason"), "unknown"),
        usage=Usage(
            input=usage.get("prompt_tokens") or 0,
            cached_input=inputs.get("cached_tokens") or 0,
            output=usage.get("completion_tokens") or 0,
            cache_write=inputs.get("cache_write_tokens") or 0,
            reasoning=outputs.get("reasoning_tokens") or 0,
        ),
        body=body,
        reasoning=message.get("reasoning") or message.get("reasoning_content") or "",
        model=body.get("model") or "",
        teacher=label,
        detail=refusal,
    )
