"""`python -m bench.distil`: does a student learn more from stored top-k than from the words alone? A Markdown table on stdout.

Needs what `make test-trainers` installs. The teacher is SmolLM2-135M-Instruct, the embedded one; kdgen has it answer the seeds that
ship (`feature/logprobs`, at temperature 1), or score their own answers (`--given`, `feature/score`). A random student of two layers
with the teacher's tokens is trained twice, alike but for the loss: cross-entropy on the tokens, or KL from the k stored logprobs
and the mass of the rest. What counts is KL(teacher || student) over the whole vocabulary, on texts held out. With
`--given --rows 175 --steps 100 --batch 4` (10,130 tokens to learn from, 2,773 held out, k = 20) it fell from 8.49 nats to 5.15 by
the words and to 4.50 by the stored top-k.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy, log_softmax

from bench.measure import table
from kdgen import features
from kdgen.teachers import models

MODEL = "smollm2-135m"
SEEDS = Path(__file__).parent.parent / "seeds"


@dataclass(frozen=True)
class Texts:
    """Padded on the right: `ids` [texts, length]; the teacher's arrays are of the places that `answers` marks, in order."""

    ids: Any
    answers: Any
    top_ids: Any
    top: Any
    tail: Any


def made(folder: Path, options: argparse.Namespace) -> list[Any]:
    """The features of the rows, by kdgen."""
    rows = [
        json.loads(line) for name in ("general", "math") for line in (SEEDS / f"{name}.jsonl").read_text().splitlines()
    ]
    seeds = [
        {"id": row["id"], "instruction": row.get("instruction") or row["question"], "input": row.get("input", ""),
         "output": row.get("output") or row["answer"]}
        for row in rows
    ]  # fmt: skip
    (folder / "seeds.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in seeds[: options.rows]))
    name, recipe = ("score", "feature/score") if options.given else ("logprobs", "feature/logprobs")
    asked = [
        "run",
        recipe,
        "--seeds",
        "seeds.jsonl",
        "-t",
        f"local:{MODEL}",
        "-o",
        "out",
        "--ledger",
        str(options.ledger or "l.db"),
    ]
    if options.given:
        sets = [f"stages.0.k={options.k}"]
    else:
        sets = [
            f"stages.0.params.logprobs={options.k}",
            "teachers.teacher.temperature=1.0",
            "teachers.teacher.max_tokens=64",
        ]
    asked += [part for each in sets for part in ("--set", each)]
    subprocess.run([sys.executable, "-m", "kdgen", *asked], cwd=folder, check=True)
    return [feature for _, feature in features.open(folder / "out").read(name) if feature.size]


def batch(rows: list[Any]) -> Texts:
    """Texts beside each other."""
    whole = [np.concatenate([row.prompt_ids, row.ids]) for row in rows]
    ids = np.zeros((len(rows), max(map(len, whole))), np.int64)
    answers = np.zeros(ids.shape, bool)
    for number, (row, text) in enumerate(zip(rows, whole, strict=True)):
        ids[number, : len(text)] = text
        # Token j is predicted in the place before it.
        answers[number, len(row.prompt_ids) - 1 : len(text) - 1] = True
    found = [np.concatenate([getattr(row, name) for row in rows]) for name in ("topk_ids", "topk_logprobs", "tail")]
    return Texts(torch.tensor(ids), torch.tensor(answers), *(torch.tensor(each) for each in found))


def told(model: Any, texts: Texts) -> Any:
    """The model's logprobs in the places of the answers, [tokens, vocabulary]."""
    return log_softmax(model.lm_head(model.model(texts.ids).last_hidden_state[texts.answers]), -1)


def hard(student: Any, texts: Texts) -> Any:
    """Cross-entropy on the tokens."""
    targets = texts.ids.roll(-1, 1)[texts.answers]
    return cross_entropy(student, targets)


def soft(student: Any, texts: Texts) -> Any:
    """KL from the k stored tokens, and all others as one."""
    held = texts.top_ids >= 0
    top = texts.top.float().masked_fill(~held, -30.0)
    own = student.gather(1, texts.top_ids.clamp(min=0).long()).masked_fill(~held, -30.0)
    rest = torch.log1p(-own.exp().sum(-1).clamp(max=1 - 1e-6))
    tail = texts.tail.clamp(min=-30.0)
    return ((top.exp() * (top - own)).sum(-1) + tail.exp() * (tail - rest)).mean()


def trained(
    loss: Any, rows: list[Any], held_out: list[tuple[Texts, Any, float]], seed: int, options: argparse.Namespace
) -> list[float]:
    """KL(teacher || student) on the texts held out, in nats a token, at each fifth of the steps."""
    transformers.set_seed(seed)
    shape = transformers.LlamaConfig(
        vocab_size=options.vocab, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    student = transformers.LlamaForCausalLM(shape)
    learn = torch.optim.AdamW(student.parameters(), lr=options.rate)
    draw, found = np.random.default_rng(seed), []
    for step in range(options.steps + 1):
        if step % max(1, options.steps // 5) == 0:
            with torch.no_grad():
                crossed = sum(float((p * told(student, texts)).sum()) for texts, p, _ in held_out)
            entropy, tokens = sum(each for _, _, each in held_out), sum(len(p) for _, p, _ in held_out)
            found.append((entropy - crossed) / tokens)
        if step < options.steps:
            texts = batch([rows[place] for place in draw.choice(len(rows), options.batch, replace=False)])
            learn.zero_grad()
            loss(told(student, texts), texts).backward()
            learn.step()
    return found


def main() -> None:
    """Make the rows, train twice a seed, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.distil", description=__doc__)
    parser.add_argument("--given", action="store_true", help="score the seeds' own answers")
    parser.add_argument("--rows", type=int, default=215, help="seeds")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="texts a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--repeat", type=int, default=1, help="students of other seeds")
    parser.add_argument("--ledger", type=Path, help="a ledger to keep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdgen-bench-") as folder:
        rows = made(Path(folder), options)
    source = Path(models.pull(MODEL, print))
    teacher = transformers.AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    options.vocab = teacher.config.vocab_size
    kept, learnt = rows[::5], [row for number, row in enumerate(rows) if number % 5]
    with torch.no_grad():
        parts = [batch(kept[place : place + 8]) for place in range(0, len(kept), 8)]
        held_out = []
        for part in parts:
            own = told(teacher, part)
            held_out.append((part, own.exp(), float((own.exp() * own).sum())))
    del teacher
    print(f"{len(learnt)} texts of {sum(row.size for row in learnt)} tokens to learn from, {len(kept)} of", end=" ")
    print(f"{sum(row.size for row in kept)} held out; k = {options.k}\n")
    cells = []
    for seed in range(options.repeat):
        for name, loss in (("words (cross-entropy)", hard), ("stored top-k (KL)", soft)):
            began = time.process_time()
            found = trained(loss, learnt, held_out, seed, options)
            cells.append(
                (
                    seed,
                    name,
                    f"{found[0]:.3f}",
                    f"{min(found):.3f}",
                    f"{found[-1]:.3f}",
                    f"{time.process_time() - began:.0f}",
                )
            )
            print(name, " ".join(f"{each:.3f}" for each in found), file=sys.stderr)
    table(("seed", "learns from", "KL before", "at its best", "after all steps", "CPU s"), cells)


if __name__ == "__main__":
    main()
