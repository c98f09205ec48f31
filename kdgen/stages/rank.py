"""Feedback: a judge sees all answers to a task at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model

from kdgen.errors import Rejected
from kdgen.judging import Grade, Listing
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Record, Row
from kdgen.rubrics import OVERALL, RubricFile, Scale
from kdgen.stages.answer import TASK
from kdgen.stages.base import Ask, bad_stage, gathered
from kdgen.stages.draw import Draw
from kdgen.stages.judged import Judged, mean, ranked, read, shown_of, unread, with_notes
from kdgen.stages.pair import shuffled
from kdgen.teachers.base import Reply

PLACES = "places"


class Order(BaseModel):
    """The answers from the best to the worst, by their numbers, the reason first."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    order: list[int]


@lru_cache(maxsize=64)
def _ratings(low: int, high: int, halves: bool, count: int) -> type[BaseModel]:
    """The model of a rating of each of `count` answers."""
    make, config = cast(Any, create_model), ConfigDict(extra="forbid")
    bounds = Field(ge=low, le=high)
    number = Annotated[float, bounds] if halves else Annotated[int, bounds]
    one = make(
        "Rating",
        __config__=config,
        __doc__="An answer by its number, why, and then its grade.",
        answer=(Annotated[int, Field(ge=1, le=count)], ...),
        reason=(str, ...),
        score=(number, ...),
    )
    size: dict[str, Any] = {"minItems": count, "maxItems": count}
    listed = (list[one], Field(json_schema_extra=size))  # type: ignore[valid-type]
    made: type[BaseModel] = make("Ratings", __config__=config, __doc__="A rating of each answer.", ratings=listed)
    return made


