"""Real trainers on the CPU: `make test-trainers`, in an environment of its own. Minutes, and nothing without KDGEN_TEST_TRAINERS=1.

The rows are kdgen's (a recipe on its golden files), the model is random and tiny, the tokenizer is trained on the golden
rows. Nothing is fetched: a connection to anything but this machine fails.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server import ROOT

from kdgen.cli import main
from kdgen.config import load_recipe

WANTED = os.environ.get("KDGEN_TEST_TRAINERS") == "1"
collect_ignore_glob = [] if WANTED else ["test_*.py"]
HERE = Path(__file__).parent
GOLDEN = ROOT / "tests" / "golden"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")
if WANTED:
    # Read when the libraries are imported.
    os.environ |= dict.fromkeys(OFFLINE, "1") | {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.modules["vllm"] = None  # type: ignore[assignment]  # the folder tests/vllm would be taken for it

# ChatML, with the marks by which a trainer knows the assistant's own tokens, and reasoning as Qwen3 writes it.
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}"
    "{%- if message['reasoning_content'] %}"
    "{{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{{- message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}"
    "{%- else %}"
    "{{- message['content'] + '<|im_end|>' }}"
    "{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of other people's heavy libraries are no errors here."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def alone() -> Iterator[None]:
    """Nothing outside this machine is reached."""
    connect = socket.socket.connect

    def loopback(self: socket.socket, address: Any) -> None:
        local = self.family == socket.AF_UNIX or str(address[0]) in {"localhost", "::1"} or address[0][:4] == "127."
        if not local:
            raise AssertionError(f"a trainer's test wants {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", loopback)
        yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`dataset(RECIPE, *arguments)`: the folder that `kdgen run` makes of a recipe's golden files."""

    def made(recipe: str, *arguments: str) -> Path:
        folder, base = tmp_path_factory.mktemp("made"), GOLDEN / recipe
        rules, seeds, sets = (base.with_name(f"{base.name}.{end}") for end in ("rules.jsonl", "seeds.jsonl", "sets"))
        asked = ["run", recipe, "-q", "-o", str(folder / "out"), "--ledger", str(folder / "ledger.db")]
        asked += [] if load_recipe(recipe).seed_free else ["--seeds", str(seeds)]
        asked += [word for role, _ in load_recipe(recipe).leaves() for word in ("-t", f"{role}=scripted:{rules}")]
        asked += [word for line in (sets.read_text().splitlines() if sets.exists() else ()) for word in ("--set", line)]
        with pytest.raises(SystemExit) as ended:
            main([*asked, *arguments])
        assert not ended.value.code
        return folder / "out"

    return made


@pytest.fixture(scope="session")
def rows(dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`rows(RECIPE, *arguments)`: its data as `datasets` reads it."""
    from datasets import load_dataset

    def read(recipe: str, *arguments: str) -> Any:
        file, cache = dataset(recipe, *arguments) / "data.jsonl", tmp_path_factory.mktemp("cache")
        return load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))

    return read


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer trained on the golden rows, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    files = sorted(GOLDEN.rglob("data.jsonl"))
    plain.train_from_iterator((file.read_text() for file in files), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = CHATML
    return made


@pytest.fixture
def tiny(tokenizer: Any) -> Callable[..., Any]:
    """`tiny(head, seed)`: a Qwen2 of two layers with random weights."""
    import transformers

    def model(head: str = "ForCausalLM", seed: int = 0, **config: Any) -> Any:
        transformers.set_seed(seed)
        shape = transformers.Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=False,
            **config,
        )
        return getattr(transformers, f"Qwen2{head}")(shape)

    return model


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """What every trainer's config is given: all rows are in every batch, so that the loss can fall."""
    return {
        "output_dir": str(tmp_path / "trained"),
        "per_device_train_batch_size": 8,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported(FOLDER, FORMAT, *arguments)`: the folder that `kdgen export` makes of a dataset."""

    def made(folder: Path, to: str, *arguments: str) -> Path:
        out = tmp_path_factory.mktemp("exported") / "out"
        with pytest.raises(SystemExit) as ended:
            main(["export", str(folder), "--to", to, "-o", str(out), "-q", *arguments])
        assert not ended.value.code
        return out

    return made
