"""`python prm.py MODEL FILE FOLDER`, with a TRL of 1.12 or less on the path: its PRMTrainer takes five steps on stepwise rows."""

from __future__ import annotations

import sys

from datasets import load_dataset
from training import falls
from transformers import AutoModelForTokenClassification, AutoTokenizer
from trl.experimental.prm import PRMConfig, PRMTrainer

model, file, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
table = load_dataset("json", data_files=file, split="train", cache_dir=f"{folder}/cache")
trainer = PRMTrainer(
    AutoModelForTokenClassification.from_pretrained(model),
    PRMConfig(
        output_dir=f"{folder}/trained",
        max_steps=5,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    ),
    train_dataset=table,
    processing_class=tokenizer,
)
falls(trainer)
