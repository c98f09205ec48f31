"""`python llamafactory_reads.py MODEL FOLDER NAME STAGE CACHE`: what LLaMA-Factory's own loader makes of a dataset folder.

A JSON list of the rows as it tokenized them: for each list of token ids, the text (of labels, that which is learnt).
"""

from __future__ import annotations

import json
import os
import sys
import types
from importlib.machinery import ModuleSpec

os.environ["DISABLE_VERSION_CHECK"] = "1"  # its pins are of last year's libraries; what it reads is the point here
import transformers  # before the stand-in: it looks for torchaudio too

# It imports torchaudio, of which there is no build for the CPU alone, to load sounds, of which there are none.
audio = types.ModuleType("torchaudio")
audio.__spec__ = ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = audio

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402

model, folder, name, stage, cache = sys.argv[1:]
asked = {
    "model_name_or_path": model,
    "stage": stage,
    "do_train": True,
    "finetuning_type": "full",
    "dataset": name,
    "dataset_dir": folder,
    "template": "chatml",
    "cutoff_len": 1024,
    "packing": False,
    "output_dir": f"{cache}/trained",
    "cache_dir": cache,
    "overwrite_cache": True,
    "use_cpu": True,
    "report_to": "none",
}
model_args, data_args, training_args, _, _ = get_train_args(asked)
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
template = get_template_and_fix_tokenizer(tokenizer, data_args)
table = get_dataset(template, model_args, data_args, training_args, stage=stage, tokenizer=tokenizer)["train_dataset"]


def told(value: object) -> object:
    """The text of a list of token ids, other things as they are."""
    if not isinstance(value, list):
        return value
    return tokenizer.decode([token for token in value if token >= 0])


print("ROWS " + json.dumps([{key: told(value) for key, value in row.items()} for row in table]))
