"""Facts as seeds: what a row says for sure, and whether a question and its answer agree with it."""

from __future__ import annotations

from kdgen.parse import same_answer, without_separators
from kdgen.parse import units as units_of
from kdgen.record import Record

Fate = tuple[str, str]
RELATIONS = {"relation", "predicate", "property"}  # of a triple: what is said, never what is asked for


def values_of(job: Record) -> list[str]:
    """What an answer may hold: the seed's own answer, or else each of its cells (of a triple both ends) and its text."""
    if job.output:
        return [job.output]
    cells = [value for name, value in cells_of(job).items() if name.lower() not in RELATIONS]
    return [*cells, job.text or job.task]


def cells_of(job: Record) -> dict[str, str]:
    """The columns of a seed that are a text or a number."""
    cells = {name: value for name, value in job.extra.items() if not isinstance(value, bool)}
    return {name: str(value) for name, value in cells.items() if isinstance(value, str | int | float) and str(value)}


def told(job: Record) -> str:
    """A seed's fact as a text: what it says, its columns, lists among them, and its answer."""
    lists = {name: ", ".join(map(str, value)) for name, value in job.extra.items() if isinstance(value, list)}
    lines = [job.text or job.task, *(f"{name}: {value}" for name, value in {**cells_of(job), **lists}.items())]
    return "\n".join([*lines, *([f"Answer: {job.output}"] if job.output else [])])


def holds(text: str, value: str) -> bool:
    """Whether a text says a value: word for word, or as another form of the same number."""
    said, wanted = (units_of(without_separators(each)) for each in (text, value))
    runs = (said[at : at + len(wanted)] for at in range(len(said) - len(wanted) + 1))
    return bool(wanted) and (wanted in runs or same_answer(text, value))


def disagrees(question: str, answer: str, values: list[str]) -> Fate | None:
    """Why an answer does not give a fact: it says none of its values, or none that the question does not say itself."""
    given = [value for value in values if holds(answer, value)]
    if not given:
        return "disagrees_with_fact", f"{answer[:100]!r} does not say {' or '.join(values)[:100]!r}"
    if all(holds(question, value) for value in given):
        return "gives_it_away", f"the question says {given[0][:100]!r} itself"
    return None
