"""Labeling: a whole conversation in one reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdgen.errors import Rejected
from kdgen.parse import bare, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Message, Record, Row
from kdgen.stages.base import Ask, Stage
from kdgen.teachers.base import Reply

WHO: dict[str, Literal["user", "assistant"]] = {"Human": "user", "AI": "assistant"}
MARK = re.compile(r"^[ \t]*\[(Human|AI)\][ \t]*:?", re.M)
STRAY = re.compile(r"\[/?(?:Human|AI)\]")


class Transcript(Stage):
    """A conversation that one call writes with itself (Baize, arXiv 2304.01196).

    D = {x, y | x ~ X, y ~ p_T(y | I ⊕ c ⊕ x)} (Xu et al., Eq. 3): x is the question that it opens with, y all the rest.
    The reply is turns that begin with `[Human]` or `[AI]` at the start of a line; one that goes on with `[AI]` from the
    question that it was shown has it put before. Anything else around them, two turns of one side in a row, an empty
    turn, a turn that is said twice and an opening that is not the seed's question make it invalid, and so a reject. What
    the person says last, or what was cut, is left out; fewer than `least` whole rounds are a reject.
    """

    stage: Literal["label"] = "label"
    method: Literal["transcript"] = "transcript"
    prompt: PromptFile
    least: int = Field(2, ge=1, le=50)

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": frozenset({"instruction", "input", "text", "system", "extra", "rounds"})
    }
    cut_is_fine: ClassVar[bool] = True

    @property
    def validates(self) -> set[str]:
        """The teacher, whose turns must be turns."""
        return {self.to}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call: the last question as `instruction`, the last answer as `output`, what stands before as `history`."""
        if job.history:
            raise Rejected("has_turns", "the seed is a conversation already, and one is written that it opens")
        opening = job.task or job.text
        shown = {name: getattr(job, name) for name in ("instruction", "input", "text", "system", "extra")}
        reply = await ask(
            self.prompt, partial=True, check=lambda said: _wrong(said, opening), rounds=self.least, **shown
        )
        try:
            turns = _turns(reply, opening)
        except ValueError as error:  # a reply that was cut is not checked
            raise Rejected("invalid_output", str(error)) from None
        ended = "person" if len(turns) % 2 else "assistant"
        turns = turns[: len(turns) // 2 * 2]
        if len(turns) < 2 * self.least:
            raise Rejected("too_few_rounds", f"{len(turns) // 2} of {self.least}")
        *history, question, answer = turns
        row = self.child(
            job,
            reply,
            writes=("output", *(("history", "instruction") if history else ())),
            meta={"rounds": len(turns) // 2, "ended": "cut" if reply.finish == "length" else ended},
            history=tuple(history),
            instruction=question.content,
            input="",
            text="",
            reasoning="",
            output=answer.content,
            finish="stop",
        )
        return [row]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """Whole rounds that open with the question."""
        opening = f"{variables['instruction'] or variables['text']} {variables['input']}"
        asked = [opening, *(f"{number} {words(15)}?" for number in range(2, self.least + 2))]
        return "\n".join(f"[Human] {each}\n[AI] {number} {words(60)}" for number, each in enumerate(asked))


def _wrong(reply: Reply, opening: str) -> str | None:
    try:
        _turns(reply, opening)
    except ValueError as error:
        return str(error)
    return None


def _turns(reply: Reply, opening: str) -> list[Message]:
    """The turns of a reply, without one that was cut. Raises ValueError where they are not a conversation."""
    text = bare(split_thinking(reply.text)[1])
    before, *parts = MARK.split(text)
    if before.strip() or not parts:
        raise ValueError("it does not begin with [Human] or [AI]")
    said = [(WHO[who], content.strip()) for who, content in zip(parts[::2], parts[1::2], strict=True)]
    if said[0][0] == "assistant":
        said.insert(0, ("user", opening))
    if reply.finish == "length":
        said = said[:-1]
    seen = set[str]()
    for number, (role, content) in enumerate(said):
        if role != ("assistant" if number % 2 else "user"):
            raise ValueError(f"turn {number + 1} is of the same side as the one before it")
        if not terms(content):
            raise ValueError(f"turn {number + 1} is empty")
        if STRAY.search(content):
            raise ValueError(f"turn {number + 1} holds the mark of another turn")
        key = " ".join(terms(content))
        if key in seen:
            raise ValueError(f"turn {number + 1} says again what was said")
        seen.add(key)
    wanted = set(terms(opening))
    if said and len(wanted & set(terms(said[0][1]))) * 2 < len(wanted):
        raise ValueError("it does not open with the question")
    return [Message(role=role, content=content) for role, content in said]
