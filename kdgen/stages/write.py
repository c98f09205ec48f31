"""Curation: a teacher writes from meta-information."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from kdgen.errors import Rejected
from kdgen.parse import alone, bare, same_label, split_thinking, terms, units
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, bounded
from kdgen.stages.draw import Draw
from kdgen.stages.facts import disagrees, told, values_of
from kdgen.teachers.base import Reply
from kdgen.teachers.roles import mean_logprob

EMPTY: dict[str, Any] = {"instruction": "", "input": "", "output": "", "reasoning": "", "text": ""}
MARK = " ~"
ASKED = re.compile(r"\A(?:search )?(?:query|question)(?: \d+)?[ \t]*:[ \t]*", re.I)
COPIED = 8  # words in a row
OWN = frozenset("nth path place span banks grades bucket group round gold".split())


class Label(BaseModel):
    """What a judge takes a text for."""

    model_config = ConfigDict(extra="forbid")

    label: str


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Tasks(BaseModel):
    """Tasks about a text."""

    model_config = ConfigDict(extra="forbid")

    tasks: list[Text] = Field(min_length=1)


class Pair(BaseModel):
    """A task with its answer."""

    model_config = ConfigDict(extra="forbid")

    question: Text
    response: Text


class Pairs(BaseModel):
    """Tasks about a text, each with its answer."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[Pair] = Field(min_length=1)


LISTS: dict[str, type[Tasks] | type[Pairs]] = {"tasks": Tasks, "pairs": Pairs}


