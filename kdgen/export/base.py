"""What all formats share: how reasoning, system message, tools and loss weights come into a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

from kdgen.export.shapes import JSON, ROLES, TEXT, WHOLE, WORDS, checker
from kdgen.record import Candidate, Frozen, Message, Record


class Format(Frozen):
    """Base of the formats.

    `reasoning`: `drop` leaves it out; `fold` writes it before the answer ("…\\n\\nAnswer: …"); `think` wraps it in
    think tags; `apart` gives it a field of its own where the format has one. `system: drop` erases the system
    message (Orca 2's prompt erasing).
    """

    TRAINERS: ClassVar[str] = ""

    format: str
    reasoning: Literal["drop", "fold", "think", "apart"] = "drop"
    system: Literal["keep", "drop"] = "keep"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The row that trainers read, or None where the record has no place in this format."""
        raise NotImplementedError

    def shape(self) -> dict[str, Any]:
        """What a row of it looks like (`kdgen.export.shapes`)."""
        raise NotImplementedError

    @cached_property
    def check(self) -> Callable[[Any], Any]:
        """Raises pydantic's ValidationError for a row that is none of it."""
        return checker(self.shape())

    def beside(self, name: str, files: dict[str, str]) -> dict[str, bytes]:
        """Other files that a trainer needs in the folder; `name` is the dataset's, `files` those of its splits."""
        return {}

    def answer(self, of: Record | Candidate) -> str:
        """The output, with its reasoning as `reasoning` says."""
        if of.reasoning and self.reasoning == "fold":
            return f"{of.reasoning}\n\nAnswer: {of.output}"
        if of.reasoning and self.reasoning == "think":
            return f"<think>\n{of.reasoning}\n</think>\n\n{of.output}"
        return of.output

    def prompt(self, record: Record) -> list[dict[str, Any]]:
        """The messages before the answer: system, history, task."""
        said: list[dict[str, Any]] = []
        if record.system and self.system == "keep":
            said.append({"role": "system", "content": record.system})
        if record.history:
            said += [{"role": turn.role, "content": turn.content} for turn in asked(record)]
        else:
            said.append({"role": "user", "content": record.task})
        return said

    def message(self, of: Record | Candidate) -> dict[str, Any]:
        """The answer as a message."""
        said = {"role": "assistant", "content": self.answer(of)}
        if of.reasoning and self.reasoning == "apart":
            said["reasoning_content"] = of.reasoning
        return said

    def turn(self, **more: Any) -> dict[str, Any]:
        """The shape of a message."""
        apart = {"reasoning_content?": WORDS} if self.reasoning == "apart" else {}
        return {"role": ROLES, "content": TEXT, **apart, **more}


WEIGHT = {"weight?": WHOLE}
TOOLS = {"tools?": JSON}


def tools_of(record: Record) -> list[Any]:
    """The tools that a user's column `tools` gives a conversation, as TRL, OpenAI and chat templates take them."""
    told = record.extra.get("tools") if record.extra else None
    return told if isinstance(told, list) and all(isinstance(each, dict) for each in told) else []


def gold_text(gold: Any) -> str:
    """A right answer as text: of a number its digits; empty where there is none."""
    return gold if isinstance(gold, str) else "" if gold is None else json.dumps(gold, ensure_ascii=False)


def tooled(record: Record) -> dict[str, Any]:
    """The tools as a column, where there are any."""
    return {"tools": tools} if (tools := tools_of(record)) else {}


def weigh(messages: list[dict[str, Any]], which: str, name: str, yes: Any, no: Any, others: bool = False) -> None:
    """Say in each assistant's message (with `others`, in every one) whether it is trained on: `answer`, the last one, or
    all `turns`.
    """
    for place, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            message[name] = yes if which == "turns" or place == len(messages) else no
        elif others:
            message[name] = no


def asked(record: Record) -> list[Message]:
    """The turns before the answer: history and task. A history that ends with what a tool said holds the task already."""
    tooled = record.history and record.history[-1].role == "tool"
    return [*record.history, *([] if tooled else [Message(role="user", content=record.task)])]


def alternate(messages: list[dict[str, Any]]) -> bool:
    """Whether user and assistant take turns, the user first and last."""
    roles = [message["role"] for message in messages]
    return roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
