"""Pairs criticised and revised in rounds: where it ends, what the row says of it, what a later round may cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import lines, published, write_seeds

BAD = '{"critique": "It is short.", "verdict": "revise"}'
GOOD = '{"critique": "It holds.", "verdict": "good"}'
SEED = {"id": "a", "instruction": "How many?", "output": "One."}


@pytest.fixture
def rewrite(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen label --method rewrite`: the manifest, the rows, the rejects."""

    def run(seeds: list[dict[str, Any]], rules: list[dict[str, Any]], *sets: str, method: str = "rewrite") -> Any:
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", seeds)
        knobs = [part for each in sets for part in ("--set", each)]
        asked = ("label", "s.jsonl", "-m", method, "-t", "scripted:r.jsonl", "--ledger", "l.db", "-o", "out")
        said = kdgen(*asked, *knobs, "--json", "-q")
        assert said.code == 0, said.err
        return json.loads(said.out), lines(tmp_path / "out/records.jsonl"), lines(tmp_path / "out/rejects.jsonl")

    return run


def test_rounds_go_on_until_the_critic_is_content_and_stand_in_the_row(rewrite: Callable[..., Any]) -> None:
    rules = [
        {"regex": "(?s)strict and fair.*Answer:\n(One|Two)", "reply": BAD},
        {"contains": "strict and fair", "reply": GOOD},
        {"contains": "One.", "reply": "**Revised answer:**\n\nTwo."},
        {"reply": "Here are all:\n- Three"},
    ]
    made, (row,), _ = rewrite([SEED], rules, "stages.1.chain=true", "export.reasoning=fold")
    assert row["output"] == "Here are all:\n- Three"  # the line of the answer's own stays
    told = row["meta"]["rewrite"]["output"]
    assert [each["output"] for each in told["rounds"]] == ["One.", "Two.", row["output"]]
    assert (told["changed"], told["ended"]) == (True, "good")
    assert made["requests"]["sent"] == len(row["calls"]) == 5 and row["parents"] == row["seeds"] == ["a"]
    assert row["reasoning"] == "Draft: One.\n\nFeedback: It is short.\n\nDraft: Two.\n\nFeedback: It is short."


def test_a_revision_is_not_given_the_reasons_of_what_it_replaces(rewrite: Callable[..., Any]) -> None:
    seed = {**SEED, "reasoning": "There is one, so it is one."}
    rules = [
        {"regex": "(?s)strict and fair.*Answer:\nOne", "reply": BAD},
        {"contains": "strict and fair", "reply": GOOD},
        {"reply": "Two."},
    ]
    good = {**seed, "id": "b", "instruction": "How many moons?", "output": "A single one."}
    _, (changed, same), _ = rewrite([seed, good], rules)
    assert (changed["output"], changed["reasoning"]) == ("Two.", "")
    assert (same["output"], same["reasoning"]) == (good["output"], good["reasoning"])


@pytest.mark.parametrize(
    ("rules", "output", "ended"),
    [
        ([{"contains": "strict and fair", "reply": GOOD}], "One.", "good"),
        ([{"contains": "strict and fair", "reply": BAD}, {"reply": "ONE"}], "One.", "same"),
    ],
)
def test_a_row_without_change_says_so(
    rewrite: Callable[..., Any], rules: list[dict[str, Any]], output: str, ended: str
) -> None:
    _, (row,), _ = rewrite([SEED], rules)
    told = row["meta"]["rewrite"]["output"]
    assert (row["output"], told["changed"], told["ended"], row["writers"]) == (output, False, ended, {})


def test_what_a_lost_round_costs(rewrite: Callable[..., Any]) -> None:
    """The first costs the row; a later one ends the rounds, and what was revised before stays."""
    rules = [
        {"regex": "(?s)strict and fair.*Answer:\n(One|Two)", "reply": BAD},
        {"contains": "One.", "reply": "Two."},
        {"contains": "strict and fair", "reply": "I do not know."},
        {"reply": "", "refusal": "No."},
    ]
    seeds = [SEED, {"id": "b", "instruction": "How few?", "output": "None."}]
    made, (row,), (lost,) = rewrite(seeds, rules)
    assert row["output"] == "Two." and row["meta"]["rewrite"]["output"]["ended"] == "refused"
    assert (lost["id"], lost["reason"]) == ("b", "invalid_output") and len(lost["calls"]) == 2
    assert made["repairs"] == {"teacher": 1} and len(row["calls"]) == 4


def test_a_task_written_anew_is_answered_anew_and_keeps_its_own_input(rewrite: Callable[..., Any]) -> None:
    rules = [
        {"contains": "judge tasks", "reply": BAD},
        {"contains": "You write tasks", "reply": "Name three of them."},
        {"contains": "strict and fair", "reply": GOOD},
        {"contains": "Name three of them.", "reply": "A, B, C."},
    ]
    _, (row,), _ = rewrite([{**SEED, "input": "Birds"}], rules, method="reflect")
    assert (row["instruction"], row["input"], row["output"]) == ("Name three of them.", "Birds", "A, B, C.")
    told = row["meta"]["rewrite"]
    assert told["instruction"]["output"] == "One." and told["instruction"]["rounds"][0]["instruction"] == "How many?"
    assert told["output"]["changed"] is False and row["seeds"] == ["a"] and len(row["calls"]) == 4


def test_a_pair_without_an_answer_is_a_reject(rewrite: Callable[..., Any], tmp_path: Path) -> None:
    stage = "{stage: label, method: rewrite, critique: label/rewrite/critique, revise: label/rewrite/revise}"
    seeds = [SEED, {"id": "b", "instruction": "Why?"}]
    _, rows, (lost,) = rewrite(seeds, [{"reply": GOOD}], f"stages=[{stage}]")
    assert len(rows) == 1 and (lost["reason"], lost["calls"]) == ("nothing_to_rewrite", [])


def test_a_conversation_is_shown_to_the_critic(rewrite: Callable[..., Any]) -> None:
    turns = ["I keep bees.", "How many hives?", "Two. Why no honey?", "It is winter."]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    rules = [{"regex": "(?s)keep bees.*strict and fair|strict and fair.*keep bees", "reply": GOOD}]
    _, (row,), _ = rewrite([{"id": "a", "messages": messages}], rules)
    assert len(row["history"]) == 2 and row["output"] == "It is winter."


def test_resume_and_one_changed_seed(rewrite: Callable[..., Any], tmp_path: Path) -> None:
    rules = [{"contains": "strict and fair", "reply": BAD}, {"reply": "It is {digest}."}]
    seeds = [{"id": str(number), "instruction": f"How many {number}?", "output": "One."} for number in range(3)]
    made, _, _ = rewrite(seeds, rules)
    assert made["requests"]["sent"] == 3 * 6
    files = published(tmp_path / "out", card=True)
    again, _, _ = rewrite(seeds, rules)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == files
    more, _, _ = rewrite([*seeds[:2], {**seeds[2], "output": "Two."}], rules)
    assert more["requests"]["sent"] == 6
