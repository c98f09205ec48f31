"""Rubrics: files that say by what answers are judged, and what each grade means.

A rubric file is

    about: what it is for
    source: where it comes from, and under what licence
    task: Judge an answer to a user's task.
    aspects:
      - name: truthful
        asks: Is all that the answer says so?
        scale: {1: It is wrong throughout., 3: Most of it is so., 5: All of it is so.}
    overall: {asks: How good is the answer as a whole?, scale: {1: Useless., 10: As good as can be.}}

The lowest and the highest number of a scale are its ends; grades between them need no words. All aspects have the same ends.
`halves: true` allows 4.5. `overall` may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic_core import PydanticCustomError

from kdgen.banks import named
from kdgen.record import Frozen
from kdgen.yamls import explain, load_yaml

OVERALL = "overall"
TAKEN = (OVERALL, "mean")


class Scale(Frozen):
    """What is asked, and what the grades mean."""

    asks: str = Field(min_length=1)
    scale: dict[int, str] = Field(min_length=2)
    halves: bool = False

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest grade."""
        return min(self.scale), max(self.scale)

    def part(self, score: float) -> float:
        """Where a grade stands between the ends, from 0 to 1."""
        low, high = self.ends
        return (score - low) / (high - low)

    def shown(self) -> dict[str, Any]:
        """For a prompt: `asks`, `low`, `high`, `halves` and `scale`, a list of (grade, words)."""
        low, high = self.ends
        return {
            "asks": self.asks,
            "low": low,
            "high": high,
            "halves": self.halves,
            "scale": sorted(self.scale.items()),
        }


class Aspect(Scale):
    """One thing that is judged."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")

    def shown(self) -> dict[str, Any]:
        """With its name."""
        return {"name": self.name, **super().shown()}


class Rubric(Frozen):
    """A loaded rubric."""

    about: str
    source: str = Field(min_length=1)
    paper: str = ""
    task: str = Field(min_length=1)
    aspects: tuple[Aspect, ...] = Field(min_length=1)
    overall: Scale | None = None

    @field_validator("aspects")
    @classmethod
    def _apart(cls, aspects: tuple[Aspect, ...]) -> tuple[Aspect, ...]:
        names = [each.name for each in aspects]
        if taken := next((name for name in names if name in TAKEN or names.count(name) > 1), ""):
            cause = f"the aspect {taken!r} stands twice" if taken not in TAKEN else f"no aspect can be named {taken!r}"
            raise PydanticCustomError("rubric", "{cause}", {"cause": cause, "hint": ""})
        if odd := next((each for each in aspects if each.ends != aspects[0].ends), None):
            cause = f"{odd.name!r} goes from {odd.ends[0]} to {odd.ends[1]}, the first from {aspects[0].ends[0]} to "
            hint = "a mean needs one scale"
            raise PydanticCustomError("rubric", "{cause}", {"cause": cause + str(aspects[0].ends[1]), "hint": hint})
        return aspects

    @property
    def names(self) -> tuple[str, ...]:
        """All that is graded, the overall grade last."""
        return (*(each.name for each in self.aspects), *((OVERALL,) if self.overall else ()))

    def of(self, name: str) -> Scale:
        """The aspect, or the overall grade. Raises StopIteration."""
        return self.overall if name == OVERALL and self.overall else next(a for a in self.aspects if a.name == name)

    def astray(self, scores: Mapping[str, float | None], within: float) -> str:
        """What is wrong with an overall grade that is further than `within`, a part of the scale, from the aspects' mean."""
        overall, aspects = scores.get(OVERALL), [scores.get(each.name) for each in self.aspects]
        if self.overall is None or overall is None:
            return ""
        parts = [each.part(score) for each, score in zip(self.aspects, aspects, strict=True) if score is not None]
        if len(parts) < len(aspects):
            return f"an overall grade of {overall:g} cannot be compared with the aspects: one has none"
        if abs(self.overall.part(overall) - fmean(parts)) <= within:
            return ""
        told = ", ".join(f"{score:g}" for score in aspects if score is not None)
        return f"an overall grade of {overall:g} does not follow from the aspects ({told})"

    def shown(self) -> dict[str, Any]:
        """For a prompt: `task`, `aspects`, `overall` (or nothing)."""
        overall = self.overall.shown() if self.overall else None
        return {"task": self.task, "aspects": [each.shown() for each in self.aspects], "overall": overall}

    @cached_property
    def schema_of_grades(self) -> type[BaseModel]:
        """The model of a judge's reply: for each aspect, in order, an object of a reason and then a score."""
        make = cast(Any, create_model)
        fields = {name: (graded(self.of(name)), ...) for name in self.names}
        made: type[BaseModel] = make(
            "Grades", __config__=ConfigDict(extra="forbid"), __doc__="Grades, each with its reason.", **fields
        )
        return made


def graded(scale: Scale) -> type[BaseModel]:
    """The model of one grade: the reason first, then a score that lies on the scale."""
    low, high = scale.ends
    number = Annotated[int, Field(ge=low, le=high)] if not scale.halves else Annotated[float, Field(ge=low, le=high)]
    make = cast(Any, create_model)
    made: type[BaseModel] = make(
        "Grade",
        __config__=ConfigDict(extra="forbid"),
        __doc__="Why, and then the grade.",
        reason=(str, ...),
        score=(number, ...),
    )
    return made


def load_rubric(path: Path) -> Rubric:
    """Read a rubric file. Raises UserError with file and line for what is wrong with it."""
    source = load_yaml(path)
    try:
        return Rubric.model_validate(source.tree)
    except ValidationError as error:
        raise explain(error, source, Rubric) from None


RubricFile = Annotated[Rubric, named("rubrics", load_rubric)]
"""A recipe's `rubric:` — a built-in's name or a path relative to the recipe — loaded and checked."""
