"""What the stages that judge answers share: their judges, and replies that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import JsonValue

from kdgen.errors import Rejected
from kdgen.record import Candidate, Record
from kdgen.stages.answer import task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.teachers.base import Reply

# The judge replied, or its endpoint would not: what it was asked about stays, unscored.
UNREAD = frozenset(
    {
        "cut",
        "endpoint_failed",
        "endpoint_refused",
        "filtered",
        "invalid_output",
        "malformed_reply",
        "refused",
        "tool_call",
        "unknown_finish",
    }
)


class Judged(Stage):
    """A stage that has answers judged, by one judge (`to`) or by a jury (`judges`)."""

    judges: tuple[str, ...] = ()

    @property
    def jury(self) -> tuple[str, ...]:
        """The roles that judge."""
        return self.judges or (self.to,)

    @property
    def roles(self) -> set[str]:
        """The judges."""
        return {*self.jury}

    @property
    def validates(self) -> set[str]:
        """All of them, whose replies have a form."""
        return {*self.jury}

    def check(self, where: str) -> None:
        """A jury is of different roles, and is named once."""
        super().check(where)
        if self.judges and "to" in self.model_fields_set:
            raise bad_stage("to has no effect where judges says who judges", f"{where}.to", "take it out")
        if len(set(self.judges)) < len(self.judges):
            raise bad_stage("a judge stands twice", f"{where}.judges")


async def read(ask: Ask, asked: Any) -> Reply | Rejected:
    """A judge's reply, or why it cannot be read. Raises Rejected where nothing was asked, such as over a budget."""
    (found,) = await gathered([asked])
    if isinstance(found, Rejected) and found.reason not in UNREAD:
        raise found
    return found


def unread(fates: Iterable[object]) -> list[JsonValue]:
    """Why replies could not be read, each reason once."""
    lost = (each for each in fates if isinstance(each, Rejected))
    return [*dict.fromkeys(f"{each.reason}: {each.detail}"[:200] for each in lost)]


def said_of(job: Record) -> Candidate:
    """A record's own answer."""
    return Candidate(output=job.output, reasoning=job.reasoning, writer=job.writers.get("output", ""))


def shown_of(job: Record) -> dict[str, Any]:
    """What a judge is shown of a task: its fields, and the right answer where it is known."""
    gold = job.meta.get("gold")
    return {**task_variables(job), "gold": gold if isinstance(gold, str) else ""}


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are numbers; None where none is."""
    known = [each for each in values if each is not None]
    return round(fmean(known), 4) if known else None


def ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Candidates with the place of each by its score: 1 is the best, equals share a place, the unscored have none."""
    scores = sorted((each.score for each in candidates if each.score is not None), reverse=True)
    places = {score: scores.index(score) + 1 for score in set(scores)}
    return tuple(
        each.model_copy(update={"rank": places[each.score] if each.score is not None else None}) for each in candidates
    )


def with_notes(candidate: Candidate, notes: Mapping[str, JsonValue], **update: Any) -> Candidate:
    """A candidate with more notes; those that are mappings are joined."""
    joined: dict[str, JsonValue] = dict(candidate.notes)
    for name, value in notes.items():
        old = joined.get(name)
        joined[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return candidate.model_copy(update={**update, "notes": joined})
