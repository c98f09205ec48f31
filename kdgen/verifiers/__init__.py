"""The list of what a `verifier:` can be. A verifier's one verb is `verdict`; as JSON it travels with a row, to be a trainer's reward."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from kdgen.verifiers.base import Execute, Verdict, Verifier, missing_packages
from kdgen.verifiers.code import ASSERT, Tests
from kdgen.verifiers.instructions import Instructions
from kdgen.verifiers.math import Math
from kdgen.verifiers.text import Choice, Citations, Exact, JsonSchema, Regex

AnyVerifier = Annotated[
    Math | Choice | Tests | JsonSchema | Instructions | Citations | Exact | Regex, Field(discriminator="type")
]
VERIFIERS = ("math", "choice", "tests", "schema", "instructions", "citations", "exact", "regex")
_adapter: TypeAdapter[AnyVerifier] = TypeAdapter(AnyVerifier)


def read_verifier(value: Any, others: dict[str, JsonValue] | None = None) -> AnyVerifier:
    """The verifier that a seed's column holds: a spec or its JSON, the asserts of unit tests, or IFEval's
    `instruction_id_list` with `kwargs` in `others`.

    Raises ValueError that says what is wrong with it.
    """
    try:
        if isinstance(value, str) and ASSERT.search(value):
            return Tests(tests=value)
        if isinstance(value, str):
            return _adapter.validate_json(value)
        if isinstance(value, list):
            return Instructions(instruction_id_list=value, kwargs=(others or {}).get("kwargs"))
        return _adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"[:300]) from None


__all__ = ["VERIFIERS", "AnyVerifier", "Execute", "Verdict", "Verifier", "missing_packages", "read_verifier"]
