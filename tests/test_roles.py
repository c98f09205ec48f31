"""Teachers made of teachers: what tells a cascade that an answer is weak."""

from __future__ import annotations

from typing import Any

import pytest

from kdgen.filters import Length
from kdgen.teachers.base import Reply, Usage
from kdgen.teachers.roles import Cascade


def reply(body: dict[str, Any], text: str = "It is.") -> Reply:
    return Reply(key="k", text=text, finish="stop", usage=Usage(), body=body)


def tokens(*values: float) -> list[dict[str, Any]]:
    return [{"token": "x", "logprob": value} for value in values]


def chat(*values: float) -> dict[str, Any]:
    return {"choices": [{"message": {}, "logprobs": {"content": tokens(*values)}}]}


def response(*values: float) -> dict[str, Any]:
    part = {"type": "output_text", "text": "It is.", "logprobs": tokens(*values)}
    return {"output": [{"type": "reasoning"}, {"type": "message", "content": [part]}]}


@pytest.mark.parametrize("body", [chat, response])
def test_the_mean_logprob_tells_a_weak_answer_in_both_dialects(body: Any) -> None:
    cascade = Cascade(of=("a", "b"), min_logprob=-1)
    assert cascade.unsure(reply(body(-0.5, -0.9)), "task") is None
    assert cascade.unsure(reply(body(-0.5, -3.5)), "task") == "mean logprob -2.00"


@pytest.mark.parametrize("body", [chat(), response(), {"choices": [{"message": {}}]}, {}])
def test_an_answer_without_logprobs_is_weak_where_they_are_asked_for(body: dict[str, Any]) -> None:
    assert Cascade(of=("a", "b"), min_logprob=-1).unsure(reply(body), "task") == "the reply has no logprobs"
    assert Cascade(of=("a", "b")).unsure(reply(body), "task") is None


def test_a_filter_tells_one_too() -> None:
    cascade = Cascade(of=("a", "b"), escalate=(Length(field="output", min_words=3),))
    assert (cascade.unsure(reply({}), "task") or "").startswith("too_short")
    assert cascade.unsure(reply({}, "It is so, I think."), "task") is None
