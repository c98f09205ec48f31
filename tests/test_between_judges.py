"""What one judge leaves and another finds: scales that are not mixed, pairs that nothing chose, judges that say the same always."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from server import write_seeds

from kdgen.errors import UserError
from kdgen.export import Preference
from kdgen.judging import Judging, Listing, Verdict
from kdgen.prompts import load_prompt
from kdgen.record import Candidate, Record
from kdgen.resources import builtins
from kdgen.stages import Draw
from kdgen.stages.contrast import Contrast
from kdgen.stages.pair import Pair
from kdgen.stages.verify import Verify
from kdgen.verifiers import Exact, Regex


class Nobody:
    """An ask of a stage that asks nobody."""

    calls: list[str] = []

    async def execute(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is run")


def run(stage: Any, record: Record) -> list[Any]:
    return asyncio.run(stage.run(record, Nobody()))


def record(*candidates: Candidate, **fields: Any) -> Record:
    return Record(id="r", instruction="Add 1 and 2.", candidates=candidates, meta={"gold": "3"}, **fields)


def test_a_verdict_is_no_grade_where_a_judge_left_one_out() -> None:
    """A right answer whose grade could not be read must not be the worst of its pair for a score of 1 among grades of 1 to 5."""
    graded = record(
        Candidate(output="3", score=None), Candidate(output="4", score=2.0), Candidate(output="5", score=4.0)
    )
    (row,) = run(Verify(verifier=Exact()), graded)
    assert [each.score for each in row.candidates] == [None, 2.0, 4.0]
    assert [each.scores["verified"] for each in row.candidates] == [1.0, 0.0, 0.0]
    (row,) = run(Verify(verifier=Exact()), record(Candidate(output="3"), Candidate(output="4")))
    assert [each.score for each in row.candidates] == [1.0, 0.0]


def test_two_answers_that_nothing_chose_between_are_no_preference() -> None:
    two = Candidate(output="3", score=1.0), Candidate(output="4", score=2.0)
    assert Preference().row(record(*two)) is None
    assert Preference().row(record(*two, output="3")) is not None
    assert Preference().row(record(two[0], two[0], output="3")) is None


def test_a_margin_is_reached_by_grades_that_far_apart() -> None:
    pair = Pair(margin=0.5)
    graded = record(Candidate(output="3", score=4.1), Candidate(output="4", score=3.6))
    (row,) = run(pair, *pair.plan((graded,), 0, Draw(0, "pair")))
    assert isinstance(row, Record) and row.output == "3"


def told(*seen: Any) -> list[str]:
    judging = Judging()
    for each in seen:
        judging.add(each)
    return judging.notices("stage")


def test_a_judge_that_always_says_last_or_always_tie_is_caught() -> None:
    assert "stands last best in 100% of its lists" in "".join(told(*[Listing("j", 3, 4)] * 20))
    assert "stands first best in 100% of its lists" in "".join(told(*[Listing("j", 0, 4)] * 20))
    assert not told(*(Listing("j", place % 4, 4) for place in range(20)))
    assert "100% of its verdicts are ties" in "".join(told(*[Verdict("j", 0.5, 0.5)] * 20))


def test_settings_without_effect_are_errors() -> None:
    prompts = [load_prompt(builtins("prompts")[name], name) for name in ("label/brief", "label/answer")]
    stage = Contrast.model_validate({"sides": [{"prompt": prompt} for prompt in prompts], "pairs": "all"})
    with pytest.raises(UserError, match="pairs: all has no effect"):
        stage.check("here")
    with pytest.raises(ValidationError, match="no group 2, it has 1"):
        Regex(pattern="(a)b", group=2)


GRADE = {"stage": "curate", "method": "grade", "prompt": "curate/faithful"}
BEST = {"stage": "label", "method": "sample", "prompt": "label/brief", "n": 2, "pick": "judge", "grade": "label/grade"}
HARD = {"stage": "expand", "method": "hard-cases", "answer": "label/brief", "score": "expand/hard-cases/score",
        "student": "teacher"}  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (GRADE, "curate/grade, judge teacher: 100% of its grades for quality are the highest there is"),
        (BEST, "label/sample, judge teacher: 100% of its grades for score are the highest there is"),
        (HARD, "expand/hard-cases, judge teacher: it prefers the answer that stands first in 100% of its verdicts"),
    ],
    ids=["grade", "sample", "hard-cases"],
)
def test_the_judges_of_other_stages_are_told_of_too(
    kdgen: Callable[..., Any], tmp_path: Path, stage: dict[str, Any], said: str
) -> None:
    rules = [
        {"contains": "You grade", "reply": '{"reason": "Fine.", "score": 10}'},
        {"contains": "check answers", "reply": '{"reason": "Fine.", "score": 5}'},
        {"contains": "referee", "reply": '{"reason": "Fine.", "first": 10, "second": 1}'},
        {"reply": "It is {digest}."},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    write_seeds(tmp_path / "s.jsonl", [{"instruction": f"Name {n}.", "output": f"It is {n}."} for n in range(20)])
    teacher = {"provider": "scripted", "path": "r.jsonl"}
    recipe = {"name": "told", "seeds": "s.jsonl", "teachers": {"teacher": teacher}, "stages": [stage]}
    (tmp_path / "told.yaml").write_text(json.dumps(recipe))
    sets = ("--set", "stages.0.gap=0") if stage is HARD else ()
    found = kdgen("run", "./told.yaml", "-o", "out", "--ledger", "l.db", *sets)
    assert found.code == 0 and said in " ".join(found.err.split()), found.err
    assert said.split(":")[1] in (tmp_path / "out/README.md").read_text()
