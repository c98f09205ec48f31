"""Seed-free tasks: the user's turn is the model's, draws are told apart, and a teacher that cannot is refused in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdgen.errors import UserError
from kdgen.teachers.base import Call, Params
from kdgen.teachers.calls import Raw
from kdgen.teachers.chat import read_completion
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.vllm import Vllm

ASKED = ("expand", "-m", "magpie", "-o", "out", "--ledger", "l.db", "--json", "-q")
TASK = {"open": True, "reply": "{digest} and {digest} are what to whom in {digest}?"}
URL = "http://127.0.0.1:9/v1"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_the_target_is_the_number_of_rows_and_a_higher_one_asks_for_the_rest(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    asked = (*ASKED, "-t", script(TASK, "So it is."), "--set", "stages.0.novelty=null", "--set", "dedupe=[]")
    first = json.loads(kdgen(*asked, "--target", 4).out)
    assert (first["counts"]["seeds"], first["counts"]["rows"], first["requests"]["sent"]) == (0, 4, 8)
    assert first["hashes"]["seeds"] == {} and first["stopped"] == "target"
    made = rows(tmp_path / "out")
    assert [row["meta"]["nth"] for row in made] == [0, 1, 2, 3] and len({row["instruction"] for row in made}) == 4
    again = json.loads(kdgen(*asked, "--target", 4).out)
    assert again["requests"]["sent"] == 0 and rows(tmp_path / "out") == made
    more = json.loads(kdgen(*asked, "--target", 6).out)
    assert more["counts"]["rows"] == 6 and more["requests"]["from_ledger"] == 8
    assert rows(tmp_path / "out")[:4] == made


def test_a_system_message_steers_and_is_not_in_the_row(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "who.yaml").write_text("about: a\nsource: b\nentries:\n  - {id: sums, text: You help with sums.}\n")
    rules = script(
        {**TASK, "contains": "You help with sums."}, {"contains": "help with sums", "reply": "leaked"}, "Nine."
    )
    said = kdgen(*ASKED, "-t", rules, "--target", 2, "--set", f"stages.0.banks.system={tmp_path}/who.yaml")
    assert said.code == 0, said.err
    for row in rows(tmp_path / "out"):
        assert (row["output"], row["system"], row["meta"]["banks"]) == ("Nine.", "", {"system": "sums"})


def test_tags_are_a_stage(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> None:
    grade = {"regex": "How well does it say", "reply": '{"reason": "clear", "score": 4}'}
    stages = (
        "stages=[{stage: expand, method: magpie, prompt: expand/magpie}, {stage: curate, method: grade, prompt: "
        "expand/magpie/quality, name_as: input_quality}, {stage: label, method: answer, prompt: label/plain}]"
    )
    said = kdgen(*ASKED, "-t", script(TASK, grade, "Nine."), "--target", 2, "--set", stages)
    assert said.code == 0, said.err
    assert all(row["meta"]["grades"]["input_quality"]["score"] == 4 for row in rows(tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-t", "openai:gpt-6-luna", "--ack-terms", "openai.api@2026-11-24"), "cannot write a user's turn"),
        (("-t", "anthropic:claude-haiku-4-5"), "cannot write a user's turn"),
        (("-t", f"openai:Qwen3-8B@{URL}"), "--set teachers.teacher.template=chatml"),
        (("-t", f"vllm:Qwen3-8B@{URL}"), "--set teachers.teacher.template=chatml"),
        (("-t", f"openai:Qwen3-8B@{URL}", "--set", "teachers.teacher.template=chatlm"), "did you mean chatml"),
        (("-t", "openai:gpt-6-luna", "--set", "teachers.teacher.template=chatml"), "no effect without a base_url"),
    ],
)
def test_a_teacher_that_cannot_is_refused_before_anything_is_sent(
    kdgen: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ended = kdgen(*ASKED, *arguments)
    assert ended.code == 2 and said in ended.err and not (tmp_path / "l.db").exists()


def test_seeds_where_none_are_taken_and_none_where_they_are(
    kdgen: Callable[..., Any], script: Callable[..., str]
) -> None:
    given = kdgen("expand", "general", "-m", "magpie", "-t", script())
    assert given.code == 2 and "seeds have no effect" in given.err
    cut = kdgen("expand", "-m", "magpie", "--limit", "3", "-t", script())
    assert cut.code == 2 and "there are no seeds on which seeds.limit could have an effect" in cut.err
    lacking = kdgen("expand", "-t", script())
    assert lacking.code == 2 and "names no seeds" in lacking.err
    idle = kdgen("label", "general", "-t", f"openai:Qwen3-8B@{URL}", "--set", "teachers.teacher.template=chatml")
    assert idle.code == 2 and "template has no effect" in idle.err


@pytest.mark.parametrize("spec", [OpenAI, Vllm])
def test_what_a_server_is_sent(spec: type[OpenAI] | type[Vllm]) -> None:
    call = Call([{"role": "system", "content": "Be."}], Params(stop=("\n",), seed=1, logprobs=2), None, 3, True)
    request = spec(model="m", base_url=URL, template="chatml").request(call)
    body = json.loads(request.body)
    assert request.wire == "openai.completions" and "messages" not in body
    assert body["prompt"] == "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n"
    assert (body["stop"], body["seed"], body["logprobs"]) == (["\n", "<|im_end|>"], 4, 2)
    with pytest.raises(UserError, match="no place for a system message"):
        spec(model="m", base_url=URL, template="<|user|>").request(call)


def test_a_completion_is_read_as_any_reply_is() -> None:
    raw = b'{"object": "text_completion", "choices": [{"text": "Why?", "finish_reason": "%s"}], "usage": {"prompt_tokens": 3}}'
    read = [read_completion("k", "l", Raw(raw % end, {})) for end in (b"stop", b"length", b"abort")]
    assert [(reply.text, reply.finish, reply.usage.input) for reply in read] == [
        ("Why?", "stop", 3), ("Why?", "length", 3), ("Why?", "unknown", 3),
    ]  # fmt: skip
