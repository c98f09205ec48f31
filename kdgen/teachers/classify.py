"""vLLM's /classify: a reward model, or another classifier, reads a conversation and says numbers of it."""

from __future__ import annotations

import math
from typing import Any

import orjson

from kdgen.teachers.calls import Call, Raw, Reply
from kdgen.teachers.chat import MALFORMED, malformed, usage_of

WIRE = "vllm.classify"
# Fields of a body that vLLM reads there; `use_activation: false` gives a reward as the model says it, not squeezed into 0 to 1.
FIELDS = frozenset(
    "use_activation truncate_prompt_tokens add_special_tokens chat_template chat_template_kwargs add_generation_prompt "
    "continue_final_message priority mm_processor_kwargs".split()
)
# What a teacher may be set to that has no effect on a request that writes nothing.
VOID = ("engine", "lora", "template", "prompt_logprobs")


def classify_body(model: str, call: Call) -> dict[str, Any]:
    """The body: the conversation, with the answer that is scored at its end. Nothing is sampled."""
    return {"model": model, "messages": list(call.messages)}


def classify_url(base: str) -> str:
    """Where a server classifies: beside /v1, not below it."""
    return base.rstrip("/").removesuffix("/v1") + "/classify"


def read_classes(key: str, label: str, raw: Raw) -> Reply:
    """The reply, whose text is the numbers, one for each class. Raises Rejected where there are none."""
    try:
        body = orjson.loads(raw.body)
        (one,) = body["data"]
        numbers = [float(number) for number in one["probs"]]
        if not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError("there are no numbers")
        usage = usage_of(body, "prompt", "completion")
    except (*MALFORMED, ValueError) as error:
        raise malformed("data[0].probs", error) from None
    return Reply(
        key, " ".join(map(repr, numbers)), "stop", usage, body, model=str(body.get("model") or ""), teacher=label
    )
