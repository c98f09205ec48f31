"""Curation: a teacher writes from meta-information, and a subject is divided into what it consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from kdgen.errors import Rejected
from kdgen.parse import bare, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Draw, Stage, bad_stage
from kdgen.teachers.base import Reply

EMPTY: dict[str, Any] = {"instruction": "", "input": "", "output": "", "reasoning": "", "text": ""}
MARK = " ~"
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
    """A task with its answer; in the order of the alphabet, which is the order in which models write keys."""

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
    answers (GLAN, arXiv 2402.13064), `tasks` and `pairs` a list of `ask_for` instructions about the text of the seed, which
    stays with them, without or with answers (Self-QA, arXiv 2305.11952; InPars, arXiv 2202.05144), and `input` an
    example of the seed's label, which is its `output` (ZeroGen, arXiv 2202.07922; AttrPrompt, arXiv 2306.15895). With
    `verify` a judge labels each example without being shown the label, and those that it takes for something else are
    rejects (the noise that SunGen, arXiv 2205.12679, weighs down). `keep_as` keeps the text that was written from in the
    row's meta under that name: the person whose task it is (PersonaHub, arXiv 2406.20094).
    """

    stage: Literal["curate"] = "curate"
    method: Literal["write"] = "write"
    prompt: PromptFile
    makes: Literal["text", "task", "tasks", "pairs", "input"] = "text"
    n: int = Field(1, ge=1, le=100_000)
    ask_for: int = Field(1, ge=1, le=100)
    keep_as: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$")
    verify: PromptFile | None = None
    judge: str = "teacher"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": TASK | {"label", "path", "title", "count"},
        "verify": frozenset({"instruction", "input"}),
    }
    consumes: ClassVar[bool] = True

    @property
    def roles(self) -> set[str]:
        """The teacher, and the judge where there is one."""
        return {self.to, self.judge} if self.verify else {self.to}

    @property
    def validates(self) -> set[str]:
        """The teacher where an example must not name its label or a list has a schema, and the judge, whose label has."""
        return ({self.to} if self.makes in ("input", *LISTS) else set()) | ({self.judge} if self.verify else set())

    def check(self, where: str) -> None:
        """Only an example has a label to verify."""
        super().check(where)
        if self.verify and self.makes != "input":
            raise bad_stage("there is no label to verify", f"{where}.verify", "makes: input")
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
        reply = await ask(
            self.prompt,
            nth=number,
            schema=LISTS.get(self.makes),
            check=(lambda reply: _names(label, reply.text)) if label else None,
            label=job.output,
            path=path_of(job),
            title=title_of(job),
            count=self.ask_for,
            **task_variables(job),
        )
        if self.makes in LISTS:
            return self._listed(job, reply)
        text = bare(split_thinking(reply.text)[1])
        if not terms(text):
            raise Rejected("empty_text", f"finish: {reply.finish}")
        field = {"text": "text", "task": "instruction", "input": "input"}[self.makes]
        kept = {"instruction": job.instruction or job.text, "output": job.output} if self.makes == "input" else {}
        content: dict[str, Any] = {**EMPTY, **kept, field: text, "system": "" if self.makes == "text" else job.system}
        replies = [reply]
        if self.verify:
            judged = await ask(
                self.verify, to=self.judge, nth=number, schema=Label, instruction=content["instruction"], input=text
            )
            taken = Label.model_validate_json(judged.text).label
            if terms(taken) != terms(job.output):
                lost = job.model_copy(update={"input": text, "calls": (*job.calls, *ask.calls)})
                return [lost.rejected(self.name, "label_not_confirmed", f"{taken[:100]} is not {job.output[:100]}")]
            replies.insert(0, judged)
        meta: dict[str, JsonValue] = {self.keep_as: job.text or job.task} if self.keep_as else {}
        return [self.child(job, *replies, writes=(field,), meta=meta, finish=reply.finish, history=(), **content)]

    def _listed(self, job: Record, reply: Reply) -> list[Row]:
        """The tasks of a list, each a record that keeps the text it is about."""
        made = LISTS[self.makes].model_validate_json(reply.text)
        listed = (
            [(each, "") for each in made.tasks]
            if isinstance(made, Tasks)
            else [(p.question, p.response) for p in made.pairs]
        )
        rows, seen = list[Row](), set[tuple[str, ...]]()
        for place, (task, answer) in enumerate(listed):
            content = {**EMPTY, "text": job.text or job.task, "instruction": task, "output": answer}
            writes = ("instruction", "output") if answer else ("instruction",)
            row = self.child(
                job, reply, writes=writes, meta={"place": place}, finish=reply.finish, history=(), **content
            )
            known = tuple(terms(task))
            if known in seen:
                rows.append(row.rejected(self.name, "duplicate", "the task stands twice in one list"))
            elif len(seen) == self.ask_for:
                rows.append(row.rejected(self.name, "not_asked_for", f"item {place + 1} of {self.ask_for}"))
            else:
                seen.add(known)
                rows.append(row)
        return rows

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """What is written, or a judge's label. The judge is not told the label: an example carries it, spelt backwards."""
        if self.makes in LISTS:
            pairs = [Pair(question=f"What is {words(8)}?", response=words(20)) for _ in range(self.ask_for)]
            made = Tasks(tasks=[pair.question for pair in pairs]) if self.makes == "tasks" else Pairs(pairs=pairs)
            return made.model_dump_json()
        if prompt == self.verify:
            return Label(label=str(variables["input"]).rpartition(MARK)[2][::-1]).model_dump_json()
        return f"{words(30)}{MARK}{variables['label'][::-1]}" if self.makes == "input" else words(0)


