"""Feedback: a judge grades each answer by a rubric."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.judging import Grade
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Record, Row
from kdgen.rubrics import OVERALL, RubricFile
from kdgen.stages.answer import TASK
from kdgen.stages.base import Ask, bad_stage, gathered
from kdgen.stages.judged import Judged, mean, ranked, read, said_of, shown_of, unread, with_notes
from kdgen.teachers.base import Reply

MEAN = "mean"


@dataclass(frozen=True)
class Sheet:
    """What one reply says of one answer: a score by name, None where it has none, with the reason of each."""

    role: str
    scores: dict[str, float | None]
    reasons: dict[str, str]
    teacher: str = ""
    wrong: str = ""


class Judge(Judged):
    """Grade each answer by a rubric: the φ_fb(x, y; θ_T) of D = {(x, y, φ_fb(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et
    al., Eq. 7) as numbers with reasons (UltraFeedback, arXiv 2310.01377; AlpaGasus, arXiv 2307.08701).

    A reply gives every aspect of the `rubric` a reason and then a grade. One that is not of that form, or off the scale, is
    no grade: the answer stays, unscored, and says why. An overall grade that is further from the mean of the aspects than
    `within`, a part of the scale, is no grade either (UltraFeedback read a 1 as a 10). Each judge grades `times` times; the
    mean over times, then over judges, is the score of that name, and how far the grades agree is in the manifest. The score
    that ranks is the mean of the aspects, or the one that `score` names; without a grade for all of them there is none.

    A record without candidates has its own output judged (`meta.scores`). With `at_least` a record is a reject whose best
    answer has less, or has no score.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["judge"] = "judge"
    prompt: PromptFile
    rubric: RubricFile
    times: int = Field(1, ge=1, le=64)
    score: str = MEAN
    within: float = Field(0.35, gt=0, le=1)
    at_least: float | None = None

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"rubric", "output", "gold"}}

    def check(self, where: str) -> None:
        """The score is one that the rubric has."""
        super().check(where)
        known = (MEAN, *self.rubric.names)
        if self.score not in known:
            raise bad_stage(f"the rubric has no {self.score!r}", f"{where}.score", f"one of {', '.join(known)}")
        if self.rubric.overall is None and "within" in self.model_fields_set:
            raise bad_stage("within has no effect: the rubric has no overall grade", f"{where}.within", "take it out")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """A call for each answer, judge and time, all at once."""
        answers = job.candidates or ((said_of(job),) if job.output else ())
        if not answers:
            raise Rejected("no_answer", "the record has neither candidates nor an output")
        asks = [ask.fork() for _ in answers]
        pairs = enumerate(zip(answers, asks, strict=True))
        found = await gathered([self._judged(job, place, each, own) for place, (each, own) in pairs])
        ask.calls += [call for each in asks for call in each.calls]
        if fate := next((each for each in found if isinstance(each, Rejected)), None):
            raise fate
        graded = ranked([each for each in found if not isinstance(each, Rejected)])
        calls = list(dict.fromkeys(ask.calls))
        best = max((each.score for each in graded if each.score is not None), default=None)
        if self.at_least is not None and (best is None or best < self.at_least):
            lost = job.model_copy(update={"calls": (*job.calls, *calls), "output": job.output or graded[0].output})
            if best is None:
                wrong = graded[0].notes.get("unscored")
                return [lost.rejected(self.name, "unscored", str(wrong[0]) if isinstance(wrong, list) else "")]
            return [lost.rejected(self.name, "low_score", f"{best:g}, {self.at_least:g} is the least")]
        if job.candidates:
            return [job.child(stage=self.stage, method=self.method, calls=calls, candidates=graded)]
        (own,) = graded
        old = job.meta.get("scores")
        scores: dict[str, JsonValue] = {**(old if isinstance(old, dict) else {}), **own.scores}
        meta: dict[str, JsonValue] = {"score": own.score, "scores": scores, **own.notes}
        writers = {"scores": str(own.notes["judge"])} if "judge" in own.notes else {}
        return [job.child(stage=self.stage, method=self.method, calls=calls, writers=writers, meta=meta)]

    async def _judged(self, job: Record, place: int, answer: Candidate, ask: Ask) -> Candidate:
        """An answer with its scores, reasons, and what could not be read."""
        jobs = [(role, nth, ask.fork()) for role in self.jury for nth in range(self.times)]
        sheets = await gathered([self._sheet(job, place, answer, *each) for each in jobs])
        ask.calls += [call for _, _, each in jobs for call in each.calls]
        if fate := next((each for each in sheets if isinstance(each, Rejected)), None):
            raise fate
        came = [each for each in sheets if isinstance(each, Sheet)]
        scores = {name: self._mean(came, name) for name in self.rubric.names}
        self._report(came, answer, ask)
        told: dict[str, JsonValue] = {}
        if reasons := next((each.reasons for each in came if each.reasons), None):
            told["reasons"] = dict(reasons)
        wrong: list[JsonValue] = [*dict.fromkeys(f"{each.role}: {each.wrong}" for each in came if each.wrong)]
        if judges := list(dict.fromkeys(each.teacher for each in came if each.teacher)):
            told["judge"] = ", ".join(judges)
        if wrong:
            told["unscored"] = wrong
        if len(came) > 1:
            told["grades"] = {name: [each.scores.get(name) for each in came] for name in self.rubric.names}
        return with_notes(
            answer,
            told,
            calls=tuple(dict.fromkeys((*answer.calls, *ask.calls))),
            scores={**answer.scores, **scores},
            score=self._score(scores),
        )

    def _mean(self, sheets: Sequence[Sheet], name: str) -> float | None:
        """The mean over a judge's times, then over judges."""
        return mean([mean([each.scores.get(name) for each in sheets if each.role == role]) for role in self.jury])

    def _score(self, scores: Mapping[str, float | None]) -> float | None:
        if self.score != MEAN:
            return scores[self.score]
        aspects = [scores[each.name] for each in self.rubric.aspects]
        return None if None in aspects else mean(aspects)

    async def _sheet(self, job: Record, place: int, answer: Candidate, role: str, nth: int, ask: Ask) -> Sheet:
        shown = {"rubric": self.rubric.shown(), "output": answer.output, "place": place, **shown_of(job)}
        schema = self.rubric.schema_of_grades
        reply = await read(ask, ask(self.prompt, to=role, nth=nth, schema=schema, check=self._off_step, **shown))
        if isinstance(reply, Rejected):
            nothing: dict[str, float | None] = dict.fromkeys(self.rubric.names)
            return Sheet(role, nothing, {}, wrong=str(unread([reply])[0]))
        grades = json.loads(reply.text)
        scores: dict[str, float | None] = {name: float(grades[name]["score"]) for name in self.rubric.names}
        reasons = {name: str(grades[name]["reason"]) for name in self.rubric.names}
        wrong = self.rubric.astray(scores, self.within)
        return Sheet(role, {**scores, OVERALL: None} if wrong else scores, reasons, reply.teacher, wrong)

    def _off_step(self, reply: Reply) -> str | None:
        """What is wrong with a grade that lies between the steps of its scale."""
        grades = json.loads(reply.text)
        for name in self.rubric.names:
            if float(grades[name]["score"]) % (0.5 if self.rubric.of(name).halves else 1):
                return f"{name}: {grades[name]['score']} is between the steps of the scale"
        return None

    def _report(self, sheets: Sequence[Sheet], answer: Candidate, ask: Ask) -> None:
        for name in self.rubric.names:
            low, high = self.rubric.of(name).ends
            for sheet in sheets:
                own = bool(sheet.teacher) and sheet.teacher == answer.writer
                ask.judged([Grade(sheet.role, name, sheet.scores.get(name), low, high, own)])
            given = (each.scores.get(name) for each in sheets)
            ask.rate([Counter(f"{each:g}" for each in given if each is not None)])

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """Grades of which the first answer's are the highest, and each later one's a grade lower."""
        made = {}
        for name in self.rubric.names:
            low, high = self.rubric.of(name).ends
            made[name] = {"reason": words(15), "score": max(low, high - int(variables["place"]))}
        return json.dumps(made)
