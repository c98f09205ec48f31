"""Repair: the student's mistakes, mended by a teacher who sees what the check said; the check has the last word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import published, write_seeds
from test_programs import needs_walls

REPAIR = {
    "stage": "feedback", "method": "repair", "attempt": "feedback/repair/attempt", "prompt": "feedback/repair",
    "again": "feedback/repair/again", "student": "student", "verifier": {"type": "math"},
}  # fmt: skip
SEEDS = [
    {"id": "a", "question": "Two and two?", "answer": "4"},
    {"id": "b", "question": "Three and three?", "answer": "6"},
    {"id": "c", "question": "Five and five?", "answer": "10"},
    {"id": "d", "question": "What is it?"},
]
STUDENT = [{"contains": "Three", "reply": "Answer: 6"}, "Answer: 5"]
TEACHER = [{"contains": "5 for 4", "reply": "<think>It is two twice.</think>Answer: 4"}, "Answer: 11"]
Made = tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture
def run(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Made]:
    """A run of repair: what it said, its rows and its rejects."""

    def made(*more: str, seeds: list[Any] = SEEDS, out: str = "out", **changes: Any) -> Made:
        write_seeds(tmp_path / "s.jsonl", seeds)
        asked = list[str]()
        for role, rules in (("teacher", TEACHER), ("student", STUDENT)):
            lines = [{"reply": rule} if isinstance(rule, str) else rule for rule in rules]
            (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            asked += ["-t", f"{role}=scripted:{role}.jsonl"]
        stage = {name: value for name, value in {**REPAIR, **changes}.items() if value is not None}
        local = {"provider": "local", "max_tokens": 99}
        recipe = {"name": "r", "seeds": "s.jsonl", "teachers": {"teacher": local, "student": local}, "stages": [stage]}
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        said = kdgen("run", "r.yaml", *asked, "-o", out, "--ledger", "l.db", "-q", "--json", *more)
        read = [tmp_path / out / name for name in ("records.jsonl", "rejects.jsonl")]
        return said, *(
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [] for path in read
        )

    return made


def test_what_is_kept_and_what_is_lost(run: Callable[..., Made]) -> None:
    said, rows, rejects = run()
    assert said.code == 0, said.err
    fix, repair = rows
    assert fix["instruction"] == "Two and two?" and fix["history"] == [] and fix["output"] == "Answer: 4"
    assert [turn["content"] for turn in repair["history"]] == ["Two and two?", "Answer: 5"]
    assert "5 for 4" in repair["instruction"] and repair["output"] == fix["output"]
    assert fix["reasoning"] == "It is two twice." and len(fix["calls"]) == 2 and fix["calls"] == repair["calls"]
    assert fix["meta"]["attempt"] == "Answer: 5" and fix["meta"]["error"] == "5 for 4" and fix["meta"]["gold"] == "4"
    assert fix["writers"]["output"] == "scripted:teacher" and {row["meta"]["kind"] for row in rows} == {"fix", "repair"}
    told = {row["seeds"][0]: (row["reason"], row["detail"], len(row["calls"])) for row in rejects}
    assert told == {
        "b": ("student_passes", "the student's answer passes its check", 1),
        "c": ("fix_fails", "11 for 10", 2),
        "d": ("no_gold", "the record has no answer to compare with", 0),
    }


def test_a_solved_task_and_a_pair(run: Callable[..., Made]) -> None:
    _, rows, _ = run(rows="fix", again=None, solved="keep")
    assert [(row["seeds"][0], row["output"]) for row in rows] == [("a", "Answer: 4"), ("b", "Answer: 6")]
    assert rows[1]["writers"]["output"] == "scripted:student"
    _, rows, _ = run("--format", "preference", rows="pair", again=None)
    assert [(each["output"], each["score"], each["role"]) for each in rows[0]["candidates"]] == [
        ("Answer: 4", 1.0, "teacher"),
        ("Answer: 5", 0.0, "student"),
    ]


def test_a_second_run_asks_nothing_and_a_changed_seed_asks_about_itself(
    run: Callable[..., Made], tmp_path: Path
) -> None:
    said, *_ = run()
    before = published(tmp_path / "out")
    assert json.loads(said.out)["requests"]["sent"] == 5
    said, *_ = run()
    assert json.loads(said.out)["requests"]["sent"] == 0 and published(tmp_path / "out") == before
    said, *_ = run(seeds=[{**SEEDS[0], "question": "Two and two, please?"}, *SEEDS[1:]])
    assert json.loads(said.out)["requests"]["sent"] == 2


@needs_walls
def test_a_repair_without_a_program_and_a_column_without_tests(run: Callable[..., Made]) -> None:
    seeds = [{"id": "a", "instruction": "x", "t": "none"}, {"id": "b", "instruction": "f", "t": "assert f() == 1"}]
    said, *_ = run(seeds=seeds, verifier=None, spec_from="t")
    assert said.code == 5 and "1 bad_verifier, 1 fix_fails" in said.err and "the answer has no program" in said.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"again": None}, "their user's turn go together"),
        ({"rows": "fix"}, "their user's turn go together"),
        ({"prompt": "label/answer"}, "does not show 'error'"),
        ({"spec_from": "q"}, "one of the two"),
        ({"verifier": {"type": "tests"}}, "either tests or cases"),
    ],
)
def test_settings_that_cannot_work_are_said(run: Callable[..., Made], changes: dict[str, Any], said: str) -> None:
    told, *_ = run(**changes)
    assert told.code == 2 and said in told.err
