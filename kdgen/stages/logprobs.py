"""Features: the likeliest tokens of what a teacher writes, and of what it is given."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.features import Feature
from kdgen.features.disk import row_bytes
from kdgen.parse import split_thinking
from kdgen.prompts import PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, asked_of, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.stages.tokens import DType, FeatureName, feature_of, need_shards
from kdgen.teachers.told import generated, spells


class Logprobs(Stage):
    """Keep what the teacher's answer could have been: D = {(x, y, φ_feat(x, y; θ_T)) | x ~ X, y ~ p_T(y | x)} (Xu et al., Eq. 6),
    φ_feat the k likeliest tokens at each token of y.

    One call: the answer becomes the record's `output`, its tokens the feature `name_as`; k is `params.logprobs`. A reply whose
    tokens do not spell its text is a reject. A teacher that tells no token ids (OpenAI) gives a feature of kind `text`.
    """

    stage: Literal["feature"] = "feature"
    method: Literal["logprobs"] = "logprobs"
    prompt: PromptFile
    name_as: FeatureName = "logprobs"
    dtype: DType = "float16"

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK}
    features: ClassVar[bool] = True

    @property
    def reads_logprobs(self) -> int | None:
        """One at the least, and as many as the stage says."""
        return max(1, self.params.logprobs or 1)

    @property
    def row_bytes(self) -> int:
        """By k."""
        return row_bytes(self.params.logprobs or 1, self.dtype)

    def check(self, where: str) -> None:
        """How many are kept must be said."""
        super().check(where)
        need_shards(where)
        if not self.params.logprobs:
            raise bad_stage("it does not say how many logprobs are kept", f"{where}.params", "params: {logprobs: 20}")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        reply = await ask(self.prompt, history=job.history, **task_variables(job))
        thinking, text = split_thinking(reply.text)
        reasoning = reply.reasoning or thinking
        try:
            if not text:
                raise Rejected("empty_answer", f"finish: {reply.finish}")
            told = generated(reply)
            spells(told, reply.text.strip(), bool(reasoning))
            assert reply.facts is not None
            feature = feature_of(told, self.params.logprobs or 1, self.dtype, reply.facts)
        except Rejected as fate:
            lost = job.model_copy(update={"output": text, "calls": (*job.calls, *ask.calls)})
            return [lost.rejected(self.name, fate.reason, fate.detail)]
        meta: dict[str, JsonValue] = {"gold": job.output} if job.output else {}
        content = {**asked_of(job), "output": text, "reasoning": reasoning, "finish": reply.finish}
        row = self.child(job, reply, writes=("output",), meta=meta, **content)
        return [row.featured({self.name_as: feature})]


class Score(Stage):
    """Have the teacher score a text that it did not write: φ_feat(x, y; θ_T) for y of a person's, or y ~ p_S(y | x) of a student's
    (Xu et al., Eq. 6; on-policy distillation, arXiv 2306.13649).

    The prompt is the conversation as the teacher reads it, the text its last turn. The k likeliest tokens at each token of it
    become the feature `name_as`; where a record has candidates, `candidates: true` scores each of them as `name_as.N`, N
    its place from 0. Nothing is sampled.
    """

    stage: Literal["feature"] = "feature"
    method: Literal["score"] = "score"
    prompt: PromptFile
    k: int = Field(20, ge=1, le=4096)
    name_as: FeatureName = "score"
    dtype: DType = "float16"
    candidates: bool = False

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"output", "reasoning"}}
    features: ClassVar[bool] = True

    @property
    def forced(self) -> set[str]:
        """The teacher."""
        return {self.to}

    @property
    def row_bytes(self) -> int:
        """By k."""
        return row_bytes(self.k, self.dtype)

    def check(self, where: str) -> None:
        """What is scored must be shown, last."""
        super().check(where)
        need_shards(where)
        shows_answer(self, where)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call a text; two where a teacher does not say where the prompt ends."""
        texts = [(job.output, job.reasoning)]
        if self.candidates:
            texts = [(each.output, each.reasoning) for each in job.candidates]
        if not texts or not all(output.strip() for output, _ in texts):
            return [job.rejected(self.name, "nothing_to_score", "there is no answer")]
        asks = [ask.fork() for _ in texts]
        came = await gathered([self._ask(job, *text, own) for text, own in zip(texts, asks, strict=True)])
        calls = list(dict.fromkeys(call for own in asks for call in own.calls))
        features = {}
        for place, found in enumerate(came):
            if isinstance(found, Rejected):
                lost = job.model_copy(update={"calls": (*job.calls, *calls)})
                return [lost.rejected(self.name, found.reason, found.detail)]
            features[f"{self.name_as}.{place}" if self.candidates else self.name_as] = found
        return [job.child(stage=self.stage, method=self.method, calls=calls).featured(features)]

    async def _ask(self, job: Record, output: str, reasoning: str, ask: Ask) -> Feature:
        shown: dict[str, Any] = {"output": output, "reasoning": reasoning}
        reply = await ask(self.prompt, score=self.k, history=job.history, **shown, **task_variables(job))
        assert reply.told is not None and reply.facts is not None
        return feature_of(reply.told, self.k, self.dtype, reply.facts)


def shows_answer(stage: Stage, where: str) -> None:
    """Raise UserError where a prompt's last turn is not the answer, or where params are set that nothing could heed."""
    for field, prompt in stage.prompts():
        if "output" not in prompt.variables or prompt.turns[-1].role != "assistant":
            hint = f"prompt: feature/score, or a last turn [[assistant]] that shows {{{{ output }}}} in {prompt.name}"
            raise bad_stage("the answer is not the prompt's last turn", f"{where}.{field}", hint)
    if given := stage.params.given():
        cause = f"{', '.join(given)} has no effect: nothing is sampled"
        raise bad_stage(cause, f"{where}.params", "take it out")
