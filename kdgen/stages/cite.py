"""Curation from documents: answers that cite them word for word, and a judge's grade that gates or sorts records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from kdgen import judging
from kdgen.errors import Rejected
from kdgen.parse import find_quote
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.draw import Draw, Pool
from kdgen.stages.judged import read
from kdgen.teachers.base import Reply


class Cited(BaseModel):
    """The words of documents that an answer rests on, and the answer; without any, the documents do not hold it."""

    model_config = ConfigDict(extra="forbid")

    evidence: list[Annotated[str, StringConstraints(max_length=400)]] = Field(max_length=3)
    reasoning: str
    response: str = Field(min_length=1)


class Cite(Stage):
    """Answer a question from documents, and quote them: the y of D = {x, y | x ~ p_T(x | I ⊕ m), y ~ p_T(y | I ⊕ x)}
    (Xu et al., Eq. 5), with m, the record's `text`, in x.

    Genie (arXiv 2401.14367) and Self-QA (arXiv 2305.11952) show the document alone. RAFT (arXiv 2403.10131) shows it
    among `distractors` other seeds, drawn anew for each question, and leaves it out of a share, `withheld`, of the rows:
    there the answer is that the documents do not tell (`decline`), or the one that the teacher, who is shown the
    document, finds (`recall`, RAFT's own). Each quote must stand in the documents word for word (spacing, case and kinds
    of quotation marks aside) and one of them in the record's own; the row keeps it as the source has it, with its
    place. `shows: nothing` makes rows without documents, for a student that is to know them; `cite` writes the quotes
    below the answer.
    """

    stage: Literal["curate"] = "curate"
    method: Literal["cite"] = "cite"
    prompt: PromptFile
    distractors: int = Field(0, ge=0, le=100)
    withheld: float = Field(0, ge=0, lt=1)
    absent: Literal["decline", "recall"] = "decline"
    shows: Literal["documents", "nothing"] = "documents"
    cite: bool = False
    quote_words: int = Field(3, ge=1)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": frozenset({"instruction", "documents"})}

    @property
    def validates(self) -> set[str]:
        """The teacher, whose answer has a schema and must quote word for word."""
        return {self.to}

    @property
    def draws_seeds(self) -> bool:
        """Distractors are seeds."""
        return self.distractors > 0

    def check(self, where: str) -> None:
        """A document can be left out only where others are shown."""
        super().check(where)
        if self.withheld and (not self.distractors or self.shows == "nothing"):
            cause = "withheld leaves a row without any document"
            raise bad_stage(cause, f"{where}.withheld", "distractors: 4, shows: documents")
        if self.cite and self.shows == "nothing":
            raise bad_stage("cite names documents that no row shows", f"{where}.cite", "shows: documents")
        if "absent" in self.model_fields_set and not self.withheld:
            raise bad_stage("absent has no effect: no document is withheld", f"{where}.absent", "withheld: 0.2")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each question with the documents of its row, in an order of its own."""
        for record in pool:
            own = set(record.seeds)
            others = draw.top(draw.seeds, self.distractors + len(own), record.id)
            others = [each for each in others if each.id not in own and each.text not in ("", record.text)][
                : self.distractors
            ]
            out = draw.happens(self.withheld, "withheld", record.id)
            shown = others if out else draw.top(Pool([record, *others]), 1 + len(others), "order", record.id)
            context: JsonValue = [[each.text, *each.seeds] for each in shown]
            yield record.model_copy(update={"meta": {**record.meta, "context": context, "withheld": out}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        if not job.text.strip() or not job.instruction.strip():
            raise Rejected("no_document", "a question and the text that it is about are needed")
        meta = {name: value for name, value in job.meta.items() if name != "context"}
        context: Any = job.meta["context"]
        shown = [text for text, *_ in context]
        seen = [job.text, *shown] if meta["withheld"] and self.absent == "recall" else shown
        unseen = len(seen) - len(shown)
        own = seen.index(job.text) if job.text in seen else None
        reply = await ask(
            self.prompt,
            schema=Cited,
            check=lambda reply: self._unfaithful(reply, seen),
            instruction=job.instruction,
            documents=seen,
            own=own,
        )
        said = Cited.model_validate_json(reply.text)
        if own is None and said.evidence:
            raise Rejected("answered_without_document", said.evidence[0][:200])
        if own is not None and not said.evidence:
            raise Rejected("unanswered", said.response[:200])
        places = list(dict.fromkeys(place for quote in said.evidence if (place := find_quote(quote, seen))))
        if own is not None and not any(number == own for number, *_ in places):
            raise Rejected("cites_a_distractor", said.evidence[0][:200])
        quotes = [(number + 1 - unseen, start, seen[number][start:end]) for number, start, end in places]
        meta["documents"] = drawn = list(dict.fromkeys(seed for _, *seeds in context for seed in seeds))
        meta["quotes"] = [{"document": number, "start": start, "text": text} for number, start, text in quotes]
        below = [f'[{number}] "{text}"' for number, _, text in quotes if number] if self.cite else []
        meta |= {"said": said.response} if below else {}
        row = job.model_copy(update={"meta": meta}).child(
            stage=self.stage,
            method=self.method,
            calls=[reply.key],
            writers={"output": reply.teacher, "reasoning": reply.teacher},
            input=_numbered(shown) if self.shows == "documents" else "",
            output="\n\n".join([said.response, *(["\n".join(below)] if below else [])]),
            reasoning=said.reasoning,
            finish=reply.finish,
        )
        return [row.model_copy(update={"seeds": tuple(dict.fromkeys((*row.seeds, *drawn)))})]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """An answer that quotes the beginning of the record's own document, where it is shown."""
        own = variables["own"]
        quotes = [] if own is None else [" ".join(variables["documents"][own].split()[: max(8, self.quote_words)])]
        return Cited(evidence=quotes, reasoning=words(20), response=words(20)).model_dump_json()

    def _unfaithful(self, reply: Reply, documents: Sequence[str]) -> str | None:
        for quote in Cited.model_validate_json(reply.text).evidence:
            if len(quote.split()) < self.quote_words:
                return f"the quote {quote[:100]!r} has fewer than {self.quote_words} words"
            if not find_quote(quote, documents):
                return f"the quote {quote[:100]!r} does not stand in the documents word for word"
        return None


def _numbered(texts: Sequence[str]) -> str:
    return "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))


class Mark(BaseModel):
    """A judge's mark, its reason first."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    score: int = Field(ge=1, le=5)


class Grade(Stage):
    """A judge's mark of a record, 1 to 5, kept as `meta.grades.NAME` with its reason; a gate, or what sorts records.

    With `at_least` a record of a lower mark is a reject (Genie's faithfulness filter, arXiv 2401.14367). `buckets` name
    the marks from each on (`{low: 1, high: 3}`); the record's is `meta.bucket`, by which `curate/rephrase` chooses
    what to make of it (Nemotron-CC, arXiv 2412.02595).
    """

    stage: Literal["curate"] = "curate"
    method: Literal["grade"] = "grade"
    prompt: PromptFile
    name_as: str = Field("quality", pattern=r"^[a-z][a-z0-9_]*$")
    at_least: int | None = Field(None, ge=2, le=5)
    buckets: dict[str, int] = {}

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": frozenset({"instruction", "input", "output", "said", "reasoning", "text", "extra"})
    }

    @property
    def validates(self) -> set[str]:
        """The judge, whose mark has a schema."""
        return {self.to}

    def check(self, where: str) -> None:
        """Buckets are marks, and all records have one."""
        super().check(where)
        if self.buckets and min(self.buckets.values()) != 1:
            raise bad_stage("the lowest bucket begins with 1", f"{where}.buckets", "buckets: {low: 1, high: 3}")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        shown = {name: getattr(job, name) for name in self.gives["prompt"] - {"said"}}
        # Quotes below an answer were found word for word; a judge takes them for one more document.
        said = str(job.meta.get("said") or "")
        shown["said"] = said if said and job.output.startswith(said) else job.output
        reply = await read(ask, ask(self.prompt, schema=Mark, **shown))
        if isinstance(reply, Rejected):
            ask.judged([judging.Grade(self.to, self.name_as, None, 1, 5)])
            raise reply
        mark = Mark.model_validate_json(reply.text)
        own = reply.teacher in job.writers.values()
        ask.judged([judging.Grade(self.to, self.name_as, mark.score, 1, 5, own)])
        if self.at_least is not None and mark.score < self.at_least:
            raise Rejected(f"low_{self.name_as}", f"{mark.score} of 5: {mark.reason[:200]}")
        held = job.meta.get("grades")
        meta: dict[str, JsonValue] = {
            "grades": {**(held if isinstance(held, dict) else {}), self.name_as: mark.model_dump()}
        }
        if self.buckets:
            meta["bucket"] = max((floor, name) for name, floor in self.buckets.items() if floor <= mark.score)[1]
        return [self.child(job, reply, writes=(), meta=meta)]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The best mark."""
        return Mark(reason=words(15), score=5).model_dump_json()
