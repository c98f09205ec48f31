"""What a stage asks, and what its reply must be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from kdgen.errors import Rejected
from kdgen.prompts import Prompt
from kdgen.record import Message
from kdgen.teachers.base import Call, Params, Reply

Check = Callable[[Reply], str | None]


@dataclass(frozen=True, slots=True)
class Question:
    """What a stage asks: the prompt as it was rendered, and how its reply is to be read."""

    prompt: Prompt
    variables: dict[str, Any]
    messages: list[dict[str, str]]
    schema: type[BaseModel] | None
    nth: int
    partial: bool
    valid: Check | None
    open: bool = False
    score: int | None = None
    tokens: bool = False
    layers: tuple[int, ...] = ()
    embed: bool = False

    def call(self, params: Params, more: Sequence[dict[str, str]] = ()) -> Call:
        """The call that asks it; `more` are messages of a repair."""
        return Call([*self.messages, *more], params, _shape(self.schema), self.nth, self.open, tokens=self.tokens)

    def scored(self) -> Call:
        """The call that has its last message scored, for which sampling means nothing."""
        params, embed = Params(max_tokens=1), self.embed
        return Call(self.messages, params, nth=self.nth, score=self.score, tokens=True, layers=self.layers, embed=embed)


def complain(reply: Reply, partial: bool, params: Params) -> None:
    """Raise Rejected where a reply is not whole."""
    match reply.finish:
        case "length" if not partial:
            raise Rejected("cut", f"the reply was cut at {params.max_tokens or 'the endpoint’s'} tokens")
        case "refusal":
            raise Rejected("refused", reply.detail or reply.text[:200])
        case "filter":
            raise Rejected("filtered", "the provider's content filter ended the reply")
        case "tool":
            raise Rejected("tool_call", "the reply is a tool call")
        case "unknown":
            raise Rejected("unknown_finish", f"the reply may not be whole: its finish is {reply.detail or None}")


def empty(
    prompt: Prompt, variables: Mapping[str, Any], messages: Sequence[Mapping[str, str]], history: Sequence[Message]
) -> bool:
    """Whether a prompt asks nothing of its own, or shows none of what it declares."""
    asks = sum(message["role"] == "user" for message in messages) > sum(turn.role == "user" for turn in history)
    return not asks or bool(prompt.variables and not any(variables.get(name) for name in prompt.variables))


@functools.lru_cache(64)
def _shape(schema: type[BaseModel] | None) -> dict[str, Any] | None:
    return schema.model_json_schema() if schema else None


def valid_by(schema: type[BaseModel] | None, check: Check | None) -> Check | None:
    """What tells what is wrong with a reply: its schema's model, then the stage's check."""
    if schema is None and check is None:
        return None

    def valid(reply: Reply) -> str | None:
        if reply.finish in ("refusal", "filter", "tool", "unknown"):
            return None
        if schema is not None:
            try:
                schema.model_validate_json(reply.text)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                return f"{place + ': ' if place else ''}{first['msg']}"[:300]
        return check(reply) if check else None

    return valid
