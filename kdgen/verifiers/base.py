"""What a verifier is: a frozen spec with one verb, judged where neither time nor memory can run out."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

from kdgen.errors import UserError
from kdgen.record import Frozen
from kdgen.sandbox.box import Outcome

MOST_CHARACTERS = 2_000_000  # of an answer that is looked at; a longer one cannot be judged


class Verdict(NamedTuple):
    """What a verifier thinks of an answer. `passed` is None where it could not judge, which is never a pass.

    `score` is the share of what was asked that holds, 0 to 1, and None where `passed` is. `detail` says why.
    """

    passed: bool | None
    score: float | None
    detail: str = ""


class Execute(Protocol):
    """What runs a program, as `Ask.execute` does."""

    async def __call__(
        self, program: str, /, *, stdin: str = "", files: Mapping[str, str] | None = None, guess: str = ""
    ) -> Outcome:
        """How the program ended."""


def verdict_of(passed: bool, detail: str = "") -> Verdict:
    """A verdict of right or wrong."""
    return Verdict(passed, float(passed), detail)


def unjudged(why: str) -> Verdict:
    """No verdict, and why there is none."""
    return Verdict(None, None, why)


class Verifier(Frozen):
    """Base of the verifiers. A spec is plain JSON; `verdict` is its verb, `judge` what it thinks by itself.

    `needs_gold` says that it compares with a right answer, `executes` that it runs programs, `packages` what must be
    installed beside kdgen, by the name that is imported.
    """

    type: str

    needs_gold: ClassVar[bool] = False
    executes: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()

    async def verdict(self, answer: str, gold: str, execute: Execute) -> Verdict:
        """What it thinks of an answer, `gold` being the right one where there is one.

        Whatever the answer is, it ends: it is judged in a process with limits, which ends where they do.
        """
        if self.needs_gold and not gold.strip():
            return unjudged("there is no gold answer to compare with")
        if len(answer) > MOST_CHARACTERS:
            return unjudged(f"the answer has {len(answer):,} characters, more than {MOST_CHARACTERS:,}")
        if not answer.strip():
            return verdict_of(False, "the answer is empty")
        return await self.decide(answer, gold, execute)

    async def decide(self, answer: str, gold: str, execute: Execute) -> Verdict:
        """The verdict on an answer that is there and not too long."""
        from kdgen.verifiers.bounded import THREADS, judged

        return await asyncio.get_running_loop().run_in_executor(THREADS, judged, self.model_dump_json(), answer, gold)

    def judge(self, answer: str, gold: str) -> Verdict:
        """The verdict, without any limits: what runs in the process that has them."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Load what judging takes, which does not count against its limits."""

    def about(self, text: str) -> Verifier:
        """This verifier for a row whose document is `text`."""
        return self


def missing_packages(kinds: tuple[type[Verifier], ...], where: str) -> None:
    """Raise UserError where a package lacks that one of the verifiers needs."""
    for kind in kinds:
        for name in kind.packages:
            if importlib.util.find_spec(name) is None:
                what = str(kind.model_fields["type"].default)
                cause = f"the verifier {what!r} needs the package {name}, which is not installed"
                raise UserError(cause, where=where, hint="pip install 'kdgen[verify]'")
