"""Features from inside a model: transformers on a tiny model of its own, and vectors of a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server import Answer, Server

from kdgen import features
from kdgen.features import Embedding, Hidden, TopK

SEEDS = [
    {"id": "a", "instruction": "Name a sea.", "output": "The Red Sea."},
    {"id": "b", "instruction": "Hi", "output": "ça 😀"},
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_vectors_of_a_server(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    def answer(body: dict[str, Any], seen: int) -> Answer:
        if body["input"].startswith("Hi"):
            return Answer(raw=b'{"data": [], "model": "e"}')
        made = {"data": [{"embedding": [0.5, -0.25]}], "model": "e", "usage": {"prompt_tokens": 3}}
        return Answer(raw=json.dumps(made).encode())

    write(tmp_path / "s.jsonl", SEEDS)
    with Server(answer) as server:
        asked = ("run", "feature/embed", "--seeds", "s.jsonl", "-o", "out", "--ledger", "l.db", "--json")
        sets = ("--set", f"teachers.embedder.base_url={server.url}")
        said = kdgen(*asked, *sets)
        assert said.code == 0, said.err
        assert server.paths == ["/v1/embeddings"] * 2
        assert '"sent": 0' in kdgen(*asked, *sets).out and len(server.bodies) == 2
    ((_, vector),) = features.open(tmp_path / "out").read("embedding")
    assert isinstance(vector, Embedding) and vector.vector.tolist() == [0.5, -0.25]
    assert [row["reason"] for row in map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())] == [
        "malformed_reply"
    ]


def test_what_a_teacher_is_not_for_is_said(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", SEEDS)
    said = kdgen("run", "label/answer", "--seeds", "s.jsonl", "-t", "transformers:x")
    assert said.code == 2 and "transformers:x does not take" in said.err
    said = kdgen("run", "feature/hidden", "--seeds", "s.jsonl", "-t", "local")
    assert said.code == 2 and "shows no hidden states" in said.err
    said = kdgen("run", "feature/embed", "--seeds", "s.jsonl", "-t", "embedder=local")
    assert said.code == 2 and "makes no vectors" in said.err
    embeds = (
        "--set",
        "teachers.teacher={provider: openai, model: e, base_url: http://127.0.0.1:9/v1, api: embeddings}",
    )
    said = kdgen("run", "label/answer", "--seeds", "s.jsonl", *embeds)
    assert said.code == 2 and "makes vectors, and no words" in said.err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, its tokens the 256 bytes and three marks."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("model") / "Qwen3-8B"
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab = {letter: place for place, letter in enumerate(sorted(letters))}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    made = library.PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=["<u>", "<a>", "<e>"])
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = library.LlamaConfig(
        vocab_size=len(made), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.5,
    )  # fmt: skip
    library.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_scores_and_states_are_the_models(kdgen: Callable[..., Any], tmp_path: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write(tmp_path / "s.jsonl", [*SEEDS, {"id": "c", "instruction": "long", "output": "x" * 200}])
    stages = [
        {"stage": "feature", "method": "score", "prompt": "feature/score", "k": 5, "dtype": "float32"},
        {"stage": "feature", "method": "hidden", "prompt": "feature/score", "layers": [0, -1], "dtype": "float32"},
    ]
    sets = ("--set", f"stages={json.dumps(stages)}")
    asked = ("run", "feature/hidden", "--seeds", "s.jsonl", "-t", f"transformers:{tiny}", *sets, "--ledger", "l.db")
    said = kdgen(*asked, "-o", "out")
    assert said.code == 0, said.err
    again = json.loads(kdgen(*asked, "-o", "out", "--json").out)["requests"]
    assert (again["from_ledger"], again["failed"]) == (4, 1), "what was refused is not in the ledger"
    (lost,) = map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())
    assert lost["reason"] == "endpoint_refused" and "more than the model's 128" in lost["detail"]
    read = features.open(tmp_path / "out")
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    for seed, (_, score), (_, hidden) in zip(SEEDS, read.read("score"), read.read("hidden"), strict=True):
        assert isinstance(score, TopK) and isinstance(hidden, Hidden)
        ids = tokenizer(f"<u>{seed['instruction']}<e><a>{seed['output']}<e>", add_special_tokens=False)["input_ids"]
        start = len(score.prompt_ids)
        assert [*score.prompt_ids, *score.ids] == ids and hidden.ids.tolist() == ids[start:]
        with torch.inference_mode():
            out = model(torch.tensor([ids]), output_hidden_states=True)
        told = torch.log_softmax(out.logits[0].double(), -1).numpy()
        rows = told[start - 1 : -1]
        assert np.allclose(score.logprobs, rows[np.arange(len(rows)), ids[start:]], atol=1e-4)
        assert np.allclose(score.topk_logprobs, -np.sort(-rows, axis=1)[:, :5], atol=1e-4)
        for wrong in (told[start - 2 : -2], told[start:]):
            assert not np.allclose(score.topk_logprobs, -np.sort(-wrong, axis=1)[:, :5], atol=1e-4)
        assert hidden.layers.tolist() == [0, 2]
        assert np.allclose(hidden.states[0], model.model.embed_tokens.weight[ids[start:]].detach().numpy(), atol=1e-5)
        assert np.allclose(hidden.states[1], out.hidden_states[-1][0, start:].numpy(), atol=1e-4)
    (facts,) = read.facts("score")
    assert facts.vocab_size == 259 and facts.tokenizer_sha256 and facts.chat_template_sha256
    said = kdgen(*asked, "-o", "out", "--set", "stages.1.layers=[7]")
    assert said.code == 3 and "no layer 7" in said.err


def test_a_folder_that_is_no_model_is_said(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write(tmp_path / "s.jsonl", SEEDS)
    (tmp_path / "Qwen3-8B").mkdir()
    said = kdgen("run", "feature/hidden", "--seeds", "s.jsonl", "-t", "transformers:./Qwen3-8B")
    assert said.code == 3 and "cannot load" in said.err
