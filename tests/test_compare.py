"""Answers compared two by two and side by side, and the judges that go by the place of an answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import lines, published, write_seeds

from kdgen.record import digest
from kdgen.teachers.logprobs import options

FIRST = {"contains": "You compare", "reply": '{"reason": "It stands first.", "better": "first"}'}
FAIR = [
    {"regex": "(?s)You compare.*First answer:\nalpha", "reply": '{"reason": "alpha", "better": "first"}'},
    {"regex": "(?s)You compare.*Second answer:\nalpha", "reply": '{"reason": "alpha", "better": "second"}'},
    {"contains": "You compare", "reply": '{"reason": "neither", "better": "tie"}'},
]
ANSWERS = [
    {"nth": nth, "reply": word} for nth, word in enumerate(("gamma {digest}", "alpha {digest}", "beta {digest}"))
]
LISTED = [{"regex": rf"(?s)in order.*Answer {place}:\nalpha", "reply": f'{{"reason": "so", "order": {order}}}'}
          for place, order in ((1, [1, 2, 3]), (2, [2, 1, 3]), (3, [3, 1, 2]))]  # fmt: skip


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"s{number}", "instruction": f"task{number}"} for number in range(count)]


@pytest.fixture
def compared(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Three answers of one model, then `stage`, exported as a ranked list."""

    def run(rules: list[dict[str, Any]], stage: dict[str, Any], count: int = 1, **more: Any) -> Any:
        path = tmp_path / f"{digest(rules)}.jsonl"
        path.write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        write_seeds(tmp_path / "s.jsonl", rows(count))
        first = {"stage": "feedback", "method": "candidates", "prompt": "label/brief", "n": 3, **more.pop("first", {})}
        made = {"stage": "feedback", "method": "compare", "prompt": "feedback/compare", **stage}
        teacher = {"provider": "scripted", "path": path.name, "logprobs": 5}
        recipe = {
            "name": "c",
            "teachers": {"teacher": teacher},
            "stages": [first, made, *more.pop("after", ())],
            "export": {"format": "ranked"},
        }
        (tmp_path / "c.yaml").write_text(json.dumps(recipe))
        return kdgen("run", "./c.yaml", "--seeds", "s.jsonl", "-o", "out", "--ledger", f"{digest(rules)}.db", "--json")

    return run


def test_both_orders_are_asked_and_wins_are_shared(compared: Callable[..., Any], tmp_path: Path) -> None:
    said = compared([*FAIR, *ANSWERS], {})
    assert said.code == 0, said.err
    (row,) = lines(tmp_path / "out/records.jsonl")
    assert [each["scores"]["wins"] for each in row["candidates"]] == [0.25, 1.0, 0.25]
    assert [each["rank"] for each in row["candidates"]] == [2, 1, 2]
    assert [each["pair"] for each in row["meta"]["compared"]] == [[0, 1], [0, 2], [1, 2]]
    assert all(each["consistent"] == [True] for each in row["meta"]["compared"]) and len(row["calls"]) == 9
    report = json.loads(said.out)["judges"]["feedback/compare"]["teacher"]
    assert (report["swap_consistency"], report["first_preferred"], report["ties"]) == (1.0, 0.5, round(2 / 6, 4))


@pytest.mark.parametrize(("over", "pairs"), [("neighbours", [[0, 1], [1, 2]]), ("first", [[0, 1], [0, 2]])])
def test_fewer_pairs(compared: Callable[..., Any], tmp_path: Path, over: str, pairs: list[list[int]]) -> None:
    compared([*FAIR, *ANSWERS], {"over": over})
    (row,) = lines(tmp_path / "out/records.jsonl")
    assert [each["pair"] for each in row["meta"]["compared"]] == pairs and len(row["calls"]) == 3 + 4


def test_what_the_order_decides_is_a_tie(compared: Callable[..., Any], tmp_path: Path) -> None:
    compared([FIRST, *ANSWERS], {})
    (row,) = lines(tmp_path / "out/records.jsonl")
    assert [each["score"] for each in row["candidates"]] == [0.5, 0.5, 0.5]
    assert all(each["consistent"] == [False] for each in row["meta"]["compared"])
    compared([FIRST, *ANSWERS], {"swap": False})
    (row,) = lines(tmp_path / "out/records.jsonl")
    assert [each["score"] for each in row["candidates"]] == [1.0, 0.5, 0.0]


