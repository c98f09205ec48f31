"""What a teacher tells of tokens: each row is the distribution that its own token is drawn from, or the record is a reject."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server import Answer, Server, published

from kdgen import features
from kdgen.errors import Rejected
from kdgen.features import Facts, TextTopK, TopK
from kdgen.stages.tokens import feature_of
from kdgen.teachers.base import Call, Params, Told
from kdgen.teachers.local import Local
from kdgen.teachers.models import pull
from kdgen.teachers.told import spells

SEEDS = [
    {"id": "a", "instruction": "Name a sea.", "output": "The Red Sea, of course."},
    {"id": "b", "instruction": "Name a tree.", "output": "An oak."},
    {"id": "c", "instruction": "Name a word.", "output": "ça 😀"},
]
BYTES = 256  # the tokens of the toy are bytes, and three marks
USER, ASSISTANT, END = 256, 257, 258


def toy(prefix: Sequence[int]) -> np.ndarray[Any, Any]:
    """The logprobs of every next token in a language in which it depends on the last two."""
    seed = hashlib.sha256(str(tuple(prefix[-2:])).encode()).digest()
    raw = np.random.default_rng(int.from_bytes(seed[:8], "big")).normal(0, 3, END + 1)
    made: np.ndarray[Any, Any] = raw - np.log(np.exp(raw).sum())
    return made


def template(messages: list[dict[str, str]], open: bool) -> list[int]:
    ids: list[int] = []
    for message in messages:
        ids += [ASSISTANT if message["role"] == "assistant" else USER, *message["content"].encode(), END]
    return [*ids, ASSISTANT] if open else ids


def vllm(body: dict[str, Any], seen: int) -> Answer:
    """vLLM's server on the toy: its form of logprobs of a prompt, with the token that stands there first."""
    ids = template(body["messages"], body.get("add_generation_prompt", True))
    made: dict[str, Any] = {
        "model": "toy", "prompt_token_ids": ids, "usage": {"prompt_tokens": len(ids), "completion_tokens": 1},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}],
    }  # fmt: skip
    if (top := body.get("prompt_logprobs")) is not None:
        rows: list[Any] = [None]
        for place in range(1, len(ids)):
            told = toy(ids[:place])
            best = np.argsort(-told)[:top]
            order = dict.fromkeys([ids[place], *best.tolist()])
            text = {token: bytes([token]).decode("utf-8", "replace") if token < BYTES else "<end>" for token in order}
            rows.append({str(t): {"logprob": float(told[t]), "rank": 1, "decoded_token": text[t]} for t in order})
        made["prompt_logprobs"] = rows
    return Answer(raw=json.dumps(made).encode())


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def score(kdgen: Callable[..., Any], tmp_path: Path, url: str, *more: str) -> Any:
    asked = ("run", "feature/score", "--seeds", write(tmp_path / "s.jsonl", SEEDS), "-t", f"vllm:Qwen3-8B@{url}")
    return kdgen(*asked, "-o", "out", "--ledger", "l.db", "--set", "stages.0.dtype=float32", *more)


def shifted(feature: TopK, by: int) -> TopK:
    """The same with every row moved by one place, as an off-by-one would have it."""
    arrays = {name: getattr(feature, name) for name in features.columns(feature)}
    for name in ("topk_ids", "topk_logprobs", "tail", "logprobs"):
        arrays[name] = np.roll(arrays[name], by, axis=0)
    return TopK(**arrays, facts=feature.facts)


def aligned(feature: TopK) -> bool:
    """Whether row j is what the toy says after `prompt_ids` and `ids[:j]`, to 1e-4."""
    for place, token in enumerate(feature.ids):
        told = toy([*feature.prompt_ids.tolist(), *feature.ids[:place].tolist()])
        best = np.argsort(-told)[: feature.topk_ids.shape[1]]
        if feature.topk_ids[place].tolist() != best.tolist():
            return False
        near = np.allclose(feature.topk_logprobs[place], told[best], atol=1e-4)
        if not near or abs(feature.logprobs[place] - told[token]) > 1e-4:
            return False
        rest = 1 - math.fsum(np.exp(told[best]))
        if abs(math.exp(feature.tail[place]) - rest) > 1e-4:
            return False
    return True


