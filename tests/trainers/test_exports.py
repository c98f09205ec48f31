"""What `kdgen export` writes beside the rows of a run: prompt and completion, a Hugging Face folder, Axolotl's own forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from axolotl.prompt_strategies import chat_template
from axolotl.prompt_strategies.dpo import chat_template as dpo
from axolotl.prompt_strategies.kto import chatml as kto
from axolotl.prompt_strategies.orpo import chat_template as orpo
from axolotl.utils.dict import DictDefault
from datasets import load_dataset
from training import falls

LABELLED = ("-f", "kto", "--set", "dedupe=[]")
EACH = 'stages.2={"stage": "feedback", "method": "each", "good_from": 4}'
CFG = {"sequence_len": 1024, "train_on_inputs": False, "chat_template": "tokenizer_default", "datasets": [{}]}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_sft_on_prompt_and_completion(
    dataset: Any, exported: Any, tiny: Any, tokenizer: Any, settings: Any, tmp_path: Path
) -> None:
    folder = exported(dataset("label/explain"), "prompt-completion")
    table = load_dataset("json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=str(tmp_path))
    trainer = trl.SFTTrainer(tiny(), trl.SFTConfig(**settings), train_dataset=table, processing_class=tokenizer)
    for row, given in zip(trainer.train_dataset, lines(folder), strict=True):
        said = tokenizer.decode([token for token in row["labels"] if token >= 0])
        assert said.startswith(given["completion"][0]["content"] + "<|im_end|>")
    falls(trainer)


@pytest.mark.parametrize("split", ["", "train=0.5,test=0.5"])
def test_a_hugging_face_folder_is_opened_by_its_name(split: str, dataset: Any, exported: Any, tmp_path: Path) -> None:
    """By the configs of its card, with no script."""
    folder = exported(dataset("label/answer"), "messages", "--as", "hf", *(("--split", split) if split else ()))
    opened = load_dataset(str(folder), cache_dir=str(tmp_path))
    assert set(opened) == ({"train", "test"} if split else {"train"})
    assert sum(len(table) for table in opened.values()) == 5
    assert all(row["messages"][-1]["role"] == "assistant" for table in opened.values() for row in table)


def test_axolotl_chat(dataset: Any, exported: Any, tokenizer: Any) -> None:
    """The answer alone is learnt, and no earlier turn."""
    asked = {"message_field_training": "train", "roles_to_train": []}
    strategy = chat_template.load(tokenizer, DictDefault(CFG), asked)
    for row in lines(exported(dataset("label/baize"), "axolotl-chat")):
        said = strategy.tokenize_prompt(dict(row))
        learnt = tokenizer.decode([token for token in said["labels"] if token >= 0])
        assert learnt == row["messages"][-1]["content"] + "<|im_end|>"


def test_axolotl_dpo(dataset: Any, exported: Any, tokenizer: Any) -> None:
    read, _ = dpo.default(DictDefault(CFG))
    for row in lines(exported(dataset("feedback/jury"), "axolotl-preference")):
        said = read(dict(row), tokenizer=tokenizer)
        assert said["prompt"] == tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        assert said["chosen"] == row["chosen"]["content"] + "<|im_end|>"
        assert said["rejected"] == row["rejected"]["content"] + "<|im_end|>"


def test_axolotl_orpo(dataset: Any, exported: Any, tokenizer: Any) -> None:
    read = orpo.argilla(DictDefault(CFG))
    for row in lines(exported(dataset("feedback/jury"), "axolotl-preference", "--set", "layout=orpo")):
        said = read(dict(row), tokenizer=tokenizer)
        assert row["chosen"][0]["content"] in said["prompt"]
        assert said["chosen"] == row["chosen"][-1]["content"] + "<|im_end|>\n"
        assert said["rejected"] == row["rejected"][-1]["content"] + "<|im_end|>\n"


def test_axolotl_kto(dataset: Any, exported: Any) -> None:
    read, labels = kto.prompt_pairs(DictDefault(CFG)), set()
    for row in lines(exported(dataset("feedback/jury", "--set", EACH, *LABELLED), "axolotl-kto")):
        said = read(dict(row))
        labels.add(said["label"])
        assert said["prompt"] == f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert said["completion"] == row["completion"] + "<|im_end|>"
    assert labels == {True, False}
