"""Axolotl's own loaders read our rows as they are meant: its strategies, its collator and its distillation loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from axolotl.integrations.kd import chat_template as kd
from axolotl.integrations.kd.collator import DataCollatorForKD
from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss
from axolotl.prompt_strategies import chat_template, stepwise_supervised
from axolotl.utils.dict import DictDefault

from kdgen.export import EXPORTS
from kdgen.features import Facts, TopK
from kdgen.record import Message, Record

CFG = {"sequence_len": 1024, "train_on_inputs": False, "chat_template": "tokenizer_default", "kd_temperature": 1.0}


def learnt(tokenizer: Any, row: Any) -> str:
    """The text that a tokenized row is trained on."""
    return str(tokenizer.decode([token for token in row["labels"] if token >= 0]))


def test_messages(rows: Any, tokenizer: Any) -> None:
    strategy = chat_template.load(tokenizer, DictDefault(CFG), {})
    for row in rows("label/baize"):
        said = strategy.tokenize_prompt(dict(row))
        answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        assert learnt(tokenizer, said) == "".join(f"{answer}<|im_end|>" for answer in answers)
        assert tokenizer.decode(said["input_ids"]) == tokenizer.apply_chat_template(row["messages"], tokenize=False)


def test_steps(rows: Any, tokenizer: Any) -> None:
    strategy = stepwise_supervised.load(tokenizer, DictDefault(CFG), DictDefault())
    for row in rows("feedback/math-shepherd"):
        said = strategy.tokenize_prompt(dict(row))
        assert [label for label in said["labels"] if label >= 0] == [int(label) for label in row["labels"]]


def stored(
    teacher: Any, tokenizer: Any, messages: Any, k: int, form: str = "axolotl", shift: int = 0
) -> dict[str, Any]:
    """The row that kdgen writes of what a teacher tells of the answer; `shift` moves that by tokens, which is wrong but for 0."""
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    start = len(tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False))
    with torch.no_grad():
        told = teacher(torch.tensor([whole])).logits[0].log_softmax(-1)
    found = told[(torch.arange(start - 1, len(whole) - 1) + shift)].topk(k)
    own, ids = told[torch.arange(start - 1, len(whole) - 1), whole[start:]], np.array(whole, np.int32)
    tail = np.log1p(-found.values.exp().sum(-1).numpy())
    top_ids, top = found.indices.numpy().astype(np.int32), found.values.numpy()
    feature = TopK(ids[:start], ids[start:], own.numpy(), top_ids, top, tail, Facts("local:tiny", k=k))
    *before, answer = [Message(**turn) for turn in messages]
    system = before.pop(0).content if before[0].role == "system" else ""
    record = Record(
        id="r", system=system, history=tuple(before[:-1]), instruction=before[-1].content, output=answer.content
    )
    row = EXPORTS[form](feature="top", k=k).row(record.featured({"top": feature}))
    assert row is not None
    return row


Loss = Callable[..., Any]


@pytest.fixture
def distil(tokenizer: Any) -> Loss:
    """The loss of a student on rows as Axolotl reads them, in nats a token."""

    def loss(student: Any, read: list[dict[str, Any]], load: Any = kd.load) -> Any:
        strategy = load(tokenizer, DictDefault(CFG), {"logprobs_field": "logprobs", "temperature": 1.0})
        features = [strategy.tokenize_prompt(dict(row)) for row in read]
        batch = DataCollatorForKD(tokenizer)([dict(each) for each in features])
        told = student(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
        learn = LigerFusedLinearKLTopKLogprobLoss(0.0, 1.0, 1.0, 0.0, compiled=False, compute_ce_loss=False)
        names = ("target_token_ids", "target_logprobs", "target_mask")
        targets = [batch[name] for name in names]
        summed = learn(student.lm_head.weight, told.hidden_states[-1], *targets, true_labels=batch["labels"])
        return summed / (batch["target_mask"][..., 0].sum())

    return loss


@pytest.mark.parametrize(("form", "load"), [("axolotl", kd.load), ("axolotl-legacy", kd.load_legacy)])
def test_stored_logits_are_read_at_their_place(
    form: str, load: Any, rows: Any, tiny: Any, tokenizer: Any, distil: Loss
) -> None:
    """A teacher distilled into itself has nothing to learn. One token off, it has."""
    teacher, told = tiny(initializer_range=0.5).eval(), {}
    for shift in (-1, 0, 1):
        read = [stored(teacher, tokenizer, row["messages"], 64, form, shift) for row in rows("label/baize")]
        told[shift] = distil(teacher, read, load).item()
    assert abs(told[0]) < 1e-3 < 0.5 < min(told[-1], told[1]), told


def test_a_student_learns_from_stored_logits(rows: Any, tiny: Any, tokenizer: Any, distil: Loss) -> None:
    teacher, student = tiny(initializer_range=0.5).eval(), tiny(seed=1)
    read = [stored(teacher, tokenizer, row["messages"], 32) for row in rows("label/baize")]
    steps = torch.optim.AdamW(student.parameters(), lr=5e-3)
    losses = []
    for _ in range(5):
        loss = distil(student, read)
        losses.append(loss.item())
        steps.zero_grad()
        loss.backward()
        steps.step()
    print("Axolotl's loss: " + " ".join(f"{loss:.4f}" for loss in losses))
    assert all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]
