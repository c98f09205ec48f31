"""Prices per million tokens. Local teachers cost nothing; an unknown price is None, never 0."""

from __future__ import annotations

from typing import NamedTuple

from kdgen.teachers.base import TeacherSpec, Usage

FREE_PROVIDERS = ("local", "scripted", "vllm")


class Price(NamedTuple):
    """Dollars per million tokens."""

    input: float
    output: float
    cached_input: float

    def of(self, usage: Usage) -> float:
        """Dollars of one reply."""
        fresh = usage.input - usage.cached_input
        return (fresh * self.input + usage.cached_input * self.cached_input + usage.output * self.output) / 1e6

    def worst(self, input_tokens: int, output_tokens: int) -> float:
        """The most that a request of these sizes can cost."""
        return (input_tokens * max(self.input, self.cached_input) + output_tokens * self.output) / 1e6


FREE = Price(0.0, 0.0, 0.0)


def price_of(spec: TeacherSpec) -> Price | None:
    """The price of a teacher, or None where it is not known."""
    return FREE if spec.provider in FREE_PROVIDERS else None
