"""LLaMA-Factory's own loader reads the folder that `kdgen export --to llamafactory` writes, at each of its stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

READS = Path(__file__).parent / "llamafactory_reads.py"
EACH = 'stages.2={"stage": "feedback", "method": "each", "good_from": 4}'
LABELLED = ("--set", EACH, "--set", "dedupe=[]", "-f", "kto")


@pytest.fixture
def read(dataset: Any, exported: Any, tokenizer: Any, tiny: Any, tmp_path: Path) -> Any:
    """The records of a recipe, and the rows that the loader makes of them."""

    def rows(recipe: str, kind: str, stage: str, *arguments: str) -> tuple[list[Any], list[Any]]:
        made = dataset(recipe, *arguments)
        folder = exported(made, "llamafactory", "--set", f"stage={kind}", "--name", "ours")
        tokenizer.save_pretrained(tmp_path / "model")
        tiny().save_pretrained(tmp_path / "model")
        asked = [str(tmp_path / "model"), str(folder), "ours", stage, str(tmp_path / "cache")]
        ran = subprocess.run(
            [sys.executable, str(READS), *asked], env=os.environ, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        (line,) = (line for line in ran.stdout.splitlines() if line.startswith("ROWS "))
        records = [json.loads(line) for line in (made / "records.jsonl").read_text().splitlines()]
        return records, json.loads(line.removeprefix("ROWS "))

    return rows


def test_conversations(read: Any) -> None:
    records, rows = read("label/baize", "sft", "sft")
    assert len(rows) == len(records) == 4
    for record, row in zip(records, rows, strict=True):
        answers = [turn["content"] for turn in record["history"] if turn["role"] == "assistant"] + [record["output"]]
        assert row["labels"] == "".join(f"{answer}<|im_end|>\n" for answer in answers)
        assert row["input_ids"].count("<|im_start|>system\n") == bool(record["system"])
        assert all(
            f"<|im_start|>user\n{turn['content']}<|im_end|>\n" in row["input_ids"] for turn in record["history"][::2]
        )


def test_pairs(read: Any) -> None:
    records, rows = read("feedback/jury", "preference", "rm")
    for record, row in zip(records, rows, strict=True):
        chosen, rejected = (each["output"] for each in record["candidates"])
        assert row["chosen_labels"] == f"{chosen}<|im_end|>\n" and row["rejected_labels"] == f"{rejected}<|im_end|>\n"


def test_labels(read: Any) -> None:
    records, rows = read("feedback/jury", "kto", "kto", *LABELLED)
    assert [row["kto_tags"] for row in rows] == [record["meta"]["label"] for record in records]
    assert {row["labels"] for row in rows} == {f"{record['output']}<|im_end|>\n" for record in records}


def test_texts(read: Any) -> None:
    records, rows = read("curate/rephrase", "pt", "pt")
    said = "".join(row["input_ids"] for row in rows)
    assert all(record["text"] in said for record in records if record["text"] and not record["output"])
