"""Feedback by a verifier in whole runs: whose spec, what is kept, what travels with the row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import published, write_seeds
from test_programs import needs_walls

from kdgen.errors import Rejected
from kdgen.export import PromptOnly
from kdgen.record import Candidate, Record, Reject
from kdgen.stages.draw import Draw
from kdgen.stages.pair import Pair
from kdgen.stages.verify import Verify
from kdgen.verifiers.reward import reward

ANSWER = {"stage": "label", "method": "answer", "prompt": "label/answer"}


async def nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("no program runs")


class Ask:
    execute = staticmethod(nothing)
    calls: list[str] = []


def verified(stage: Verify, record: Record) -> Any:
    (row,) = asyncio.run(stage.run(record, Ask()))  # type: ignore[arg-type]
    return row


@pytest.fixture
def run(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> Callable[..., Any]:
    """A run of some stages: what it said, its rows and its rejects."""

    def made(stages: list[Any], seeds: list[dict[str, Any]], rules: list[Any], *more: str) -> Any:
        write_seeds(tmp_path / "s.jsonl", seeds)
        (tmp_path / "r.yaml").write_text(
            json.dumps(
                {
                    "name": "r",
                    "seeds": "s.jsonl",
                    "teachers": {"teacher": {"provider": "local", "max_tokens": 99}},
                    "stages": stages,
                    "export": {"format": "prompt"},
                }
            )
        )
        said = kdgen("run", "r.yaml", "-t", script(*rules), "-o", "out", "--ledger", "l.db", "-q", "--json", *more)
        if said.code:
            return said, [], []
        read = [(tmp_path / "out" / name).read_text().splitlines() for name in ("records.jsonl", "rejects.jsonl")]
        return said, *([json.loads(line) for line in lines] for lines in read)

    return made


IFEVAL = [
    {"id": "a", "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]},
    {"id": "b", "prompt": "Say more.", "instruction_id_list": ["punctuation:no_commas"], "kwargs": [{}]},
    {"id": "c", "prompt": "Say less.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"id": "d", "prompt": "Say none."},
    {"id": "e", "prompt": "Say five.", "instruction_id_list": {"type": "regex", "pattern": "f"}},
    {"id": "f", "prompt": "Say six.", "instruction_id_list": '{"type": "exact"}'},
]


def test_each_seed_may_bring_its_own_verifier(run: Callable[..., Any], tmp_path: Path) -> None:
    stages = [ANSWER, {"stage": "feedback", "method": "verify", "spec_from": "instruction_id_list", "at_least": 1}]
    rules = [{"contains": "less", "reply": "Less, then."}, {"contains": "five", "reply": "five"}, "So be it"]
    said, rows, rejects = run(stages, IFEVAL, rules, "--set", "sandbox.isolation=none")
    assert said.code == 0, said.err
    assert [row["seeds"][0] for row in rows] == ["a", "e"]
    assert rows[0]["meta"]["verifier"] == {
        "type": "instructions", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "loose": False
    }  # fmt: skip
    assert {(row["seeds"][0], row["reason"], row["detail"]) for row in rejects} == {
        ("b", "bad_verifier", "instruction_id_list: no instruction is called 'punctuation:no_commas'"),
        ("c", "not_verified", "not kept: punctuation:no_comma"),
        ("d", "no_verifier", "the seed has no column 'instruction_id_list'"),
        ("f", "unverified", "there is no gold answer to compare with"),
    }
    data = [json.loads(line) for line in (tmp_path / "out/data.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in data] == [["answer", "prompt", "verifier"]] * 2
    columns = {name: [row[name] for row in data] for name in ("verifier", "answer")}
    assert reward(completions=["it is so", "x"], **columns) == [1.0, 0.0]


def test_a_changed_verifier_asks_nothing_again(run: Callable[..., Any], tmp_path: Path) -> None:
    seeds = [{"id": "a", "question": "Two and two?", "answer": "4"}, {"id": "b", "question": "Three?", "answer": "3"}]
    stages = [ANSWER, {"stage": "feedback", "method": "verify", "verifier": {"type": "exact"}, "at_least": 1}]
    rules = [{"contains": "Two", "reply": "4.0"}, "3"]
    said, rows, _ = run(stages, seeds, rules)
    assert json.loads(said.out)["requests"]["sent"] == 2 and [row["seeds"] for row in rows] == [["b"]]
    before = published(tmp_path / "out")
    again, _, _ = run(stages, seeds, rules)
    assert json.loads(again.out)["requests"]["sent"] == 0 and published(tmp_path / "out") == before
    said, rows, _ = run(stages, seeds, rules, "--set", "stages.1.verifier={type: math}")
    assert json.loads(said.out)["requests"]["sent"] == 0 and len(rows) == 2


def test_candidates_are_scored_and_those_that_cannot_be_say_why() -> None:
    task = Record(
        id="r",
        instruction="Two and two?",
        meta={"gold": "4"},
        candidates=(
            Candidate(output="Answer: 4"),
            Candidate(output="5", scores={"judge": 3.0}, score=3.0, notes={"x": 1}),
            Candidate(output="2^{10^{10}}"),
        ),
    )
    row = verified(Verify(verifier={"type": "math"}, name_as="math"), task)
    assert [each.scores for each in row.candidates] == [{"math": 1.0}, {"judge": 3.0, "math": 0.0}, {"math": None}]
    assert [each.score for each in row.candidates] == [None, 3.0, None]  # a grade ranks, and no verdict among grades
    assert row.candidates[2].notes["math"].startswith("it takes more than")
    assert row.candidates[1].notes == {"x": 1, "math": "5 for 4"} and row.meta["verifier"]["type"] == "math"
    bad = task.model_copy(update={"candidates": task.candidates[1:]})
    lost = verified(Verify(verifier={"type": "math"}, at_least=1), bad)
    assert isinstance(lost, Reject) and (lost.reason, lost.detail) == ("none_verified", "5 for 4")
    with pytest.raises(Rejected, match="no_answer"):
        verified(Verify(verifier={"type": "math"}), Record(id="r", instruction="x"))
    quoted = Record(id="r", instruction="x", text="The sea is blue.", output='He says "the sea is blue".')
    assert verified(Verify(verifier={"type": "citations"}), quoted).meta["scores"] == {"verified": 1.0}


def test_matched_pairs_are_balanced_and_use_no_answer_twice() -> None:
    scores = (1.0, 0.0, 1.0, 1.0, None, 0.0, 1.0)
    many = tuple(Candidate(output=f"a{place}", score=score) for place, score in enumerate(scores))
    stage = Pair(pick="matched")
    (job,) = stage.plan([Record(id="r", instruction="x", candidates=many)], 0, Draw(0, "feedback/pair"))
    rows: Any = asyncio.run(stage.run(job, Ask()))  # type: ignore[arg-type]
    told = [[each.output for each in row.candidates] for row in rows]
    assert len({output for pair in told for output in pair}) == 4 and len(told) == 2
    assert all([each.score for each in row.candidates] == [1.0, 0.0] for row in rows)


@needs_walls
def test_draws_are_picked_by_the_tests_of_their_seed(run: Callable[..., Any]) -> None:
    sample = {"stage": "label", "method": "sample", "prompt": "label/answer", "n": 3, "pick": "verify", "keep": 1}
    tests = {"type": "tests", "tests": "assert double(2) == 4\nassert double(0) == 0"}
    seeds = [{"id": "a", "instruction": "Write double(x).", "tests": tests}]
    rules = [
        {"nth": 0, "reply": "```python\ndef double(x):\n    return x ** 2 + 1\n```"},
        {"nth": 1, "reply": "```python\ndef double(x):\n    return x + x\n```"},
        "It is easy.",
    ]
    said, rows, rejects = run([{**sample, "spec_from": "tests"}], seeds, rules)
    assert said.code == 0, said.err
    assert [row["meta"]["nth"] for row in rows] == [1] and rows[0]["meta"]["verifier"]["tests"] == tests["tests"]
    assert [row["detail"] for row in rejects] == ["tests_failed: assert double(2) == 4", "the answer has no program"]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({}, "a verifier is given by the recipe or by a column of the seeds"),
        ({"verifier": {"type": "math"}, "spec_from": "q"}, "one of the two"),
        ({"verifier": {"type": "maths"}}, "maths"),
        ({"verifier": {"type": "math"}, "to": "judge"}, "nobody is asked"),
        ({"verifier": {"type": "regex", "pattern": "("}}, "the pattern is broken"),
    ],
)
def test_settings_that_cannot_work_are_said(run: Callable[..., Any], stage: dict[str, Any], said: str) -> None:
    told, *_ = run([ANSWER, {"stage": "feedback", "method": "verify", **stage}], [{"instruction": "x"}], ["y"])
    assert told.code == 2 and said in told.err


def test_a_verifier_without_pick_verify_has_no_effect(kdgen: Callable[..., Any]) -> None:
    said = kdgen("check", "label/best-of-n", "--set", "stages.0.verifier={type: math}")
    assert said.code == 2 and "verifier has no effect on pick: vote" in said.err
    merge = ("--set", "stages.0.pick=merge", "--set", "stages.0.merge=label/merge", "--set", "stages.0.keep=null")
    said = kdgen("check", "label/best-of-n", *merge, "--set", "stages.0.distinct=true")
    assert said.code == 2 and "distinct" in said.err


def test_the_columns_of_a_prompt_row() -> None:
    spec: Any = {"type": "tests", "tests": "", "cases": [{"input": "2", "output": "4"}]}
    record = Record(id="r", instruction="Q", input="I", system="S", output="no", meta={"gold": "4", "verifier": spec})
    row: Any = PromptOnly().row(record)
    assert row["prompt"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Q\n\nI"}]
    assert row["answer"] == "4" and json.loads(row["verifier"]) == spec and "no" not in json.dumps(row["prompt"])
    assert row["verification_info"]["test_cases"] == [{"input": "2", "output": "4", "type": "stdin_stdout"}]
    assert PromptOnly(gold_as="solution", system="drop").row(Record(id="r", instruction="Q", system="S")) == {
        "prompt": [{"role": "user", "content": "Q"}]
    }
    assert PromptOnly().row(Record(id="r", text="T")) is None
