"""Labeling under a system message that fits the task: the entry of a bank is chosen, not drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, create_model

from kdgen.banks import BankFile
from kdgen.errors import Rejected
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage


class Choice(BaseModel):
    """The entry that fits, its reason first; a bank's own form has its ids."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    selected: str


@lru_cache(maxsize=64)
def _schema(ids: tuple[str, ...]) -> type[BaseModel]:
    one: Any = Literal[ids]
    make: Any = create_model
    made: type[BaseModel] = make(
        "Choice", __config__=ConfigDict(extra="forbid"), reason=(str, ...), selected=(one, ...)
    )
    return made


class Choose(Stage):
    """Choose the system message that fits a task: the c of D = {x, y | x ~ X, y ~ p_T(y | I ⊕ c ⊕ x)} (Xu et al., Eq. 3).

    Orca 2 (arXiv 2311.11045) has each kind of task answered by the strategy that suits it, and trains without the message
    that asked for it (`export.system: drop`), so that the student learns to choose. The entry of `bank` is the one that
    the seed's column `by` names, and else the one that the teacher selects; its `text` is the record's system message for
    the stages that follow, its id is `meta.banks.system`. `banks` draws one by chance instead.
    """

    stage: Literal["label"] = "label"
    method: Literal["choose"] = "choose"
    prompt: PromptFile
    bank: BankFile
    by: str | None = None

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"entries"}}

    @property
    def validates(self) -> set[str]:
        """The teacher, whose choice has a schema."""
        return {self.to}

    def check(self, where: str) -> None:
        """A system message is a text, and is set once."""
        super().check(where)
        if "text" not in self.bank.fields:
            have = ", ".join(self.bank.fields)
            raise bad_stage("a system message is the `text` of an entry", f"{where}.bank", f"its entries have: {have}")
        if "system" in self.banks:
            raise bad_stage("the system message is drawn and chosen", f"{where}.banks.system", "take one of them out")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call, or none where the seed says what fits."""
        said = str(job.extra.get(self.by) or "") if self.by else ""
        if not said:
            entries = [{"id": entry.id, **entry.texts} for entry in self.bank.entries]
            reply = await ask(
                self.prompt,
                schema=_schema(tuple(entry.id for entry in self.bank.entries)),
                entries=entries,
                **task_variables(job),
            )
            said = Choice.model_validate_json(reply.text).selected
        try:
            entry = self.bank.entry(said)
        except StopIteration:
            raise Rejected("no_such_entry", f"the column {self.by!r} says {said[:100]!r}") from None
        held = job.meta.get("banks")
        meta: dict[str, JsonValue] = {"banks": {**(held if isinstance(held, dict) else {}), "system": entry.id}}
        system = entry.texts["text"]
        return [job.child(stage=self.stage, method=self.method, calls=ask.calls, meta=meta, system=system)]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The first entry."""
        return Choice(reason=words(15), selected=self.bank.entries[0].id).model_dump_json()
