"""What vLLM tells of a text that it is given, against transformers on the same weights, both in 32 bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kdgen import features

TEXTS = [
    ("Name the capital of France.", "The capital of France is Paris, on the Seine."),
    ("Why is the sky blue?", "Air scatters blue light most. 空は青い, é ñ 🙂."),
    ("What is 17 + 25?", "17 + 25 = 42"),
]


@pytest.fixture(scope="module")
def scored(model: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The features that `kdgen run feature/score` leaves."""
    folder = tmp_path_factory.mktemp("scored")
    rows = [{"id": str(n), "instruction": ask, "output": text} for n, (ask, text) in enumerate(TEXTS)]
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = '{"max_model_len": 1024, "dtype": "float32", "enforce_eager": true}'
    asked = ["run", "feature/score", "--seeds", "seeds.jsonl", "-t", f"vllm:{model}", "-o", "out", "--ledger", "l.db"]
    asked += ["--set", f"teachers.teacher.engine={engine}", "--set", "stages.0.dtype=float32", "-q"]
    subprocess.run([sys.executable, "-m", "kdgen", *asked], cwd=folder, check=True)
    made = [feature for _, feature in features.open(Path(folder) / "out").read("score")]
    assert len(made) == len(TEXTS)
    return made


def test_scores_agree_with_transformers(scored: list[Any], model: str) -> None:
    """To a hundredth of a nat at every token; read one token off, to none."""
    same = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found: dict[int, list[Any]] = {-1: [], 0: [], 1: []}
    for each in scored:
        whole = np.concatenate([each.prompt_ids, each.ids]).astype(np.int64)
        with torch.no_grad():
            told = same(torch.tensor(whole[None])).logits[0].log_softmax(-1).numpy()
        for shift, off in found.items():
            places = np.arange(len(each.prompt_ids) - 1, len(whole) - 1) + shift
            off.append(np.abs(told[places, each.ids] - each.logprobs))
        right = told[len(each.prompt_ids) - 1 : -1]
        assert np.abs(np.take_along_axis(right, each.topk_ids, 1) - each.topk_logprobs).max() < 1e-2
    off = {shift: np.concatenate(each) for shift, each in found.items()}
    print(f"\n{len(off[0])} tokens: mean {off[0].mean():.5f}, most {off[0].max():.5f}")
    assert off[0].max() < 1e-2 < 1 < min(off[-1].mean(), off[1].mean())
