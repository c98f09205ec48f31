"""One forward pass of a model of transformers as a reply: what it tells of each token of an answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from kdgen.errors import EndpointError
from kdgen.teachers.calls import Fault, Raw, Request
from kdgen.teachers.http import excerpt
from kdgen.teachers.llama import scored_body


class ForwardWire:
    """A model in this process, in a thread of its own."""

    def __init__(self, model: str, identity: str, device: str, dtype: str) -> None:
        self.model = model
        self.identity = identity
        self._device = device
        self._dtype = dtype
        self._loaded: tuple[Any, Any, dict[str, Any]] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kdgen-transformers")

    async def send(self, request: Request) -> Raw:
        """Compute what `request` asks for."""
        body = orjson.loads(request.body)
        made = await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, body)
        return Raw(orjson.dumps(made), {})

    async def close(self) -> None:
        """Free the model."""
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)
        self._loaded = None

    def _load(self) -> tuple[Any, Any, dict[str, Any]]:
        if self._loaded is None:
            try:
                torch, library = importlib.import_module("torch"), importlib.import_module("transformers")
                tokenizer = library.AutoTokenizer.from_pretrained(self.model)
                dtype = getattr(torch, self._dtype)
                model = library.AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype)
                device = self._device
                if device == "auto":
                    device = "cuda" if torch.cuda.is_available() else "cpu"
                model = model.to(device).eval()
            except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
                raise EndpointError(
                    f"transformers cannot load {self.model}: {excerpt(str(error))}",
                    hint="it takes a folder with config.json, weights, tokenizer and chat template, or a name on the hub",
                ) from None
            self._loaded = tokenizer, model, self._facts(library, tokenizer, model)
        return self._loaded

    def _facts(self, library: Any, tokenizer: Any, model: Any) -> dict[str, Any]:
        facts: dict[str, Any] = {"vocab_size": int(model.config.get_text_config().vocab_size)}
        file = library.utils.cached_file(self.model, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
        if file is not None:
            facts["tokenizer_sha256"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if isinstance(tokenizer.chat_template, str):
            facts["chat_template_sha256"] = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
        return facts

    def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        tokenizer, model, facts = self._load()
        try:
            before, whole = (
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open)
                for messages, open in ((body["messages"][:-1], True), (body["messages"], False))
            )
        except Exception as error:  # a template is a program of the model's maker
            raise Fault("never", f"the chat template fails: {excerpt(str(error))}", status=400) from None
        read = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        prompt, ids = tokenizer(before, add_special_tokens=False)["input_ids"], read["input_ids"]
        if ids[: len(prompt)] != prompt:
            return {**scored_body(self.identity, len(ids), 0), "told": {"wrong": "prompt_not_prefix"}}
        start, most = len(prompt), int(getattr(model.config, "max_position_embeddings", 0) or 0)
        if most and len(ids) > most:
            raise Fault("never", f"{len(ids)} tokens are more than the model's {most}", status=400)
        told: dict[str, Any] = {"prompt_ids": prompt, "ids": ids[start:]}
        # A token that is a piece of a character spells all of it where it begins, and nothing where it goes on.
        ends = [0, *(end for _, end in read["offset_mapping"])]
        spans = zip(ends[start:], ends[start + 1 :], strict=False)
        told["pieces"] = [list(whole[begin:end].encode()) for begin, end in spans]
        told |= _numbers(model, ids, start, int(body["score"]), body.get("layers"))
        return {**scored_body(self.identity, start, len(ids) - start), "told": told, "facts": facts}


def _numbers(model: Any, ids: list[int], start: int, top: int, layers: list[int] | None) -> dict[str, Any]:
    """The logprobs of each of `ids[start:]` by what stands before it, the likeliest, and the hidden states at it."""
    torch = importlib.import_module("torch")
    with torch.inference_mode():
        given = torch.tensor([ids], device=model.device)
        out = model(given, output_hidden_states=layers is not None)
        rows = torch.log_softmax(out.logits[0, start - 1 : -1].float(), -1)
        own = rows.gather(1, given[0, start:, None])[:, 0]
        values, tokens = rows.topk(min(top, rows.shape[1]), dim=1)
        pairs = zip(tokens.tolist(), values.tolist(), strict=True)
        made: dict[str, Any] = {"logprobs": own.tolist(), "top": [list(zip(*pair, strict=True)) for pair in pairs]}
        if layers is None:
            return made
        depth = len(out.hidden_states)
        if wrong := [layer for layer in layers if not -depth <= layer < depth]:
            raise Fault("stop", f"the model has no layer {wrong[0]}", hint=f"0 to {depth - 1}, or -1 to {-depth}")
        states = torch.stack([out.hidden_states[layer][0, start:] for layer in layers]).float().cpu().numpy()
    packed = base64.b64encode(states.astype("float32").tobytes()).decode()
    width = {"dtype": "float32", "width": states.shape[2], "layers": [layer % depth for layer in layers]}
    return {**made, **width, "states": packed}
