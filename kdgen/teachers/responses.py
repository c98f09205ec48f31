"""OpenAI's Responses API: its body, its reply, the schemas of strict mode, and its failures that come as HTTP 200."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from kdgen.errors import Rejected
from kdgen.teachers.base import Call, Fault, Finish, Raw, Reply, Request, Wire
from kdgen.teachers.chat import MALFORMED, malformed, table_of, text_of, usage_of

TAKES = frozenset({"temperature", "top_p", "max_tokens", "logprobs", "effort"})
Summary = Literal["auto", "concise", "detailed"]

# What ended a response early or kept it from being made. Codes of policy end the record, those of luck are tried again.
INCOMPLETE: dict[str, Finish] = {"max_output_tokens": "length", "max_messages": "length", "content_filter": "filter"}
POLICY = frozenset({"invalid_prompt", "bio_policy", "misalignment_policy_violation", "image_content_policy_violation"})
LUCK: dict[str, Literal["rate", "transient"]] = {
    "rate_limit_exceeded": "rate",
    "server_error": "transient",
    "vector_store_timeout": "transient",
}
# Strict mode takes patterns, formats, ranges and item counts, but not these; kdgen checks every reply itself.
NOT_STRICT = ("minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties")


def responses_body(model: str, call: Call, *, summary: Summary | None = None) -> dict[str, Any]:
    """The body of `POST /responses`; nothing is stored at OpenAI."""
    params = call.params
    body: dict[str, Any] = {"model": model, "store": False}
    system = [message["content"] for message in call.messages if message["role"] == "system"]
    if system:
        body["instructions"] = "\n\n".join(system)
    body["input"] = [
        {"role": message["role"], "content": message["content"]}
        for message in call.messages
        if message["role"] != "system"
    ]
    for name, field in (("max_tokens", "max_output_tokens"), ("temperature", "temperature"), ("top_p", "top_p")):
        if (value := getattr(params, name)) is not None:
            body[field] = value
    if params.logprobs is not None:
        body["include"] = ["message.output_text.logprobs"]
        body["top_logprobs"] = params.logprobs
    reasoning = {name: value for name, value in (("effort", params.effort), ("summary", summary)) if value is not None}
    if reasoning:
        body["reasoning"] = reasoning
    if call.schema is not None:
        schema = {"type": "json_schema", "name": schema_name(call.schema), "schema": call.schema, "strict": True}
        body["text"] = {"format": schema}
    return body


def read_responses(key: str, label: str, raw: Raw) -> Reply:
    """Read a response: the final answer, reasoning summaries and refusals apart. Raises Rejected where there is none."""
    try:
        body = orjson.loads(raw.body)
        status, output = body.get("status") or "completed", body["output"]
        messages = [
            item for item in output if item.get("type") == "message" and item.get("phase") in (None, "final_answer")
        ]
        parts = [part for item in messages for part in item.get("content") or ()]
        text = "".join(part["text"] for part in parts if part.get("type") == "output_text")
        refusal = "".join(part["refusal"] for part in parts if part.get("type") == "refusal")
        thoughts = [
            text_of(thought["text"])
            for item in output
            if item.get("type") == "reasoning"
            for thought in (item.get("content") or item.get("summary") or ())
        ]
        kinds = [str(item.get("type")) for item in output]
        finish, detail = _finish(body, status)
        usage = usage_of(body, "input", "output")
    except MALFORMED as error:
        raise malformed("output", error) from None
    if refusal:
        finish, detail = "refusal", refusal
    elif finish == "stop" and any(kind.endswith("_call") for kind in kinds) and not text:
        finish = "tool"
    return Reply(
        key=key,
        text=text,
        finish=finish,
        usage=usage,
        body=body,
        reasoning="\n\n".join(thoughts),
        model=str(body.get("model") or ""),
        teacher=label,
        detail=detail,
    )


def _finish(body: Mapping[str, Any], status: str) -> tuple[Finish, str]:
    if status == "completed":
        return "stop", ""
    if status == "incomplete":
        reason = str(table_of(body.get("incomplete_details")).get("reason") or "")
        return INCOMPLETE.get(reason, "unknown"), reason
    error = table_of(body.get("error"))
    if str(error.get("code")) in POLICY:
        return "filter", f"{error['code']}: {error.get('message')}"
    raise Rejected("endpoint_failed", f"the response is {status}: {error.get('code')}: {error.get('message')}")


def checked_response(raw: Raw) -> Raw:
    """`raw`, or the Fault of a response that failed for no fault of the request."""
    if b'"failed"' in raw.body:
        body = orjson.loads(raw.body)
        error = table_of(body.get("error")) if body.get("status") == "failed" else {}
        if kind := LUCK.get(str(error.get("code"))):
            raise Fault(kind, f"{error['code']}: {error.get('message')}", billed=bool(body.get("usage")))
    return raw


class ResponsesWire:
    """A wire on which a response that failed for no fault of the request is a Fault, and is not kept as a reply."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def send(self, request: Request) -> Raw:
        """Send once. Raises Fault."""
        return checked_response(await self._wire.send(request))

    async def close(self) -> None:
        """Close the wire."""
        await self._wire.close()


def schema_name(schema: Mapping[str, Any]) -> str:
    """A name that OpenAI takes for a schema: its title, in letters, digits, _ and -."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", str(schema.get("title") or "reply"))[:64]


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A pydantic JSON schema in the subset of OpenAI's strict mode: no other keys, and every property required.

    What that subset has no word for goes into the description, where the model may still heed it.
    """
    return _strict(schema, schema)


def _strict(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    made = {name: value for name, value in schema.items() if name not in ("default", "discriminator", *NOT_STRICT)}
    if "$ref" in made and len(made) > 1:
        target: Any = root
        for part in made.pop("$ref").removeprefix("#/").split("/"):
            target = target[part]
        return _strict({**target, **made}, root)
    if "oneOf" in made:
        made["anyOf"] = made.pop("oneOf")
    if len(made.get("allOf", ())) == 1:
        made |= made.pop("allOf")[0]
        return _strict(made, root)
    if made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if "properties" in made:
        made["required"] = list(made["properties"])
    for name in ("properties", "$defs"):
        if name in made:
            made[name] = {key: _strict(value, root) for key, value in made[name].items()}
    for name in ("anyOf", "allOf"):
        if name in made:
            made[name] = [_strict(value, root) for value in made[name]]
    if isinstance(made.get("items"), Mapping):
        made["items"] = _strict(made["items"], root)
    if left := {name: schema[name] for name in NOT_STRICT if name in schema}:
        rules = ", ".join(f"{name}: {value}" for name, value in left.items())
        made["description"] = f"{made['description']} ({rules})" if "description" in made else f"({rules})"
    return made
