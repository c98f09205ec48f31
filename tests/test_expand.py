"""Expansion: what is drawn and shown, what comes back, and what becomes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import write_seeds

Kdgen, Script = Callable[..., Any], Callable[..., str]


def rows(folder: Path, name: str = "records.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def sets(*each: str) -> list[str]:
    return [part for one in each for part in ("--set", one)]


ANSWERED = [{"id": f"s{number}", "instruction": f"Name river {number}.", "output": "So."} for number in range(12)]
WIDE = ("stages.0.rounds=1", "stages.0.calls=40", "stages.0.novelty=null", "target=null", "dedupe=[]")
PAIR = "### Task 4\nInstruction: Explain {digest} and why\nInput: N/A\nOutput: It is so."


def test_tasks_come_with_their_answers_in_one_call(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [*ANSWERED, {"id": "bare", "instruction": "Has no answer."}])
    asked = ("expand", "s.jsonl", "-m", "alpaca", "-t", script(PAIR), "--json", "-q", "-o", "out")
    made = json.loads(kdgen(*asked, *sets(*WIDE)).out)
    assert made["requests"]["sent"] == 40 and made["counts"]["rows"] > 20
    kept = rows(tmp_path / "out")
    assert all((row["input"], row["output"], len(row["parents"])) == ("", "It is so.", 3) for row in kept)
    assert all(set(row["writers"]) == {"instruction", "output"} for row in kept)
    assert "bare" not in {parent for row in kept for parent in row["parents"]}

    write_seeds(tmp_path / "s.jsonl", [*ANSWERED, {"id": "new", "instruction": "Name a sea.", "output": "So."}])
    more = json.loads(kdgen(*asked, *sets(*WIDE)).out)
    assert 0 < more["requests"]["sent"] <= 18, "a seed more is shown in its own share of the calls"


def test_a_reply_that_nothing_comes_of_is_named_by_its_reject(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    """What was paid for a list that is none, or for an empty answer, can be looked up."""
    write_seeds(tmp_path / "s.jsonl", ANSWERED)
    teacher = script(
        {"contains": "river 3", "reply": "There is no list here."},
        {"contains": "river", "reply": "7. Explain {digest} well to me."},
        {"regex": "Explain [0-7]", "reply": "<think>So it"},
        "It is {digest}.",
    )
    knobs = sets("stages.0.rounds=1", "stages.0.calls=40", "stages.0.novelty=null", "target=null")
    kdgen("expand", "s.jsonl", "-m", "self-instruct", "-t", teacher, "-q", "-o", "out", *knobs)
    lost = [row for row in rows(tmp_path / "out", "rejects.jsonl") if row["reason"] in ("no_list", "empty_answer")]
    assert Counter(each["reason"] for each in lost).keys() == {"no_list", "empty_answer"}
    assert {each["reason"]: len(each["calls"]) for each in lost} == {"no_list": 1, "empty_answer": 2}


def test_nothing_to_show_of_pairs(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"id": "bare", "instruction": "Has no answer."}])
    said = kdgen("expand", "s.jsonl", "-m", "alpaca", "-t", script(PAIR))
    assert said.code == 2 and "no task has 1 to 150 words and an output" in said.err


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (("form=task", "ask_for=2"), "form: task asks for one"),
        (("form=input",), "novelty is of instructions"),
        (("groups=2",), "there is nothing to group by"),
        (("group=kind", "groups=9"), "every group needs a task to show"),
        (("group=kind",), "and a kind, so there is no demonstration"),
        (("group=kind", "groups=2"), "2 groups of kind are needed"),
    ],
)
def test_an_expansion_that_cannot_be(
    kdgen: Kdgen, script: Script, tmp_path: Path, changes: tuple[str, ...], cause: str
) -> None:
    write_seeds(tmp_path / "s.jsonl", ANSWERED)
    changed = sets(*(f"stages.0.{change}" for change in changes))
    said = kdgen("expand", "s.jsonl", "-t", script("9. Explain {digest} to me now"), *changed)
    assert said.code == 2 and cause in said.err, said.err


def test_a_group_is_drawn_as_often_as_it_is_large(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    kinds = ["hard"] * 30 + ["odd"] * 10
    seeds = [
        {"id": f"{kind}-{number}", "instruction": f"Name {kind} river {number}.", "kind": kind}
        for number, kind in enumerate(kinds)
    ]
    write_seeds(tmp_path / "s.jsonl", seeds)
    asked = (
        "expand",
        "s.jsonl",
        "-t",
        script({"contains": "numbered", "reply": "9. Explain {digest} to me now"}, "Yes."),
    )
    changed = sets(
        "stages.0.group=kind",
        "stages.0.calls=80",
        "stages.0.rounds=2",
        "stages.0.novelty=null",
        "target=null",
        "dedupe=[]",
    )
    assert kdgen(*asked, *changed, "-q", "-o", "out").code == 0
    made = rows(tmp_path / "out")
    share = Counter(row["meta"]["group"] for row in made)
    assert 0.6 < share["hard"] / share.total() < 0.9
    for row in made:
        assert {seed.split("-")[0] for seed in row["seeds"]} == {row["meta"]["group"]}


REVIEW = {"id": "r", "instruction": "Is it good or bad?", "input": "Cold soup.", "output": "bad"}


def test_only_variants_that_keep_the_answer_stay(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [REVIEW])
    teacher = script(
        {"contains": '"variants"', "reply": '{"variants": ["The soup was cold.", "Lovely soup.", "Odd soup."]}'},
        {"contains": "Lovely", "reply": '{"label": "good"}'},
        {"contains": "Odd", "reply": "Who knows?"},
        {"reply": '{"label": "Bad."}'},
    )
    said = kdgen(
        "expand",
        "s.jsonl",
        "-m",
        "paraphrase-labelled",
        "-t",
        teacher,
        *sets("stages.0.k=3"),
        "--json",
        "-q",
        "-o",
        "out",
    )
    (kept,) = rows(tmp_path / "out")
    assert (kept["input"], kept["output"], kept["parents"]) == ("The soup was cold.", "bad", ["r"])
    assert (kept["writers"], len(kept["calls"])) == ({"input": "scripted:teacher.rules"}, 2)
    lost = {row["input"]: row["reason"] for row in rows(tmp_path / "out", "rejects.jsonl")}
    assert lost == {"Lovely soup.": "label_not_confirmed", "Odd soup.": "invalid_output"}
    assert json.loads(said.out)["requests"]["sent"] == 4


def test_a_judge_is_shown_both_tasks_and_the_answer(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"id": "r", "instruction": "Name a bird.", "output": "A wren."}])
    teacher = script({"contains": '"variants"', "reply": '{"variants": ["Which bird can you name?"]}'})
    judge = script({"regex": "Name a bird(?s:.)*Which bird(?s:.)*A wren", "reply": '{"verdict": "same"}'}, name="judge")
    (tmp_path / "r.yaml").write_text(
        json.dumps(
            {
                "name": "r",
                "teachers": {
                    role: {"provider": "scripted", "path": spec[9:]}
                    for role, spec in (("teacher", teacher), ("judge", judge))
                },
                "stages": [
                    {
                        "stage": "expand",
                        "method": "paraphrase",
                        "prompt": "expand/paraphrase",
                        "k": 1,
                        "judge": "judge",
                        "compare": "expand/paraphrase/compare",
                    }
                ],
            }
        )
    )
    assert kdgen("run", "./r.yaml", "--seeds", "s.jsonl", "-q", "-o", "out").code == 0
    (kept,) = rows(tmp_path / "out")
    assert (kept["instruction"], kept["output"]) == ("Which bird can you name?", "A wren.")


def test_an_answer_that_nothing_checks_is_refused(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [REVIEW])
    said = kdgen("expand", "s.jsonl", "-m", "paraphrase", "-t", script(), *sets("stages.0.compare=null"))
    assert said.code == 2 and "nothing checks that the answer stays right" in said.err


def test_two_parents_and_a_pair_asked_again_only_where_it_drew_the_new_seed(
    kdgen: Kdgen, script: Script, tmp_path: Path
) -> None:
    teacher = script({"contains": "fuses them", "reply": "Do {digest} within one week at {digest}."}, "Done.")
    seeds = [{"id": f"s{number}", "instruction": f"Plan the {number}th of {number} days."} for number in range(20)]
    asked = ("expand", "s.jsonl", "-m", "fuse", "-t", teacher, "--json", "-q", "-o", "out")
    changed = sets("stages.0.rounds=1", "stages.0.novelty=null", "target=null", "dedupe=[]")
    write_seeds(tmp_path / "s.jsonl", seeds)
    made = json.loads(kdgen(*asked, *changed).out)
    assert made["counts"]["rows"] == 32
    for row in rows(tmp_path / "out"):
        assert len(set(row["seeds"])) == 2 and len(row["calls"]) == 2
    first = (tmp_path / "out/data.jsonl").read_bytes()
    again = json.loads(kdgen(*asked, *changed).out)
    assert again["requests"]["sent"] == 0 and (tmp_path / "out/data.jsonl").read_bytes() == first

    write_seeds(tmp_path / "s.jsonl", [*seeds, {"id": "new", "instruction": "Plan one more day."}])
    more = json.loads(kdgen(*asked, *changed).out)
    assert 0 < more["requests"]["sent"] <= 16, "2 of 21 seeds are drawn, so about 3 of 32 pairs change"


def scored(first: int, second: int) -> str:
    return json.dumps({"reason": "So.", "first": first, "second": second})


HARD = [{"id": name, "instruction": f"Explain the {name} matter.", "kind": name} for name in ("easy", "hard", "odd")]


def test_a_task_is_hard_where_the_student_falls_behind_in_both_orders(
    kdgen: Kdgen, script: Script, tmp_path: Path
) -> None:
    write_seeds(tmp_path / "s.jsonl", HARD)
    teacher = script(
        {"regex": "referee(?s:.)*no answer", "reply": scored(5, 5)},
        {"regex": "referee(?s:.)*easy(?s:.)*First answer:\nGOOD", "reply": scored(8, 5)},
        {"regex": "referee(?s:.)*easy(?s:.)*First answer:\nPOOR", "reply": scored(8, 5)},
        {"regex": "referee(?s:.)*First answer:\nGOOD", "reply": scored(9, 3)},
        {"regex": "referee(?s:.)*First answer:\nPOOR", "reply": scored(4, 8)},
        {"contains": "numbered", "reply": "2. Explain {digest} in all detail"},
        "GOOD",
    )
    student = script({"contains": "odd", "refusal": "No."}, "POOR", name="student")
    changed = sets("stages.1.rounds=1", "stages.1.calls=2", "stages.1.novelty=null", "target=null", "dedupe=[]")
    asked = ("expand", "s.jsonl", "-m", "hard-cases", "-t", teacher, "-t", f"student={student}", *changed)
    said = kdgen(*asked, "-q", "-o", "out")
    assert said.code == 0, said.err
    made = rows(tmp_path / "out")
    assert len(made) == 2 and all(row["seeds"] == ["hard"] and row["output"] == "GOOD" for row in made)
    lost = {row["id"]: (row["reason"], row["detail"]) for row in rows(tmp_path / "out", "rejects.jsonl")}
    assert lost["easy"] == ("not_hard", "teacher 6.5, student 6.5"), "what stands first gains nothing by it"
    assert lost["odd"] == ("not_hard", "teacher 5, student 5")

    assert kdgen(*asked, *sets("stages.0.gap=0"), "-q", "-o", "all").code == 0
    assert {seed for row in rows(tmp_path / "all") for seed in row["seeds"]} == {"easy", "hard", "odd"}


def test_a_text_between_two_classes_is_labelled_unseen(kdgen: Kdgen, script: Script, tmp_path: Path) -> None:
    seeds = [
        {
            "id": f"{kind}{number}",
            "instruction": "Is it good or bad?",
            "input": f"It was {kind}, {number}.",
            "output": kind,
        }
        for kind in ("good", "bad")
        for number in range(4)
    ]
    write_seeds(tmp_path / "s.jsonl", seeds)
    teacher = script({"contains": "Write a new text", "reply": "Well, {digest} but {digest}."}, "good")
    changed = sets("stages.0.rounds=1", "target=null", "dedupe=[]")
    assert kdgen("expand", "s.jsonl", "-m", "boundary", "-t", teacher, *changed, "-q", "-o", "out").code == 0
    made = rows(tmp_path / "out")
    assert len(made) == 32 and {row["output"] for row in made} == {"good"}
    assert {row["meta"]["group"] for row in made} == {"good", "bad"}, "what was mixed is kept beside the label"
    for row in made:
        assert sorted(seed[:-1] for seed in row["seeds"]) == ["bad", "bad", "good", "good"]
        assert row["instruction"] == "Is it good or bad?" and row["meta"]["banks"]["share"]
