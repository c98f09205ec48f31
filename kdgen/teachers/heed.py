"""What a server does not support: named in its error, or seen in a reply that does not heed what was asked.

Servers of one dialect take different parts of it. What no table knows is found out by the first requests, and said with
the way out, before a run is paid for that is not what its recipe says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from kdgen.teachers.calls import Fault, Params, Reply, Request

# What kdgen calls a field of a body, and how errors name it. The others are called by their own names.
WORDS = {
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "logprobs": ("logprobs", "top_logprobs"),
    "stop": ("stop", "stop_sequences"),
    "effort": ("reasoning_effort", "reasoning.effort", "effort"),
    "schema": ("response_format", "json_schema", "text.format", "output_config.format", "output_config"),
}
FIELDS = {word.partition(".")[0]: name for name, words in WORDS.items() for word in words} | {"text": "schema"}
ALWAYS = frozenset("model prompt messages input instructions system stream store n include".split())
REFUSED = re.compile(
    r"(?:not|n't|un|no longer)[ -]?(?:be )?support|unrecogni[sz]ed|unknown (?:name|field|param|argument|request)|"
    r"(?:unexpected|extra) (?:keyword|field|argument|input)|not (?:allowed|permitted|implemented|available)|unavailable|"
    r"(?:not|n't) (?:accept|take|recogni[sz]e)|is deprecated|requires \w+ to be set|greater than max allowed",
    re.IGNORECASE,
)
LOST = (400, 422, 501)


def refused(request: Request, fault: Fault) -> list[str]:
    """The parts of a request that an error says its endpoint does not take, as kdgen calls them."""
    if fault.status not in LOST or not REFUSED.search(fault.message):
        return []
    found: dict[str, None] = {}
    for field in set(orjson.loads(request.body)) - ALWAYS:
        name = FIELDS.get(field, field)
        if any(_named(word, fault.message) for word in WORDS.get(name, (field,))):
            found[name] = None
    return sorted(found)


def _named(word: str, message: str) -> bool:
    """Whether a message names a field. A word of everyday use must stand as a name does."""
    name = re.escape(word)
    if re.search(rf"['\"`\[]{name}['\"`\]:]|\b{name}: |(?:param|parameter|argument|field)s?:? {name}\b", message):
        return True
    return ("_" in word or word == "logprobs") and re.search(rf"(?<!\w){name}(?!\w)", message) is not None


def explain(label: str, request: Request, fault: Fault, *, served: bool) -> None:
    """Say in a fault which parameter is not taken, and the way out. It ends a run in which nothing was `served` yet."""
    if fault.kind == "never" and (names := refused(request, fault)):
        fault.kind = "never" if served else "stop"
        fault.message = f"{label} does not take {', '.join(names)} ({fault.message})"
        fault.hint = way_out(names)


def way_out(names: Iterable[str]) -> str:
    """What a user can do about parameters that a teacher does not take."""
    names = list(names)
    known = [name for name in names if name in Params.model_fields]
    ways = []
    if known:
        told = f"--set teachers.ROLE.unsupported=drop --set 'teachers.ROLE.lacks=[{', '.join(known)}]'"
        ways.append(f"set {', '.join(known)} to null where the recipe gives it, or leave it out with {told}")
    if "schema" in names:
        ways.append("--set 'teachers.ROLE.lacks=[schema]': replies are checked against the schema all the same")
    if "prompt_logprobs" in names:
        ways.append("a smaller k, or a server that is started with --max-logprobs K (vLLM's own is 20)")
    if own := [name for name in names if name not in (*known, "schema", "prompt_logprobs")]:
        ways.append(f"take {', '.join(own)} out of the recipe")
    return "; ".join(ways)


def unheeded(params: Params, reply: Reply) -> Iterator[str]:
    """The parameters that a whole reply shows to have been ignored."""
    if reply.finish not in ("stop", "length") or not reply.text:
        return
    if params.logprobs is not None and not _has_logprobs(reply.body):
        yield "logprobs"
    if any(mark in reply.text.removesuffix(mark) for mark in params.stop or () if mark):
        yield "stop"


def _has_logprobs(body: dict[str, Any]) -> bool:
    try:
        if "output" in body:
            return any(part.get("logprobs") for item in body["output"] for part in item.get("content") or ())
        told = body["choices"][0].get("logprobs")
        return any(told.values()) if isinstance(told, dict) else bool(told)
    except (LookupError, TypeError, AttributeError):
        return False
