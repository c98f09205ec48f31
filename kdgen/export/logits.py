"""Rows with what a teacher told of each token: Axolotl's, DistillKit's, and sorted probabilities for other tokenizers (ULD).

A feature's row j is the distribution that its token j is drawn from. Trainers read a row at the place of the token *before*:
a model's output there predicts it. What is known of no place (the prompt, what comes after the end) is certainty of the token
that stands there, which is what a label says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import yaml

from kdgen.errors import UserError
from kdgen.export.base import TOOLS, Format, tooled
from kdgen.export.packing import compress, fit_terms, pack_bits
from kdgen.export.shapes import BYTE, NUMBER, WHOLE, WORDS
from kdgen.features import Facts, TopK
from kdgen.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What stands for no probability: infinities become NaN in losses, and e^-80 is still a float of 32 bits.
NEVER = -80.0


class FeatureFormat(Format):
    """Base: of a record with a `topk` feature.

    `feature` is its name (one alone needs none), `k` how many tokens of each place (all that are stored).
    """

    feature: str = ""
    k: int | None = None

    def fitted(self, names: list[str], facts: list[Facts], where: str) -> Self:
        """This format for a dataset that has these `topk` features, `facts` those of the one that is meant. Raises UserError."""
        hint = (
            f"it has: {', '.join(names)}"
            if names
            else "a recipe with a feature/… stage keeps what its teacher tells of tokens"
        )
        if not names or (self.feature and self.feature not in names):
            raise UserError(f"the dataset has no top-k feature {self.feature!r}", where=where, hint=hint)
        if not self.feature and len(names) > 1:
            raise UserError("the dataset has several features", where=where, hint=f"--set feature={names[0]} ({hint})")
        held = min((each.k for each in facts if each.k), default=0)
        if self.k is not None and not 1 <= self.k <= (held or self.k):
            raise UserError(f"k is {self.k}, and {held} tokens of each place are stored", where="--set k")
        return self.model_copy(update={"feature": self.feature or names[0], "k": self.k or held or None})

    def told(self, record: Record) -> TopK | None:
        """The feature, where the record has it; of text alone there are no ids."""
        held = record.features.get(self.feature)
        return held if isinstance(held, TopK) and held.size else None

    def spoken(self, record: Record) -> TopK | None:
        """The feature, where a row of messages has all that it is of: the tokens that a teacher wrote hold its thought too."""
        of = self.told(record)
        if of is None or not record.instruction or not record.output:
            return None
        return None if record.reasoning and self.reasoning == "drop" and of.facts.source == "generated" else of

    def rows(self, of: TopK) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """ids and logprobs [n, k] without holes: a place that nobody told of is sure of its token, a short row is filled up."""
        import numpy as np

        ids, logprobs = of.topk_ids.astype(np.int64), of.topk_logprobs.astype(np.float64)
        width = self.k or ids.shape[1]
        ids, logprobs = ids[:, :width], logprobs[:, :width]
        unknown = ~(np.isfinite(logprobs) & (ids >= 0)).any(axis=1)
        sure_ids, sure = certain(of.ids[unknown], width)
        ids[unknown], logprobs[unknown] = sure_ids, sure
        holes = (ids < 0) | ~np.isfinite(logprobs)
        for row in np.flatnonzero(holes.any(axis=1)):
            ids[row, holes[row]] = _others(ids[row, ~holes[row]].tolist(), int(holes[row].sum()))
        return ids, np.maximum(np.where(holes, NEVER, logprobs), NEVER)


def certain(tokens: NDArray[np.integer[Any]], width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows that are sure of these tokens."""
    import numpy as np

    ids = np.array([[int(token), *_others([int(token)], width - 1)] for token in tokens], np.int64).reshape(-1, width)
    logprobs = np.full(ids.shape, NEVER)
    logprobs[:, 0] = 0.0
    return ids, logprobs


def _others(taken: list[int], count: int) -> list[int]:
    """As many ids that are not taken."""
    return [token for token in range(len(taken) + count) if token not in set(taken)][:count]


