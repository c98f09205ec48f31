"""Impossible Distillation: pairs of sentences, which of them are asked about, and what each lost pair was lost to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

YES = {"contains": "Does all of this follow", "reply": '{"reason": "So it is.", "follows": true}'}
SAID = (
    "Twice a day the water of the sea climbs, drawn by the moon in the sky.",
    "The moon's pull makes the sea rise two times each day.",
    "The moon lifts the sea.",
)


@pytest.fixture
def kin(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen self --method impossible` on one text: the rows, the rejects by reason, the requests sent."""

    def run(rules: list[dict[str, Any]], *sets: str) -> Any:
        draws = [{"contains": "one sentence of your own", "nth": n, "reply": text} for n, text in enumerate(SAID)]
        name = f"r{len(list(tmp_path.glob('r*')))}.jsonl"
        (tmp_path / name).write_text("".join(json.dumps(rule) + "\n" for rule in [*rules, *draws]))
        write_seeds(tmp_path / "s.jsonl", [{"id": "tides", "text": "The sea rises twice a day."}])
        teachers = ("-t", f"scripted:{name}", "-t", f"judge=scripted:{name}")
        knobs = [part for each in ("stages.0.n=3", *sets) for part in ("--set", each)]
        said = kdgen(
            "self",
            "s.jsonl",
            "-m",
            "impossible",
            *teachers,
            *knobs,
            "-o",
            f"o{name}",
            "--ledger",
            f"{name}.db",
            "--json",
            "-q",
        )
        assert said.code == 0, said.err
        files = (tmp_path / f"o{name}" / file for file in ("records.jsonl", "rejects.jsonl"))
        read = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        return read[0], read[1], json.loads(said.out)["requests"]["sent"]

    return run


def test_a_paraphrase_follows_both_ways_and_the_longer_one_is_asked_of(kin: Callable[..., Any]) -> None:
    one_way = {
        "regex": r"(?s)so:\s*The moon lifts.*follow\?",
        "reply": '{"reason": "No number is told.", "follows": false}',
    }
    (row,), rejects, sent = kin([one_way, YES])
    assert (row["input"], row["output"], row["instruction"]) == (SAID[0], SAID[1], "Say it in other words.")
    assert len(row["calls"]) == 4 and row["seeds"] == ["tides"] and set(row["writers"]) == {"input", "output"}
    assert [(each["reason"], len(each["calls"])) for each in rejects] == [("does_not_follow", 4)] * 2
    assert sent == 3 + 2 * 3


def test_a_summary_is_shorter_and_follows_one_way(kin: Callable[..., Any]) -> None:
    one_way = {
        "regex": r"(?s)so:\s*The moon lifts.*follow\?",
        "reply": '{"reason": "No number is told.", "follows": false}',
    }
    rows, rejects, sent = kin([one_way, YES], "stages.0.task=summary", "filters=[]")
    assert {(row["input"], row["output"]) for row in rows} == {(SAID[0], SAID[2]), (SAID[1], SAID[2])}
    assert [each["reason"] for each in rejects] == ["not_shorter"] and sent == 3 + 2


def test_pairs_over_what_is_kept_are_not_judged(kin: Callable[..., Any]) -> None:
    rows, rejects, sent = kin([YES], "stages.0.keep=1")
    assert len(rows) == 1 and [each["reason"] for each in rejects] == ["over_keep"] * 2 and sent == 3 + 2


def test_a_judge_that_cannot_be_read_loses_the_pair_and_its_call_is_named(kin: Callable[..., Any]) -> None:
    broken = {"regex": r"(?s)so:\s*Twice.*follow\?\s*The moon's", "reply": "yes"}
    rows, rejects, _ = kin([broken, YES])
    (lost,) = rejects
    assert len(rows) == 2 and lost["reason"] == "invalid_output" and len(lost["calls"]) == 3
