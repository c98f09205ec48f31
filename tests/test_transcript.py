"""`kdgen label --method baize`: what is a conversation in one reply, what is mended, and what is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

from kdgen.stages.base import bounded
from kdgen.stages.write import Tasks

SEED = {"id": "s", "instruction": "Why does bread rise?"}
GOOD = "[Human] Why does bread rise?\n[AI] Yeast makes gas.\n[Human] And without?\n[AI] Soda does."


@pytest.fixture
def baize(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The records and rejects of one seed."""

    def run(*replies: Any, seed: dict[str, Any] = SEED, sets: tuple[str, ...] = ()) -> tuple[list[Any], list[Any]]:
        write_seeds(tmp_path / "s.jsonl", [seed, {"id": "other", "instruction": "Say so: does all go well?"}])
        rules = ({"contains": "all go well", "reply": "[AI] Yes.\n[Human] Does it?\n[AI] It does."}, *replies)
        asked = ("label", "s.jsonl", "-m", "baize", "-t", script(*rules), "--ledger", "l.db", "-q", "-o", "out")
        said = kdgen(*asked, *[part for each in sets for part in ("--set", each)])
        assert said.code == 0, said.err
        files = (Path(tmp_path / "out" / name).read_text().splitlines() for name in ("records.jsonl", "rejects.jsonl"))
        rows, lost = ([row for line in lines if (row := json.loads(line))["seeds"] == ["s"]] for lines in files)
        return rows, lost

    return run


def test_turns_are_split_and_the_last_round_is_the_task(baize: Callable[..., Any]) -> None:
    ((row,), lost) = baize(GOOD)
    assert not lost and (row["instruction"], row["output"]) == ("And without?", "Soda does.")
    assert [turn["content"] for turn in row["history"]] == ["Why does bread rise?", "Yeast makes gas."]
    assert row["meta"] == {"rounds": 2, "ended": "assistant"} and set(row["writers"]) == {
        "history", "instruction", "output",
    }  # fmt: skip


def test_a_reply_that_goes_on_from_the_question_has_it_put_before(baize: Callable[..., Any]) -> None:
    seed = {**SEED, "input": "In the oven."}
    ((row,), _) = baize(GOOD.partition("\n")[2], seed=seed)
    assert row["history"][0]["content"] == "Why does bread rise?\n\nIn the oven."


def test_what_was_cut_is_left_out_and_whole_rounds_stay(baize: Callable[..., Any]) -> None:
    ((row,), _) = baize({"reply": GOOD + "\n[Human] And w", "finish": "length"})
    assert row["output"] == "Soda does." and row["meta"]["ended"] == "cut"


def test_what_is_left_of_a_cut_reply_may_be_too_little(baize: Callable[..., Any]) -> None:
    (rows, (lost,)) = baize({"reply": GOOD[:-3], "finish": "length"})
    assert not rows and (lost["reason"], lost["detail"]) == ("too_few_rounds", "1 of 2")


def test_a_reply_that_is_no_conversation_is_asked_for_again_with_what_is_wrong(baize: Callable[..., Any]) -> None:
    again = {"contains": "cannot be used: it does not begin with [Human]", "reply": GOOD}
    ((row,), lost) = baize(again, "Here is one:\n" + GOOD)
    assert len(row["calls"]) == 1 and not lost and row["output"] == "Soda does."


def test_a_seed_that_is_a_conversation_is_not_overwritten(baize: Callable[..., Any]) -> None:
    turns = [
        {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"), ("user", "So?"))
    ]
    (rows, (lost,)) = baize(GOOD, seed={"id": "s", "messages": turns})
    assert not rows and lost["reason"] == "has_turns" and lost["calls"] == []


def test_a_list_that_is_longer_than_its_schema_is_read() -> None:
    """`maxItems` keeps a model that is held to the schema from going on; a server that ignores it loses no reply."""
    two = bounded(Tasks, 2)
    assert two.model_json_schema()["properties"]["tasks"]["maxItems"] == 2
    assert len(two.model_validate_json('{"tasks": ["a", "b", "c"]}').model_dump()["tasks"]) == 3
    with pytest.raises(ValueError, match="at least 1 item"):
        two.model_validate_json('{"tasks": []}')
