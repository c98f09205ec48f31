"""transformers: a model's exact numbers and its hidden states, computed in this process. It scores texts and writes none."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdgen.errors import UserError
from kdgen.teachers.base import Call, Request, TeacherSpec, Wire
from kdgen.teachers.calls import dumped
from kdgen.teachers.identities import identity_of, name_of, path_of

INSTALL = "pip install 'kdgen[transformers]'"
SCORE = "transformers.score"


class Transformers(TeacherSpec):
    """A causal language model as transformers loads it: a folder, or a name on the hub.

    It is asked for the logprobs and hidden states of texts that are there; `dtype` is what it computes in.
    """

    provider: Literal["transformers"] = "transformers"
    concurrency: int = Field(1, ge=1, le=1, description="one text at a time")
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps, …; auto: the first GPU that is there")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    wire: ClassVar[str] = SCORE
    takes: ClassVar[frozenset[str]] = frozenset()

    @property
    def scores(self) -> bool:
        """It writes nothing."""
        return True

    @cached_property
    def label(self) -> str:
        """transformers:model; of a folder its name, since labels are published in rows."""
        return f"transformers:{name_of(self.model)}"

    @cached_property
    def identity(self) -> str:
        """The model as the ledger knows it."""
        return identity_of(self.model)

    def check(self) -> None:
        """A model must be named."""
        if not self.model:
            raise UserError("no model is named", where=self.label, hint="--teacher transformers:FOLDER_OR_NAME")

    def needs(self) -> dict[str, str]:
        """Its libraries, where they are not installed."""
        lacks = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        return {f"{' and '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} not installed": INSTALL} if lacks else {}

    def origin(self) -> dict[str, str]:
        """The model, and the digest of a folder of one's own."""
        return {"origin": self.identity}

    def deaf(self) -> tuple[str, str] | None:
        """None: it is what it is for."""
        return None

    def blind(self) -> tuple[str, str] | None:
        """None."""
        return None

    def logprobs_mode(self) -> str | None:
        """The model's own."""
        return "raw_logprobs"

    def body(self, call: Call) -> dict[str, Any]:
        """The conversation, how many likely tokens of its last message are told, and of which layers the states."""
        layers = {"layers": list(call.layers)} if call.layers else {}
        body = {"model": self.identity, "messages": list(call.messages), "score": call.score or 0}
        return {**body, "dtype": self.dtype, **layers}

    def request(self, call: Call) -> Request:
        """The call as what is computed."""
        return Request(self.wire, dumped(self.body(call)), call.nth, 1)

    def connect(self) -> Wire:
        """The model, loaded at the first request."""
        from kdgen.teachers.forward import ForwardWire

        self.check()
        self.ready()
        return ForwardWire(path_of(self.model), self.identity, self.device, self.dtype)
