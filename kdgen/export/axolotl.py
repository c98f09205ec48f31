"""Axolotl's own rows, where `messages`, `alpaca`, `text` and `stepwise` are not what it takes."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kdgen.export.base import TOOLS, Format, alternate, tools_of, weigh
from kdgen.export.preference import pair_of
from kdgen.export.shapes import FLAG, TEXT, WORDS
from kdgen.record import Record


class AxolotlChat(Format):
    """`{"messages": [{"role", "content", "train": true | false}, …][, "tools"]}`: `type: chat_template` with
    `roles_to_train: []` and `message_field_training: train`.

    `weights`: only the `answer` is trained on, or all the assistant's `turns`.
    """

    TRAINERS: ClassVar[str] = "Axolotl (`chat_template`, `message_field_training: train`, `roles_to_train: []`)"

    format: Literal["axolotl-chat"] = "axolotl-chat"
    weights: Literal["answer", "turns"] = "answer"

    def row(self, record: Record) -> dict[str, Any] | None:
        """System, history, task, answer, each with its flag."""
        if not record.instruction or not record.output:
            return None
        said = [*self.prompt(record), self.message(record)]
        weigh(said, self.weights, "train", True, False, others=True)
        tools = tools_of(record)
        return {"messages": said, "tools": tools} if tools else {"messages": said}

    def shape(self) -> dict[str, Any]:
        """Messages with flags, and tools where there are."""
        return {"messages": [self.turn(train=FLAG)], **TOOLS}


class AxolotlPreference(Format):
    """Axolotl's preferences. `layout`: `dpo` is `{"messages": […], "chosen": message, "rejected": message}` (`type:
    chat_template.default`), `orpo` `{["system", ]"chosen": [message, …], "rejected": [message, …]}`, the turns before the answer in
    both (`type: chat_template.argilla`).
    """

    TRAINERS: ClassVar[str] = (
        "Axolotl DPO, IPO (`chat_template.default`) and ORPO (`layout: orpo`, `chat_template.argilla`)"
    )

    format: Literal["axolotl-preference"] = "axolotl-preference"
    reasoning: Literal["drop", "fold", "think"] = "drop"
    layout: Literal["dpo", "orpo"] = "dpo"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The pair, where the record is one."""
        pair = pair_of(record)
        if pair is None:
            return None
        said, chosen, rejected = self.prompt(record), self.message(pair[0]), self.message(pair[1])
        if self.layout == "dpo":
            return {"messages": said, "chosen": chosen, "rejected": rejected}
        system = {"system": said.pop(0)["content"]} if said[0]["role"] == "system" else {}
        return {**system, "chosen": [*said, chosen], "rejected": [*said, rejected]} if alternate(said) else None

    def shape(self) -> dict[str, Any]:
        """By the layout."""
        if self.layout == "dpo":
            return {"messages": [self.turn()], "chosen": self.turn(), "rejected": self.turn()}
        return {"system?": WORDS, "chosen": [self.turn()], "rejected": [self.turn()]}


class AxolotlKto(Format):
    """`{["system", ]"prompt", "completion", "label": true | false}`, texts: `rl: kto`, `type: chatml.prompt_pairs` (or `llama3.…`)
    with `remove_unused_columns: false`. A conversation with turns before the task has no place.
    """

    TRAINERS: ClassVar[str] = "Axolotl KTO (`chatml.prompt_pairs`)"

    format: Literal["axolotl-kto"] = "axolotl-kto"
    reasoning: Literal["drop", "fold", "think"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The answer and its label, where it has one."""
        label = record.meta.get("label")
        if not record.instruction or not record.output or not isinstance(label, bool) or record.history:
            return None
        system = {"system": record.system} if record.system and self.system == "keep" else {}
        return {**system, "prompt": record.task, "completion": self.answer(record), "label": label}

    def shape(self) -> dict[str, Any]:
        """Texts and a label."""
        return {"system?": WORDS, "prompt": WORDS, "completion": TEXT, "label": FLAG}
