"""Teachers made of teachers: a pool shares one role by weight, a cascade asks the cheap one first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from kdgen.errors import UserError
from kdgen.filters import AnyFilter
from kdgen.record import Frozen, Record, pick
from kdgen.teachers.base import Reply
from kdgen.teachers.logprobs import scored


class Pool(Frozen):
    """One of several roles answers each job, drawn by `of: {role: weight}`.

    The draw depends on the job alone, so the same job is asked of the same teacher in every run, and adding a role
    moves only the jobs that it takes over.
    """

    provider: Literal["pool"] = "pool"
    of: dict[str, float] = Field(min_length=1)

    @property
    def label(self) -> str:
        """pool: and its roles."""
        return "pool:" + "+".join(self.of)

    @property
    def members(self) -> tuple[str, ...]:
        """The roles that may answer."""
        return tuple(self.of)

    def check(self, role: str) -> None:
        """Weights are positive."""
        if any(weight <= 0 for weight in self.of.values()):
            raise UserError("a weight must be over 0", where=f"teachers.{role}.of")

    def route(self, *key: object) -> tuple[str, ...]:
        """The one role that answers the job of `key`."""
        return (pick(self.of, "pool", *key),)

    def unsure(self, reply: Reply, text: str) -> str | None:
        """A pool takes every answer."""
        return None


class Cascade(Frozen):
    """The roles of `of` in turn: the next is asked where the last refused, was cut, or gave a weak answer.

    Weak is an answer that one of `escalate`'s filters rejects, or whose mean token logprob is under `min_logprob`
    (the role must then ask for `logprobs`; a reply without any is weak).
    """

    provider: Literal["cascade"] = "cascade"
    of: tuple[str, ...] = Field(min_length=2)
    escalate: tuple[AnyFilter, ...] = ()
    min_logprob: float | None = Field(None, le=0)

    @property
    def label(self) -> str:
        """cascade: and its roles."""
        return "cascade:" + ">".join(self.of)

    @property
    def members(self) -> tuple[str, ...]:
        """The roles that may answer."""
        return self.of

    def check(self, role: str) -> None:
        """Something must tell a weak answer."""
        if len(set(self.of)) != len(self.of):
            raise UserError("a role stands twice", where=f"teachers.{role}.of")

    def route(self, *key: object) -> tuple[str, ...]:
        """All roles, in order."""
        return self.of

    def unsure(self, reply: Reply, text: str) -> str | None:
        """Why the next role should be asked, or None."""
        answer = Record(id="", instruction=text, output=reply.text)
        for each in self.escalate:
            if found := each.reject(answer):
                return found
        if self.min_logprob is None:
            return None
        mean = mean_logprob(reply.body)
        if mean is None:
            return "the reply has no logprobs"
        return f"mean logprob {mean:.2f}" if mean < self.min_logprob else None


def mean_logprob(body: Mapping[str, Any]) -> float | None:
    """The mean logprob of the sampled tokens of a reply, where it holds them."""
    values = [logprob for _, logprob in scored(body)]
    return sum(values) / len(values) if values else None
