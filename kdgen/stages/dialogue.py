"""Curation: conversations of two models, a user and an assistant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import bare, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Message, Record, Row
from kdgen.stages.answer import TASK
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.draw import Draw
from kdgen.teachers.base import Reply

END = "[END]"
OTHER = re.compile(r"[\s\"”]*\b(?:assistant|AI)\s*:\s", re.I)
NAME = re.compile(r"\A(?:person|user|human|customer)\s*:\s*", re.I)


class Dialogue(Stage):
    """A conversation between a model that plays the user and one that assists (UltraChat, arXiv 2305.14233; CAMEL, arXiv 2303.17760).

    D = {x, y | x ~ p_T(x | I ⊕ m), y ~ p_T(y | I ⊕ x)} (Xu et al., Eq. 5), turn by turn: m is what the seed is about, the user
    writes each x, the assistant each y and sees the conversation alone. The user is never shown the seed's `output`, so
    that an answer key cannot leak into a question. A conversation has `least` to `most` rounds: how many is drawn for
    each seed, and one of `moves` for each of the user's messages. The user may end it from `least` on with `[END]`. One
    that breaks off before is a reject; after it, its whole rounds are kept.
    """

    stage: Literal["curate"] = "curate"
    method: Literal["dialogue"] = "dialogue"
    ask: PromptFile
    answer: PromptFile
    user: str = "user"
    moves: tuple[str, ...] = Field(("asks about what the assistant said",), min_length=1)
    least: int = Field(3, ge=1, le=50)
    most: int = Field(7, ge=1, le=50)

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "ask": frozenset({"instruction", "input", "text", "extra", "conversation", "may_end", "move"}),
        "answer": TASK,
    }
    consumes: ClassVar[bool] = True

    @property
    def roles(self) -> set[str]:
        """The user and the assistant."""
        return {self.to, self.user}

    @property
    def validates(self) -> set[str]:
        """The user, whose message must be a new one."""
        return {self.user}

    def check(self, where: str) -> None:
        """The bounds must be in order."""
        super().check(where)
        if self.least > self.most:
            raise bad_stage(f"least ({self.least}) is more than most ({self.most})", f"{where}.least")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each seed with its number of rounds, and what the user does in each."""
        for record in pool:
            rounds = draw.choice(range(self.least, self.most + 1), "rounds", record.id)
            moves: list[JsonValue] = [draw.choice(self.moves, "move", record.id, number) for number in range(rounds)]
            yield record.model_copy(update={"meta": {**record.meta, "rounds": rounds, "moves": moves}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """Two calls a round."""
        moves, turns, ended = job.meta["moves"], list[Message](), "rounds"
        assert isinstance(moves, list)
        replies: list[Reply] = []
        asked: Reply | None = None
        for done, move in enumerate(moves):
            try:
                said, answered = await self._round(job, turns, str(move), done >= self.least, ask)
            except Rejected as fate:
                if done < self.least:
                    raise
                ended = fate.reason
                break
            if said is None or answered is None:
                ended = "user"
                break
            asked = said
            replies += [said, answered]
        if not asked or len(turns) < 2 * self.least:
            raise Rejected("too_few_rounds", f"{len(turns) // 2} of {self.least}")
        *history, question, answer = turns
        row = self.child(
            job,
            *replies,
            writes=("output",),
            meta={"rounds": len(turns) // 2, "moves": moves[: len(turns) // 2], "ended": ended},
            history=tuple(history),
            instruction=question.content,
            input="",
            text="",
            output=answer.content,
            finish=replies[-1].finish,
        )
        writers = {**row.writers, "instruction": asked.teacher} | ({"history": asked.teacher} if history else {})
        every = (*job.calls, *dict.fromkeys(ask.calls))  # the reply that ended it was paid for too
        return [row.model_copy(update={"writers": writers, "calls": every})]

    async def _round(
        self, job: Record, turns: list[Message], move: str, may_end: bool, ask: Ask
    ) -> tuple[Reply, Reply] | tuple[None, None]:
        """The user's next message and its answer, added to `turns`; None where the user has ended the conversation."""
        shown = {name: getattr(job, name) for name in ("instruction", "input", "text", "extra")}
        said = await ask(
            self.ask,
            to=self.user,
            check=lambda reply: _unfit(_message(reply), turns),
            conversation=[{"who": turn.role, "text": turn.content} for turn in turns],
            may_end=may_end,
            move=move,
            **shown,
        )
        text = _message(said)
        if text.endswith(END):
            if may_end:
                return None, None
            text = text.removesuffix(END).strip()
            if not terms(text):
                raise Rejected("too_few_rounds", f"the user ended after {len(turns) // 2} of {self.least}")
        empty: dict[str, Any] = {"input": "", "text": "", "extra": {}}
        answered = await ask(self.answer, history=turns, instruction=text, system=job.system, **empty)
        answer = split_thinking(answered.text)[1]
        if not terms(answer):
            raise Rejected("empty_answer", f"finish: {answered.finish}")
        turns += [Message(role="user", content=text), Message(role="assistant", content=answer)]
        return said, answered

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A question or an answer."""
        return f"{len(variables['conversation'])} {words(20)}" if prompt == self.ask else words(0)


def _message(reply: Reply) -> str:
    text = bare(split_thinking(reply.text)[1])
    return bare(OTHER.split(NAME.sub("", text))[0])


def _unfit(text: str, turns: Sequence[Message]) -> str | None:
    said = terms(text.removesuffix(END))
    if not said and not text.endswith(END):
        return "it is empty"
    if said and any(said == terms(turn.content) for turn in turns):
        return "it repeats what was said before"
    return None
