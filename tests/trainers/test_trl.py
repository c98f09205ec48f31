"""TRL's trainers take the rows as kdgen writes them: at least three steps each, and the loss is finite and falls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from training import falls, told, told_of
from trl.experimental import cpo, orpo

from kdgen.verifiers.reward import reward

EACH = 'stages.2={"stage": "feedback", "method": "each", "good_from": 4}'


def supervised(recipe: str, rows: Any, tiny: Any, tokenizer: Any, settings: Any, *arguments: str, **more: Any) -> Any:
    table = rows(recipe, *arguments)
    args = trl.SFTConfig(**settings, max_length=512, **more)
    return trl.SFTTrainer(tiny(), args, train_dataset=table, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("recipe", "arguments", "seen"),
    [
        ("label/answer", (), "Paris"),
        ("label/explain", (), "You answer with evidence"),
        ("label/baize", (), "Baking soda and an acid make the same gas."),
        ("label/rationale", (), "Six sevens are forty-two.\n\nAnswer: 42"),
        ("label/trace", (), "<think>\nSeven and five make twelve.\n</think>\n\nThe sum is"),
        (
            "label/trace",
            ("--set", "export.reasoning=apart"),
            "<think>\nSeven and five make twelve.\n</think>\n\nThe sum is",
        ),
    ],
)
def test_sft_on_messages(
    recipe: str, arguments: tuple[str, ...], seen: str, rows: Any, tiny: Any, tokenizer: Any, settings: Any
) -> None:
    trainer = supervised(recipe, rows, tiny, tokenizer, settings, *arguments, assistant_only_loss=True)
    texts, learnt = [], []
    for row in trainer.train_dataset:
        texts.append(tokenizer.decode(row["input_ids"]))
        mask = row["labels"] if "labels" in row else row["assistant_masks"]
        learnt.append(
            tokenizer.decode(
                [token for token, kept in zip(row["input_ids"], mask, strict=True) if kept not in (0, -100)]
            )
        )
    assert any(seen in text for text in texts)
    # Nothing that a user or a system message says is learnt, and every answer is, to its closing token.
    assert all(text and "<|im_start|>" not in text and text.endswith("<|im_end|>") for text in learnt)
    falls(trainer)


def test_sft_on_texts(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    falls(supervised("curate/rephrase", rows, tiny, tokenizer, settings))


def test_dpo(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    args = trl.DPOConfig(**settings)
    table = rows("feedback/jury")
    falls(trl.DPOTrainer(tiny(), tiny(), args=args, train_dataset=table, processing_class=tokenizer))


def test_kto(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    table = rows("feedback/jury", "--set", EACH, "--set", "dedupe=[]", "-f", "kto")
    assert set(table["label"]) == {True, False}
    args = trl.KTOConfig(**settings)
    falls(trl.KTOTrainer(tiny(), tiny(), args=args, train_dataset=table, processing_class=tokenizer))


def test_reward_model_on_pairs(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    args = trl.RewardConfig(**settings)
    model = tiny("ForSequenceClassification", num_labels=1)
    falls(trl.RewardTrainer(model, args=args, train_dataset=rows("feedback/jury"), processing_class=tokenizer))


def test_orpo(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    args = orpo.ORPOConfig(**settings)
    falls(orpo.ORPOTrainer(tiny(), args=args, train_dataset=rows("feedback/jury"), processing_class=tokenizer))


def test_simpo(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    args = cpo.CPOConfig(**settings, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5)
    falls(cpo.CPOTrainer(tiny(), args=args, train_dataset=rows("feedback/jury"), processing_class=tokenizer))


def test_distillation(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    """On the student's own answers to our prompts; what falls is the divergence from the teacher."""
    table = rows("feedback/verify")
    batch = {"per_device_train_batch_size": len(table), "max_steps": 8}
    args = trl.DistillationConfig(**settings | batch, beta=0.0, max_completion_length=16)
    falls(trl.DistillationTrainer(tiny(), tiny(seed=1), args=args, train_dataset=table, processing_class=tokenizer))


def test_grpo_with_our_verifiers(rows: Any, tiny: Any, tokenizer: Any, settings: Any) -> None:
    """A student that gives the right answer half of the time gives it more often. The loss of GRPO tells nothing of that (it
    is about 0 at each step); the reward rises, and every completion gets one from the verifier of its row.
    """
    table = rows("feedback/verify")
    student = tiny()
    said = [
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": text}]}
        for row in table
        for text in (f"It is \\boxed{{{row['answer']}}}.", "It is \\boxed{7}.")
    ]
    taught = settings | {"max_steps": 40, "learning_rate": 5e-3, "per_device_train_batch_size": len(said)}
    first = trl.SFTConfig(**taught)
    falls(trl.SFTTrainer(student, first, train_dataset=Dataset.from_list(said), processing_class=tokenizer))
    batch = {"per_device_train_batch_size": 16 * len(table), "max_steps": 6, "learning_rate": 1e-3}
    args = trl.GRPOConfig(**settings | batch, num_generations=16, max_completion_length=24, beta=0.0)
    trainer = trl.GRPOTrainer(student, reward, args=args, train_dataset=table, processing_class=tokenizer)
    told(trainer)
    rewards = told_of(trainer, "reward")
    assert 0 < rewards[0] < 1 and sum(rewards[-3:]) / 3 > rewards[0]


def test_process_reward_model(dataset: Any, tokenizer: Any, tiny: Any, tmp_path: Any) -> None:
    """The last TRL that had a PRMTrainer, in a process of its own."""
    tokenizer.save_pretrained(tmp_path / "model")
    tiny("ForTokenClassification", num_labels=2).save_pretrained(tmp_path / "model")
    file = dataset("feedback/math-shepherd") / "data.jsonl"
    path = os.pathsep.join([str(Path(sys.prefix) / "trl-1.12"), str(Path(__file__).parent)])
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "prm.py"), str(tmp_path / "model"), str(file), str(tmp_path)],
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "PRMTrainer loss" in ran.stdout
    print(ran.stdout)
