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


# What servers of this dialect say at the end of a reply: OpenAI's own words, and those that TGI, Together, Mistral and
# gateways to Claude have for the same. Whatever else stands there, the reply is not known to be whole: "error", "abort",
# "repetition", "insufficient_system_resource". So it is with null, which OpenAI's schema has in the chunks of a stream
# alone, for a reply that still goes on; Ollama and llama.cpp hold to that, and say "stop" where a reply is whole.
FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "filter",
    "tool_calls": "tool",
    "function_call": "tool",
}
MALFORMED = (orjson.JSONDecodeError, LookupError, TypeError, AttributeError)


def read_chat(key: str, label: str, raw: Raw) -> Reply:
    """Read a chat-completions reply: text, reasoning, refusal, finish and usage kept apart."""
    try:
        body = orjson.loads(raw.body)
        choice = body["choices"][0]
        message = choice["message"]
        said = _said(message.get("content"))
        refusal = said["refusal"] or text_of(message.get("refusal"))
        reasoning = text_of(message.get("reasoning") or message.get("reasoning_content"))
        end = str(choice.get("finish_reason"))
        usage = usage_of(body, "prompt", "completion")
    except MALFORMED as error:
        raise malformed("choices[0].message", error) from None
    finish = FINISHES.get(end.lower(), "unknown")
    return Reply(
        key=key,
        text=said["text"],
        finish="refusal" if refusal else finish,
        usage=usage,
        body=body,
        reasoning=said["thinking"] or reasoning,
        model=str(body.get("model") or ""),
        teacher=label,
        detail=refusal or (end if finish == "unknown" else ""),
    )


def read_completion(key: str, label: str, raw: Raw) -> Reply:
    """Read the reply to a raw completion."""
    try:
        body = orjson.loads(raw.body)
        choice = body["choices"][0]
        text = text_of(choice["text"])
        end = str(choice.get("finish_reason"))
        usage = usage_of(body, "prompt", "completion")
    except MALFORMED as error:
        raise malformed("choices[0].text", error) from None
    finish = FINISHES.get(end.lower(), "unknown")
    detail, model = end if finish == "unknown" else "", str(body.get("model") or "")
    return Reply(key, text, finish, usage, body, model=model, teacher=label, detail=detail)


def _said(content: Any) -> dict[str, str]:
    """The text of a message's content, which may come in parts; thinking and refusals apart. Other parts are no text."""
    said = {"text": "", "thinking": "", "refusal": ""}
    if not isinstance(content, list):
        return {**said, "text": text_of(content)}
    for part in content:
        kind = part["type"]
        inner = part[kind]
        said[kind] += _said(inner)["text"] if isinstance(inner, list) else text_of(inner)
    return said


def text_of(value: Any) -> str:
    """A text of a reply, where null and nothing are the empty one. Raises TypeError for anything else."""
    if value and not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in the place of a text")
    return value or ""


def table_of(value: Any) -> dict[str, Any]:
    """An object of a reply; anything else says nothing."""
    return value if isinstance(value, dict) else {}


def count_of(value: Any) -> int:
    """A number of tokens; what cannot be one is none."""
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if 0 <= number < 1 << 40 else 0


def usage_of(body: dict[str, Any], inputs: str, outputs: str) -> Usage:
    """What a reply of OpenAI's dialects says that it cost; they differ in the words for input and output."""
    usage = table_of(body.get("usage"))
    came, went = (table_of(usage.get(f"{name}_tokens_details")) for name in (inputs, outputs))
    return Usage(
        input=count_of(usage.get(f"{inputs}_tokens")),
        cached_input=count_of(came.get("cached_tokens")),
        output=count_of(usage.get(f"{outputs}_tokens")),
        cache_write=count_of(came.get("cache_write_tokens")),
        reasoning=count_of(went.get("reasoning_tokens")),
    )


def malformed(place: str, error: Exception) -> Rejected:
    """The end of a record whose reply was paid but is not what the dialect promises."""
    return Rejected("malformed_reply", f"{place} is not as it should be ({type(error).__name__}: {str(error)[:100]})")
