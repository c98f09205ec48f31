"""What the local teacher tells of a text that it is given, against transformers on the same weights.

llama.cpp rounds what enters a product with quantized weights to 8 bits, which transformers, on the same weights made plain, does
not. With the weights as 32-bit floats in its own file too nothing is rounded, and the two agree to a hundredth of a nat.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf_f32 import unrounded

from kdgen import features
from kdgen.teachers import models

pytestmark = pytest.mark.slow
MODEL = "smollm2-135m"
TEXTS = [
    ("Name the capital of France.", "The capital of France is Paris, on the Seine."),
    ("Why is the sky blue?", "Air scatters blue light most. 空は青い, é ñ 🙂."),
    ("What is 17 + 25?", "17 + 25 = 42"),
    ("Write a function that doubles x.", "```python\ndef double(x):\n    return 2 * x\n```"),
]
Scored = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def source() -> Path:
    return Path(models.pull(MODEL, print))


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unrounded(source, tmp_path_factory.mktemp("gguf") / "plain.gguf")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The features of the texts, of a local teacher, as the dataset folder has them."""
    from kdgen.terms import table

    def run(teacher: str) -> list[Any]:
        folder = tmp_path_factory.mktemp("scored")
        rows = [{"id": str(n), "instruction": ask, "output": text} for n, (ask, text) in enumerate(TEXTS)]
        (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = ["run", "feature/score", "--seeds", "seeds.jsonl", "-t", teacher, "-o", "out", "--ledger", "l.db", "-q"]
        asked += ["--set", "stages.0.dtype=float32", "--set", "stages.0.k=20"]
        asked += ["--ack-terms", f"local:plain.gguf@{table().read}"] if "/" in teacher else []
        subprocess.run([sys.executable, "-m", "kdgen", *asked], cwd=folder, check=True)
        made = [feature for _, feature in features.open(folder / "out").read("score")]
        assert len(made) == len(TEXTS)
        return made

    return run


@pytest.fixture(scope="module")
def model(source: Path) -> Any:
    """The same weights in transformers."""
    plainly = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, quantization_config=plainly, dtype=torch.float32
    ).eval()


def off(made: list[Any], model: Any, shift: int = 0) -> Any:
    """How far each stored logprob of a given token is from transformers', in nats; `shift` reads them at another's place."""
    found = []
    for each in made:
        whole = np.concatenate([each.prompt_ids, each.ids]).astype(np.int64)
        with torch.no_grad():
            told = model(torch.tensor(whole[None])).logits[0].log_softmax(-1).numpy()
        places = np.arange(len(each.prompt_ids) - 1, len(whole) - 1) + shift
        found.append(told[places, each.ids] - each.logprobs)
    return np.abs(np.concatenate(found))


def test_scores_agree_with_transformers(scored: Scored, plain: Path, model: Any) -> None:
    """To a hundredth of a nat; read one token off, to none."""
    made = scored(f"local:{plain}")
    found = off(made, model)
    print(
        f"32-bit weights, {len(found)} tokens: mean {found.mean():.4f}, 95 % {np.quantile(found, 0.95):.4f}, most {found.max():.4f}"
    )
    assert found.mean() < 3e-3 and np.quantile(found, 0.95) < 1e-2 and found.max() < 2e-2
    assert min(off(made, model, -1).mean(), off(made, model, 1).mean()) > 1
    for each in made:
        whole = np.concatenate([each.prompt_ids, each.ids]).astype(np.int64)
        with torch.no_grad():
            told = model(torch.tensor(whole[None])).logits[0, len(each.prompt_ids) - 1 : -1].softmax(-1).numpy()
        there = np.take_along_axis(told, each.topk_ids, 1)
        assert np.abs(there - np.exp(each.topk_logprobs)).max() < 1e-2
        assert np.abs(1 - there.sum(-1) - np.exp(each.tail)).max() < 1e-2


def test_quantized_scores_are_off_by_their_rounding_alone(scored: Scored, model: Any) -> None:
    """The bound is what 4-bit weights of so small a model come to; a better bound has the test above."""
    made = scored(f"local:{MODEL}")
    found = off(made, model)
    print(
        f"4-bit weights, {len(found)} tokens: mean {found.mean():.4f}, 95 % {np.quantile(found, 0.95):.4f}, most {found.max():.4f}"
    )
    assert found.mean() < 0.15 and np.median(found) < 0.05
    assert min(off(made, model, -1).mean(), off(made, model, 1).mean()) > 1