class AxolotlKD(FeatureFormat):
    """`{"messages", "logprobs": [[…k]], "target_token_ids": [[…k]]}`: Axolotl's KD plugin (`type: axolotl.integrations.kd.chat_template`).

    It lays the rows to the right end of the tokens. `place: before` has each row at the token before its own, as it is trained on, and one
    more row for the place of the last token; `own` has it at its own, for Axolotl up to 0.18.0. The text's tokens must be the
    student's: same tokenizer, same chat template.
    """

    TRAINERS: ClassVar[str] = "Axolotl KD (`axolotl.integrations.kd.chat_template`)"

    format: Literal["axolotl"] = "axolotl"
    reasoning: Literal["drop", "fold", "think", "apart"] = "drop"
    place: Literal["before", "own"] = "before"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The conversation, and rows of k to its end."""
        of = self.spoken(record)
        if of is None:
            return None
        ids, logprobs = (each.tolist() for each in self.placed(of))
        said = {"messages": [*self.prompt(record), self.message(record)], **tooled(record)}
        return {**said, **self.written(ids, logprobs)}

    def placed(self, of: TopK) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The rows that reach the end of the text."""
        import numpy as np

        ids, logprobs = self.rows(of)
        if self.place == "own":
            return ids, logprobs
        last_ids, last = certain(of.ids[-1:], ids.shape[1])
        return np.concatenate([ids, last_ids]), np.concatenate([logprobs, last])

    def written(self, ids: list[list[int]], logprobs: list[list[float]]) -> dict[str, Any]:
        """The columns of the rows."""
        return {"logprobs": logprobs, "target_token_ids": ids}

    def shape(self) -> dict[str, Any]:
        """Messages, and two lists of lists."""
        return {"messages": [self.turn()], **TOOLS, "logprobs": [[NUMBER]], "target_token_ids": [[WHOLE]]}


class AxolotlLegacy(AxolotlKD):
    """`{"messages", "logprobs": [[{"token": "token_id:123", "logprob": -0.1}, …], …]}`: the same for `….chat_template.load_legacy`."""

    TRAINERS: ClassVar[str] = "Axolotl KD (`axolotl.integrations.kd.chat_template.load_legacy`)"

    format: Literal["axolotl-legacy"] = "axolotl-legacy"  # type: ignore[assignment]

    def written(self, ids: list[list[int]], logprobs: list[list[float]]) -> dict[str, Any]:
        """A pair a token."""
        pairs = (zip(*each, strict=True) for each in zip(ids, logprobs, strict=True))
        return {
            "logprobs": [[{"token": f"token_id:{token}", "logprob": value} for token, value in row] for row in pairs]
        }

    def shape(self) -> dict[str, Any]:
        """Messages, and a list of pairs a place."""
        return {"messages": [self.turn()], **TOOLS, "logprobs": [[{"token": WORDS, "logprob": NUMBER}]]}


