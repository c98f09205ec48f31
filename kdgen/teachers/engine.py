"""vLLM's engine inside this process, as a wire: one `generate` per request, batched continuously by the engine.

The engine lives in a thread with an event loop of its own: loading it blocks for minutes, and what else the run
does (other teachers, signals, progress) must not wait for that. Its workers are processes that vLLM spawns.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import orjson

from kdgen.errors import EndpointError, KdgenError, UserError
from kdgen.teachers.base import Fault, Raw, Request
from kdgen.teachers.guard import Guard
from kdgen.teachers.http import excerpt
from kdgen.teachers.turns import MARK, before_mark
from kdgen.teachers.vllm import INSTALL, SAMPLING

PLAIN = frozenset("temperature top_p seed stop presence_penalty frequency_penalty prompt_logprobs".split()) | SAMPLING
GRACE = 30.0  # seconds that the engine's processes have to end by themselves
LEAST_LOGPROB = -9999.0  # as vLLM's server says it, where JSON has no infinity
THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)(?:</think>\s*|\Z)", re.DOTALL)


class EngineWire:
    """vLLM's AsyncLLM, loaded at the first request.

    `arguments` are the engine's; `adapter` is a LoRA adapter's name and folder.
    """

    def __init__(self, model: str, arguments: dict[str, Any], adapter: tuple[str, str] | None = None) -> None:
        self.model = model
        self._arguments = {
            "model": model,
            "generation_config": "vllm",
            "max_logprobs": -1,
            "disable_log_stats": True,
            **({"enable_lora": True} if adapter else {}),
            **arguments,
        }
        self._adapter = adapter
        self._names = itertools.count()
        self._engine: Any = None
        self._broken: KdgenError | None = None
        self._loading = self._closing = False
        self._guard = Guard()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kdgen-vllm", daemon=True)
        self._thread.start()

    async def send(self, request: Request) -> Raw:
        """Answer `request`. Raises Fault; a cancelled request is aborted in the engine."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._answer(request), self._loop))

    async def close(self) -> None:
        """Stop the engine and its processes."""
        await asyncio.to_thread(self._stop)

    def _run(self) -> None:
        # What the engine spawns inherits this: Ctrl-C is for kdgen, which lets replies on their way arrive first.
        # The tracker goes first, as starting it would undo the mask.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _stop(self) -> None:
        self._closing = True
        ended = asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop)
        while not ended.done():
            for child in multiprocessing.active_children() if self._loading else ():
                if child.name.startswith(("EngineCore", "VllmWorker")):
                    child.terminate()  # without its processes, loading gives up
            time.sleep(0.05)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._guard.close()

    async def _shutdown(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=GRACE)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _load(self) -> Any:
        """The engine. It is tried once; every request gets the same error."""
        if self._broken is not None:
            raise self._broken
        if self._closing:
            raise Fault("transient", "the engine is shut down")
        if self._engine is None:
            self._loading = True
            try:
                self._engine = self._build()
            except KdgenError as error:
                self._broken = error
                raise
            finally:
                self._loading = False
        return self._engine

    def _build(self) -> Any:
        vllm = _import()
        fields = vllm.AsyncEngineArgs.__dataclass_fields__
        if alien := sorted(set(self._arguments) - set(fields)):
            raise UserError(f"vLLM's engine has no {', '.join(alien)}", hint="see `vllm serve --help`, with _ for -")
        try:
            # `close` shuts it down; its own finalizer comes at the interpreter's end, and fails aloud.
            base = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
            engine: Any = type("Engine", (base,), {"__del__": lambda self: None})
            with self._guard.marking():
                return engine.from_engine_args(vllm.AsyncEngineArgs(**self._arguments))
        except Exception as error:
            # Whatever it is (no such model, too little memory, a worker that died), no request can be answered.
            raise EndpointError(
                f"vLLM cannot load {self.model}: {excerpt(str(error) or type(error).__name__)}",
                hint="KDGEN_DEBUG=1 shows vLLM's own log; a smaller engine.max_model_len needs less memory",
            ) from error

    async def _answer(self, request: Request) -> Raw:
        engine = self._load()
        body: dict[str, Any] = orjson.loads(request.body)
        identity, final = body.pop("model"), None
        try:
            prompt, tokens = await self._prompt(engine, body), "return_token_ids" in body
            sampling = self._sampling(body, engine.model_config.max_model_len, len(prompt["prompt_token_ids"]))
            name = f"{request.key}-{next(self._names)}"
            lora = self._lora()
            # The output is complete when it comes, so there is one.
            async for output in engine.generate(prompt, sampling, name, **({"lora_request": lora} if lora else {})):
                final = output
        except Fault:
            raise
        except Exception as error:
            raise self._fault(engine, error) from error
        if final is None:
            raise Fault("transient", "the engine ended without an answer")
        return Raw(orjson.dumps(assembled(identity, final, sampling.logprobs, tokens)), {})

    async def _prompt(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        """The conversation as token ids, by the chat template of the model; as vLLM's server does it."""
        tokenizer = engine.get_tokenizer()
        if asyncio.iscoroutine(tokenizer):
            tokenizer = await tokenizer
        options: dict[str, Any] = {"add_generation_prompt": True}
        for name in ("add_generation_prompt", "continue_final_message", "documents", "chat_template"):
            if name in body:
                options[name] = body.pop(name)
        if (effort := body.pop("reasoning_effort", None)) is not None:
            options |= {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        options |= body.pop("chat_template_kwargs", {})
        messages, turn = body.pop("messages"), body.pop("open", None)
        if turn:
            messages, options["add_generation_prompt"] = [*messages, {"role": turn, "content": MARK}], False
        made = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        if turn and (made := before_mark(made)) is None:
            raise Fault("never", "the model's chat template has no place for a user's words", status=400)
        ids = tokenizer.encode(made, add_special_tokens=False) if isinstance(made, str) else made
        return {"prompt_token_ids": list(ids)}

    def _sampling(self, body: dict[str, Any], room: int, prompt: int) -> Any:
        """SamplingParams of what is left in `body`: every field is used, or it is an error."""
        params = importlib.import_module("vllm.sampling_params")
        for spent in ("engine", "lora", "return_token_ids", "return_tokens_as_token_ids"):
            body.pop(spent, None)
        asked, left = body.pop("max_tokens", None), room - prompt
        if left < 1:
            raise Fault("never", f"{prompt} tokens of prompt leave no room in a context of {room}", status=400)
        structured = body.pop("structured_outputs", None) or {}
        if (form := body.pop("response_format", None)) is not None:
            structured = {**structured, "json": form["json_schema"]["schema"]}
        given = {name: body.pop(name) for name in sorted(PLAIN & set(body))}
        if body.pop("logprobs", False):
            given["logprobs"] = body.pop("top_logprobs")
        if given.get("logprob_token_ids"):
            given.pop("logprobs", None)
        if found := given.get("repetition_detection"):
            given["repetition_detection"] = params.RepetitionDetectionParams(**found)
        if body:
            raise Fault("never", f"the engine takes no {', '.join(sorted(body))}")
        return params.SamplingParams.from_optional(
            max_tokens=min(asked or left, left),  # as vLLM's server does it; an answer that this cuts says so
            structured_outputs=params.StructuredOutputsParams(**structured) if structured else None,
            output_kind=params.RequestOutputKind.FINAL_ONLY,
            **given,
        )

    def _lora(self) -> Any:
        if self._adapter is None:
            return None
        return importlib.import_module("vllm.lora.request").LoRARequest(self._adapter[0], 1, self._adapter[1])

    @staticmethod
    def _fault(engine: Any, error: Exception) -> Fault:
        """What an error of the engine means for the run."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        text = excerpt(str(error) or type(error).__name__)
        if engine.errored or "EngineDeadError" in kinds:
            hint = "KDGEN_DEBUG=1 shows vLLM's own log; the same command goes on from here"
            return Fault("stop", "vLLM's engine has died", hint=hint)
        if kinds & {"VLLMClientError", "ValueError", "TypeError", "TemplateError"}:
            return Fault("never", text, status=400)
        if "GracefulHTTPError" in kinds:
            return Fault("rate", text, status=503)
        return Fault("transient", f"{type(error).__name__}: {text}", status=500)


def _import() -> Any:
    """The vllm module, set up for a run: talk on stderr, workers spawned. Raises UserError where there is none."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if os.environ.get("KDGEN_DEBUG") else "ERROR")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        return importlib.import_module("vllm")
    except (ImportError, RuntimeError, OSError) as error:  # a torch library that does not fit raises all of these
        missing = isinstance(error, ModuleNotFoundError) and error.name == "vllm"
        cause = "is not installed" if missing else f"cannot be imported: {excerpt(error)}"
        raise UserError(
            f"vLLM {cause}",
            where="provider: vllm",
            hint=INSTALL,
        ) from None


def assembled(identity: str, output: Any, top: int | None, tokens: bool = False) -> dict[str, Any]:
    """The chat completion that `output` is, without times, random ids or cache counts: a repeat is the same bytes."""
    made = output.outputs[0]
    if made.finish_reason in (None, "abort", "error"):
        raise Fault("transient", f"the engine gave the request up ({made.finish_reason})")
    thought, text = apart(made.text)
    message = {"role": "assistant", "content": text, **({"reasoning": thought} if thought else {})}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": made.finish_reason}
    if made.stop_reason is not None:
        choice["stop_reason"] = made.stop_reason
    body: dict[str, Any] = {"object": "chat.completion", "model": identity, "choices": [choice]}
    prompt, answer = list(output.prompt_token_ids), list(made.token_ids)
    if made.logprobs is not None:
        pairs = zip(answer, made.logprobs, strict=True)
        choice["logprobs"] = {"content": [_entry(token, found, top) for token, found in pairs]}
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = [found and dict(_ranked(found)) for found in output.prompt_logprobs]
    if tokens or made.logprobs is not None or output.prompt_logprobs is not None:
        choice["token_ids"], body["prompt_token_ids"] = answer, prompt
    counts = {"prompt_tokens": len(prompt), "completion_tokens": len(answer), "total_tokens": len(prompt) + len(answer)}
    return {**body, "usage": counts}


def apart(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a text that may begin with reasoning, as thinking models write it."""
    if "</think>" not in text and not text.lstrip().startswith("<think>"):
        return "", text
    thought = THOUGHT.match(text)
    assert thought is not None
    return thought[1].strip(), text[thought.end() :]


def _entry(token: int, found: Any, top: int | None) -> dict[str, Any]:
    """One generated token and the `top` likeliest in its place; all that came back where `top` is not said."""
    ranked = sorted(found.items(), key=lambda pair: (-pair[1].logprob, pair[0]))
    return {
        **_named(token, found[token]),
        "top_logprobs": [_named(*pair) for pair in (ranked if top is None else ranked[:top])],
    }


def _named(token: int, found: Any) -> dict[str, Any]:
    return {"id": token, "token": found.decoded_token, "logprob": max(found.logprob, LEAST_LOGPROB)}


def _ranked(found: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A prompt token's logprobs as vLLM's server writes them: by id, the token that stands there first."""
    for token, each in found.items():
        value = {"logprob": max(each.logprob, LEAST_LOGPROB), "rank": each.rank, "decoded_token": each.decoded_token}
        yield str(token), value