class Write(Stage):
    """Write from meta-information: D = {x, y | x ~ p_T(x | I ⊕ m), y ~ p_T(y | I ⊕ x)} (Xu et al., Eq. 5).

    m is the seed (a topic, a label, an entry of a syllabus) with what `banks` draw; each seed is written from `n` times,
    each time with draws of its own, so that the classes of labelled data are as even as their seeds. `makes` says what
    the reply is: `text` is a document (phi, arXiv 2306.11644; Cosmopedia), `task` an instruction that a later stage
    answers (GLAN, arXiv 2402.13064), `tasks` and `pairs` a list of `ask_for` instructions about the text of the seed,
    which stays with them, without or with answers (Self-QA, arXiv 2305.11952), `query` what somebody searches who would be
    helped by the text, which stays with it (InPars, arXiv 2202.05144; Promptagator, arXiv 2209.11755), `instruction` the task
    that the text, its `output`, is the answer to (instruction backtranslation: Humpback, arXiv 2308.06259), and `input` an
    example of the seed's label, which is its `output` (ZeroGen, arXiv 2202.07922; AttrPrompt, arXiv 2306.15895). With
    `verify` a judge labels each example without being shown the label, and those that it takes for something else are
    rejects (the noise that SunGen, arXiv 2205.12679, weighs down). With `min_logprob` so are queries whose tokens have a
    lower mean logprob (InPars keeps the best); where the teacher gives logprobs, that is `meta.logprob`. `answers: fact`
    takes the seed for a fact (a triple, a row of a table, an exam question with its answer): of `pairs` those are rejects
    whose answer says none of its values, or only what the question says itself. `keep_as` keeps the text that was written
    from in the row's meta under that name: the person whose task it is (PersonaHub, arXiv 2406.20094).
    """

    stage: Literal["curate"] = "curate"
    method: Literal["write"] = "write"
    prompt: PromptFile
    makes: Literal["text", "task", "tasks", "pairs", "query", "input", "instruction"] = "text"
    n: int = Field(1, ge=1, le=100_000)
    ask_for: int = Field(1, ge=1, le=100)
    answers: Literal["any", "fact"] = "any"
    min_logprob: float | None = Field(None, le=0)
    keep_as: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$")
    verify: PromptFile | None = None
    judge: str = "teacher"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": TASK | {"label", "path", "title", "count", "fact"},
        "verify": frozenset({"instruction", "input"}),
    }
    consumes: ClassVar[bool] = True

    @property
    def roles(self) -> set[str]:
        """The teacher, and the judge where there is one."""
        return {self.to, self.judge} if self.verify else {self.to}

    @property
    def validates(self) -> set[str]:
        """The teacher where a list has a schema or a query or an example is checked, and the judge, whose label has one."""
        return ({self.to} if self.makes in ("input", "query", *LISTS) else set()) | (
            {self.judge} if self.verify else set()
        )

    @property
    def reads_logprobs(self) -> int | None:
        """For `min_logprob`."""
        return None if self.min_logprob is None else 0

    def check(self, where: str) -> None:
        """Only an example has a label to verify, and only a query is measured."""
        super().check(where)
        if self.min_logprob is not None and self.makes != "query":
            cause = f"min_logprob has no effect on makes: {self.makes}"
            raise bad_stage(cause, f"{where}.min_logprob", "makes: query")
        if self.verify and self.makes != "input":
            raise bad_stage("there is no label to verify", f"{where}.verify", "makes: input")
        if self.answers == "fact" and self.makes != "pairs":
            raise bad_stage(f"makes: {self.makes} has no answers", f"{where}.answers", "makes: pairs")
        if self.makes not in LISTS and "ask_for" in self.model_fields_set:
            raise bad_stage(f"makes: {self.makes} is one a call", f"{where}.ask_for", "makes: tasks or pairs; or n")
        if self.keep_as and self.makes not in ("text", "task"):
            raise bad_stage(f"makes: {self.makes} keeps its text anyway", f"{where}.keep_as", "take it out")
        if self.keep_as in OWN:
            raise bad_stage(f"meta.{self.keep_as} is kdgen's own", f"{where}.keep_as", "another name")
        if not self.verify and "judge" in self.model_fields_set:
            raise bad_stage("the judge has nothing to do", f"{where}.judge", "name its prompt: verify: curate/verify")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each seed `n` times."""
        for record in pool:
            for number in range(self.n):
                yield record.model_copy(update={"meta": {**record.meta, "nth": number}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call, and one more with `verify`."""
        if self.makes == "input" and not job.output:
            raise Rejected("no_label", "the seed has no output, which is the label to write for")
        number = job.meta["nth"]
        assert isinstance(number, int)
        label = job.output if self.makes == "input" else ""
        checks: dict[str, Callable[[Reply], str | None]] = {
            "input": lambda reply: _names(label, reply.text),
            "query": lambda reply: _no_query(reply.text, job.text or job.task),
        }
        reply = await ask(
            self.prompt,
            nth=number,
            schema=bounded(LISTS[self.makes], self.ask_for) if self.makes in LISTS else None,
            check=checks.get(self.makes),
            label=job.output,
            path=path_of(job),
            title=title_of(job),
            count=self.ask_for,
            fact=told(job),
            **task_variables(job),
        )
        if self.makes in LISTS:
            return self._listed(job, reply)
        if self.makes == "query":
            return [self._query(job, reply)]
        text = bare(split_thinking(reply.text)[1])
        if not terms(text):
            raise Rejected("empty_text", f"finish: {reply.finish}")
        field = {"text": "text", "input": "input"}.get(self.makes, "instruction")
        kept = {"instruction": job.instruction or job.text, "output": job.output} if self.makes == "input" else {}
        if self.makes == "instruction":
            text, kept = alone(text), {"output": job.text or job.output}
            if not kept["output"]:
                raise Rejected("no_text", "the record has no text that could be an answer")
        content: dict[str, Any] = {**EMPTY, **kept, field: text, "system": "" if self.makes == "text" else job.system}
        replies = [reply]
        if self.verify:
            judged = await ask(
                self.verify, to=self.judge, nth=number, schema=Label, instruction=content["instruction"], input=text
            )
            taken = Label.model_validate_json(judged.text).label
            if not same_label(taken, job.output):
                lost = job.model_copy(update={"input": text, "calls": (*job.calls, *ask.calls)})
                return [lost.rejected(self.name, "label_not_confirmed", f"{taken[:100]} is not {job.output[:100]}")]
            replies.insert(0, judged)
        meta: dict[str, JsonValue] = {self.keep_as: job.text or job.task} if self.keep_as else {}
        return [self.child(job, *replies, writes=(field,), meta=meta, finish=reply.finish, history=(), **content)]

    def _listed(self, job: Record, reply: Reply) -> list[Row]:
        """The rows of a list; of a fact those that agree with it, beside it as it was told."""
        made = LISTS[self.makes].model_validate_json(reply.text)
        if self.answers == "any":
            return listed(self, job, reply, made, self.ask_for)
        rows, values = list[Row](), values_of(job)
        for row in listed(self, job.model_copy(update={"text": told(job)}), reply, made, self.ask_for):
            fate = disagrees(row.instruction, row.output, values) if isinstance(row, Record) else None
            rows.append(row.rejected(self.name, *fate) if fate and isinstance(row, Record) else row)
        return rows

    def _query(self, job: Record, reply: Reply) -> Row:
        """The query with the text that it is for; a reject where its tokens were too unlikely."""
        query, mean = _asked(reply.text), mean_logprob(reply.body)
        meta: dict[str, JsonValue] = {} if mean is None else {"logprob": round(mean, 4)}
        content = {**EMPTY, "text": job.text or job.task, "instruction": query, "history": ()}
        row = self.child(job, reply, writes=("instruction",), meta=meta, finish=reply.finish, **content)
        if self.min_logprob is None or (mean is not None and mean >= self.min_logprob):
            return row
        if mean is None:
            return row.rejected(self.name, "no_logprobs", "the reply has none")
        return row.rejected(self.name, "low_logprob", f"{mean:.2f}, {self.min_logprob:g} is the least")

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """What is written, or a judge's label. The judge is not told the label: an example carries it, spelt backwards."""
        if self.makes in LISTS:
            held = f" {variables['fact']}" if self.answers == "fact" else ""
            pairs = [Pair(question=f"What is {words(8)}?", response=words(20) + held) for _ in range(self.ask_for)]
            made = Tasks(tasks=[pair.question for pair in pairs]) if self.makes == "tasks" else Pairs(pairs=pairs)
            return made.model_dump_json()
        if prompt == self.verify:
            return Label(label=str(variables["input"]).rpartition(MARK)[2][::-1]).model_dump_json()
        if self.makes in ("query", "instruction"):
            return words(8)
        return f"{words(30)}{MARK}{variables['label'][::-1]}" if self.makes == "input" else words(0)


