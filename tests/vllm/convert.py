"""A model of the embedded teacher as a Hugging Face folder, which is what vLLM reads: its GGUF file, dequantized.

`python tests/vllm/convert.py [NAME]` prints the folder; it is made once and kept in kdgen's cache.
Needs transformers, torch, accelerate and gguf.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from kdgen.teachers import models

# What vLLM needs beside the weights; a GGUF file holds all of it.
PARTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def folder_of(name: str) -> Path:
    """Where the converted model is kept."""
    return models.cache_dir() / "hf" / name


def is_there(name: str) -> bool:
    """Whether the whole converted model is there."""
    return all((folder_of(name) / part).is_file() for part in PARTS)


def convert(name: str) -> Path:
    """The folder of the converted model, made if it is not there."""
    folder = folder_of(name)
    if is_there(name):
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = models.pull(name, lambda line: print(line, file=sys.stderr))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as part:
        where = {"gguf_file": source.name, "local_files_only": True}
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent), quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **where
        )
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(str(source.parent), **where).save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        os.chmod(part, 0o755)
        os.rename(part, folder)
        os.mkdir(part)
    return folder


if __name__ == "__main__":
    print(convert(sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder-0.5b"))
