"""The embeddings API of OpenAI, and of nearly every other server: a text becomes a vector."""

from __future__ import annotations

import orjson

from kdgen.teachers.calls import Raw, Reply
from kdgen.teachers.chat import MALFORMED, malformed, usage_of

EMBEDDINGS = "openai.embeddings"


def read_vector(key: str, label: str, raw: Raw) -> Reply:
    """The reply, without words; `told.vector_of` reads its vector. Raises Rejected where the body is none of this API."""
    try:
        body = orjson.loads(raw.body)
        usage = usage_of(body, "prompt", "completion")
        model = str(body.get("model") or "")
    except MALFORMED as error:
        raise malformed("the body", error) from None
    return Reply(key, "", "stop", usage, body, model=model, teacher=label)