def _asked(text: str) -> str:
    return bare(ASKED.sub("", alone(split_thinking(text)[1]))).strip()


def _no_query(text: str, source: str) -> str | None:
    """What is wrong with a query."""
    query = _asked(text)
    if not terms(query):
        return "there is no query in it"
    if "\n" in query:
        return "it has more than one line, and one query is asked for"
    said, known = units(query), f" {' '.join(units(source))} "
    if any(f" {' '.join(said[at : at + COPIED])} " in known for at in range(len(said) - COPIED + 1)):
        return "it is copied from the document; say it as somebody would who has not read it"
    return None


def _names(label: str, text: str) -> str | None:
    """An example that says its own label teaches a classifier to read it off; short labels are words like any other."""
    named, said = " ".join(terms(label)), " ".join(terms(text))
    return f"it names the label, {label!r}" if len(named) > 3 and f" {named} " in f" {said} " else None


def listed(stage: Stage, job: Record, reply: Reply, made: Tasks | Pairs, most: int) -> list[Row]:
    """The tasks of a list, each a record that keeps the text it is about; a reject what stands twice or over `most`."""
    items = (
        [(each, "") for each in made.tasks]
        if isinstance(made, Tasks)
        else [(each.question, each.response) for each in made.pairs]
    )
    rows, seen = list[Row](), set[tuple[str, ...]]()
    for place, (task, answer) in enumerate(items):
        content = {**EMPTY, "text": job.text or job.task, "instruction": task, "output": answer}
        writes = ("instruction", "output") if answer else ("instruction",)
        row = stage.child(job, reply, writes=writes, meta={"place": place}, finish=reply.finish, history=(), **content)
        known = tuple(terms(task))
        if known in seen:
            rows.append(row.rejected(stage.name, "duplicate", "the task stands twice in one list"))
        elif len(seen) == most:
            rows.append(row.rejected(stage.name, "not_asked_for", f"item {place + 1} of {most}"))
        else:
            seen.add(known)
            rows.append(row)
    return rows


def path_of(job: Record) -> list[str]:
    """The subject of a record and what it is a part of, from the top."""
    path = job.meta.get("path")
    return [str(part) for part in path] if isinstance(path, list) and path else [job.text or job.task]


def title_of(job: Record) -> str:
    """What a text is called: the section that a chunk is of, or the title that its row or document has."""
    span = job.meta.get("span")
    section = span.get("section") if isinstance(span, dict) else None
    return str(section or job.extra.get("title") or "")
