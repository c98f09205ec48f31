"""vLLM: its server at one URL or several, or its engine inside this process.

`vllm serve MODEL` is asked over the lean wire, in the chat-completions dialect. Without an address the engine runs
here (see `engine`). Either way a reply reads the same, with token ids beside the logprobs.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import UserError
from kdgen.record import digest
from kdgen.resources import did_you_mean
from kdgen.teachers.base import (
    BatchApi,
    Call,
    Params,
    Raw,
    Reply,
    Request,
    TeacherSpec,
    Told,
    Wire,
    chat_body,
)
from kdgen.teachers.calls import dumped
from kdgen.teachers.chat import MALFORMED, malformed
from kdgen.teachers.classify import FIELDS, VOID, WIRE, classify_body, classify_url, read_classes
from kdgen.teachers.http import HttpWire
from kdgen.teachers.keys import EnvName, check_key, key_needs, key_of
from kdgen.teachers.least_loaded import LeastLoaded
from kdgen.teachers.models import file_digest
from kdgen.teachers.told import prompt_told
from kdgen.teachers.turns import completion_request, shut_server, wrong_template
from kdgen.teachers.urls import wrong_url

# Fields of a body that vLLM reads and kdgen has no field for (0.32's ChatCompletionRequest).
SAMPLING = frozenset(
    "top_k min_p repetition_penalty min_tokens ignore_eos stop_token_ids logit_bias allowed_token_ids bad_words "
    "skip_special_tokens spaces_between_special_tokens include_stop_str_in_output thinking_token_budget "
    "structured_outputs repetition_detection logprob_token_ids".split()
)
TEMPLATE = frozenset(
    "chat_template chat_template_kwargs add_generation_prompt continue_final_message documents".split()
)
SERVED = (
    SAMPLING
    | TEMPLATE
    | frozenset(
        "add_special_tokens truncate_prompt_tokens truncation_side include_reasoning priority cache_salt vllm_xargs "
        "watermarking".split()
    )
)
CONSTRAINTS = frozenset("json regex choice grammar json_object structural_tag".split())
OWN = frozenset(
    "model messages stream stream_options n max_completion_tokens top_logprobs response_format reasoning_effort "
    "return_tokens_as_token_ids return_token_ids prompt_logprobs engine lora".split()
) | {*Params.model_fields}

# Engine arguments that change how fast an answer comes, and not the answer; every other one is part of the request.
TRANSPORT = frozenset(
    "gpu_memory_utilization kv_cache_memory_bytes max_num_seqs max_num_batched_tokens tensor_parallel_size "
    "pipeline_parallel_size data_parallel_size enforce_eager cpu_offload_gb swap_space download_dir max_logprobs "
    "disable_log_stats max_loras max_cpu_loras max_lora_rank".split()
)
ENGINE_OWN = frozenset("model generation_config enable_lora".split())
MODEL_FILES = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".model", ".jinja", ".txt", ".tiktoken")
INSTALL = "pip install 'kdgen[vllm]', or name a server: --teacher vllm:MODEL@http://HOST:PORT/v1"
BATCH_DIR = ".kdgen/batches"


class Vllm(TeacherSpec):
    """A model that vLLM serves at `base_url` or `base_urls`, or one that its engine runs in this process.

    `extra` holds vLLM's own fields of a request (`top_k`, `chat_template_kwargs`, …); `engine` its engine's arguments
    (`max_model_len`, `dtype`, …). `lora` is an adapter: the name it is served under, or its folder.
    """

    provider: Literal["vllm"] = "vllm"
    base_url: str | None = None
    base_urls: tuple[str, ...] = Field((), description="servers of one model; each request goes to the least loaded")
    api_key_env: EnvName = "VLLM_API_KEY"
    api_key_file: str | None = Field(None, description="a file that holds the key alone, instead of a variable")
    api: Literal["chat", "classify"] = Field(
        "chat", description="classify: a reward model or classifier at a server's /classify, which says numbers"
    )
    concurrency: int = Field(64, ge=1, le=4096, description="requests in flight at most")
    batch_dir: str | None = Field(
        None, description=f"the folder of the files that `vllm run-batch` answers in mode: batch; unset: {BATCH_DIR}"
    )
    template: str | None = Field(
        None,
        description="the chat template of a server's model, where it is to write a user's turn: chatml, llama-3, …",
    )
    prompt_logprobs: int | None = Field(None, ge=0, description="top-k logprobs of each token of the prompt")
    lora: str | None = None
    engine: dict[str, JsonValue] = {}
    extra: dict[str, JsonValue] = {}

    takes: ClassVar[frozenset[str]] = frozenset(Params.model_fields)

    @property
    def scores(self) -> bool:
        """Where it classifies."""
        return self.api == "classify"

    def accepts(self) -> frozenset[str]:
        """What classifies samples nothing."""
        return frozenset() if self.scores else self.takes

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers; none where the engine runs in this process."""
        return self.base_urls or ((self.base_url,) if self.base_url is not None else ())

    @cached_property
    def label(self) -> str:
        """vllm:model, with the adapter's name; of a folder its name, since labels are published in rows."""
        return f"vllm:{_name(self.model)}" + (f"+{_name(self.lora)}" if self.lora else "")

    @cached_property
    def identity(self) -> str:
        """The model as the ledger knows it: a hub's name as it is, a folder by its name and its files' digest."""
        return self.model if self.urls else _identity(self.model)

    def check(self) -> None:
        """A model must be named, a URL must be one, and no field may be without effect."""
        check_key(self)
        for cause, hint in self._wrong():
            raise UserError(cause, where=self.label, hint=hint)

    def _wrong(self) -> Iterator[tuple[str, str]]:
        if not self.model:
            yield "no model is named", "--teacher vllm:MODEL, or vllm:MODEL@BASE_URL"
        if self.base_url is not None and self.base_urls:
            yield "base_url and base_urls are both set", "name all servers in base_urls"
        if len(set(self.base_urls)) < len(self.base_urls):
            yield "base_urls names a server twice", "one URL per server"
        for url in self.urls:
            yield from wrong_url(url)
        if self.urls and self.engine:
            yield "engine has no effect on a server", "give these arguments to `vllm serve`, or leave out base_url"
        if clash := sorted(set(self.engine) & ENGINE_OWN):
            yield f"engine must not set {', '.join(clash)}", "kdgen has a field for it, or needs it"
        if self.lora and not self.urls and not Path(os.path.expanduser(self.lora)).is_dir():
            yield f"the adapter {self.lora} is no folder", "in this process an adapter is loaded from its folder"
        if self.batch_dir is not None and self.mode != "batch":
            yield "batch_dir has no effect online", "mode: batch"
        if self.lora and self.mode == "batch":
            yield "`vllm run-batch` takes no adapter", "mode: online, or a model with the adapter merged into it"
        if self.scores and not self.urls:
            yield "only a server classifies", "base_url: http://HOST:PORT/v1"
        if self.scores and self.mode == "batch":
            yield "`vllm run-batch` does not classify", "mode: online"
        for name in VOID if self.scores else ():
            if getattr(self, name):
                yield f"{name} has no effect on what classifies", "take it out"
        yield from wrong_template(self.template, bool(self.urls))
        for name in sorted(self.extra):
            yield from self._wrong_extra(name)

    def _wrong_extra(self, name: str) -> Iterator[tuple[str, str]]:
        known = FIELDS if self.scores else SERVED if self.urls else SAMPLING | TEMPLATE
        if name in OWN:
            yield f"extra must not set {name}", "kdgen has a field for it, or needs it"
        elif name.startswith("guided_"):
            yield f"vLLM ignores {name} since 0.12", "extra: {structured_outputs: {regex: …}}; schemas are sent anyway"
        elif name not in known:
            other = "provider: openai with a base_url sends any field" if self.urls else "only a server takes it"
            yield f"vLLM would ignore {name} here", did_you_mean(name, known) or other

    def shut(self) -> tuple[str, str] | None:
        """The engine in this process has the model's chat template; a server is told it."""
        return shut_server(self.template if self.urls else "own", self.mode)

    def request(self, call: Call) -> Request:
        """See `TeacherSpec.request`; a server writes a user's turn as a raw completion."""
        if self.scores:
            return Request(
                WIRE, dumped({**classify_body(self.model, call), **self.extra}), call.nth, 1
            )  # it writes nothing
        if call.open and self.urls:
            return completion_request(self.body(call), self.template or "", call)
        return super().request(call)

    def needs(self) -> dict[str, str]:
        """vLLM itself, where neither a server nor files stand for it. A server's key is optional, unless the recipe names it."""
        if self.urls:
            return key_needs(self, needed=bool({"api_key_env", "api_key_file"} & self.model_fields_set))
        return {} if self.mode == "batch" else _installed()

    def origin(self) -> dict[str, str]:
        """The model, and the digest of a folder of one's own."""
        return {"origin": self.identity}

    def body(self, call: Call) -> dict[str, Any]:
        """The chat-completions body, which asks for token ids wherever there are logprobs.

        For the engine in this process it also holds what would change the answer: the adapter and the engine's arguments.
        """
        body = {**chat_body(self.identity, call), **self.extra}
        if isinstance(structured := body.pop("structured_outputs", None), dict):
            # vLLM takes its options (`disable_any_whitespace`, …) only beside a constraint, and the schema is one.
            structured = {**structured, **({"json": call.schema} if call.schema is not None else {})}
            if CONSTRAINTS & set(structured):
                body["structured_outputs"] = structured
        if self.urls and self.lora:
            body["model"] = self.lora
        if call.score is not None:
            body |= {"prompt_logprobs": call.score, "max_tokens": 1, "add_generation_prompt": False}
        elif call.params.logprobs is not None:
            body["return_tokens_as_token_ids"] = True
        if self.prompt_logprobs is not None and call.score is None and not call.tokens:
            body["prompt_logprobs"] = self.prompt_logprobs
        asked = (call.params.logprobs, self.prompt_logprobs, call.score)
        if call.tokens or any(each is not None for each in asked):
            body["return_token_ids"] = True
        if not self.urls:
            body |= {"open": "user"} if call.open else {}
            body["engine"] = {name: value for name, value in self.engine.items() if name not in TRANSPORT}
            if self.lora:
                body["lora"] = self._adapter
        return body

    def deaf(self) -> tuple[str, str] | None:
        """One that classifies, or answers files, is asked for no logprobs of a prompt."""
        if self.scores or self.mode == "batch":
            return "it is not asked for the logprobs of a prompt so", "api: chat, mode: online"
        return None

    def scoring(self, call: Call) -> list[Request]:
        """The whole conversation, and the part before the text that is scored: where it ends no reply says."""
        before = replace(call, messages=call.messages[:-1], score=None, tokens=True)
        return [self.request(call), self.request(before)]

    def told(self, replies: Sequence[Reply], said: str) -> Told:
        """See `TeacherSpec.told`."""
        return prompt_told(replies[0].body, replies[1].body)

    def logprobs_mode(self) -> str | None:
        """What the engine in this process is set to; a server does not say."""
        return None if self.urls else str(self.engine.get("logprobs_mode", "raw_logprobs"))

    @cached_property
    def _adapter(self) -> str:
        return _identity(self.lora or "")

    def read(self, request: Request, raw: Raw) -> Reply:
        """See `TeacherSpec.read`; each logprob has its token's id and text, the likeliest first."""
        if request.wire == WIRE:
            return read_classes(request.key, self.label, raw)
        reply = super().read(request, raw)
        try:
            for choice in reply.body["choices"]:
                for entry in (choice.get("logprobs") or {}).get("content") or ():
                    named(entry)
                    entry["top_logprobs"] = sorted(entry.get("top_logprobs") or (), key=lambda top: -top["logprob"])
                    for top in entry["top_logprobs"]:
                        named(top)
        except (*MALFORMED, ValueError) as error:
            raise malformed("logprobs", error) from None
        if raw.mode == "batch" and not reply.reasoning:
            from kdgen.teachers.engine import apart

            thought, text = apart(reply.text)  # as the engine in this process does it
            reply = replace(reply, text=text, reasoning=thought)
        return reply

    def connect(self) -> Wire:
        """The lean wire for each server, or the engine, which is loaded at the first request."""
        self.check()
        self.ready()
        if not self.urls:
            from kdgen.teachers.engine import EngineWire

            for need, hint in _installed().items():
                raise UserError(need, where=self.label, hint=hint)
            arguments = {"max_num_seqs": self.concurrency, **self.engine}
            adapter = (self._adapter, os.path.expanduser(self.lora)) if self.lora else None
            return EngineWire(_path(self.model), arguments, adapter)
        key = key_of(self)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        bases = [url.rstrip("/") for url in self.urls]
        raw, most = "/completions", self.concurrency
        if self.scores:
            wires = [HttpWire(classify_url(base), headers, connections=most) for base in bases]
            return wires[0] if len(wires) == 1 else LeastLoaded(wires)
        wires = [HttpWire(b + "/chat" + raw, headers, connections=most, completions=b + raw) for b in bases]
        return wires[0] if len(wires) == 1 else LeastLoaded(wires)

    def batches(self) -> BatchApi:
        """Files for `vllm run-batch`."""
        from kdgen.teachers.batch_files import BatchFiles

        return BatchFiles(Path(os.path.expanduser(self.batch_dir or BATCH_DIR)))

    def todo(self, remote: str) -> str:
        """The command that answers a batch as the engine in this process would."""
        from kdgen.teachers.batch_files import command

        options = {"generation_config": "vllm", "max_logprobs": -1, **self.engine}
        return command(remote, _path(self.model), self.identity, options)


def _installed() -> dict[str, str]:
    return {} if importlib.util.find_spec("vllm") else {"vllm is not installed": INSTALL}


def named(entry: dict[str, Any]) -> None:
    """Give a logprob entry of a server its token's `id`, and as `token` its text again."""
    token = entry.get("token")
    if "id" not in entry and isinstance(token, str) and token.startswith("token_id:") and token[9:].isdigit():
        entry["id"] = int(token[9:])
        spelled = bytes([*(entry.pop("bytes", None) or ())]).decode("utf-8", "replace")
        # Only the sampled token comes with its text; of the others the id is all that a server tells.
        entry["token"] = None if spelled == token else spelled


def _path(name: str) -> str:
    folder = Path(os.path.expanduser(name))
    return str(folder) if folder.exists() else name


def _name(name: str) -> str:
    return Path(name).name if name.startswith(("/", "~", ".")) or Path(name).exists() else name


def _identity(name: str) -> str:
    folder = Path(os.path.expanduser(name))
    if not folder.exists():
        return name
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    found = [(file.name, file_digest(file)) for file in files if file.is_file() and file.suffix in MODEL_FILES]
    return f"{folder.name}@{digest(found)[:12]}"
