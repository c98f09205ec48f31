"""Candidates of a pool of models, and the pairs and rows that are made of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from server import lines, published, write_seeds

from kdgen.errors import Rejected
from kdgen.export import Kto, Preference, Ranked, Reward
from kdgen.record import Candidate, Message, Record, Reject
from kdgen.stages import Draw
from kdgen.stages.base import Ask
from kdgen.stages.pair import Each, Pair, Unasked

RULES = [
    {"contains": "mute", "reply": "<think>nothing</think>"},
    {"contains": "Keep to this: (cut)", "reply": "On and", "finish": "length"},
    {"regex": r"(?s)Keep to this: (\(\w+\)).*\n(\w+)\Z", "reply": r"\2 by \1 {digest}"},
    {"reply": "{last} {digest}"},
]
PROMPT = """---
about: x
variables: {principle: x, instruction: x}
---
[[system]]
Keep to this: {{ principle.text }}
[[user]]
{{ instruction }}
"""
BANK = "about: x\nsource: x\nentries: [{id: a, text: (alpha)}, {id: b, text: (beta)}, {id: c, text: (gamma)}]\n"
MODELS = ("one", "two", "three", "four", "five")


@pytest.fixture
def drawn(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A run of `feedback/candidates` with a pool of as many models as are named."""
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
    (tmp_path / "p.md").write_text(PROMPT)
    (tmp_path / "b.yaml").write_text(BANK)

    def run(stage: dict[str, Any], seeds: list[dict[str, Any]], models: tuple[str, ...] = MODELS, *more: str) -> Any:
        first = {"stage": "feedback", "method": "candidates", "prompt": "label/brief", "among": models, **stage}
        recipe = {
            "name": "drawn",
            "teachers": {name: {"provider": "scripted", "path": "r.jsonl", "model": name} for name in models},
            "stages": [first, {"stage": "feedback", "method": "each"}],
        }
        (tmp_path / "d.yaml").write_text(json.dumps(recipe))
        write_seeds(tmp_path / "s.jsonl", seeds)
        return kdgen("run", "./d.yaml", "--seeds", "s.jsonl", "-o", "out", "--ledger", "l.db", "--json", "-q", *more)

    return run


def seeds(count: int) -> list[dict[str, Any]]:
    return [{"id": f"s{number}", "instruction": f"task{number}"} for number in range(count)]


def test_a_pool_is_drawn_evenly_and_stably(drawn: Callable[..., Any], tmp_path: Path) -> None:
    """Four of five models a task; a sixth model asks for its own share alone, and so does a new seed."""
    said = drawn({"n": 4, "draw": "random"}, seeds(20))
    assert said.code == 0, said.err
    assert json.loads(said.out)["requests"]["sent"] == 80
    rows = lines(tmp_path / "out/records.jsonl")
    by_task: dict[str, list[str]] = {}
    for row in rows:
        by_task.setdefault(row["instruction"], []).append(row["meta"]["role"])
        assert row["writers"]["output"] == f"scripted:{row['meta']['role']}" and len(row["calls"]) == 4
    assert all(len(set(roles)) == 4 for roles in by_task.values())
    assert {role for roles in by_task.values() for role in roles} == set(MODELS)
    assert len({tuple(roles) for roles in by_task.values()}) > 5
    again = json.loads(drawn({"n": 4, "draw": "random"}, [{"id": "new", "instruction": "new"}, *seeds(20)]).out)
    assert again["requests"]["sent"] == 4
    more = json.loads(drawn({"n": 4, "draw": "random"}, seeds(20), ("six", *MODELS)).out)
    took = sum(row["meta"]["role"] == "six" for row in lines(tmp_path / "out/records.jsonl"))
    assert 0 < took == more["requests"]["sent"] < 20


