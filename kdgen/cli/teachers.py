"""`kdgen teachers`: what is installed and reachable, what each teacher takes, costs and allows. Nothing here is billed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdgen.cli.job import pretty
from kdgen.config import load_recipe
from kdgen.errors import KdgenError
from kdgen.teachers import AnyTeacher, parse_spec
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.calls import Params
from kdgen.teachers.keys import key_needs
from kdgen.teachers.models import MODELS, find, named
from kdgen.teachers.prices import PLAIN, Price, Prices, prices_file
from kdgen.teachers.probe import Answer, probe, runtime, sends_key, version
from kdgen.teachers.probe import named as has_address
from kdgen.terms import Ruling, Use, judge

SPECS = (
    ("openai:MODEL", "OpenAI, through its SDK; the key is in OPENAI_API_KEY", "openai"),
    ("openai:MODEL@BASE_URL", "any compatible server", "lean"),
    ("anthropic:MODEL[@BASE_URL]", "Claude, through its SDK; the key is in ANTHROPIC_API_KEY", "anthropic"),
    ("vllm:MODEL", "vLLM in this process", "vllm"),
    ("vllm:MODEL@BASE_URL", "a vLLM server", "lean"),
    ("transformers:MODEL", "a model's logprobs and hidden states, by transformers in this process", "transformers"),
    ("local, local:PATH.gguf", "llama.cpp in this process", "local"),
    ("scripted:FILE", "replies from a file", ""),
)


def teachers(names: Sequence[str], *, ask: bool, prices: str | None, as_json: bool) -> None:
    """Print what is known of the teachers that `names` name: specs or recipe files; of none, of every kind there is."""
    table = prices_file(Path(prices)) if prices else PLAIN
    found = [each for name in names for each in specs_of(name)]
    if not names:
        found = [("", _spec(f"local:{name}"), "internal", "") for name in MODELS]
    asked = [spec for _, spec, _, _ in found if ask or has_address(spec)]
    answers = dict(zip(map(id, asked), asyncio.run(probe(asked)) if asked else [], strict=True))
    told = [
        describe(role, spec, judge({role or spec.label: spec}, use, student)[0], answers.get(id(spec)), table)
        for role, spec, use, student in found
    ]
    if as_json:
        print(pretty({"providers": _providers(), "teachers": told}), end="")
        return
    if not names:
        for spec, what, name in SPECS:
            have, install = version(name) if name else ("", "")
            print(f"{spec:27} {what}" + (f" ({have}{f': {install}' if install else ''})" if have else ""))
        print()
    print("\n\n".join("\n".join(_lines(each)) for each in told))
    if not names:
        print(
            "\nkdgen teachers SPEC…, as openai:gpt-6-luna, says the same of others; kdgen doctor looks at the whole set-up"
        )


def specs_of(name: str) -> Iterator[tuple[str, TeacherSpec, Use, str]]:
    """(role, teacher, use, student): the one that a spec names, or those of a recipe file."""
    if name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name)
        for role, spec in recipe.leaves():
            yield role, spec, recipe.use, recipe.student
    else:
        yield "", _spec(name), "internal", ""


def _spec(name: str) -> TeacherSpec:
    spec = TypeAdapter(AnyTeacher).validate_python(parse_spec(name))
    assert isinstance(spec, TeacherSpec)
    spec.check()
    return spec


def _providers() -> dict[str, dict[str, Any]]:
    names = dict.fromkeys(name for *_, name in SPECS if name)
    return {name: {"installed": not install, "what": have, "install": install} for name in names
            for have, install in [version(name)]}  # fmt: skip


def describe(
    role: str, spec: TeacherSpec, ruling: Ruling, answers: Sequence[Answer] | None, table: Prices
) -> dict[str, Any]:
    """All that can be known of a teacher without a billed request. Of a key, where it is looked for and whether it is there."""
    have, install = runtime(spec)
    taken = spec.accepts() - set(spec.lacks)
    modes: tuple[Any, ...] = ("online", "batch") if spec.batchable() else ("online",)
    told: dict[str, Any] = {
        **({"role": role} if role else {}),
        "teacher": spec.label,
        "compatible": spec.provider == "openai" and has_address(spec),
        "installed": {"ok": not install, "what": have, "install": install},
        "key": _key(spec),
        "reachable": None if answers is None else [_answer(each) for each in answers],
        "takes": [name for name in Params.model_fields if name in taken],
        "takes_not": [name for name in Params.model_fields if name not in taken],
        "batch": spec.batchable(),
        "usd_per_million": {mode: _price(table.of(spec, mode)) for mode in modes},
        "terms": {
            "status": ruling.status,
            "use": ruling.use,
            "rows": [{**row.model_dump(mode="json"), "flag": row.flag} for row in ruling.verdicts],
            "notices": ruling.notices,
        },
    }
    if spec.provider == "local":
        told["model"] = _model(spec)
    return told


def _key(spec: TeacherSpec) -> dict[str, Any] | None:
    if not sends_key(spec):
        return None
    own: Any = spec
    return {"from": "api_key_file" if own.api_key_file else own.api_key_env, "set": not key_needs(spec, needed=True)}


def _answer(answer: Answer) -> dict[str, Any]:
    told = answer._asdict()
    return {"ok": not answer.trouble, **told, "skew": None if answer.skew is None else round(answer.skew, 1)}


def _price(price: Price | None) -> dict[str, float] | None:
    return None if price is None else {name: round(getattr(price, name), 6) for name in Price._fields[:4]}


def _model(spec: TeacherSpec) -> dict[str, Any]:
    own: Any = spec
    if own.path is not None:
        return {"path": str(own.path), "here": own.path.is_file()}
    model = named(spec.model)
    try:
        here = find(spec.model) is not None
    except KdgenError:
        here = False
    return {"bytes": model.size, "here": here, "licence": model.licence, "origin": model.origin}


def _lines(told: dict[str, Any]) -> Iterator[str]:
    yield (f"{told['role']} = " if "role" in told else "") + told["teacher"]
    for name, text in _fields(told):
        yield f"  {name:10} {text}"


def _fields(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    have = told["installed"]
    yield "installed", have["what"] + (f": {have['install']}" if have["install"] else "")
    if model := told.get("model"):
        size = f"{model['bytes'] / 1e6:,.0f} MB, {model['licence']}, {model['origin']}" if "bytes" in model else ""
        state = "in the cache" if model["here"] else f"kdgen teachers pull {told['teacher'].partition(':')[2]}"
        yield "model", f"{size} ({state})" if size else model["path"]
    if key := told["key"]:
        yield "key", f"{key['from']} is {'set' if key['set'] else 'not set'}"
    if told["reachable"] is None and told["key"]:
        yield "reachable", "not asked; --probe asks, and costs nothing"
    for answer in told["reachable"] or ():
        yield "reachable", _reached(answer)
    yield "takes", ", ".join(told["takes"]) + (", as far as the server does" if told["compatible"] else "")
    if told["takes_not"]:
        yield "", "not " + ", ".join(told["takes_not"])
    yield "price", _rates(told["usd_per_million"])
    terms = told["terms"]
    yield "terms", f"{terms['status']} for use: {terms['use']}"
    for row in terms["rows"]:
        if row["status"] != "allowed":
            yield "", f"{row['key']}: {row['asks']}"
            yield "", f"{row['flag']}  ({row['source'] or 'no source'})"


def _reached(answer: dict[str, Any]) -> str:
    if answer["trouble"]:
        return f"no: {answer['url']}: {answer['trouble']}" + (f" ({answer['hint']})" if answer["hint"] else "")
    engine = f", {answer['engine']}" if answer["engine"] else ""
    context = f", context of {answer['context']:,} tokens" if answer["context"] else ""
    return f"yes: {answer['url']}{engine}{context}" + "".join(f"; {note}" for note in answer["notes"])


def _rates(prices: dict[str, dict[str, float] | None]) -> str:
    parts = []
    for mode, price in prices.items():
        if price is None:
            text = "not known (--prices FILE)" if mode == "online" else "not known"
        elif not any(price.values()):
            text = "nothing"
        else:
            text = f"${price['input']:g} in, ${price['output']:g} out, ${price['cached_input']:g} cached in"
        parts.append(text if mode == "online" else f"{mode}: {text}")
    return "; ".join(parts) + (" per million tokens" if "$" in "".join(parts) else "")
