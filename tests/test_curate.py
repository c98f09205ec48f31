"""Curation from meta-information: quotas, labels, draws, and conversations whose user sees no answer key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import Answer, Server, last, write_seeds

LABELS = [
    {"id": name, "instruction": "Is it warm or cold?", "output": name, "text": "weather report"}
    for name in ("warm", "cold")
]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    def write(*rules: dict[str, Any]) -> str:
        (tmp_path / "rules.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
        return "scripted:rules.jsonl"

    return write


def test_classes_are_even_and_each_example_has_draws_of_its_own(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    write_seeds(tmp_path / "s.jsonl", LABELS)
    teacher = script(
        {"regex": "(?s)You label texts.*sun", "reply": '{"label": "Warm"}'},
        {"contains": "You label texts", "reply": '{"label": "cold."}'},
        {"contains": '"warm"', "reply": "The sun stood high {digest} {digest}."},
        {"reply": "Snow fell on the fields {digest} {digest}."},
    )
    asked = ("curate", "s.jsonl", "-m", "by-label", "-t", teacher, "--set", "stages.0.n=20", "--set", "dedupe=[]")
    made = json.loads(kdgen(*asked, "--json", "-q", "-o", "out").out)
    rows = records(tmp_path / "out")
    assert Counter(row["output"] for row in rows) == {"warm": 20, "cold": 20}
    assert len({row["meta"]["banks"]["persona"] for row in rows}) > 8
    assert all(set(row["writers"]) == {"input"} and len(row["calls"]) == 2 for row in rows)
    assert made["requests"]["sent"] == 80

    more = json.loads(kdgen(*asked, "--set", "stages.0.n=21", "--json", "-q", "-o", "out").out)
    assert more["requests"]["sent"] == 4, "one more example a class costs one more example a class"


def test_a_label_of_marks_is_confirmed_by_its_marks(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    """The judge says + of everything: no example of - is kept, nor one of -1 where it says 1."""
    ask = "Is the review good (+, 1) or bad (-, -1)?"
    write_seeds(tmp_path / "s.jsonl", [{"instruction": ask, "output": label} for label in ("+", "-", "1", "-1")])
    teacher = script(
        {"regex": "(?s)You label texts.*number", "reply": '{"label": "1"}'},
        {"contains": "You label texts", "reply": '{"label": "+"}'},
        {"regex": '"-?1"', "reply": "A number of fine days went by {digest} {digest}."},
        {"reply": "Snow fell on the fields {digest} {digest}."},
    )
    knobs = ("--set", "stages.0.n=2", "--set", "dedupe=[]")
    kdgen("curate", "s.jsonl", "-m", "by-label", "-t", teacher, *knobs, "-q", "-o", "out")
    assert {row["output"] for row in records(tmp_path / "out")} == {"+", "1"}


def test_every_branch_has_its_quota_or_says_what_is_missing(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"id": "a", "text": "algebra"}, {"id": "b", "text": "botany"}])
    teacher = script(
        {"contains": 'Divide "botany"', "reply": '{"items": ["leaves", "Leaves", "roots"]}'},
        {"contains": "Divide", "reply": '{"items": ["part {digest}", "more {digest}", "rest {digest}"]}'},
        {"contains": "exercise", "reply": "Name rule {digest} {digest} {digest} {digest} of it."},
        {"reply": "It is {digest}."},
    )
    sets = [part for each in ("stages.0.ask_for=3", "stages.1.ask_for=3", "dedupe=[]") for part in ("--set", each)]
    said = kdgen("curate", "s.jsonl", "-m", "taxonomy", "-t", teacher, *sets, "--json", "-q", "-o", "out")
    made = json.loads(said.out)
    rows = records(tmp_path / "out")
    assert Counter(row["meta"]["path"][0] for row in rows) == {"algebra": 3 * 3 * 2, "botany": 2 * 3 * 2}
    assert Counter(tuple(row["meta"]["path"]) for row in rows).most_common(1)[0][1] == 2
    assert all(len(row["meta"]["path"]) == 3 and len(row["calls"]) == 4 for row in rows)
    assert made["counts"]["rejects"] == {"duplicate": 1, "missing_item": 1}


def test_the_user_never_sees_the_answer_key_and_the_assistant_only_the_conversation(
    kdgen: Callable[..., Any], tmp_path: Path
) -> None:
    seed = {"id": "s", "instruction": "Ask about the SECRET-PLAN.", "output": "ANSWER-KEY", "input": "PRIVATE-INPUT"}
    write_seeds(tmp_path / "s.jsonl", [seed])
    with Server(lambda body, seen: Answer(f"said {len(last(body))} and {last(body)[-9:]}")) as server:
        teachers = [part for role in ("teacher", "user") for part in ("-t", f"{role}=openai:Qwen3-8B@{server.url}")]
        said = kdgen("curate", "s.jsonl", "-m", "dialogue", *teachers, "-q", "-o", "out")
    assert said.code == 0, said.err
    bodies = [body.decode() for body in server.bodies]
    assert not any("ANSWER-KEY" in body for body in bodies)
    by_user = [body for body in bodies if "what a person says" in body]
    assert len(by_user) * 2 == len(bodies)
    assert not any("SECRET-PLAN" in body or "PRIVATE-INPUT" in body for body in bodies if body not in by_user)
    (row,) = records(tmp_path / "out")
    assert 3 <= row["meta"]["rounds"] <= 7 and len(row["history"]) == 2 * row["meta"]["rounds"] - 2
    assert set(row["writers"]) == {"history", "instruction", "output"}
    assert len(row["calls"]) == len(bodies)


@pytest.mark.parametrize(
    ("sets", "cause"),
    [
        (("stages.0.least=8",), "least (8) is more than most (7)"),
        (("stages.0.user=nobody",), "nobody"),
    ],
)
def test_a_dialogue_that_cannot_be(
    kdgen: Callable[..., Any], tmp_path: Path, sets: tuple[str, ...], cause: str
) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"instruction": "x"}])
    said = kdgen("curate", "s.jsonl", "-m", "dialogue", *[part for each in sets for part in ("--set", each)])
    assert said.code == 2 and cause in said.err


def test_the_user_ends_where_it_may(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", [{"id": str(number), "instruction": f"Ask {number}."} for number in range(12)])
    teacher = script(
        {"contains": "write only [END]", "reply": "[END]"},
        {"contains": "what a person says", "reply": "What about {digest}?"},
        {"reply": "It is {digest}."},
    )
    said = kdgen("curate", "s.jsonl", "-m", "dialogue", "-t", teacher, "-t", f"user={teacher}", "-q", "-o", "out")
    assert said.code == 0, said.err
    ends = Counter((row["meta"]["rounds"], row["meta"]["ended"]) for row in records(tmp_path / "out"))
    assert ends.total() == 12 and set(ends) <= {(3, "user"), (3, "rounds")} and ends[3, "user"] > 4
