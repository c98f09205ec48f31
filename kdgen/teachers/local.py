"""The local teacher: a small open model that runs inside this process, without key, server or GPU."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import queue
import secrets
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field

from kdgen.errors import EndpointError, UserError
from kdgen.teachers import models
from kdgen.teachers.base import Call, Fault, Raw, Request, TeacherSpec, Wire, chat_body
from kdgen.teachers.llama import Runtime
from kdgen.teachers.turns import completion

# Prompt tokens per step. A request can only be stopped between steps, and larger ones are no faster on a CPU.
STEP = 128
INSTALL = "pip install 'kdgen[local]'"


class Local(TeacherSpec):
    """A GGUF model on this machine's CPU: one of the named models, or the path of a .gguf file."""

    provider: Literal["local"] = "local"
    model: str = Field("qwen2.5-coder-0.5b", description="a name from the table of models, or a path ending in .gguf")
    concurrency: int = Field(4, ge=1, le=64, description="requests answered at the same time, each with its own slot")
    context: int = Field(4096, ge=256, description="tokens of prompt and answer together, per slot")
    threads: int = Field(0, ge=0, description="CPU threads of all slots together; 0 = as many as this process may use")

    @property
    def path(self) -> Path | None:
        """The model's file when the recipe names a file, None when it names a model."""
        return Path(os.path.expanduser(self.model)) if self.model.endswith(".gguf") else None

    @cached_property
    def label(self) -> str:
        """local:name; of a file its name, not its folder, since labels are published in rows."""
        return f"local:{self.path.name if self.path else self.model}"

    @cached_property
    def identity(self) -> str:
        """The model as the ledger knows it: its name and the start of its file's SHA-256."""
        if self.path is None:
            return f"{self.model}@{models.named(self.model).sha256[:12]}"
        _magic(self.path)
        return f"{self.path.name}@{models.file_digest(self.path)[:12]}"

    def check(self) -> None:
        """Raise UserError for an unknown name, or a file that is not a GGUF model."""
        if self.path is None:
            models.named(self.model)
        else:
            _magic(self.path)

    def needs(self) -> dict[str, str]:
        """The runtime, where it is not installed. A missing model is no need: `connect` gets it."""
        return {} if importlib.util.find_spec("xllamacpp") else {"xllamacpp is not installed": INSTALL}

    def origin(self) -> dict[str, str]:
        """Licence, origin and notice of a named model; of a user's own file nothing is known but its digest."""
        if self.path is not None:
            return {"origin": self.identity}
        model = models.named(self.model)
        return {"licence": model.licence, "origin": model.origin, "notice": model.notice}

    def body(self, call: Call) -> dict[str, Any]:
        """The chat-completions body, always seeded, with a model identity that changes with the file's content."""
        body = chat_body(self.identity, call)
        body.setdefault("seed", call.nth)
        # A prompt cache would let an earlier request change the numbers of a later one.
        body["cache_prompt"] = False
        if call.open:
            body["open"] = "user"
        if call.score is not None:
            body["score"] = call.score
        elif call.tokens:
            body["return_token_ids"] = True
        if body.get("top_logprobs") == 0:
            body["top_logprobs"] = 1  # llama.cpp reads 0 as: no logprobs at all
        return body

    def shut(self) -> tuple[str, str] | None:
        """None: the model's chat template is in its file."""
        return None

    def deaf(self) -> tuple[str, str] | None:
        """None: each token of the text is forced in its turn."""
        return None

    def logprobs_mode(self) -> str | None:
        """The model's own: those before any sampling."""
        return "raw_logprobs"

    def connect(self) -> Wire:
        """Make sure that the model's file is here; the model itself is loaded at the first request."""
        self.check()
        self.ready()
        path = self.path or models.find(self.model)
        if path is None:
            size = models.named(self.model).size / 1e6
            print(f"the local model {self.model} is not here yet: getting it ({size:.0f} MB)", file=sys.stderr)
            path = models.pull(self.model, lambda line: None)
        threads = max(1, (self.threads or cpus()) // self.concurrency)
        return LocalWire(path, self.identity, self.concurrency, self.context, threads, self.timeout)


def _magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"the model file {path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise UserError(f"{path} is not a GGUF model", hint="convert the model, or download it in the GGUF format")


def cpus() -> int:
    """CPUs that this process may use: its affinity, and the container's quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return count
    if quota.isdigit() and period.isdigit() and int(period):
        return max(1, min(count, int(quota) // int(period)))
    return count


class LocalWire:
    """Slots of one model, each a llama.cpp server of its own, made when it is first needed.

    One server with several slots would compute its requests in one batch, and the batch's size changes
    the rounding: the same seed would give another answer depending on what runs beside it. Servers with one
    slot each are as fast, share the model's weights through the page cache, and always repeat themselves.
    """

    def __init__(self, path: Path, identity: str, slots: int, context: int, threads: int, timeout: float) -> None:
        self.path = path
        self.identity = identity
        self.context = context
        self.threads = threads
        self.timeout = timeout
        self._key = secrets.token_hex(32)
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        self._loading = threading.Lock()
        self._closed = threading.Event()
        self._workers = ThreadPoolExecutor(slots, thread_name_prefix="kdgen-local")

    async def send(self, request: Request) -> Raw:
        """Answer `request` in a free slot."""
        stop = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, self._answer, request, stop)
        except asyncio.CancelledError:
            stop.set()
            raise

    async def close(self) -> None:
        """Stop what is running and free the model."""
        self._closed.set()
        await asyncio.to_thread(self._free)

    def _free(self) -> None:
        # A server must not be freed while a request is in it, so the workers come first.
        self._workers.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            self._idle.get_nowait()

    def _answer(self, request: Request, stop: threading.Event) -> Raw:
        try:
            server = self._idle.get_nowait()
        except queue.Empty:
            server = self._load()
        try:
            return self._generate(server, request, stop)
        finally:
            self._idle.put(server)

    def _load(self) -> Any:
        with self._loading:
            # Waiting threads that spin cost more than they save as soon as anything else runs on the machine.
            # The OpenMP runtime reads this once, when the library is loaded.
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            runtime = importlib.import_module("xllamacpp")
            params = runtime.CommonParams()
            params.model.path = str(self.path)
            params.model_alias = {self.identity}
            params.n_parallel = 1
            params.n_ctx = self.context
            params.n_batch = params.n_ubatch = STEP
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
            params.verbosity = 3 if os.environ.get("KDGEN_DEBUG") else 0
            # Repacked weights would be a private copy per slot; as they are in the file, the slots share them.
            params.no_extra_bufts = True
            # Flash attention divides a long context among the threads, so their number would change the rounding.
            params.flash_attn_type = runtime.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.fit_params = False
            params.prefill_assistant = False  # an answer that is there is a turn that has ended
            params.cache_ram_mib = params.n_ctx_checkpoints = 0
            params.cache_idle_slots = False
            # The runtime also listens on a loopback port, and nobody is to come in there.
            params.api_keys = [self._key]
            params.endpoint_slots = params.ui = False
            params.n_threads_http = 1
            try:
                return runtime.Server(params)
            except (RuntimeError, ValueError) as error:
                raise EndpointError(
                    f"the local model {self.path} cannot be loaded ({error})",
                    hint="set KDGEN_DEBUG=1 to see why; a smaller context or concurrency needs less memory",
                ) from None

    def _generate(self, server: Any, request: Request, stop: threading.Event) -> Raw:
        chunks: list[dict[str, Any]] = []
        deadline = time.monotonic() + self.timeout
        ended = ""

        def stopped() -> str:
            if time.monotonic() > deadline:
                return f"no answer within {self.timeout:g} s"
            return "the request was cancelled" if stop.is_set() or self._closed.is_set() else ""

        def take(chunk: dict[str, Any]) -> bool:
            nonlocal ended
            ended = stopped()
            chunks.append(chunk)
            return bool(ended)

        # Only a streamed request can be stopped while it runs; progress chunks make that true of its prompt too.
        stream = {"stream": True, "return_progress": True, "stream_options": {"include_usage": True}}
        try:
            body = orjson.loads(request.body)
            if "score" in body:
                return Raw(
                    orjson.dumps(Runtime(server, self._key, self.timeout).score(self.identity, body, stopped)), {}
                )
            if told := body.pop("return_token_ids", False):
                told = Runtime(server, self._key, self.timeout).told(body["messages"])
            if "open" in body:
                server.handle_completions(
                    completion(body, Runtime(server, self._key, self.timeout).opened(body["messages"])) | stream, take
                )
            else:
                server.handle_chat_completions(body | stream, take)
        except ValueError as error:
            raise Fault("never", str(error), status=400) from None
        if ended:
            raise Fault("transient", ended)
        for chunk in chunks:
            if wrong := chunk.get("error"):
                status = int(wrong.get("code") or 500)
                raise Fault("never" if status < 500 else "transient", str(wrong.get("message")), status=status)
        return Raw(orjson.dumps({**_assemble(self.identity, chunks), **(told or {})}), {})


def _assemble(identity: str, chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The chat completion that `chunks` are the stream of, without times and random ids: a repeat is the same bytes."""
    message: dict[str, str] = {"role": "assistant", "content": ""}
    logprobs: list[dict[str, Any]] = []
    finish = usage = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or ():
            finish = choice.get("finish_reason") or finish
            for name, text in (choice.get("delta") or {"content": choice.get("text")}).items():
                if name in ("content", "reasoning_content") and text:
                    message[name] = message.get(name, "") + text
            logprobs += (choice.get("logprobs") or {}).get("content") or ()
    if finish is None:
        raise Fault("transient", "the answer broke off")
    choice = {"index": 0, "message": message, "finish_reason": finish}
    if logprobs:
        choice["logprobs"] = {"content": logprobs}
    return {"object": "chat.completion", "model": identity, "choices": [choice], "usage": usage}