def test_each_answer_has_a_principle_of_its_own(drawn: Callable[..., Any], tmp_path: Path) -> None:
    said = drawn({"n": 6, "prompt": "./p.md", "principles": "./b.yaml"}, seeds(5), MODELS[:2])
    assert said.code == 0, said.err
    rows = lines(tmp_path / "out/records.jsonl")
    assert len(rows) == 30 and len({tuple(row["output"].split()[:3]) for row in rows}) > 10
    told = {"a": "(alpha)", "b": "(beta)", "c": "(gamma)"}
    for row in rows:
        assert told[row["meta"]["notes"]["principle"]] in row["output"]
    for spec, complaint in (({"prompt": "./p.md"}, "go together"), ({"principles": "./b.yaml"}, "go together")):
        wrong = drawn(spec, seeds(1), MODELS[:2])
        assert wrong.code == 2 and complaint in wrong.err


def test_a_lost_draw_is_a_reject_and_a_task_without_any_is_no_row(drawn: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(BANK.replace("(beta)", "(cut)"))
    some = {"n": 4, "prompt": "./p.md", "principles": "./b.yaml"}
    said = drawn(some, [*seeds(4), {"id": "m", "instruction": "mute"}], MODELS[:2])
    counts = json.loads(said.out)["counts"]
    assert counts["rejects"]["cut"] > 0 and counts["rejects"]["empty_answer"] == 4 - 0
    assert counts["rows"] + sum(counts["rejects"].values()) == 20
    lost = lines(tmp_path / "out/rejects.jsonl")
    assert all(row["calls"] and row["detail"].startswith(("one: ", "two: ")) for row in lost)


def test_the_seeds_own_answer_is_gold_or_the_first_candidate(drawn: Callable[..., Any], tmp_path: Path) -> None:
    given = [{"id": "a", "instruction": "task", "output": "mine"}, {"id": "b", "instruction": "other"}]
    assert drawn({"n": 2}, given, MODELS[:2]).code == 0
    rows = lines(tmp_path / "out/records.jsonl")
    assert [row["meta"].get("gold") for row in rows] == ["mine", "mine", None, None]
    said = json.loads(drawn({"n": 2, "own": "candidate"}, given, MODELS[:2]).out)
    assert said["counts"]["rejects"] == {"no_gold": 1} and said["requests"]["sent"] == 0
    first, *others = lines(tmp_path / "out/records.jsonl")
    assert (first["output"], first["meta"]["role"], first["writers"]) == ("mine", "seed", {})
    assert [row["meta"]["role"] for row in others] == ["one", "two"]


@pytest.mark.parametrize(
    ("stage", "models", "complaint"),
    [
        ({"n": 3, "draw": "random"}, MODELS[:2], "3 different roles"),
        ({"n": 2}, MODELS[:3], "do not reach 3 roles"),
        ({"among": ["one", "one"]}, MODELS[:1], "stands twice"),
        ({"to": "one"}, MODELS[:2], "to has no effect"),
    ],
)
def test_a_pool_that_cannot_work(
    drawn: Callable[..., Any], stage: dict[str, Any], models: tuple[str, ...], complaint: str
) -> None:
    said = drawn(stage, seeds(1), models)
    assert said.code == 2 and complaint in said.err


def test_a_second_run_is_the_same_byte_for_byte(drawn: Callable[..., Any], tmp_path: Path) -> None:
    asked = ({"n": 3, "draw": "random", "prompt": "./p.md", "principles": "./b.yaml"}, seeds(6))
    assert drawn(*asked).code == 0
    before = published(tmp_path / "out")
    said = json.loads(drawn(*asked).out)
    assert said["requests"]["sent"] == 0 and published(tmp_path / "out") == before
    drawn(asked[0], [{**seeds(1)[0], "instruction": "changed"}, *seeds(6)[1:]])
    assert json.loads(drawn(*asked).out)["requests"]["sent"] == 0


def candidates(*scores: float | None, texts: str = "") -> Record:
    made = [
        Candidate(
            output=text, role=f"r{place}", writer=f"w{place}", score=score, scores={"x": score, "y": -(score or 0)}
        )
        for place, (score, text) in enumerate(zip(scores, texts or "abcdefgh", strict=False))
    ]
    return Record(id="r", instruction="I", candidates=tuple(made), seeds=("s",), calls=("k",), meta={"kept": 1})


def made_by(stage: Unasked, record: Record, seed: int = 0) -> list[Any]:
    (job,) = stage.plan((record,), 0, Draw(seed, stage.name))
    return asyncio.run(stage.run(job, cast(Ask, None)))


def pairs(rows: list[Any]) -> list[str]:
    return [row.reason if isinstance(row, Reject) else "".join(each.output for each in row.candidates) for row in rows]


def test_the_best_and_the_worst_are_a_pair_with_their_scores() -> None:
    (row,) = made_by(Pair(), candidates(2, 5, None, 1))
    assert pairs([row]) == ["bd"] and (row.output, row.writers) == ("b", {"output": "w1"})
    assert [each.scores for each in row.candidates] == [{"x": 5.0, "y": -5.0}, {"x": 1.0, "y": -1.0}]
    assert row.meta == {
        "kept": 1,
        "pair": {"pick": "best-worst", "of": 4, "margin": 4.0, "unscored": 1},
    } and row.calls == ("k",)
    assert pairs(made_by(Pair(by="y"), candidates(2, 5, 3, 1))) == ["db"]


def test_an_answer_with_the_text_of_the_best_is_no_rival() -> None:
    for pick in ("best-worst", "best-random"):
        record = candidates(5, 1, 2, texts=["a", "a", "b"])  # type: ignore[arg-type]
        assert pairs(made_by(Pair(pick=pick), record)) == ["ab"]  # type: ignore[arg-type]


def test_what_is_no_pair_says_why() -> None:
    assert pairs(made_by(Pair(), candidates(2, 2, 2))) == ["tie"]
    assert pairs(made_by(Pair(margin=2), candidates(2, 3))) == ["small_margin"]
    assert pairs(made_by(Pair(margin=1), candidates(2, 3))) == ["ba"]
    assert pairs(made_by(Pair(), candidates(1, 3, texts=["so  it is", " so it is\n"]))) == ["same_text"]  # type: ignore[arg-type]
    for record, reason in (
        (candidates(3), "too_few_candidates"),
        (candidates(3, None, None), "unscored"),
        (candidates(), "too_few_candidates"),
    ):
        with pytest.raises(Rejected) as fate:
            made_by(Pair(), record)
        assert fate.value.reason == reason


def test_every_two_are_a_pair_or_a_reject() -> None:
    assert pairs(made_by(Pair(pick="all"), candidates(1, 2, 2, None))) == ["ba", "ca", "tie"]
    rows = made_by(Pair(pick="all"), candidates(1, 2, 3))
    assert len({row.id for row in rows}) == 3


def test_of_equals_one_is_drawn() -> None:
    """Over many records the equals share their places evenly, whatever place they have."""
    found = [pairs(made_by(Pair(), candidates(5, 5, 5, 1, 1), seed))[0] for seed in range(600)]
    for name, share in (("a", 1 / 3), ("b", 1 / 3), ("c", 1 / 3)):
        assert abs(sum(pair[0] == name for pair in found) / 600 - share) < 0.06
    assert abs(sum(pair[1] == "d" for pair in found) / 600 - 0.5) < 0.06


def test_the_rejected_one_is_drawn_from_all_that_are_worse() -> None:
    found = [pairs(made_by(Pair(pick="best-random"), candidates(5, 1, 3, 4), seed))[0] for seed in range(600)]
    assert {pair[0] for pair in found} == {"a"}
    for name in "bcd":
        assert abs(sum(pair[1] == name for pair in found) / 600 - 1 / 3) < 0.06
    far = Pair(pick="best-random", margin=2)
    assert {pairs(made_by(far, candidates(5, 1, 3, 4), seed))[0] for seed in range(60)} == {"ab", "ac"}
    assert pairs(made_by(far, candidates(5, 4, 4))) == ["small_margin"]
    # Another candidate takes over its own share alone.
    more = [pairs(made_by(Pair(pick="best-random"), candidates(5, 1, 3, 4, 2), seed))[0] for seed in range(600)]
    assert all(new in (old, "ae") for old, new in zip(found, more, strict=True))


def test_own_answers_are_preferred_where_there_are_any() -> None:
    record = candidates(1, 5)
    own = record.candidates[0].model_copy(update={"role": "seed"})
    assert pairs(made_by(Pair(pick="own"), record.model_copy(update={"candidates": (record.candidates[1], own)}))) == [
        "ab"
    ]
    with pytest.raises(Rejected):
        made_by(Pair(pick="own"), record)


def test_each_candidate_is_a_row_with_its_label() -> None:
    rows = made_by(Each(good_from=4, bad_to=2), candidates(5, 3, 1, None))
    assert [row.reason if isinstance(row, Reject) else row.meta["label"] for row in rows] == [
        True,
        "neither_good_nor_bad",
        False,
        "unscored",
    ]
    assert all(not row.candidates and row.meta["kept"] == 1 for row in rows if isinstance(row, Record))
    plain = made_by(Each(by="y"), candidates(5, None, texts="aa"))
    assert [row.meta["score"] for row in plain] == [-5.0, 0.0] and len({row.id for row in plain}) == 2
    with pytest.raises(Rejected):
        made_by(Each(), candidates())


PROMPT_OF = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "A"},
    {"role": "assistant", "content": "B"},
]