def test_a_judge_that_always_prefers_the_first_is_caught(compared: Callable[..., Any], tmp_path: Path) -> None:
    said = compared([FIRST, *ANSWERS], {}, 6)
    made = json.loads(said.out)
    report = made["judges"]["feedback/compare"]["teacher"]
    assert (report["swap_consistency"], report["first_preferred"], report["pairs"]) == (0.0, 1.0, 18)
    assert made["notices"] == [
        "feedback/compare, judge teacher: it prefers the answer that stands first in 100% of its verdicts",
        "feedback/compare, judge teacher: 0% of its verdicts stay the same when the order is turned round",
    ]
    card = (tmp_path / "out/README.md").read_text()
    assert all(f"note: {notice}" in said.err and notice in card for notice in made["notices"])
    assert not json.loads(compared([*FAIR, *ANSWERS], {}, 6).out)["notices"]
    # Where all ties are no rows, the error says it.
    said = compared([FIRST, *ANSWERS], {}, 6, after=[{"stage": "feedback", "method": "pair"}])
    assert said.code == 5 and "6 tie" in said.err and made["notices"][1] in said.err


def test_an_order_that_cannot_be_read_leaves_the_pair_without_a_verdict(
    compared: Callable[..., Any], tmp_path: Path
) -> None:
    broken = {"regex": "(?s)You compare.*First answer:\nbeta", "reply": "I like beta."}
    said = compared([broken, *FAIR, *ANSWERS], {})
    (row,) = lines(tmp_path / "out/records.jsonl")
    assert [each["score"] for each in row["candidates"]] == [0.0, 1.0, None]
    told = row["meta"]["compared"]
    assert [each["left"] for each in told] == [0.0, None, None] and "invalid_output" in told[1]["unread"][0]
    assert json.loads(said.out)["judges"]["feedback/compare"]["teacher"]["unread"] == round(2 / 3, 4)


def test_the_same_text_ties_unasked(compared: Callable[..., Any], tmp_path: Path) -> None:
    compared([*FAIR, {"reply": "alpha"}], {})
    (row,) = lines(tmp_path / "out/records.jsonl")
    assert [each["score"] for each in row["candidates"]] == [0.5] * 3 and len(row["calls"]) == 3


def told(token: str, **listed: float) -> dict[str, Any]:
    names = {"one": "1", "two": "2", "space_two": " 2", "a": "a", "b": "b"}
    top = [{"token": names[name], "logprob": value} for name, value in listed.items()]
    return {"token": token, "logprob": -0.1, "top_logprobs": top}


def body(*tokens: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"content": [*tokens]}}]}


def test_the_logprobs_of_options() -> None:
    both = options(body(told("1", one=-0.5, two=-1.5, space_two=-2.0)), ("1", "2"))
    assert both["1"] == -0.5 and math.isclose(both["2"], math.log(math.exp(-1.5) + math.exp(-2.0)))
    # The last token that is an option counts; one that is not listed is at most as likely as the least likely listed.
    assert options(body(told("2", two=-3, one=-9), told("1", one=-0.1, a=-5.0), told(".")), ("1", "2")) == {
        "1": -0.1,
        "2": -5.0,
    }
    for nothing in (
        {},
        body(),
        body(told("no", one=-1, two=-2)),
        body(told("1")),
        {"choices": [{"logprobs": None}]},
        {"choices": 3},
    ):
        assert options(nothing, ("1", "2")) == {}
    part = {"output": [{"type": "message", "content": [{"logprobs": [told("2", one=-1, two=-0.5)]}]}]}
    assert options(part, ("1", "2")) == {"1": -1, "2": -0.5}


