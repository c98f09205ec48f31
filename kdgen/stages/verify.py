"""Feedback by a verifier: what can be told of an answer without a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.record import Candidate, Record, Row
from kdgen.stages.base import Ask, bad_stage, gathered
from kdgen.stages.pair import Unasked
from kdgen.verifiers import AnyVerifier, Verdict, missing_packages, read_verifier
from kdgen.verifiers.base import Verifier
from kdgen.verifiers.code import Tests
from kdgen.verifiers.instructions import Instructions
from kdgen.verifiers.math import Math
from kdgen.verifiers.text import JsonSchema

SpecFrom = Annotated[str, Field(min_length=1)]


class Verify(Unasked):
    """A verifier's feedback on answers: D = {(x, y, φ(x, y)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7), φ being a rule.

    Each of the record's candidates, or its own output where it has none, gets the score of `verifier`, 0 to 1: a spec, or
    (`spec_from`) what the seed's column of that name holds: a spec or its JSON, asserts, or IFEval's `instruction_id_list` beside
    `kwargs`. The right answer is `meta.gold`. What cannot be judged has no score, and says why. With `at_least` a record
    of which nothing scores that is a reject. The spec stays in `meta.verifier`, so that a trainer can use it as a reward
    (RLVR: Tülu 3, arXiv 2411.15124). No model is asked.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["verify"] = "verify"
    verifier: AnyVerifier | None = None
    spec_from: SpecFrom | None = None
    name_as: str = Field("verified", pattern=r"^[a-z][a-z0-9_]*$")
    at_least: float | None = Field(None, gt=0, le=1)

    @property
    def executes(self) -> bool:  # type: ignore[override]
        """Whether it runs programs, as a verifier of the seeds may."""
        return runs_programs(self.verifier, self.spec_from)

    def check(self, where: str) -> None:
        """One source of verifiers, whose packages are there."""
        super().check(where)
        check_source(self.verifier, self.spec_from, where)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """No call; programs where the verifier has tests."""
        spec = spec_of(job, self.verifier, self.spec_from)
        gold = gold_of(job)
        meta: dict[str, JsonValue] = {"verifier": spec.model_dump(mode="json")}
        if job.candidates:
            found = await gathered([spec.verdict(each.output, gold, ask.execute) for each in job.candidates])
            verdicts = [each for each in found if isinstance(each, Verdict)]
            graded = any(each.score is not None for each in job.candidates)
            told = tuple(self._scored(*pair, graded) for pair in zip(job.candidates, verdicts, strict=True))
            if self.at_least is not None and not any(_reaches(each, self.at_least) for each in verdicts):
                return [job.rejected(self.name, "none_verified", verdicts[0].detail)]
            return [job.child(stage=self.stage, method=self.method, meta=meta, candidates=told)]
        if not job.output:
            raise Rejected("no_answer", "the record has neither candidates nor an output")
        verdict = await spec.verdict(job.output, gold, ask.execute)
        if self.at_least is not None and not _reaches(verdict, self.at_least):
            return [job.rejected(self.name, *shortfall(verdict))]
        held = job.meta.get("scores")
        meta["scores"] = {**(held if isinstance(held, dict) else {}), self.name_as: verdict.score}
        meta["score"] = job.meta.get("score", verdict.score)
        if verdict.detail:
            meta["verdict"] = verdict.detail
        return [job.child(stage=self.stage, method=self.method, meta=meta)]

    def _scored(self, candidate: Candidate, verdict: Verdict, graded: bool) -> Candidate:
        """The candidate with its verdict, which ranks where nothing did: a judge's grades are on another scale."""
        notes = {**candidate.notes, **({self.name_as: verdict.detail} if verdict.detail else {})}
        scores = {**candidate.scores, self.name_as: verdict.score}
        score = candidate.score if graded else verdict.score
        return candidate.model_copy(update={"scores": scores, "notes": notes, "score": score})


def shortfall(verdict: Verdict) -> tuple[str, str]:
    """The reason and detail of a reject for a verdict that is no pass."""
    return ("unverified" if verdict.passed is None else "not_verified", verdict.detail)


def gold_of(record: Record) -> str:
    """The right answer that a record brought."""
    gold = record.meta.get("gold")
    return gold if isinstance(gold, str) else ""


def runs_programs(verifier: Verifier | None, spec_from: str | None) -> bool:
    """Whether programs may be run: seeds may bring tests."""
    return spec_from is not None or (verifier is not None and verifier.executes)


def check_source(verifier: Verifier | None, spec_from: str | None, where: str) -> None:
    """Raise UserError where there is not one source of verifiers, or a package lacks."""
    if (verifier is None) == (spec_from is None):
        cause = "a verifier is given by the recipe or by a column of the seeds, one of the two"
        raise bad_stage(cause, f"{where}.verifier", "verifier: {type: math}, or spec_from: COLUMN")
    kinds = (type(verifier),) if verifier is not None else (Math, JsonSchema, Instructions, Tests)
    missing_packages(kinds, f"{where}.verifier" if verifier is not None else f"{where}.spec_from")


def spec_of(record: Record, verifier: Verifier | None, spec_from: str | None) -> Verifier:
    """The verifier for a record. Raises Rejected where its column holds none, or one that needs a gold answer it lacks."""
    if verifier is None:
        assert spec_from is not None
        if spec_from not in record.extra:
            raise Rejected("no_verifier", f"the seed has no column {spec_from!r}")
        try:
            verifier = read_verifier(record.extra[spec_from], record.extra)
        except ValueError as error:
            raise Rejected("bad_verifier", f"{spec_from}: {error}") from None
    return verifier.about(record.text)


def _reaches(verdict: Verdict, least: float) -> bool:
    return verdict.score is not None and verdict.score >= least