class Rank(Judged):
    """Judge all answers to a task at once: the φ_fb(x, y; θ_T) of D = {(x, y, φ_fb(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu
    et al., Eq. 7) as a list.

    The answers are shown in a drawn order, so that no model has a place of its own. `form: scores` has each of them graded,
    one call for each aspect of the `rubric` and its overall grade (UltraFeedback, arXiv 2310.01377); `form: order` has them
    put in order by all aspects in one call, and `scores.places` is the share of the others that an answer is put before.
    With `times` it is done again in other orders while there are any, and the mean is taken, over judges too. A reply that
    leaves an answer out or names one twice is none: what it was asked for is unscored. An overall grade that is further
    from the mean of the aspects than `within`, a part of the scale, is unscored. The score that ranks is the mean of the
    aspects, or the place.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["rank"] = "rank"
    prompt: PromptFile
    rubric: RubricFile
    form: Literal["scores", "order"] = "scores"
    times: int = Field(1, ge=1, le=64)
    within: float = Field(0.35, gt=0, le=1)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"rubric", "aspect", "answers", "gold"}}

    def check(self, where: str) -> None:
        """An overall grade is there to be compared."""
        super().check(where)
        if "within" in self.model_fields_set and (self.rubric.overall is None or self.form == "order"):
            raise bad_stage("within has no effect without an overall grade", f"{where}.within", "take it out")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each record with the orders in which its candidates are shown."""
        for record in pool:
            order: Any = shuffled(record, draw).meta["order"]
            # Each turn moves the first answer to the end, so that in as many turns as there are answers each stands everywhere.
            turns = [nth % max(1, len(order)) for nth in range(self.times)]
            orders = [[*order[turn:], *order[:turn]] for turn in turns]
            yield record.model_copy(update={"meta": {**record.meta, "orders": orders}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """A call for each aspect (or one), judge and time, all at once."""
        orders: Any = job.meta["orders"]
        job = job.model_copy(update={"meta": {name: value for name, value in job.meta.items() if name != "orders"}})
        if len(job.candidates) < 2:
            raise Rejected("too_few_candidates", f"{len(job.candidates)} came, a list takes 2")
        names = self.rubric.names if self.form == "scores" else (PLACES,)
        jobs = [(name, role, nth, ask.fork()) for name in names for role in self.jury for nth in range(self.times)]
        found = await gathered([self._listed(job, name, role, nth, orders[nth], own) for name, role, nth, own in jobs])
        ask.calls += [call for *_, own in jobs for call in own.calls]
        if fate := next((each for each in found if isinstance(each, Rejected)), None):
            raise fate
        listed = [(name, role, each) for (name, role, _, _), each in zip(jobs, found, strict=True)]
        scores: list[dict[str, float | None]] = [{} for _ in job.candidates]
        reasons: list[dict[str, JsonValue]] = [{} for _ in job.candidates]
        wrong: list[JsonValue] = []
        teachers: list[str] = []
        for name in names:
            for place in range(len(job.candidates)):
                scores[place][name] = mean([mean(self._of(listed, name, role, place)) for role in self.jury])
        for name, role, each in listed:
            assert not isinstance(each, Rejected)
            values, why, teacher = each
            wrong += [f"{role}, {name}: {why}"] if values is None else []
            teachers += [teacher] if teacher else []
            for place, reason in enumerate(why if isinstance(why, list) else []):
                reasons[place].setdefault(name, reason)
        self._agree(listed, names, len(job.candidates), ask)
        made = []
        for place, answer in enumerate(job.candidates):
            notes: dict[str, JsonValue] = {"reasons": reasons[place]} if reasons[place] else {}
            if self.form == "scores" and self.times * len(self.jury) > 1:
                every = {
                    name: [one for role in self.jury for one in self._of(listed, name, role, place)] for name in names
                }
                notes["grades"] = {name: [*given] for name, given in every.items()}
            made.append(self._scored(answer, scores[place], notes, ask.calls))
        meta: dict[str, JsonValue] = {"judge": ", ".join(dict.fromkeys(teachers)), "orders": orders}
        if wrong:
            meta["unread"] = [*dict.fromkeys(str(each) for each in wrong)]
        calls = list(dict.fromkeys(ask.calls))
        return [job.child(stage=self.stage, method=self.method, calls=calls, meta=meta, candidates=ranked(made))]

    def _of(self, listed: Sequence[tuple[str, str, Any]], name: str, role: str, place: int) -> list[float | None]:
        """What one judge's lists say of one answer under one name."""
        return [each[0][place] if each[0] else None for key, who, each in listed if (key, who) == (name, role)]

    def _scored(
        self, answer: Candidate, scores: dict[str, float | None], notes: dict[str, JsonValue], calls: Sequence[str]
    ) -> Candidate:
        if self.form == "scores" and (wrong := self.rubric.astray(scores, self.within)):
            scores, notes["unscored"] = {**scores, OVERALL: None}, [wrong]
        aspects = [scores[each.name] for each in self.rubric.aspects] if self.form == "scores" else [scores[PLACES]]
        score = None if None in aspects else mean(aspects)
        every = tuple(dict.fromkeys((*answer.calls, *calls)))
        return with_notes(answer, notes, scores={**answer.scores, **scores}, score=score, calls=every)

    async def _listed(
        self, job: Record, name: str, role: str, nth: int, order: Sequence[int], ask: Ask
    ) -> tuple[list[float] | None, list[str] | str, str]:
        """(scores by place, reasons by place or why there are none, who judged)."""
        answers = [job.candidates[place].output for place in order]
        shown = {"rubric": self.rubric.shown(), "answers": answers, **shown_of(job)}
        scale = self.rubric.of(name) if self.form == "scores" else None
        count = len(answers)
        low, high = scale.ends if scale else (0, 0)
        schema = _ratings(low, high, scale.halves, count) if scale else Order
        shown["aspect"] = {**scale.shown(), "name": name} if scale else None

        def whole(reply: Reply) -> str | None:
            return _whole(json.loads(reply.text), count, scale)

        again = nth // len(answers)
        reply = await read(ask, ask(self.prompt, to=role, nth=again, schema=schema, check=whole, **shown))
        if isinstance(reply, Rejected):
            ask.judged([Listing(role, None, count)])
            if scale:
                ask.judged([Grade(role, name, None, low, high) for _ in answers])
            return None, str(unread([reply])[0]), ""
        said = json.loads(reply.text)
        if scale:
            rated = {each["answer"] - 1: each for each in said["ratings"]}
            values = [float(rated[position]["score"]) for position in range(count)]
            reasons = [str(rated[position]["reason"]) for position in range(count)]
            for position, value in enumerate(values):
                own = reply.teacher == job.candidates[order[position]].writer
                ask.judged([Grade(role, name, value, low, high, own)])
        else:
            worth = {number - 1: (count - 1 - at) / (count - 1) for at, number in enumerate(said["order"])}
            values, reasons = [round(worth[position], 4) for position in range(count)], []
        best = [position for position, value in enumerate(values) if value == max(values)]
        if len(best) == 1:
            ask.judged([Listing(role, best[0], count)])
        position_of = {place: position for position, place in enumerate(order)}
        back = [position_of[place] for place in range(count)]
        return (
            [values[position] for position in back],
            [reasons[position] for position in back if reasons],
            reply.teacher,
        )

    def _agree(self, listed: Sequence[tuple[str, str, Any]], names: Sequence[str], count: int, ask: Ask) -> None:
        for name in names:
            lists = [each[0] for key, _, each in listed if key == name and each[0]]
            ask.rate(Counter(f"{values[place]:g}" for values in lists) for place in range(count))

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The answers by their texts, so that each has the same rank in whichever order they are shown."""
        answers: list[str] = variables["answers"]
        best = sorted(range(len(answers)), key=lambda place: answers[place])
        if self.form == "order":
            return Order(reason=words(20), order=[place + 1 for place in best]).model_dump_json()
        low, high = variables["aspect"]["low"], variables["aspect"]["high"]
        ratings = [
            {"answer": place + 1, "reason": words(10), "score": max(low, high - at)} for at, place in enumerate(best)
        ]
        return json.dumps({"ratings": ratings})


def _whole(said: Any, count: int, scale: Scale | None) -> str | None:
    """What is wrong with a list: each answer stands in it once, and grades lie on the steps of their scale."""
    numbers = [each["answer"] for each in said["ratings"]] if scale else said["order"]
    if sorted(numbers) != [*range(1, count + 1)]:
        return f"it names the answers {numbers}, not each of 1 to {count} once"
    if scale and any(float(each["score"]) % (0.5 if scale.halves else 1) for each in said["ratings"]):
        return "a score is between the steps of the scale"
    return None
