"""An open turn: the conversation as the model sees it, up to where the user speaks; the model then writes what a user asks.

A model that runs in this process has its own chat template, which is filled with a mark in the place of the user's words
and cut there. A server is asked for a raw completion, and which template its model has only the recipe can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdgen.errors import UserError
from kdgen.resources import did_you_mean
from kdgen.teachers.calls import Call, Request, dumped

MARK = "kdgen-open-turn"
COMPLETIONS = "openai.completions"
CHAT_ONLY = frozenset("messages response_format reasoning_effort top_logprobs logprobs open".split())


class Template(NamedTuple):
    """What stands before a system message and after it, before a user's turn and after it; no `system`, no place for one."""

    user: str
    end: str
    system: tuple[str, str] | None = None


TEMPLATES = {
    "chatml": Template("<|im_start|>user\n", "<|im_end|>", ("<|im_start|>system\n", "<|im_end|>\n")),
    "llama-3": Template(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
        ("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    ),
    "phi-3": Template("<|user|>\n", "<|end|>", ("<|system|>\n", "<|end|>\n")),
    "gemma": Template("<start_of_turn>user\n", "<end_of_turn>"),
    "mistral": Template("[INST] ", "[/INST]"),
}
NAMES = ", ".join(TEMPLATES)


def wrong_template(template: str | None, urls: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with a template of the recipe's, with the way out."""
    if template is None:
        return
    if not urls:
        yield "template has no effect without a base_url", "take it out"
    if template not in TEMPLATES and not any(mark in template for mark in "<[\n"):
        hint = did_you_mean(template, TEMPLATES) or f"{NAMES}, or the text itself, such as '<|user|>'"
        yield f"{template!r} is neither the name of a template nor the text before a user's turn", hint


def shut_server(template: str | None, mode: str) -> tuple[str, str] | None:
    """Why a server cannot be asked for a raw completion, with the way out; None where it can."""
    if mode == "batch":
        return "its batches take no conversation that is open for the user's words", "mode: online"
    if template is None:
        hint = f"--set teachers.ROLE.template=chatml ({NAMES}, or the text before a user's turn)"
        return "its server has to be told the chat template that the model was trained with", hint
    return None


def completion_request(body: Mapping[str, Any], template: str, call: Call) -> Request:
    """The request of a raw completion with an open turn."""
    made = completion(body, *opened(template, call.messages))
    return Request(COMPLETIONS, dumped(made), call.nth, call.params.max_tokens or 0)


def opened(template: str, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """The text before a user's turn, and the mark that ends one. Raises UserError where a system message has no place."""
    known = TEMPLATES.get(template) or Template(template, "")
    said = ""
    for message in messages:
        if known.system is None or message["role"] != "system":
            hint = f"leave it out, or a template that has one: {NAMES}"
            raise UserError(f"the template has no place for a {message['role']} message", where="template", hint=hint)
        said += known.system[0] + message["content"] + known.system[1]
    return said + known.user, known.end


def completion(body: Mapping[str, Any], prompt: str, end: str = "") -> dict[str, Any]:
    """The body of a raw completion, from that of a chat with an open turn."""
    made = {name: value for name, value in body.items() if name not in CHAT_ONLY}
    if "top_logprobs" in body:
        made["logprobs"] = body["top_logprobs"]
    if end:
        made["stop"] = [*made.get("stop", ()), end]
    return {**made, "prompt": prompt}


def before_mark(rendered: str) -> str | None:
    """What a chat template puts before a user's words, where `MARK` stands for them; None where it leaves them out."""
    prefix, mark, _ = rendered.partition(MARK)
    return prefix if mark else None
