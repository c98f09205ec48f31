"""Features from inside a model: hidden states, and texts as vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdgen.errors import Rejected
from kdgen.features import Embedding, Hidden
from kdgen.prompts import PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.logprobs import shows_answer
from kdgen.stages.tokens import DType, FeatureName, need_shards
from kdgen.teachers.told import vector_of


class HiddenStates(Stage):
    """Keep a model's hidden states at each token of an answer: φ_feat(x, y; θ_T) of Eq. 6 (Xu et al.), for feature distillation
    (TinyBERT, arXiv 1909.10351).

    `layers` are counted from 0, the embedding, or from the end: -1 is the last, after the final norm. The states
    are as the model computes them, rounded to `dtype`. Nothing is sampled; the record passes on.
    """

    stage: Literal["feature"] = "feature"
    method: Literal["hidden"] = "hidden"
    prompt: PromptFile
    layers: tuple[int, ...] = Field((-1,), min_length=1)
    name_as: FeatureName = "hidden"
    dtype: DType = "float16"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"output", "reasoning"}}
    features: ClassVar[bool] = True

    @property
    def forced(self) -> set[str]:
        """The teacher."""
        return {self.to}

    @property
    def inside(self) -> set[str]:
        """The teacher."""
        return {self.to}

    def check(self, where: str) -> None:
        """The answer must be shown, last."""
        super().check(where)
        need_shards(where)
        shows_answer(self, where)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        import numpy as np

        if not job.output.strip():
            return [job.rejected(self.name, "nothing_to_score", "there is no answer")]
        shown: dict[str, Any] = {"output": job.output, "reasoning": job.reasoning}
        asked = {**shown, **task_variables(job)}
        reply = await ask(self.prompt, score=0, layers=self.layers, history=job.history, **asked)
        told, facts = reply.told, reply.facts
        assert told is not None and facts is not None
        if told.states is None:
            raise Rejected("no_states", "the reply has no hidden states")
        states = np.array(told.states, np.float32)
        largest = np.finfo(self.dtype).max
        if not (np.abs(states) <= largest).all():
            raise Rejected("bad_states", f"a state is no number, or more than {largest:g}, which {self.dtype} holds")
        feature = Hidden(
            np.array(told.layers, np.int32),
            np.array(told.ids, np.int32),
            states.astype(self.dtype),
            replace(facts, dtype=self.dtype, mode=None),
        )
        return [job.child(stage=self.stage, method=self.method, calls=ask.calls).featured({self.name_as: feature})]


class Embed(Stage):
    """Keep a text as a vector, by an embedding model.

    The prompt's last turn is the text: the task, the answer or both. The record passes on.
    """

    stage: Literal["feature"] = "feature"
    method: Literal["embed"] = "embed"
    to: str = "embedder"
    prompt: PromptFile
    name_as: FeatureName = "embedding"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"output", "reasoning"}}
    features: ClassVar[bool] = True

    @property
    def embedders(self) -> set[str]:
        """The embedding model."""
        return {self.to}

    def check(self, where: str) -> None:
        """Nothing is sampled."""
        super().check(where)
        need_shards(where)
        if given := self.params.given():
            raise bad_stage(f"{', '.join(given)} has no effect: nothing is sampled", f"{where}.params", "take it out")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        import numpy as np

        shown: dict[str, Any] = {"output": job.output, "reasoning": job.reasoning}
        reply = await ask(self.prompt, embed=True, **shown, **task_variables(job))
        assert reply.facts is not None
        facts = replace(reply.facts, source=None, mode=None, temperature=None, top_p=None, dtype="float32")
        feature = Embedding(np.array(vector_of(reply), np.float32), facts)
        return [job.child(stage=self.stage, method=self.method, calls=ask.calls).featured({self.name_as: feature})]
