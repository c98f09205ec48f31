"""Features for another tokenizer, and of several teachers: what cross-tokenizer distillation and fusion train on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from kdgen.features import Feature, TextTopK, TopK
from kdgen.features.align import Others, TokenizerFile, aligned, averaged, cross_entropy, rows_of
from kdgen.record import Record, Row
from kdgen.stages.base import Ask
from kdgen.stages.pair import Unasked
from kdgen.stages.tokens import DType, FeatureName, feature_of, need_shards
from kdgen.teachers.base import Told


class Align(Unasked):
    """Say a teacher's distributions in a student's tokens, by the bytes of the answer (cross-tokenizer distillation).

    At each token of `tokenizer` (the student's tokenizer.json) that begins where one of the teacher's does, the teacher's row
    is the student's: each likely token becomes the student's token of the same bytes. One that is none becomes, by
    `others`, the token that its text begins with (`first`), the one with the fewest edits (`mined`: FuseLLM, arXiv 2401.10491)
    or part of the tail (`drop`). Rows without a common boundary are empty (id -1), and a record with fewer than `least`
    of its rows is a reject. Token ids are read by `teacher_tokenizer`; a feature of kind `text` needs none. The prompt's tokens
    are the trainer's affair. No model is asked.
    """

    stage: Literal["feature"] = "feature"
    method: Literal["align"] = "align"
    of: FeatureName
    tokenizer: TokenizerFile
    teacher_tokenizer: TokenizerFile | None = None
    others: Others = "first"
    least: float = Field(0.5, ge=0, le=1)
    k: int = Field(20, ge=1, le=4096)
    name_as: FeatureName = "aligned"
    dtype: DType = "float16"

    features: ClassVar[bool] = True

    def check(self, where: str) -> None:
        """Features are kept in Parquet."""
        super().check(where)
        need_shards(where)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """No call."""
        source = feature_named(job, self.of)
        if not isinstance(source, TopK | TextTopK):
            return [job.rejected(self.name, "no_such_feature", f"{self.of} is {source and source.kind}")]
        if isinstance(source, TopK) and self.teacher_tokenizer is None:
            cause = f"{self.of} has token ids, and teacher_tokenizer does not say what they are"
            return [job.rejected(self.name, "no_teacher_tokenizer", cause)]
        tokens, rows = rows_of(source, self.teacher_tokenizer)
        made = aligned(tokens, rows, job.output, self.tokenizer, self.others)
        if made is None:
            return [
                job.rejected(self.name, "tokens_differ", "the tokens of the teacher or the student spell another text")
            ]
        ids, own, found = made
        share = sum(bool(row) for row in found) / len(found) if found else 0.0
        if share < self.least:
            return [job.rejected(self.name, "unaligned", f"{share:.0%} of {len(found)} tokens have a row")]
        facts = replace(source.facts, tokenizer_sha256=self.tokenizer.sha256, vocab_size=len(self.tokenizer.pieces))
        told = Told((), ids, own, found, None)
        feature = feature_of(told, self.k, self.dtype, facts, unknown=True)
        return [job.child(stage=self.stage, method=self.method).featured({self.name_as: feature})]


class Fuse(Unasked):
    """Make one feature of several teachers', which are of the same tokens (FuseLLM, arXiv 2401.10491).

    `min-ce` takes, of each answer, the teacher with the least cross-entropy to it; `average` the mixture of all, each
    weighed by exp(-cross-entropy). A teacher that a record lacks is left out, and a record without any is a reject.
    No model is asked.
    """

    stage: Literal["feature"] = "feature"
    method: Literal["fuse"] = "fuse"
    of: tuple[FeatureName, ...] = Field(min_length=2)
    how: Literal["min-ce", "average"] = "min-ce"
    name_as: FeatureName = "fused"

    features: ClassVar[bool] = True

    def check(self, where: str) -> None:
        """Features are kept in Parquet."""
        super().check(where)
        need_shards(where)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """No call."""
        import numpy as np

        have = {name: each for name in self.of if isinstance(each := feature_named(job, name), TopK)}
        if not have:
            return [job.rejected(self.name, "no_such_feature", f"none of {', '.join(self.of)}")]
        first, *others = have.values()
        if not all(np.array_equal(first.ids, each.ids) for each in others):
            return [
                job.rejected(self.name, "tokens_differ", "the features are of other tokens: feature/align comes before")
            ]
        entropy = {name: cross_entropy(each) for name, each in have.items()}
        best = min(have, key=lambda name: entropy[name])
        if math.isinf(entropy[best]):
            return [job.rejected(self.name, "no_logprobs", "no teacher tells a logprob of the answer's tokens")]
        k = max(each.topk_ids.shape[1] for each in have.values())
        dtype: DType = "float16" if first.topk_logprobs.dtype == np.float16 else "float32"
        if self.how == "min-ce":
            feature: Feature = widened(have[best], k, dtype)
        else:
            own, rows = averaged(have, {name: math.exp(entropy[best] - each) for name, each in entropy.items()})
            labels = " + ".join(dict.fromkeys(each.facts.teacher for each in have.values()))
            facts = replace(first.facts, teacher=labels, model=None, chat_template_sha256=None)
            feature = feature_of(
                Told(first.prompt_ids.tolist(), first.ids.tolist(), own, rows), k, dtype, facts, unknown=True
            )
        row = job.child(
            stage=self.stage, method=self.method, meta={"fused": {"from": best, "cross_entropy": {**entropy}}}
        )
        return [row.featured({self.name_as: feature})]


def widened(of: TopK, k: int, dtype: DType) -> TopK:
    """The same with k places in each row: the teachers of a feature may tell more or fewer."""
    import numpy as np

    width = k - of.topk_ids.shape[1]
    if not width and of.topk_logprobs.dtype == dtype:
        return of
    ids = np.pad(of.topk_ids, ((0, 0), (0, width)), constant_values=-1)
    values = np.pad(of.topk_logprobs.astype(dtype), ((0, 0), (0, width)), constant_values=-np.inf)
    notes = of.facts.notes or (f"the teacher tells {k - width} at most" if width else None)
    return replace(of, topk_ids=ids, topk_logprobs=values, facts=replace(of.facts, k=k, dtype=dtype, notes=notes))


def feature_named(job: Record, name: str) -> Feature | None:
    """A record's feature."""
    return job.features.get(name)
