"""Curation by rephrasing: documents said again in the styles that their quality calls for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdgen.errors import Rejected
from kdgen.parse import alone, gist, split_thinking, terms, units
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Frozen, Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, bounded
from kdgen.stages.draw import Draw
from kdgen.stages.write import EMPTY, Pair, Pairs, listed, title_of
from kdgen.teachers.base import Reply

RUN = 8  # words in a row, at which chance ends and copying begins
WORDS_A_PAIR = 10
SHORT = 3  # words of an answer that more than one question may have


class Style(Frozen):
    """One way to say a document again, for those of `buckets` (of none named, for all).

    `makes` says what comes of it: `text` is the document in other words, `qa` the document with its questions and
    answers below it, `pairs` a row for each of them. Of pairs at most `ask_for` are asked for, and one for every ten
    words of the document. A text is lost where it has less than the share `least_kept` of the document's content words, or
    where more than `most_copied` of its runs of eight words stand in the document; a pair, where the document has less
    than `least_kept` of the content words of its answer.
    """

    prompt: PromptFile
    buckets: tuple[str, ...] = ()
    makes: Literal["text", "qa", "pairs"] = "text"
    ask_for: int = Field(8, ge=1, le=100)
    least_kept: float = Field(0.3, ge=0, le=1)
    most_copied: float = Field(0.3, ge=0, le=1)

    def lost(self, text: str, source: str) -> tuple[str, str] | None:
        """Why a text is not the source in other words."""
        theirs, ours = gist(source), gist(text)
        kept = len(theirs & ours) / len(theirs) if theirs else 1.0
        if kept < self.least_kept:
            return "lost_content", f"{kept:.0%} of the document's content words, {self.least_kept:.0%} is the least"
        known, runs = set(_runs(source)), _runs(text)
        copied = sum(run in known for run in runs) / len(runs) if runs else float(units(text) == units(source))
        if copied > self.most_copied:
            return "copies_source", f"{copied:.0%} of it stands in the document, {self.most_copied:.0%} is the most"
        return None

    def unfounded(self, answer: str, source: str) -> tuple[str, str] | None:
        """Why an answer is not taken from the source."""
        said = gist(answer)
        share = len(said & gist(source)) / len(said) if said else 1.0
        if share >= self.least_kept:
            return None
        return "not_in_document", f"{share:.0%} of the answer's content words, {self.least_kept:.0%} is the least"


class Rephrase(Stage):
    """Say documents again: D = {y | m ∈ M, s ∈ S(q(m)), y ~ p_T(y | I_s ⊕ m)} (Xu et al., Eq. 5, with the document as m).

    S are the `styles` for the document's quality, q, which a `curate/grade` with `buckets` found before. Nemotron-CC
    (arXiv 2412.02595) has what is poor rewritten as an encyclopedia would say it, and of what is good makes questions
    with answers, a distilled text, the knowledge in it and a list of its facts. Without buckets each document is said in
    each style (WRAP, arXiv 2401.16380). A row's style is `meta.style`; one style that fails does not lose the others.
    """

    stage: Literal["curate"] = "curate"
    method: Literal["rephrase"] = "rephrase"
    styles: dict[str, Style] = Field(min_length=1)

    gives: ClassVar[dict[str, frozenset[str]]] = {"styles": TASK | {"title", "count"}}
    consumes: ClassVar[bool] = True

    @property
    def validates(self) -> set[str]:
        """The teacher, whose pairs have a schema."""
        return {self.to} if any(style.makes != "text" for style in self.styles.values()) else set()

    def prompts(self) -> Iterator[tuple[str, Prompt]]:
        """Those of the styles."""
        yield from (("styles", style.prompt) for style in self.styles.values())

    def check(self, where: str) -> None:
        """What belongs to texts has no effect on pairs, and the other way round."""
        super().check(where)
        for name, style in self.styles.items():
            alien = "ask_for" if style.makes == "text" else "most_copied"
            if alien in style.model_fields_set:
                cause, hint = f"{alien} has no effect on makes: {style.makes}", "take it out"
                raise bad_stage(cause, f"{where}.styles.{name}.{alien}", hint)

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each document in each style that is for it."""
        for record in pool:
            bucket = record.meta.get("bucket")
            styles = [name for name, style in self.styles.items() if not style.buckets or bucket in style.buckets]
            for name in styles or [""]:
                yield record.model_copy(update={"meta": {**record.meta, "style": name}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        name, source = str(job.meta["style"]), job.text or job.task
        if not name:
            bucket = job.meta.get("bucket")
            raise Rejected("no_style", f"no style is for {bucket}" if bucket else "the document was not graded")
        if not terms(source):
            raise Rejected("no_document", "there is no text to say again")
        style = self.styles[name]
        count = min(style.ask_for, -(-len(units(source)) // WORDS_A_PAIR))
        schema, shown = (
            None if style.makes == "text" else bounded(Pairs, count),
            {**task_variables(job), "title": title_of(job)},
        )
        reply = await ask(style.prompt, schema=schema, source=source, makes=style.makes, count=count, **shown)
        if style.makes != "text":
            return self._pairs(job, reply, style, source, count)
        text = alone(split_thinking(reply.text)[1])
        if not terms(text):
            raise Rejected("empty_text", f"finish: {reply.finish}")
        if fate := style.lost(text, source):
            lost = job.model_copy(update={"output": text, "calls": (*job.calls, reply.key)})
            return [lost.rejected(self.name, *fate)]
        return [self._text(job, reply, text)]

    def _text(self, job: Record, reply: Reply, text: str) -> Record:
        content = {**EMPTY, "system": "", "history": (), "text": text}
        return self.child(job, reply, writes=("text",), finish=reply.finish, **content)

    def _pairs(self, job: Record, reply: Reply, style: Style, source: str, most: int) -> list[Row]:
        """The pairs as rows, or those that are kept as one text below the document."""
        rows, told = list[Row](), set[tuple[str, ...]]()
        for row in listed(self, job, reply, Pairs.model_validate_json(reply.text), most):
            if not isinstance(row, Record):
                rows.append(row)
                continue
            answer = tuple(terms(row.output))
            fate = style.unfounded(row.output, source)
            if answer in told and len(answer) > SHORT:
                fate = ("duplicate", "another question has the same answer")
            told.add(answer)
            rows.append(row.rejected(self.name, *fate) if fate else row)
        kept = [row for row in rows if isinstance(row, Record)]
        if style.makes == "pairs" or not kept:
            return rows
        below = [f"Question: {row.instruction}\nAnswer: {row.output}" for row in kept]
        return [self._text(job, reply, "\n\n".join([source, *below])), *(row for row in rows if row not in kept)]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The document's words from the last to the first, or pairs whose answers are words of it."""
        said = str(variables["source"]).split()
        if variables["makes"] == "text":
            return " ".join([*said[::-1], words(max(10, 60 - len(said)))])
        answers = [" ".join([*(said * 25)[:25], words(4)]) for _ in range(variables["count"])]
        pairs = [Pair(question=f"What is {words(8)}?", response=answer) for answer in answers]
        return Pairs(pairs=pairs).model_dump_json()


def _runs(text: str) -> list[tuple[str, ...]]:
    said = units(text)
    return [tuple(said[place : place + RUN]) for place in range(len(said) - RUN + 1)]
