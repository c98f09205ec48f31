"""Several draws a task: what is kept, why the rest is not, in one batch pass, the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import published, write_seeds

RULES = [
    {"nth": 0, "reply": "Say so.\nAnswer: 6"},
    {"nth": 1, "reply": "Four each, {digest}.\nAnswer: 8"},
    {"nth": 2, "reply": "Count them.\nAnswer: 8 legs"},
    {"reply": "<think>x</think>"},
]


@pytest.fixture
def sample(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
    write_seeds(tmp_path / "s.jsonl", [{"id": "a", "instruction": "How many legs have two cats?", "output": "8"}])

    def run(*sets: str, out: str = "out", method: str = "best-of-n") -> Any:
        knobs = [part for each in sets for part in ("--set", each)]
        asked = ("label", "s.jsonl", "-m", method, "-t", "scripted:r.jsonl", "--ledger", f"{out}.db", "-o", out)
        return kdgen(*asked, *knobs, "--json", "-q")

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("pick", "kept", "lost"),
    [
        ("vote", {1: True}, {"outvoted": 1, "over_keep": 1, "empty_answer": 1}),
        ("gold", {1: True}, {"disagrees_with_gold": 1, "over_keep": 1, "empty_answer": 1}),
        ("all", {0: False}, {"over_keep": 2, "empty_answer": 1}),
    ],
)
def test_what_is_kept_and_why_the_rest_is_not(
    sample: Callable[..., Any], tmp_path: Path, pick: str, kept: dict[int, bool], lost: dict[str, int]
) -> None:
    said = sample(f"stages.0.pick={pick}")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert made["counts"]["rejects"] == lost and made["requests"]["sent"] == 4
    rows = lines(tmp_path / "out/records.jsonl")
    assert {row["meta"]["nth"]: row["meta"]["agrees"] for row in rows} == kept
    assert all(len(row["calls"]) == 1 and row["seeds"] == ["a"] for row in rows)
    assert all(len(row["calls"]) == 1 for row in lines(tmp_path / "out/rejects.jsonl"))
    before = published(tmp_path / "out", card=True)
    again = json.loads(sample(f"stages.0.pick={pick}").out)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == before


def test_more_draws_ask_only_for_more(sample: Callable[..., Any]) -> None:
    assert json.loads(sample("stages.0.n=3").out)["requests"]["sent"] == 3
    assert json.loads(sample("stages.0.n=4").out)["requests"]["sent"] == 1


@pytest.mark.parametrize(
    ("sets", "cause"),
    [
        (("stages.0.pick=judge",), "a judge and its prompt go together"),
        (("stages.0.grade=label/grade",), "a judge and its prompt go together"),
        (("stages.0.least_score=3",), "least_score has no effect on pick: vote"),
        (("stages.0.pick=all", "stages.0.least_share=0.3"), "least_share has no effect on pick: all"),
        (("stages.0.keep=9",), "9 of 4 draws cannot be kept"),
    ],
)
def test_an_option_without_effect_is_an_error(sample: Callable[..., Any], sets: tuple[str, ...], cause: str) -> None:
    said = sample(*sets)
    assert said.code == 2 and cause in said.err


def test_all_draws_go_into_one_batch(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    """A draw that waits does not keep the others from being handed in: one file, not one a draw."""
    write_seeds(tmp_path / "s.jsonl", [{"id": "a", "instruction": "How many?"}, {"id": "b", "instruction": "Why?"}])
    sets = ("teachers.teacher.mode=batch", f"teachers.teacher.batch_dir={tmp_path / 'files'}")
    asked = ("label", "s.jsonl", "-m", "best-of-n", "-t", "vllm:Qwen3-8B")
    said = kdgen(*asked, *[part for each in sets for part in ("--set", each)], "--no-wait", "-q")
    assert said.code == 75, said.err
    (file,) = (tmp_path / "files").glob("*.jsonl")
    assert len(lines(file)) == 8
