"""Reward models: what is asked of a server, what is read of it, and what a row says of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import Answer, Server, outcome, published, write_seeds

from kdgen.errors import Rejected
from kdgen.prompts import load_prompt
from kdgen.record import Candidate, Record, Reject
from kdgen.resources import find
from kdgen.stages.reward import RewardModel
from kdgen.teachers.base import Reply, Usage

STAGE = "{stage: feedback, method: reward, prompt: feedback/reward, to: reward%s}"
SEEDS = [{"id": str(n), "instruction": f"Name {n}.", "output": "x" * (n + 1), "system": "Be kind."} for n in range(3)]


def classes(body: dict[str, Any], seen: int) -> Answer:
    """What vLLM says: the number of letters of the answer, as the one class of a reward model."""
    value = float(len(body["messages"][-1]["content"]))
    one = {"index": 0, "label": "LABEL_0", "probs": [value], "num_classes": 1}
    said = {"id": "classify-1", "object": "list", "created": 1, "model": body["model"], "data": [one],
            "usage": {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0}}  # fmt: skip
    return Answer(raw=json.dumps(said).encode())


@pytest.fixture
def reward(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`kdgen feedback --method reward` on a server: the manifest, the rows, the rejects."""

    def run(url: str, *sets: str, options: str = "", code: int = 0) -> Any:
        write_seeds(tmp_path / "s.jsonl", SEEDS)
        spec = f"{{provider: vllm, model: Qwen3-8B, base_url: {url}, api: classify, extra: {{use_activation: false}}}}"
        asked = ("s.jsonl", "-m", "reward", "--set", f"stages=[{STAGE % options}]", "--set", f"teachers={{reward: {spec}}}",
                 "--set", "export={format: messages}",
                 "--ledger", "l.db", "-o", "out", "--json", "-q")  # fmt: skip
        said = kdgen("feedback", *asked, *(part for each in sets for part in ("--set", each)))
        return outcome(said, tmp_path / "out", code, "records", "rejects")

    return run


def test_a_server_is_sent_the_conversation_and_its_numbers_are_in_the_rows(
    reward: Callable[..., Any], tmp_path: Path
) -> None:
    with Server(classes) as server:
        made, rows, lost = reward(server.url, options=", at_least: 2")
        assert set(server.paths) == {"/classify"} and made["requests"]["sent"] == 3
        body = json.loads(next(each for each in server.bodies if b"Name 2" in each))
        turns = [("system", "Be kind."), ("user", "Name 2."), ("assistant", "xxx")]
        assert body == {"model": "Qwen3-8B", "messages": [{"role": role, "content": text} for role, text in turns],
                        "use_activation": False}  # fmt: skip
        assert [row["meta"]["scores"] for row in rows] == [{"reward": 2.0}, {"reward": 3.0}]
        assert (lost[0]["reason"], lost[0]["detail"], len(lost[0]["calls"])) == ("low_score", "1, 2 is the least", 1)
        assert all(len(row["calls"]) == 1 and row["writers"] == {} for row in rows)
        assert made["tokens"]["input"] == 27 and made["tokens"]["output"] == 0
        files = published(tmp_path / "out", card=True)
        again, _, _ = reward(server.url, options=", at_least: 2")
        assert again["requests"]["sent"] == 0 and published(tmp_path / "out", card=True) == files
        assert len(server.bodies) == 3
        reward(server.url, "budget={tokens: 9000}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"data": []}, "malformed_reply"),
        ({"data": [{"probs": []}]}, "malformed_reply"),
        ({"data": [{"probs": ["x"]}]}, "malformed_reply"),
        ({"data": [{"probs": [None]}]}, "malformed_reply"),
        ({"data": [{"probs": [0.1, 0.9]}]}, "unscored"),
        ({"object": "list"}, "malformed_reply"),
    ],
)
def test_what_is_no_score_is_a_reject_and_never_a_number(
    reward: Callable[..., Any], body: dict[str, Any], reason: str
) -> None:
    def script(asked: dict[str, Any], seen: int) -> Answer:
        odd = asked["messages"][-1]["content"] == "x"
        return Answer(raw=json.dumps(body).encode()) if odd else classes(asked, seen)

    with Server(script) as server:
        _, rows, (lost,) = reward(server.url)
        assert len(rows) == 2 and (lost["id"], lost["reason"], len(lost["calls"])) == ("0", reason, 1)


def test_a_class_of_several_is_chosen(reward: Callable[..., Any]) -> None:
    with Server(lambda body, seen: Answer(raw=b'{"data": [{"probs": [0.25, 0.75]}]}')) as server:
        _, rows, _ = reward(server.url, options=", place: 1, name_as: good")
        assert {row["meta"]["scores"]["good"] for row in rows} == {0.75}
        assert "no place 2" in reward(server.url, options=", place: 2", code=5)


def test_a_reward_model_is_for_scores_alone(reward: Callable[..., Any]) -> None:
    url = "http://127.0.0.1:9/v1"
    answer = "stages=[{stage: label, method: answer, prompt: label/answer, to: reward}]"
    assert "says numbers, and no words" in reward(url, answer, code=2)
    for setting, wrong in {
        "teachers.reward.api=chat": "says words, and no number",
        "teachers.reward.temperature=1": "does not take temperature",
        "teachers.reward.template=chatml": "template has no effect",
        "teachers.reward.prompt_logprobs=1": "prompt_logprobs has no effect",
        "teachers.reward.mode=batch": "does not classify",
        "teachers.reward.base_url=null": "only a server classifies",
        "teachers.reward.extra={top_k: 3}": "would ignore top_k",
        "stages.0.prompt=label/answer": "does not show the answer",
    }.items():
        assert wrong in reward(url, *(("teachers.reward.extra={}",) if "chat" in setting else ()), setting, code=2), (
            setting
        )


class Scorer:
    """An ask whose replies are the answers' own texts, as numbers."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fork(self) -> Scorer:
        return Scorer()

    async def __call__(self, prompt: Any, /, *, output: str, **options: Any) -> Reply:
        self.calls.append(f"call {output}")
        if output == "mute":
            raise Rejected("endpoint_failed", "no")
        return Reply(f"call {output}", output, "stop", Usage(), {})


def run(*outputs: str) -> Any:
    stage = RewardModel(prompt=load_prompt(find("prompts", "feedback/reward", Path())))
    candidates = tuple(Candidate(output=each, calls=("own",), scores={"old": 1.0}) for each in outputs)
    job = Record(id="a", instruction="Why?", candidates=candidates, calls=("own",))
    scorer: Any = Scorer()
    (row,) = asyncio.run(stage.run(job, scorer))
    return row


def test_candidates_are_scored_and_ranked_and_a_lost_one_stays_unscored() -> None:
    row = run("2.5", "-1", "mute", "2.5", "words")
    assert [(each.score, each.rank) for each in row.candidates] == [
        (2.5, 1),
        (-1.0, 3),
        (None, None),
        (2.5, 1),
        (None, None),
    ]
    assert [each.scores["reward"] for each in row.candidates] == [2.5, -1.0, None, 2.5, None]
    assert row.candidates[2].notes == {"reward_unscored": "endpoint_failed: no"} and not row.candidates[0].notes
    assert row.candidates[1].calls == ("own", "call -1") and row.candidates[1].scores["old"] == 1.0
    assert set(row.calls) == {"own", *(f"call {each}" for each in ("2.5", "-1", "mute", "words"))}


def test_candidates_without_any_score_are_a_reject() -> None:
    row = run("mute", "nan")
    assert isinstance(row, Reject) and row.reason == "unscored" and len(row.calls) == 3
