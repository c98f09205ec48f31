"""Stages in whole runs on the scripted teacher: what they ask about a seed, what they do not, and what becomes of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import EVOL, FakeWire, Made, make, recipe_file, write_seeds
from server import Answer as Said

from kdgen.stages.answer import Answer
from kdgen.teachers.openai import OpenAI

SELF = {"stage": "expand", "method": "self-instruct", "prompt": "expand/self-instruct", "rounds": 1, "calls": 1}
LABEL = {"stage": "label", "method": "answer", "prompt": "label/answer"}
SAME = '{"verdict": "different"}'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Made, list[Any]]]:
    """Run stages over seeds at a teacher that answers as `replies` says: the run, and the messages that were sent."""
    numbers = itertools.count()

    def go(
        stages: list[dict[str, Any]], seeds: list[dict[str, Any]], *replies: tuple[str, str]
    ) -> tuple[Made, list[Any]]:
        def script(body: dict[str, Any], seen: int) -> Said:
            text = "\n".join(message["content"] for message in body["messages"])
            return Said(next(reply for mark, reply in replies if mark in text))

        wire = FakeWire(script)
        monkeypatch.setattr(OpenAI, "connect", wire.open)
        teacher = {"provider": "openai", "model": "Qwen3-8B", "base_url": "http://127.0.0.1:9/v1"}
        recipe = recipe_file(tmp_path / "r.yaml", {"name": "r", "teachers": {"teacher": teacher}, "stages": stages})
        seed_file = write_seeds(tmp_path / "s.jsonl", seeds)
        made = make("run", recipe, "--seeds", seed_file, folder=tmp_path / f"out{next(numbers)}")
        return made, [json.loads(request.body)["messages"] for request in wire.requests]

    return go


Run = Callable[..., tuple[Made, list[Any]]]
BLANK = [{"id": "d", "text": "Tides rise and fall."}]


@pytest.mark.parametrize("prompt", ["label/answer", "label/brief", "label/rationale"])
def test_a_text_alone_is_what_a_teacher_labels(run: Run, prompt: str) -> None:
    method = "rationale" if prompt == "label/rationale" else "answer"
    seeds = [*BLANK, {"id": "e", "text": "The sea is wide."}, {"id": "f", "instruction": "Say so."}]
    stage = {**LABEL, "method": method, "prompt": prompt}
    made, sent = run([stage], seeds, ("", "It is.\nAnswer: so"))
    assert made.error is None and made.manifest["counts"]["rows"] == 3
    assert [messages[-1]["content"].split("\n")[0] for messages in sent] == [
        "Tides rise and fall.",
        "The sea is wide.",
        "Say so.",
    ]
    rows = made.rows()
    assert [(row["instruction"], row["text"]) for row in rows] == [
        ("Tides rise and fall.", "Tides rise and fall."),
        ("The sea is wide.", "The sea is wide."),
        ("Say so.", ""),
    ]
    assert "instruction" not in rows[0]["writers"]
    said = [json.loads(line)["messages"] for line in made.files["data.jsonl"].splitlines()]
    assert said[0][0] == {"role": "user", "content": "Tides rise and fall."}


HEAD = "---\nabout: x\nvariables:\n  %s: x\n---\n"


@pytest.mark.parametrize(
    ("variable", "body", "seed"),
    [
        ("instruction", "[[user]]\nThe task: {{ instruction }}\n\nDo it.", BLANK[0]),
        ("instruction", "[[system]]\nBe kind.\n[[user]]\n{{ instruction }}", BLANK[0]),
        ("system", "[[system]]\n{{ system }}\n[[user]]\n{% if system == 'x' %}Go on.{% endif %}", {**BLANK[0], "system": "Be kind."}),
        ("input", "[[user]]\n{{ input }}", {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]}),
    ],
)  # fmt: skip
def test_a_prompt_that_shows_nothing_of_a_record_is_not_sent(
    run: Run, tmp_path: Path, variable: str, body: str, seed: dict[str, Any]
) -> None:
    (tmp_path / "p.md").write_text(HEAD % variable + body + "\n")
    full = {"instruction": "Name a river.", "input": "in Asia", "system": "x"}
    stage = {**LABEL, "prompt": "./p.md"}
    made, sent = run([stage], [seed, full] if variable != "system" else [seed], ("", "The Ob."))
    if variable == "system":
        assert sent == [] and made.error is not None and made.error.exit_code == 5 and "empty_prompt" in str(made.error)
        return
    assert len(sent) == 1
    (reject,) = made.rows("rejects.jsonl")
    assert (reject["reason"], reject["calls"]) == ("empty_prompt", []) and "./p.md" in reject["detail"]


def test_a_prompt_without_variables_is_sent_as_it_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("---\nabout: x\n---\n[[user]]\nWrite a poem.\n")
    made, sent = run([{**LABEL, "prompt": "./p.md"}], [{"instruction": "x"}], ("", "The sea, the sea."))
    assert made.error is None and sent == [[{"role": "user", "content": "Write a poem."}]]


def test_a_prompt_that_fails_on_one_record_rejects_that_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text(HEAD % "extra" + "[[user]]\nName a {{ extra.kind.lower() }}.\n")
    seeds = [{"id": "a", "instruction": "x", "kind": "BIRD"}, {"id": "b", "instruction": "y", "kind": None}]
    seeds += [{"id": "c", "instruction": "z", "other": 1}]
    made, sent = run([LABEL, {**LABEL, "prompt": "./p.md"}], seeds, ("bird", "A wren."), ("", "It is so."))
    assert made.error is None and len(sent) == 4, "what the first step paid for is not lost"
    assert [row["output"] for row in made.rows()] == ["A wren."]
    rejects = made.rows("rejects.jsonl")
    assert [row["reason"] for row in rejects] == ["prompt_failed"] * 2 and all(row["calls"] for row in rejects)
    assert all("./p.md cannot be rendered: " in row["detail"] for row in rejects)


@pytest.mark.parametrize("stage", [LABEL, EVOL], ids=["label", "evol"])
def test_a_stage_that_makes_nothing_of_a_record_rejects_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any]
) -> None:
    from kdgen.stages.evol import Evol

    async def nothing(self: object, job: object, ask: object) -> list[Any]:
        return []

    monkeypatch.setattr(Answer if stage is LABEL else Evol, "run", nothing)
    made, _ = run([stage], [{"id": "a", "instruction": "x"}])
    assert made.error is not None and made.error.exit_code == 5 and "1 no_rows" in str(made.error)


def test_an_evolved_follow_up_keeps_its_conversation(run: Run) -> None:
    said = [("user", "Name a river."), ("assistant", "The Ob."), ("user", "How long is it?")]
    seed = {"id": "a", "messages": [{"role": role, "content": text} for role, text in said]}
    made, sent = run(
        [EVOL],
        [seed],
        ("somebody else", "How long is it, and where does it end?"),
        ("First task", SAME),
        ("", "3,650 km."),
    )
    evolve, compare, answer = sent
    before = [{"role": role, "content": text} for role, text in said[:2]]
    assert evolve[1:3] == before and "How long is it?" in evolve[3]["content"]
    assert "Name a river." not in str(compare)
    assert answer[1:3] == before and answer[3]["content"] == "How long is it, and where does it end?"
    (row,) = made.rows()
    assert row["history"] == before
    (line,) = made.files["data.jsonl"].splitlines()
    assert [turn["content"] for turn in json.loads(line)["messages"]] == [
        "Name a river.",
        "The Ob.",
        "How long is it, and where does it end?",
        "3,650 km.",
    ]


@pytest.mark.parametrize(
    ("task", "evolved", "answer"),
    [
        ("写一首诗", "写一首关于春天的诗，每行七个字", "春风又绿江南岸"),
        ("บอกชื่อแม่น้ำ", "บอกชื่อแม่น้ำสามสายในเอเชีย", "แม่น้ำโขง"),
        ("اذكر نهرا", "اذكر ثلاثة أنهار في آسيا", "نهر أوب"),
        ("Explain print(x) を", "Explain print(x) を日本語で", "画面に出す"),
    ],
)
def test_tasks_of_any_script_evolve(run: Run, task: str, evolved: str, answer: str) -> None:
    replies = (("somebody else", evolved), ("First task", SAME), ("", answer))
    made, _ = run([EVOL], [{"instruction": task}], *replies)
    assert [(row["instruction"], row["output"]) for row in made.rows()] == [(evolved, answer)]
    made, sent = run([EVOL], [{"instruction": task}], ("somebody else", f"{task}！"))
    assert "the same task again" in str(made.error) and len(sent) == 1
    made, _ = run([EVOL], [{"instruction": task}], ("somebody else", "……"))
    assert "empty_task" in str(made.error)
    made, _ = run([EVOL], [{"instruction": task}], ("somebody else", evolved), ("First task", SAME), ("", "。。。"))
    assert "empty_answer" in str(made.error)


def test_a_text_alone_is_no_task_to_evolve(run: Run) -> None:
    made, sent = run([EVOL], BLANK)
    assert sent == [] and "empty_prompt" in str(made.error)


def test_blank_tasks_are_no_demonstrations(run: Run) -> None:
    seeds = [*BLANK, {"instruction": "Name a river."}, {"text": "More text."}]
    made, sent = run(
        [SELF, LABEL], seeds, ("numbered", "2. Name a sea.\n3. Draw up a list of birds."), ("", "So be it.")
    )
    assert made.error is None and len(sent) == 3
    assert sent[0][2] == {"role": "assistant", "content": "1. Name a river."}


@pytest.mark.parametrize("seeds", [BLANK, [{"instruction": "word " * 61}]], ids=["blank", "long"])
def test_nothing_to_show_is_the_users_error(run: Run, seeds: list[dict[str, Any]]) -> None:
    made, sent = run([SELF], seeds)
    assert sent == [] and made.error is not None and made.error.exit_code == 2
    assert "no task has 1 to 60 words" in str(made.error) and "raise shown_words" in str(made.error)