def test_rows_stand_where_their_tokens_are_drawn(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    with Server(vllm) as server:
        said = score(kdgen, tmp_path, server.url)
        assert said.code == 0, said.err
        assert len(server.bodies) == 6, "two requests a text: the conversation, and what stands before the answer"
        first = published(tmp_path / "out", card=True)
        assert score(kdgen, tmp_path, server.url, "--json").out.count('"sent": 0') == 1
        assert len(server.bodies) == 6 and published(tmp_path / "out", card=True) == first
        SEEDS[1]["output"] = "An elm."
        try:
            score(kdgen, tmp_path, server.url)
        finally:
            SEEDS[1]["output"] = "An oak."
        assert len(server.bodies) == 7, "the prompt of the changed row is the same"
    read = features.open(tmp_path / "out")
    found = dict(read.read("score"))
    assert len(found) == 3
    for feature, seed in zip(found.values(), SEEDS, strict=True):
        assert isinstance(feature, TopK)
        text = bytes(token for token in feature.ids if token < BYTES).decode()
        assert text == ("An elm." if seed["id"] == "b" else seed["output"]) and feature.ids[-1] == END
        assert bytes(t for t in feature.prompt_ids if t < BYTES).decode() == seed["instruction"]
        assert feature.prompt_ids[-1] == ASSISTANT and aligned(feature)
        assert not aligned(shifted(feature, 1)) and not aligned(shifted(feature, -1))
    (facts,) = read.facts("score")
    assert (facts.source, facts.mode, facts.k, facts.temperature) == ("scored", None, 20, None)


def test_a_prompt_that_is_no_prefix_is_a_reject(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    def other(body: dict[str, Any], seen: int) -> Answer:
        answer = vllm(body, seen)
        made = json.loads(answer.body())
        if "prompt_logprobs" not in body and "tree" in str(body):
            made["prompt_token_ids"][-1] = END
        return Answer(raw=json.dumps(made).encode())

    with Server(other) as server:
        assert score(kdgen, tmp_path, server.url).code == 0
    (lost,) = map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())
    assert (lost["reason"], lost["id"], len(lost["calls"])) == ("prompt_not_prefix", "b", 2)


def test_tokens_that_spell_something_else_are_a_reject(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    """A template that trims, or changes, an answer: its tokens are not the record's."""

    def trimming(body: dict[str, Any], seen: int) -> Answer:
        for message in body["messages"]:
            message["content"] = message["content"].replace("oak", "OAK")
        return vllm(body, seen)

    with Server(trimming) as server:
        assert score(kdgen, tmp_path, server.url).code == 0
    (lost,) = map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())
    assert lost["reason"] == "tokens_differ" and "An OAK" in lost["detail"]


def test_a_server_that_tells_fewer_is_said(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    def capped(body: dict[str, Any], seen: int) -> Answer:
        said = "Requested prompt logprobs of 50, which is greater than max allowed: 20 (parameter=prompt_logprobs)"
        return Answer(said, status=400) if body.get("prompt_logprobs", 0) > 20 else vllm(body, seen)

    with Server(capped) as server:
        said = score(kdgen, tmp_path, server.url, "--set", "stages.0.k=50")
        assert said.code == 3 and "--max-logprobs" in said.err and "in all" not in said.err
        assert score(kdgen, tmp_path, server.url).code == 0


def test_who_cannot_score_is_said_before_anything_is_sent(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", SEEDS)
    said = kdgen("run", "feature/score", "--seeds", "s.jsonl", "-t", "openai:m@http://127.0.0.1:9/v1", "-o", "out")
    assert said.code == 2 and "cannot score a text" in said.err and "vllm:MODEL" in said.err
    said = kdgen("run", "feature/score", "--seeds", "s.jsonl", "--set", "stages.0.prompt=label/answer")
    assert said.code == 2 and "not the prompt's last turn" in said.err
    said = kdgen("run", "feature/score", "--seeds", "s.jsonl", "--set", "stages.0.params.temperature=1")
    assert said.code == 2 and "nothing is sampled" in said.err
    said = kdgen("run", "feature/logprobs", "--seeds", "s.jsonl", "--set", "stages.0.params={}")
    assert said.code == 2 and "how many logprobs" in said.err


def entry(piece: bytes, logprob: float = -0.5, **more: Any) -> dict[str, Any]:
    top = {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logprob}
    return {**top, "top_logprobs": [top, {**top, "token": "?", "bytes": [63], "logprob": -3.0}], **more}


def generate(kdgen: Callable[..., Any], tmp_path: Path, content: list[dict[str, Any]], text: str) -> dict[str, Any]:
    def answer(body: dict[str, Any], seen: int) -> Answer:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        made = {"model": "m", "choices": [{**choice, "logprobs": {"content": content}}]}
        return Answer(raw=json.dumps(made).encode())

    write(tmp_path / "s.jsonl", SEEDS[:1])
    with Server(answer) as server:
        asked = (
            "run",
            "feature/logprobs",
            "--seeds",
            "s.jsonl",
            "-t",
            f"openai:Qwen3-8B@{server.url}",
            "--ledger",
            "l.db",
        )
        said = kdgen(*asked, "-o", "out", "--json")
    return {"code": said.code, "err": said.err, **(json.loads(said.out) if said.code == 0 else {})}


def test_a_teacher_that_tells_strings_gives_strings(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    smile = "😀".encode()
    content = [entry(b"Hi "), entry(smile[:2]), entry(smile[2:])]
    made = generate(kdgen, tmp_path, content, "Hi 😀")
    assert made["features"]["logprobs"]["facts"][0]["notes"] == "the teacher tells 2 at most"
    ((_, feature),) = features.open(tmp_path / "out").read("logprobs")
    assert isinstance(feature, TextTopK) and feature.tokens == [b"Hi ", smile[:2], smile[2:]]
    assert feature.topk_tokens[0] == [b"Hi ", b"?"] and feature.topk_logprobs[1] == [-0.5, -3.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([entry(b"Hi")], "tokens_differ"),
        ([entry(b"Hi 0")] + [entry(b"<x>")] * 9, "tokens_differ"),
        ([entry(b"Oh Hi 0")], "tokens_differ"),
        ([entry(b"Hi 0", 0.5)], "bad_logprobs"),
        ([{"token": "Hi 0"}], "malformed_reply"),
    ],
)
def test_tokens_that_do_not_fit_the_answer_are_a_reject(
    kdgen: Callable[..., Any], tmp_path: Path, content: list[dict[str, Any]], reason: str
) -> None:
    made = generate(kdgen, tmp_path, content, "Hi 0")
    assert made["code"] == 5 and f"1 {reason}" in made["err"], made["err"]


def test_what_may_stand_around_an_answer() -> None:
    pieces = [b"<think>", b"\n", b"</think>", b"\n\n", b"Hi", b"<end>"]
    told = Told((), range(6), [0.0] * 6, [[]] * 6, pieces)
    spells(told, "Hi")
    spells(told._replace(pieces=[b"well ", *pieces[1:]]), "Hi", thought=True)
    with pytest.raises(Rejected, match="tokens_differ"):
        spells(told._replace(pieces=[b"well ", *pieces[1:]]), "Hi")


def test_short_rows_are_padded_and_the_rest_has_the_mass_that_is_left() -> None:
    told = Told([1], [5, 6], [-0.1, -2.0], [[(5, math.log(0.5)), (7, math.log(0.75))], []], None)
    made = feature_of(told, 3, "float16", Facts("t"))
    assert isinstance(made, TopK) and made.topk_ids.tolist() == [[7, 5, -1], [-1, -1, -1]]
    assert made.topk_logprobs.dtype == np.float16 and made.topk_logprobs[1].tolist() == [-math.inf] * 3
    assert made.tail[0] == -math.inf and made.tail[1] == 0.0, "more than all the mass leaves none"
    assert made.facts.notes == "the teacher tells 2 at most"
    whole = feature_of(Told([1], [], [], [], None), 3, "float32", Facts("t"))
    assert isinstance(whole, TopK) and whole.topk_ids.shape == (0, 3) and whole.facts.notes is None


def test_candidates_are_scored_each(kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path) -> None:
    recipe = {
        "name": "each",
        "teachers": {"teacher": {"provider": "scripted", "path": script("It is {digest}.").removeprefix("scripted:")}},
        "stages": [
            {"stage": "feedback", "method": "candidates", "prompt": "label/answer", "n": 2},
            {"stage": "feature", "method": "score", "prompt": "feature/score", "k": 2, "candidates": True},
            {"stage": "feedback", "method": "each"},
        ],
        "seeds": {"path": write(tmp_path / "s.jsonl", SEEDS[:1])},
        "export": {"format": "text"},
    }
    (tmp_path / "r.yaml").write_text(
        json.dumps({**recipe, "stages": recipe["stages"][:2], "export": {"format": "ranked"}})
    )
    said = kdgen("run", "./r.yaml", "-o", "out", "--ledger", "l.db", "--json")
    if said.code == 0:
        assert list(json.loads(said.out)["features"]) == ["score.0", "score.1"]
    else:
        assert "ranked" in said.err


TINY = "smollm2-135m"


@pytest.fixture(scope="module")
def replies() -> dict[str, Any]:
    """The tiny model's greedy answer with its logprobs, and the same answer as it is scored, twice and after another one."""
    import asyncio

    pull(TINY, print)
    spec = Local(model=TINY, concurrency=1, threads=1)
    asked = [{"role": "user", "content": "What is the capital of France?"}]

    async def go() -> dict[str, Any]:
        wire = spec.connect()
        try:
            write = spec.request(Call(asked, Params(temperature=0, max_tokens=40, logprobs=10), tokens=True))
            wrote = spec.read(write, await wire.send(write))
            given = [*asked, {"role": "assistant", "content": wrote.text}]
            other = [*asked, {"role": "assistant", "content": "Berlin? 😀 No."}]
            raws = []
            for messages in (given, other, given):
                (request,) = spec.scoring(Call(messages, Params(max_tokens=1), score=10, tokens=True))
                raws.append(await wire.send(request))
            return {"wrote": wrote, "told": [spec.told([spec.read(request, raw)], "") for raw in raws], "raws": raws}
        finally:
            await wire.close()

    return asyncio.run(go())


def test_what_the_embedded_model_wrote_it_scores_alike(replies: dict[str, Any]) -> None:
    """Teacher forcing tells what generation told, of each token, to 1e-2; and its likeliest token is the one it wrote."""
    from kdgen.teachers.told import generated

    wrote, (told, other, _) = generated(replies["wrote"]), replies["told"]
    n = len(wrote.ids)
    assert list(told.ids[:n]) == list(wrote.ids) and told.prompt_ids == wrote.prompt_ids and n > 5
    assert np.allclose(told.logprobs[:n], wrote.logprobs, atol=1e-2)
    assert [row[0][0] for row in told.top[:n]] == list(wrote.ids), "greedy"
    assert [row[0][0] for row in told.top[1 : n + 1]] != list(wrote.ids)
    assert replies["raws"][0] == replies["raws"][2], "another text between does not change a bit of it"
    spells(told, replies["wrote"].text)
    spells(other, "Berlin? 😀 No.")
    assert all(value <= 0 for value in other.logprobs) and len(other.ids) == len(other.top)