def _names(label: str, text: str) -> str | None:
    """An example that says its own label teaches a classifier to read it off; short labels are words like any other."""
    named, said = " ".join(terms(label)), " ".join(terms(text))
    return f"it names the label, {label!r}" if len(named) > 3 and f" {named} " in f" {said} " else None


Item = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


class Items(BaseModel):
    """The parts of a subject."""

    model_config = ConfigDict(extra="forbid")

    items: list[Item]


class Branch(Stage):
    """Divide a subject into its parts, each a record below it: GLAN's taxonomy of human knowledge (arXiv 2402.13064).

    The path from the field downwards is `meta.path`. Each subject has a quota of `ask_for` parts: what comes above it,
    or twice, is a reject, and so is what is missing, so that the shares of the branches are what they were set to.
    """

    stage: Literal["curate"] = "curate"
    method: Literal["branch"] = "branch"
    prompt: PromptFile
    ask_for: int = Field(5, ge=1, le=200)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": frozenset({"path", "count", "extra"})}
    consumes: ClassVar[bool] = True

    @property
    def validates(self) -> set[str]:
        """The teacher, whose list has a schema."""
        return {self.to}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call; a record for each part."""
        path = path_of(job)
        reply = await ask(self.prompt, schema=Items, path=path, count=self.ask_for, extra=job.extra)
        rows: list[Row] = []
        seen: set[tuple[str, ...]] = set()
        for place, item in enumerate(Items.model_validate_json(reply.text).items):
            meta: dict[str, JsonValue] = {"path": [*path, item], "place": place}
            row = self.child(job, reply, writes=("text",), meta=meta, **{**EMPTY, "text": item})
            known = tuple(terms(item))
            if known in seen:
                rows.append(row.rejected(self.name, "duplicate", f"{item} stands twice below {path[-1]}"))
            elif len(seen) == self.ask_for:
                rows.append(row.rejected(self.name, "not_asked_for", f"item {place + 1} of {self.ask_for}"))
            else:
                seen.add(known)
                rows.append(row)
        for missing in range(len(seen), self.ask_for):
            lost = job.model_copy(update={"calls": (*job.calls, reply.key)})
            rows.append(lost.rejected(self.name, "missing_item", f"item {missing + 1} of {self.ask_for} did not come"))
        return rows

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The list that is asked for."""
        return Items(items=[f"{number} {words(4)}" for number in range(self.ask_for)]).model_dump_json()


def path_of(job: Record) -> list[str]:
    """The subject of a record and what it is a part of, from the top."""
    path = job.meta.get("path")
    return [str(part) for part in path] if isinstance(path, list) and path else [job.text or job.task]


def title_of(job: Record) -> str:
    """What a text is called: the section that a chunk is of, or the title that its row or document has."""
    span = job.meta.get("span")
    section = span.get("section") if isinstance(span, dict) else None
    return str(section or job.extra.get("title") or "")
