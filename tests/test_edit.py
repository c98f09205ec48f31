"""Wrong answers mended: the edits say how, and what is no small correction is a reject."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import outcome, published, write_seeds

from kdgen.export import Edits
from kdgen.record import Candidate, Record, digest
from kdgen.solutions import changed, edits

WRONG = {"id": "a", "instruction": "What is 6 * 7?", "output": "6 * 7 is 48.\nAnswer: 48", "final": "42"}
STAGE = "{stage: feedback, method: edit, prompt: feedback/edit%s}"


@pytest.fixture
def edit(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen feedback --method edit` with the stage alone: the manifest, the rows, the rejects, the data."""

    def run(options: str, rules: list[dict[str, Any]], *seeds: dict[str, Any], code: int = 0) -> Any:
        script = f"{digest(rules)}.jsonl"  # rules and replies are kept by the name of the file
        (tmp_path / script).write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", list(seeds) or [WRONG])
        teachers = f"teachers={{teacher: {{provider: scripted, path: {tmp_path / script}, max_tokens: 99}}}}"
        said = kdgen("feedback", "s.jsonl", "-m", "edit", "--set", f"stages=[{STAGE % options}]", "--set", teachers,
                     "--ledger", f"{script}.db", "-o", "out", "--json", "-q")  # fmt: skip
        return outcome(said, tmp_path / "out", code, "records", "rejects", "data")

    return run


TEXTS = st.text("ab 1.\n四川é", max_size=40)


@given(TEXTS, TEXTS)
def test_edits_lead_from_one_text_to_the_other(old: str, new: str) -> None:
    made = edits(old, new)
    assert "".join(old[slice(*each.old)] for each in made) == old
    assert "".join(new[slice(*each.new)] for each in made) == new
    for each in made:
        before, after = old[slice(*each.old)], new[slice(*each.new)]
        assert {"keep": before == after, "insert": not before, "delete": not after, "replace": bool(before and after)}[
            each.op
        ]
    assert 0 <= changed(old, new, made) <= 1 and changed(old, old, edits(old, old)) == 0


def test_how_much_is_changed() -> None:
    assert changed("a b c d", "a b c e", edits("a b c d", "a b c e")) == 0.25
    assert changed("a b", "c d", edits("a b", "c d")) == 1
    assert changed("四川省", "四川市", edits("四川省", "四川市")) == pytest.approx(1 / 3)


def test_a_mended_answer_is_a_pair_with_its_edits(edit: Callable[..., Any]) -> None:
    rules = [{"regex": "(?s)right answer is: 42.*48", "reply": "Corrected answer:\n6 * 7 is 42.\nAnswer: 42"}]
    made, (row,), _, (data,) = edit(", gold: final", rules)
    good, bad = (Candidate(**each) for each in row["candidates"])
    assert (good.output, bad.output) == ("6 * 7 is 42.\nAnswer: 42", WRONG["output"])
    assert row["output"] == good.output and (bad.role, good.writer) == ("seed", row["writers"]["output"])
    assert [each["op"] for each in row["meta"]["edit"]["ops"]] == ["keep", "replace", "keep", "replace"]
    assert row["meta"]["agrees"] and made["requests"]["sent"] == 1
    assert (data["bad"], data["good"]) == (bad.output, good.output)
    for op, *spans in data["edit_ops"]:
        before, after = data["bad"][spans[0] : spans[1]], data["good"][spans[2] : spans[3]]
        assert (before, after) == ("48", "42") if op == "replace" else before == after
    for side, weight in (("bad", -0.5), ("good", 1.0)):
        spans = data["token_rewards"][side]
        assert "".join(data[side][start:end] for start, end, _ in spans) == data[side]
        assert {data[side][start:end]: value for start, end, value in spans if value} == {
            "48" if weight < 0 else "42": weight
        }


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("6 * 7 is 48. \nAnswer: 48!", "unchanged"),
        ("Six times seven makes forty-two, which one sees by adding.\nAnswer: 42", "new_answer"),
        ("6 * 7 is 43.\nAnswer: 43", "disagrees_with_gold"),
        ("...", "invalid_output"),
    ],
)
def test_what_is_no_small_correction_is_a_reject(edit: Callable[..., Any], reply: str, reason: str) -> None:
    fine = {**WRONG, "id": "z", "instruction": "What is it?"}
    rules = [{"contains": "What is it", "reply": "6 * 7 is 42.\nAnswer: 42"}, {"reply": reply}]
    _, (row,), (lost,), _ = edit(", gold: final", rules, WRONG, fine)
    assert row["seeds"] == ["z"] and (lost["reason"], len(lost["calls"])) == (reason, 1)


def test_what_is_right_or_empty_costs_nothing(edit: Callable[..., Any]) -> None:
    seeds = [WRONG, {**WRONG, "id": "b", "final": 48}, {"id": "c", "instruction": "Why?"}]
    made, (row,), lost, _ = edit(", gold: final", [{"reply": "6 * 7 is 42.\nAnswer: 42"}], *seeds)
    assert [each["reason"] for each in lost] == ["already_right", "nothing_to_edit"] and made["requests"]["sent"] == 1
    assert row["seeds"] == ["a"]


def test_without_a_known_answer_the_bound_alone_decides(edit: Callable[..., Any]) -> None:
    _, (row,), _, _ = edit("", [{"reply": "6 * 7 is 43.\nAnswer: 43"}])
    assert "agrees" not in row["meta"] and row["meta"]["edit"]["changed"] == pytest.approx(2 / 9, abs=1e-4)


def test_resume_and_one_changed_seed(edit: Callable[..., Any], tmp_path: Path) -> None:
    seeds = [{**WRONG, "id": str(number), "instruction": f"What is it, {number}?"} for number in range(4)]
    rules = [{"reply": "6 * 7 is 42.\nAnswer: 42"}]
    edit("", rules, *seeds)
    files = published(tmp_path / "out", card=True)
    again, _, _, _ = edit("", rules, *seeds)
    assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == files
    more, _, _, _ = edit("", rules, *seeds[:3], {**seeds[3], "output": "6 * 7 is 49.\nAnswer: 49"})
    assert more["requests"]["sent"] == 1


def test_a_record_without_edits_has_no_place() -> None:
    assert Edits().row(Record(id="a", instruction="x", output="y", meta={"edit": {"ops": []}})) is None


def test_an_answer_in_another_form_is_not_wrong(edit: Callable[..., Any]) -> None:
    half = {**WRONG, "instruction": "What is 1 - 0.5?", "output": "It is half.\nAnswer: \\frac{1}{2}", "final": "0.5"}
    rules = [{"reply": "It is half.\nAnswer: 0.5"}]
    assert "already_right" in edit(", gold: final, most: 1, verifier: {type: math}", rules, half, code=5)
    made, *_ = edit(", gold: final, most: 1", rules, half)
    assert made["requests"]["sent"] == 1