class DistillKit(FeatureFormat):
    """`{"input_ids", "labels", "compressed_logprobs", "bytepacked_indices"}` and `compression_config.yaml`: arcee's DistillKit.

    Row i is of token i + 1. The first `exact_k` of the k logprobs are stored as they are (0: all), the rest as a curve of six terms;
    `dtype` is how. `labels` leave the prompt out. `vocab` is the size of the vocabulary where the teacher did not tell it.
    """

    TRAINERS: ClassVar[str] = "DistillKit (`teacher: {kind: dataset}`)"

    format: Literal["distillkit"] = "distillkit"
    reasoning: Literal["drop"] = "drop"
    system: Literal["keep"] = "keep"
    vocab: int | None = None
    exact_k: int = 0
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    def row(self, record: Record) -> dict[str, Any] | None:
        """All tokens, and a compressed row for each place."""
        import numpy as np

        of = self.told(record)
        if of is None:
            return None
        ids, logprobs = self.rows(of)
        whole = np.concatenate([of.prompt_ids, of.ids]).astype(np.int64)
        before = len(of.prompt_ids) - 1
        if before < 0:  # nothing stands before the first token, so no place predicts it
            ids, logprobs, before = ids[1:], logprobs[1:], 0
        head_ids, head = certain(whole[1 : 1 + before], ids.shape[1])
        tail_ids, tail = certain(whole[-1:], ids.shape[1])
        ids, logprobs = np.concatenate([head_ids, ids, tail_ids]), np.concatenate([head, logprobs, tail])
        if logprobs.shape[0] != len(whole) or (ids >= self.size).any():
            raise ValueError(f"ids reach {int(ids.max())}, and the vocabulary is of {self.size}")
        exact = self.exact(ids.shape[1])
        return {
            "input_ids": whole.tolist(),
            "labels": [-100] * len(of.prompt_ids) + of.ids.tolist(),
            "compressed_logprobs": compress(logprobs, exact, self.dtype).tolist(),
            "bytepacked_indices": pack_bits(ids, self.bits).tolist(),
        }

    def fitted(self, names: list[str], facts: list[Facts], where: str) -> Self:
        """With the vocabulary's size, where the teacher told it."""
        told = [each.vocab_size for each in facts if each.vocab_size]
        made = super().fitted(names, facts, where).model_copy(update={"vocab": self.vocab or max(told, default=None)})
        assert made.size  # or it says what lacks, before a row is written
        return made

    def exact(self, width: int) -> int:
        """How many of the k are stored as they are: all where a curve of six terms would not be smaller."""
        return self.exact_k if 0 < self.exact_k < width - 6 else width

    @property
    def size(self) -> int:
        """The size of the vocabulary. Raises UserError."""
        if self.vocab is None:
            raise UserError(
                "the teacher did not tell its vocabulary's size", where="--to distillkit", hint="--set vocab=151936"
            )
        return self.vocab

    @property
    def bits(self) -> int:
        """The bits of an id."""
        import numpy as np

        return int(np.ceil(np.log2(np.float32(self.size))))  # in 32 bits, as DistillKit counts them

    def beside(self, name: str, files: dict[str, str]) -> dict[str, bytes]:
        """compression_config.yaml, for the trainer's `logprob_compressor`."""
        width = self.k or 1
        exact = self.exact(width)
        told = {
            "d": self.size,
            "k": width,
            "exact_k": exact,
            "exact_dtype": self.dtype,
            "polynomial_terms": fit_terms() if exact < width else None,
            "term_dtype": "float32",
            "residual_bins": [],
            "delta_encoding": False,
            "error_diffusion": False,
            "normalize_t": True,
        }
        return {"compression_config.yaml": yaml.safe_dump(told, sort_keys=False).encode()}

    def shape(self) -> dict[str, Any]:
        """Ids, and bytes."""
        packed = {"compressed_logprobs": [[BYTE]], "bytepacked_indices": [[BYTE]]}
        return {"input_ids": [WHOLE], "labels": [WHOLE], **packed}


class Uld(FeatureFormat):
    """`{"messages", "teacher_ids", "logprobs": [[…k]], "tail"}`: sorted logprobs without the tokens that they are of, for losses between
    different tokenizers (ULD, arXiv 2402.12030). Row j is of token j of `teacher_ids`; `tail` is the log of what the k leave.
    """

    TRAINERS: ClassVar[str] = "cross-tokenizer losses (ULD, GOLD)"

    format: Literal["uld"] = "uld"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The conversation, and what the teacher was sure of."""
        import numpy as np

        of = self.spoken(record)
        if of is None:
            return None
        _, logprobs = self.rows(of)
        left = 1.0 - np.exp(logprobs).sum(axis=1)
        return {
            "messages": [*self.prompt(record), self.message(record)],
            "teacher_ids": of.ids.tolist(),
            "logprobs": logprobs.tolist(),
            "tail": np.log(np.maximum(left, math.exp(NEVER))).tolist(),
        }

    def shape(self) -> dict[str, Any]:
        """Messages, ids and numbers."""
        return {"messages": [self.turn()], "teacher_ids": [WHOLE], "logprobs": [[NUMBER]], "tail": [NUMBER]}
