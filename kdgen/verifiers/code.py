"""Unit tests: what an answer's program does in the sandbox."""

from __future__ import annotations

import ast
import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from kdgen.parse import first_program, split_thinking
from kdgen.record import Frozen, digest
from kdgen.verifiers.base import Execute, Verdict, Verifier, verdict_of

ASSERT = re.compile(r"^[ \t]*assert\b", re.M)
# The solution is a module, so that what it does when it is run by hand (`if __name__ == …`) is left undone.
IMPORT = "import solution\nglobals().update({n: v for n, v in vars(solution).items() if not n.startswith('__')})\n"


class Case(Frozen):
    """What a program reads and what it must print, spaces at the ends of lines aside."""

    input: str = ""
    output: str


class Tests(Verifier):
    """The answer's program passes its tests in the sandbox: Python statements such as `assert solve(2) == 4`, or cases.

    The program is the answer's first Python block, or the answer where that is a program. `tests` run once, with what the
    program defines; each of `cases` is a run of its own, and `score` is the share of them that print what they should.
    """

    __test__: ClassVar[bool] = False  # pytest takes it for a set of tests

    type: Literal["tests"] = "tests"
    tests: str = ""
    cases: tuple[Case, ...] = Field((), max_length=200)

    executes: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one(self) -> Tests:
        if bool(self.tests.strip()) == bool(self.cases):
            raise ValueError("it has either tests or cases")
        return self

    async def decide(self, answer: str, gold: str, execute: Execute) -> Verdict:
        """One program, or one for each case."""
        program = program_of(answer)
        if not program:
            return verdict_of(False, "the answer has no program")
        if self.tests:
            wrong = await failure(program, self.tests, execute)
            return verdict_of(wrong is None, f"{wrong[0]}: {wrong[1]}" if wrong else "")
        passed, first = 0, ""
        for number, case in enumerate(self.cases, 1):
            end = await execute(program, stdin=case.input, guess=case.output)
            if end.reason == "ok" and _lines(end.stdout) == _lines(case.output):
                passed += 1
            elif not first:
                printed = f"it printed {end.stdout.strip()[:100]!r}" if end.reason == "ok" else end.why
                first = f"case {number}: {printed}, not {case.output.strip()[:100]!r}, for {case.input[:100]!r}"
        return Verdict(passed == len(self.cases), passed / len(self.cases), first)


def program_of(answer: str) -> str:
    """The program that an answer is or has."""
    text = split_thinking(answer)[1]
    if block := first_program(text)[0]:
        return block
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    # "Answer: 4" is a statement of Python too.
    return text if any(not isinstance(node, ast.Expr | ast.AnnAssign) for node in tree.body) else ""


async def failure(solution: str, tests: str, execute: Execute) -> tuple[str, str] | None:
    """Why a solution does not pass its tests, in a word and more; None where it does."""
    # Printed last, and not to be known beforehand: a program that ends before its tests do has not passed them.
    word = digest(solution, tests)
    end = await execute(IMPORT + ending(tests, word), files={"solution.py": solution + "\n"}, guess=word)
    if end.reason != "ok":
        said = end.stderr.strip().splitlines() or [""]
        if said[-1].startswith("AssertionError"):
            which = next((line.strip() for line in reversed(said) if ASSERT.match(line)), end.why)
            return "tests_failed", which[:300]
        return f"program_{end.reason}", end.why
    if end.stdout.strip().split("\n")[-1] != word:
        return "tests_not_run", "the program ended before its tests did"
    return None


def ending(tests: str, word: str) -> str:
    """Tests that print a word when they have run to their end."""
    return f"{tests}\n\nprint({word!r})\n"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
