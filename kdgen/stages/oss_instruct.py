"""Curation from source code: a problem inspired by a snippet, its solution, and tests that the solution passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import first_program, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row, digest
from kdgen.stages.base import Ask, Stage
from kdgen.stages.draw import Draw
from kdgen.stages.write import EMPTY
from kdgen.teachers.base import Reply
from kdgen.verifiers.code import ASSERT, ending, failure

SECTION = re.compile(r"^[ \t#*]*\[?(problem|solution|tests)\]?[ \t:*]*$", re.I | re.M)
SECTIONS = ("problem", "solution", "tests")


class OssInstruct(Stage):
    """Problems inspired by snippets of source code: D = {x, y | x ~ p_T(x | I ⊕ m), y ~ p_T(y | I ⊕ x)} (Xu et al., Eq. 5).

    m is 1 to `lines` consecutive lines of the seed (its text, else its answer), drawn `n` times a seed: OSS-Instruct
    (Magicoder, arXiv 2312.02120). Beside the problem and the solution the teacher writes tests, at least `asserts` of
    them, and the solution must pass them in the sandbox; tests that pass without it check nothing, and their row is a
    reject too. They are `meta.tests`, the snippet is `meta.snippet`, and `meta.lines` says which of the seed's it was.
    """

    stage: Literal["curate"] = "curate"
    method: Literal["oss-instruct"] = "oss-instruct"
    prompt: PromptFile
    n: int = Field(1, ge=1, le=100_000)
    lines: int = Field(15, ge=1, le=1000)
    asserts: int = Field(3, ge=1, le=100)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": frozenset({"snippet", "count", "extra"})}
    consumes: ClassVar[bool] = True
    executes: ClassVar[bool] = True

    @property
    def validates(self) -> set[str]:
        """The teacher, whose reply must have its three sections."""
        return {self.to}

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each seed `n` times, with the lines that are drawn from it."""
        for record in pool:
            source = _source(record)
            starts = [place for place, line in enumerate(source) if terms(line)]
            for number in range(self.n):
                meta: dict[str, JsonValue] = {**record.meta, "nth": number}
                if starts:
                    start = draw.choice(starts, "start", record.id, number)
                    count = 1 + draw.choice(range(self.lines), "count", record.id, number)
                    meta |= {"lines": [start + 1, min(start + count, len(source))]}
                yield record.model_copy(update={"meta": meta})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call and two programs."""
        lines, number = job.meta.get("lines"), job.meta["nth"]
        if not isinstance(lines, list):
            raise Rejected("no_code", "the seed has no line with a word")
        first, last = int(str(lines[0])), int(str(lines[1]))
        snippet = "\n".join(_source(job)[first - 1 : last])
        assert isinstance(number, int)
        reply = await ask(
            self.prompt, nth=number, check=self._unfit, snippet=snippet, count=self.asserts, extra=job.extra
        )
        parts = _parts(reply)
        solution, tests = first_program(parts["solution"])[0], first_program(parts["tests"])[0]
        meta: dict[str, JsonValue] = {"snippet": snippet, "tests": tests}
        content: dict[str, Any] = {**EMPTY, "instruction": parts["problem"], "output": parts["solution"], "system": ""}
        row = self.child(
            job, reply, writes=("instruction", "output"), meta=meta, finish=reply.finish, history=(), **content
        )
        fate = await self._tested(solution, tests, ask)
        return [row.rejected(self.name, *fate) if fate else row]

    async def _tested(self, solution: str, tests: str, ask: Ask) -> tuple[str, str] | None:
        """Why a solution and its tests cannot stand, if so."""
        if wrong := await failure(solution, tests, ask.execute):
            return wrong
        word = digest(solution, tests)
        alone = await ask.execute(ending(tests, word))
        passed = alone.reason == "ok" and alone.stdout.strip().endswith(word)
        return ("tests_check_nothing", "they pass without the solution") if passed else None

    def _unfit(self, reply: Reply) -> str | None:
        parts = _parts(reply)
        if missing := [name for name in SECTIONS if not parts.get(name)]:
            return f"it has no section [{missing[0].title()}], or nothing in it"
        if not terms(parts["problem"]):
            return "the problem is empty"
        for name in ("solution", "tests"):
            if not first_program(parts[name])[0]:
                return f"[{name.title()}] has no ```python block"
        count = len(ASSERT.findall(first_program(parts["tests"])[0]))
        return f"{count} assert statements are too few, {self.asserts} are asked for" if count < self.asserts else None

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A problem, a solution and tests."""
        tests = "\n".join(f"assert solve({number}) == {number}" for number in range(self.asserts))
        solution = f"```python\ndef solve(number):\n    # {words(0)}\n    return number\n```"
        return f"[Problem]\n{words(60)}\n\n[Solution]\n{solution}\n\n[Tests]\n```python\n{tests}\n```"


def _source(record: Record) -> list[str]:
    return (record.text or record.output or record.task).splitlines()


def _parts(reply: Reply) -> dict[str, str]:
    """The sections of a reply by name; where one comes twice, the first."""
    text = split_thinking(reply.text)[1]
    marks = list(SECTION.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    parts: dict[str, str] = {}
    for mark, end in zip(marks, ends, strict=False):
        parts.setdefault(mark.group(1).lower(), text[mark.end() : end].strip())
    return parts