def test_rows_for_trainers() -> None:
    history = (Message(role="user", content="A"), Message(role="assistant", content="B"))
    asked = [*PROMPT_OF, {"role": "user", "content": "I"}]
    record = candidates(2, 5, 3).model_copy(update={"system": "S", "history": history})
    (pair,) = made_by(Pair(), record)
    row = Preference().row(pair)
    assert row == {
        "prompt": asked,
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "a"}],
        "score_chosen": 5,
        "score_rejected": 2,
        "chosen_model": "w1",
        "rejected_model": "w0",
    }
    assert Preference(system="drop").row(pair)["prompt"] == asked[1:]  # type: ignore[index]
    assert Preference().row(record) is None
    ranked = Ranked().row(record)
    assert ranked == {"prompt": asked, "responses": ["b", "c", "a"], "scores": [5, 3, 2], "models": ["w1", "w2", "w0"]}
    assert Ranked().row(candidates(1, None)) is None
    good, *_ = made_by(Each(good_from=3), record)
    assert Kto().row(good) == {"prompt": asked, "completion": [{"role": "assistant", "content": "a"}], "label": False}
    scored = {"prompt": asked, "completion": [{"role": "assistant", "content": "a"}], "score": 2}
    assert Reward().row(good) == {**scored, "scores": {"x": 2.0, "y": -2.0}}
    for half in (Kto(), Reward()):
        assert half.row(record) is None and half.row(made_by(Each(), candidates(None))[0]) is None


def test_reasoning_of_both_sides_is_told_apart() -> None:
    pair = candidates(5, 2)
    thought = tuple(each.model_copy(update={"reasoning": f"{each.output}!"}) for each in pair.candidates)
    row = Preference(reasoning="apart").row(pair.model_copy(update={"candidates": thought, "output": "a"})) or {}
    assert [row[side][0]["reasoning_content"] for side in ("chosen", "rejected")] == ["a!", "b!"]
    row = Preference(reasoning="think").row(pair.model_copy(update={"candidates": thought, "output": "a"})) or {}
    assert row["rejected"][0]["content"] == "<think>\nb!\n</think>\n\nb"
    assert not any(left == right for left, right in pairwise((row["chosen"], row["rejected"])))
