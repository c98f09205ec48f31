"""Supervised fine-tuning rows: chat messages, prompt and completion, Alpaca, ShareGPT, documents."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from kdgen.export.base import TOOLS, WEIGHT, Format, asked, tools_of, weigh
from kdgen.export.shapes import TEXT, WORDS
from kdgen.record import Record


class Messages(Format):
    """`{"messages": [{"role", "content"}, …][, "tools"]}`: TRL, Unsloth, Axolotl, LLaMA-Factory, Mistral, Fireworks.

    `weights` adds `weight`, 1 or 0, to each assistant's message: 1 to the `answer` alone or to all `turns`.
    """

    TRAINERS: ClassVar[str] = "TRL SFT, Unsloth, Axolotl (`chat_template`), Mistral, Fireworks, Together"

    format: Literal["messages"] = "messages"
    weights: Literal["none", "answer", "turns"] = "none"

    def row(self, record: Record) -> dict[str, Any] | None:
        """System, history, task, answer."""
        if not record.instruction or not record.output:
            return None
        said = self.prompt(record)
        said.append(self.message(record))
        if self.weights != "none":
            weigh(said, self.weights, "weight", 1, 0)
        tools = tools_of(record)
        return {"messages": said, "tools": tools} if tools else {"messages": said}

    def shape(self) -> dict[str, Any]:
        """Messages, and tools where there are."""
        return {"messages": [self.turn(**(WEIGHT if self.weights != "none" else {}))], **TOOLS}


class PromptCompletion(Format):
    """`{"prompt": [message, …], "completion": [message][, "tools"]}`: TRL's SFT, which trains on the completion alone.

    `style: text` writes both as plain texts; a conversation with turns before the task has no place there.
    """

    TRAINERS: ClassVar[str] = "TRL SFT (loss on the completion alone), verl"

    format: Literal["prompt-completion"] = "prompt-completion"
    style: Literal["messages", "text"] = "messages"

    def row(self, record: Record) -> dict[str, Any] | None:
        """What is asked, and the answer."""
        if not record.instruction or not record.output:
            return None
        if self.style == "text":
            if record.history:
                return None
            head = f"{record.system}\n\n" if record.system and self.system == "keep" else ""
            return {"prompt": head + record.task, "completion": self.answer(record)}
        row: dict[str, Any] = {"prompt": self.prompt(record), "completion": [self.message(record)]}
        if tools := tools_of(record):
            row["tools"] = tools
        return row

    def shape(self) -> dict[str, Any]:
        """Two texts, or two lists of messages."""
        if self.style == "text":
            return {"prompt": WORDS, "completion": WORDS}
        return {"prompt": [self.turn()], "completion": [self.turn()], **TOOLS}


class Alpaca(Format):
    """`{"instruction", "input", "output"[, "system"][, "history": [[user, assistant], …]]}`."""

    TRAINERS: ClassVar[str] = "LLaMA-Factory, Axolotl (`alpaca`)"

    format: Literal["alpaca"] = "alpaca"
    reasoning: Literal["drop", "fold", "think"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The record's own fields. A history that is no pairs of user and assistant has no place."""
        paired = [turn.role for turn in record.history] == ["user", "assistant"] * (len(record.history) // 2)
        if not record.instruction or not record.output or not paired:
            return None
        row: dict[str, Any] = {"instruction": record.instruction, "input": record.input, "output": self.answer(record)}
        if record.system and self.system == "keep":
            row["system"] = record.system
        if record.history:
            said = [turn.content for turn in record.history]
            row["history"] = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
        return row

    def shape(self) -> dict[str, Any]:
        """Texts, and pairs of texts."""
        return {"instruction": WORDS, "input": TEXT, "output": WORDS, "system?": WORDS, "history?": [[TEXT]]}


class ShareGPT(Format):
    """`{"conversations": [{"from": "human" | "gpt", "value"}, …][, "system"][, "tools"]}`, the tools as JSON text."""

    TRAINERS: ClassVar[str] = "LLaMA-Factory, FastChat, TRL (which turns it into messages)"

    format: Literal["sharegpt"] = "sharegpt"
    reasoning: Literal["drop", "fold", "think"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """History, task, answer."""
        if not record.instruction or not record.output:
            return None
        turns = [{"from": NAMES[turn.role], "value": turn.content} for turn in asked(record)]
        turns.append({"from": "gpt", "value": self.answer(record)})
        row: dict[str, Any] = {"conversations": turns}
        if record.system and self.system == "keep":
            row["system"] = record.system
        if tools := tools_of(record):
            row["tools"] = json.dumps(tools, ensure_ascii=False)
        return row

    def shape(self) -> dict[str, Any]:
        """Turns, the system message beside them, and tools where there are."""
        turn = {"from": tuple(NAMES.values()), "value": TEXT}
        return {"conversations": [turn], "system?": WORDS, "tools?": WORDS}


NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


class Text(Format):
    """`{"text": …}`: documents for further pretraining (TRL, Axolotl's completion, LLaMA-Factory's pt)."""

    TRAINERS: ClassVar[str] = "further pretraining: TRL SFT, Axolotl (`completion`), LLaMA-Factory (`pt`)"

    format: Literal["text"] = "text"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The document, where the record is one."""
        return {"text": record.text} if record.text and not record.output else None

    def shape(self) -> dict[str, Any]:
        """One text."""
        return {"text": WORDS}
