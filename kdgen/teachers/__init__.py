"""The list of what a recipe's `teachers:` can hold, and how `--teacher` names one."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from kdgen.errors import UserError
from kdgen.resources import did_you_mean
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.local import Local
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.roles import Cascade, Pool
from kdgen.teachers.scripted import Scripted
from kdgen.teachers.transformers import Transformers
from kdgen.teachers.vllm import Vllm

AnyTeacher = Annotated[
    OpenAI | Anthropic | Vllm | Local | Transformers | Scripted | Pool | Cascade, Field(discriminator="provider")
]
PROVIDERS = ("local", "openai", "anthropic", "vllm", "transformers", "scripted")
SPECS = (
    "local, local:PATH.gguf, openai:MODEL, openai:MODEL@BASE_URL, anthropic:MODEL, vllm:MODEL[@BASE_URL], "
    "transformers:MODEL, scripted:FILE"
)
HOST = re.compile(r"@[^@/]+:\d+(?:/|$)")


def parse_spec(spec: str) -> dict[str, Any]:
    """The fields that a `--teacher` spec sets. Raises UserError."""
    provider, _, rest = spec.partition(":")
    if provider not in PROVIDERS:
        hint = did_you_mean(provider, PROVIDERS) or f"a teacher is one of {SPECS}"
        raise UserError(f"{provider!r} is not a teacher", where="--teacher", hint=hint)
    if provider == "local":
        return {"provider": provider, **({"model": rest} if rest else {})}
    if not rest:
        raise UserError(f"{spec!r} names no model", where="--teacher", hint=f"a teacher is one of {SPECS}")
    if provider == "scripted":
        return {"provider": provider, "path": rest}
    model, at, url = rest.partition("@http")
    if "://" in model or HOST.search(model):
        hint = f"after the @ stands an address that begins with http:// or https://; a teacher is one of {SPECS}"
        raise UserError("that is no address of a server", where="--teacher", hint=hint)
    return {"provider": provider, "model": model, **({"base_url": f"http{url}"} if at else {})}


__all__ = ["PROVIDERS", "AnyTeacher", "parse_spec"]