def test_soft_labels_are_averaged_over_both_orders(compared: Callable[..., Any], tmp_path: Path) -> None:
    soft = {"prompt": "feedback/prefer", "soft": True, "over": "first"}
    rules = [
        {"regex": "(?s)single number.*Answer 1:\ngamma", "reply": "2", "logprobs": [told("2", one=-2.0, two=-0.2)]},
        {"contains": "single number", "reply": "1", "logprobs": [told("1", one=-0.6, two=-0.8)]},
        *ANSWERS,
    ]
    said = compared(rules, soft)
    assert said.code == 0, said.err
    (row,) = lines(tmp_path / "out/records.jsonl")
    share = (1 / (1 + math.exp(1.8)) + 1 - 1 / (1 + math.exp(-0.2))) / 2
    assert row["candidates"][0]["score"] == round(share, 4)
    assert row["meta"]["compared"][0]["by"] == ["logprobs"]
    # Without logprobs of both, the vote counts; a reply that names both is none.
    votes = [{"regex": "(?s)single number.*Answer 1:\ngamma", "reply": "2", "logprobs": [{"token": "2", "logprob": -1}]},
             {"contains": "beta", "reply": "1 is better than 2", "logprobs": [{"token": "2", "logprob": -1}]},
             {"contains": "single number", "reply": "Answer 1.", "logprobs": [{"token": "1", "logprob": -1}]}]  # fmt: skip
    compared([*votes, *ANSWERS], soft)
    (row,) = lines(tmp_path / "out/records.jsonl")
    assert [each["left"] for each in row["meta"]["compared"]] == [0.0, None]
    assert row["meta"]["compared"][0]["by"] == ["votes"]


@pytest.mark.parametrize(
    ("stage", "complaint"),
    [
        ({"soft": True, "ties": True}, "ties have no effect"),
        ({"soft": True, "params": {"logprobs": 1}}, "not asked for enough"),
        (
            {"method": "rank", "prompt": "feedback/order", "rubric": "ultrafeedback", "form": "order", "within": 0.1},
            "within",
        ),
        ({"method": "rank", "prompt": "feedback/rank", "rubric": "additive", "within": 0.1}, "within has no effect"),
    ],
)
def test_settings_without_effect(compared: Callable[..., Any], stage: dict[str, Any], complaint: str) -> None:
    said = compared(ANSWERS, stage)
    assert said.code == 2 and complaint in said.err


ORDER = {"method": "rank", "prompt": "feedback/order", "rubric": "ultrafeedback", "form": "order"}


def test_a_list_is_mapped_back_to_its_candidates(compared: Callable[..., Any], tmp_path: Path) -> None:
    """In whatever order they are shown, alpha is the best one; the rest go by the place they had."""
    said = compared([*LISTED, *ANSWERS], {**ORDER, "times": 6}, 4)
    assert said.code == 0, said.err
    made = lines(tmp_path / "out/records.jsonl")
    for row in made:
        assert [each["output"][:5] for each in row["candidates"]] == ["gamma", "alpha", "beta "]
        assert row["candidates"][1]["score"] == 1.0 and row["candidates"][1]["rank"] == 1
        assert all(sorted(order) == [0, 1, 2] for order in row["meta"]["orders"])
    assert len({tuple(order) for row in made for order in row["meta"]["orders"]}) > 3
    report = json.loads(said.out)["judges"]["feedback/rank"]["teacher"]
    assert report["lists"] == 24 and 0.1 < report["first_on_top"] < 0.6


def test_a_list_by_the_places_alone_is_caught(compared: Callable[..., Any]) -> None:
    rules = [{"contains": "in order", "reply": '{"reason": "so", "order": [1, 2, 3]}'}, *ANSWERS]
    made = json.loads(compared(rules, {**ORDER, "times": 2}, 8).out)
    assert made["notices"] == [
        "feedback/rank, judge teacher: it finds the answer that stands first best in 100% of its lists"
    ]


@pytest.mark.parametrize("order", ["[1, 2]", "[1, 1, 2]", "[0, 1, 2]", "[1, 2, 3, 3]", '"1 2 3"', "[]"])
def test_a_list_that_leaves_one_out_is_none(compared: Callable[..., Any], tmp_path: Path, order: str) -> None:
    said = compared([{"contains": "in order", "reply": f'{{"reason": "so", "order": {order}}}'}, *ANSWERS], ORDER)
    assert said.code == 5 and "no_place_in_format" in said.err


def test_a_second_run_sends_nothing_and_a_new_seed_its_own_share(compared: Callable[..., Any], tmp_path: Path) -> None:
    for stage, each in (({}, 9), (ORDER, 1)):  # its answers are there by then
        rules = [*FAIR, *LISTED, *ANSWERS]
        compared(rules, stage, 4)
        before = published(tmp_path / "out")
        assert json.loads(compared(rules, stage, 4).out)["requests"]["sent"] == 0
        assert published(tmp_path / "out") == before
        assert json.loads(compared(rules, stage, 5).out)["requests"]["sent"] == each
