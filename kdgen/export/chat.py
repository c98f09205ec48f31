"""Supervised fine-tuning rows: chat messages, Alpaca, ShareGPT."""

from __future__ import annotations

from typing import Any, Literal

from kdgen.record import Candidate, Frozen, Message, Record


class Format(Frozen):
    """Base of the formats.

    `reasoning`: `drop` leaves it out; `fold` writes it before the answer ("…\\n\\nAnswer: …"); `think` wraps it in
    think tags; `apart` gives it a field of its own where the format has one. `system: drop` erases the system
    message (Orca 2's prompt erasing).
    """

    format: str
    reasoning: Literal["drop", "fold", "think", "apart"] = "drop"
    system: Literal["keep", "drop"] = "keep"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The row that trainers read, or None where the record has no place in this format."""
        raise NotImplementedError

    def answer(self, of: Record | Candidate) -> str:
        """The output, with its reasoning as `reasoning` says."""
        if of.reasoning and self.reasoning == "fold":
            return f"{of.reasoning}\n\nAnswer: {of.output}"
        if of.reasoning and self.reasoning == "think":
            return f"<think>\n{of.reasoning}\n</think>\n\n{of.output}"
        return of.output

    def prompt(self, record: Record) -> list[dict[str, str]]:
        """The messages before the answer: system, history, task."""
        system = [{"role": "system", "content": record.system}] if record.system and self.system == "keep" else []
        return [*system, *({"role": turn.role, "content": turn.content} for turn in asked(record))]

    def message(self, of: Record | Candidate) -> dict[str, str]:
        """The answer as a message."""
        apart = {"reasoning_content": of.reasoning} if of.reasoning and self.reasoning == "apart" else {}
        return {"role": "assistant", "content": self.answer(of), **apart}


def asked(record: Record) -> list[Message]:
    """The turns before the answer: history and task. A history that ends with what a tool said holds the task already."""
    tooled = record.history and record.history[-1].role == "tool"
    return [*record.history, *([] if tooled else [Message(role="user", content=record.task)])]


class Messages(Format):
    """`{"messages": [{"role", "content"}, …]}`: TRL, Axolotl, LLaMA-Factory, OpenAI."""

    format: Literal["messages"] = "messages"

    def row(self, record: Record) -> dict[str, Any] | None:
        """System, history, task, answer."""
        if not record.instruction or not record.output:
            return None
        return {"messages": [*self.prompt(record), self.message(record)]}


class Alpaca(Format):
    """`{"instruction", "input", "output"[, "system"][, "history": [[user, assistant], …]]}`."""

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


class ShareGPT(Format):
    """`{"conversations": [{"from": "human" | "gpt", "value"}, …][, "system"]}`."""

    format: Literal["sharegpt"] = "sharegpt"
    reasoning: Literal["drop", "fold", "think"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """History, task, answer."""
        if not record.instruction or not record.output:
            return None
        names = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
        turns = [{"from": names[turn.role], "value": turn.content} for turn in asked(record)]
        turns.append({"from": "gpt", "value": self.answer(record)})
        row: dict[str, Any] = {"conversations": turns}
        if record.system and self.system == "keep":
            row["system"] = record.system
        return row


class Text(Format):
    """`{"text": …}`: documents for further pretraining (TRL, Axolotl's completion, LLaMA-Factory's pt)."""

    format: Literal["text"] = "text"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The document, where the record is one."""
        return {"text": record.text} if record.text and not record.output else None
