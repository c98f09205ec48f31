"""Files that fine-tuning services take: OpenAI's (Azure's, Together's) and Amazon Bedrock's."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from kdgen.export.base import TOOLS, WEIGHT, Format, alternate, gold_text, tools_of, weigh
from kdgen.export.preference import pair_of
from kdgen.export.shapes import JSON, TEXT, WORDS
from kdgen.record import Record

SCHEMA = "bedrock-conversation-2024"


class _Hosted(Format):
    """Base of OpenAI's: there is no field for reasoning, and what a tool said needs the call that it answers."""

    format: str
    reasoning: Literal["drop", "fold", "think"] = "drop"

    def turns(self, record: Record) -> list[dict[str, Any]]:
        """What is asked, or nothing where it has no place."""
        said = self.prompt(record) if record.instruction else []
        return said if all(turn["role"] != "tool" for turn in said) else []


class OpenAIChat(_Hosted):
    """`{"messages": [{"role", "content"[, "weight": 0 | 1]}, …][, "tools"]}`: OpenAI's supervised fine-tuning.

    `weights`: only the `answer` is trained on, or all the assistant's `turns`.
    """

    TRAINERS: ClassVar[str] = "OpenAI and Azure supervised fine-tuning"

    format: Literal["openai"] = "openai"
    weights: Literal["answer", "turns"] = "answer"

    def row(self, record: Record) -> dict[str, Any] | None:
        """System, history, task, answer; weights where there is more than one answer."""
        said = self.turns(record)
        if not said or not record.output:
            return None
        said.append(self.message(record))
        if any(turn["role"] == "assistant" for turn in said[:-1]):
            weigh(said, self.weights, "weight", 1, 0)
        tools = tools_of(record)
        return {"messages": said, "tools": tools} if tools else {"messages": said}

    def shape(self) -> dict[str, Any]:
        """Messages, and tools where there are."""
        return {"messages": [self.turn(**WEIGHT)], **TOOLS}


class OpenAIPreference(_Hosted):
    """`{"input": {"messages": […][, "tools"]}, "preferred_output": [message], "non_preferred_output": [message]}`: OpenAI's
    DPO.
    """

    TRAINERS: ClassVar[str] = "OpenAI, Azure and Together DPO"

    format: Literal["openai-preference"] = "openai-preference"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The pair, where the record is one."""
        said, pair = self.turns(record), pair_of(record)
        if not said or pair is None:
            return None
        tools = tools_of(record)
        return {
            "input": {"messages": said, "tools": tools} if tools else {"messages": said},
            "preferred_output": [self.message(pair[0])],
            "non_preferred_output": [self.message(pair[1])],
        }

    def shape(self) -> dict[str, Any]:
        """What is asked, and an answer on each side."""
        said = [self.turn()]
        return {"input": {"messages": said, **TOOLS}, "preferred_output": said, "non_preferred_output": said}


class OpenAIRft(_Hosted):
    """`{"messages": [… ends with the user], "answer"[, "verifier"][, column, …]}`: OpenAI's reinforcement fine-tuning, whose
    graders read the other fields as `{{item.answer}}`.

    `gold_as` names the field of the gold answer (`meta.gold`); `columns` are the user's own that come along. `verifier` is
    the spec of `meta.verifier` as JSON.
    """

    TRAINERS: ClassVar[str] = "OpenAI reinforcement fine-tuning"

    format: Literal["openai-rft"] = "openai-rft"
    reasoning: Literal["drop"] = "drop"
    gold_as: str = "answer"
    columns: tuple[str, ...] = ()

    def row(self, record: Record) -> dict[str, Any] | None:
        """The prompt with what its graders read; without a gold answer, a verifier or a column there is nothing to grade by."""
        said, gold, spec = self.turns(record), record.meta.get("gold"), record.meta.get("verifier")
        taken = {name: record.extra[name] for name in self.columns if name in record.extra}
        if not said or not (gold not in (None, "") or spec or taken):
            return None
        row: dict[str, Any] = {"messages": said, self.gold_as: gold_text(gold)}
        if isinstance(spec, dict):
            row["verifier"] = json.dumps(spec, ensure_ascii=False)
        return {**taken, **row}

    def shape(self) -> dict[str, Any]:
        """Messages, and whatever graders read."""
        taken = {f"{name}?": JSON for name in self.columns}
        return {**taken, "messages": [self.turn()], self.gold_as: TEXT, "verifier?": WORDS}


class Bedrock(Format):
    """`{"schemaVersion": "bedrock-conversation-2024"[, "system": [{"text"}]], "messages": [{"role", "content": [{"text"}]}, …]}`:
    Amazon Bedrock's fine-tuning and distillation jobs. User and assistant take turns, or the record has no place.
    """

    TRAINERS: ClassVar[str] = "Amazon Bedrock fine-tuning and Model Distillation"

    format: Literal["bedrock"] = "bedrock"
    reasoning: Literal["drop", "fold", "think"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """System apart, then the turns."""
        if not record.instruction or not record.output:
            return None
        said = self.prompt(record)
        system = [{"text": said.pop(0)["content"]}] if said[0]["role"] == "system" else []
        if not alternate(said):
            return None
        said.append(self.message(record))
        row: dict[str, Any] = {"schemaVersion": SCHEMA}
        if system:
            row["system"] = system
        row["messages"] = [{"role": turn["role"], "content": [{"text": turn["content"]}]} for turn in said]
        return row

    def shape(self) -> dict[str, Any]:
        """Each text in a list of parts."""
        turn = {"role": ("user", "assistant"), "content": [{"text": WORDS}]}
        return {"schemaVersion": (SCHEMA,), "system?": [{"text": WORDS}], "messages": [turn]}
