"""One model's distributions in another one's tokens, by the bytes that both stand for; and several made one.

A teacher's row tells what text comes next after a prefix. It is a row of the student wherever the student has a token
boundary after the same bytes; where a student's token begins inside a teacher's, nobody has said what comes next.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError, PydanticKnownError

from kdgen.errors import UserError
from kdgen.features import TextTopK, TopK
from kdgen.features.spelling import place_of

INSTALL = "pip install 'kdgen[tokens]'"
Others = Literal["first", "mined", "drop"]
Row = list[tuple[bytes, float]]


class Tokenizer:
    """A tokenizer.json: its tokens as bytes, and texts as its tokens."""

    def __init__(self, path: str, content: bytes) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise UserError("tokenizers is not installed", where=path, hint=INSTALL)
        try:
            text = content.decode()
            self._inner: Any = importlib.import_module("tokenizers").Tokenizer.from_str(text)
            self._told = json.loads(text)
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"it is no tokenizer.json: {error}"[:300], where=path) from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._mined: dict[bytes, int] = {}

    @cached_property
    def pieces(self) -> dict[int, bytes]:
        """The bytes of each token by its id; those of marks (`<|im_end|>`) are their names."""
        marks = {added["id"]: added["content"].encode() for added in self._told.get("added_tokens", ())}
        parts = json.dumps([self._told.get("decoder"), self._told.get("pre_tokenizer")])
        spell = _byte_level if '"ByteLevel"' in parts else _sentence
        return {id: marks.get(id) or spell(token) for token, id in self._inner.get_vocab().items()}

    @cached_property
    def marks(self) -> frozenset[int]:
        """The ids of marks, which stand for no text."""
        return frozenset(added["id"] for added in self._told.get("added_tokens", ()) if added.get("special"))

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The token that is just these bytes."""
        return {piece: id for id, piece in sorted(self.pieces.items(), reverse=True) if id not in self.marks}

    def encode(self, text: str) -> list[int]:
        """A text's tokens, without marks around it."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def place(self, piece: bytes, others: Others) -> int | None:
        """The token that a piece of text becomes: the one that is it, else by `others`; None where it is left out."""
        if (own := self.ids.get(piece)) is not None or not piece or others == "drop":
            return own
        if others == "mined":
            return self._nearest(piece)
        try:
            begins = self.encode(piece.decode())
        except UnicodeDecodeError:
            return None
        return begins[0] if begins and begins[0] not in self.marks else None

    def _nearest(self, piece: bytes) -> int | None:
        """FuseLLM's MinED (arXiv 2401.10491): the token with the fewest edits to the piece, of equals the first."""
        if piece not in self._mined:
            distance = importlib.import_module("rapidfuzz.distance").Levenshtein.distance
            best, least = -1, len(piece) + 1
            for other, token in self.ids.items():
                if abs(len(other) - len(piece)) < least or (abs(len(other) - len(piece)) == least and token < best):
                    edits = distance(piece, other, score_cutoff=least)
                    if edits < least or (edits == least and token < best):
                        best, least = token, edits
            self._mined[piece] = best
        found = self._mined[piece]
        return None if found < 0 else found


def tokenizer(path: str) -> Tokenizer:
    """A tokenizer, made once of each content. Raises UserError."""
    try:
        return _of(path, Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"it is no tokenizer.json: {error.strerror}", where=path) from None


_of = lru_cache(maxsize=8)(Tokenizer)


def _read(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Tokenizer):
        return value
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    base: Path = (info.context or {}).get("base", Path())
    try:
        return tokenizer(str((base / os.path.expanduser(value)).absolute()))
    except UserError as error:
        raise PydanticCustomError(
            "no_prompt", "{cause}", {"cause": f"{error.where}: {error.cause}", "hint": error.hint}
        ) from None


TokenizerFile = Annotated[Tokenizer, PlainValidator(_read), PlainSerializer(lambda file: file.sha256)]
"""A recipe's tokenizer.json by its path, relative to the recipe; what stands for it is its content."""


def _byte_level(token: str) -> bytes:
    table = _letters()
    return bytes(table[letter] for letter in token) if all(letter in table for letter in token) else token.encode()


@lru_cache(maxsize=1)
def _letters() -> dict[str, int]:
    """The byte of each letter of GPT-2's alphabet, in which a byte that prints stands for itself."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    made = {chr(byte): byte for byte in plain}
    return made | {chr(256 + place): byte for place, byte in enumerate(b for b in range(256) if b not in plain)}


def _sentence(token: str) -> bytes:
    """SentencePiece: a byte is written <0xE2>, a space as an underline."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def rows_of(feature: TopK | TextTopK, teacher: Tokenizer | None) -> tuple[list[bytes], list[Row]]:
    """A feature's tokens and rows as bytes; a mark among the likely ones is kept by its name."""
    if isinstance(feature, TextTopK):
        pairs = zip(feature.topk_tokens, feature.topk_logprobs, strict=True)
        return feature.tokens, [list(zip(words, values, strict=True)) for words, values in pairs]
    assert teacher is not None
    pieces = teacher.pieces
    rows = [
        [
            (pieces.get(id, b""), float(value))
            for id, value in zip(ids.tolist(), values.tolist(), strict=True)
            if id >= 0
        ]
        for ids, values in zip(feature.topk_ids, feature.topk_logprobs, strict=True)
    ]
    return [pieces.get(int(id), b"") for id in feature.ids], rows


def aligned(
    tokens: Sequence[bytes], rows: Sequence[Row], text: str, student: Tokenizer, others: Others
) -> tuple[list[int], list[float], list[list[tuple[int, float]]]] | None:
    """The student's tokens of a text, each with its logprob where the teacher has the same one there (else NaN), and its row.

    A row is empty where the teacher has no boundary. None where either's tokens do not spell the text.
    """
    said = text.encode()
    start = place_of(tokens, said)
    ids = student.encode(text)
    pieces = [student.pieces[id] for id in ids]
    if start < 0 or not b"".join(pieces).endswith(said) or b"".join(pieces).removesuffix(said).strip():
        return None
    known: dict[int, int] = {}
    place = -start
    for number, token in enumerate(tokens):
        known.setdefault(place, number)
        place += len(token)
    own, made = [], []
    place = len(said) - len(b"".join(pieces))
    for id, piece in zip(ids, pieces, strict=True):
        at = known.get(max(0, place))
        row = {} if at is None else gathered((student.place(word, others), value) for word, value in rows[at])
        made.append(sorted(row.items(), key=lambda pair: -pair[1]))
        own.append(row.get(id, math.nan))
        place += len(piece)
    return ids, own, made


def gathered(pairs: Iterable[tuple[int | None, float]]) -> dict[int, float]:
    """Logprobs by token, those that became the same one added up; what has no token goes to the tail."""
    found: dict[int, list[float]] = defaultdict(list)
    for id, value in pairs:
        if id is not None and value > -math.inf:
            found[id].append(value)
    return {id: min(0.0, _sum(values)) for id, values in found.items()}


def _sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(math.fsum(math.exp(value - most) for value in values))


def cross_entropy(feature: TopK) -> float:
    """The mean of -log p over the tokens that were drawn, where it is known: inf where of none."""
    known = [float(value) for value in feature.logprobs if not math.isnan(value)]
    return -math.fsum(known) / len(known) if known else math.inf


def averaged(
    features: Mapping[str, TopK], weights: Mapping[str, float]
) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """The mixture Σ w p of several models' rows, over those that have one; a token that one does not tell counts 0 there."""
    own, rows = [], []
    first = next(iter(features.values()))
    for place in range(len(first.ids)):
        have = {name: each for name, each in features.items() if each.topk_ids[place][0] >= 0 and weights[name] > 0}
        total = math.fsum(weights[name] for name in have)
        mixed: dict[int, float] = defaultdict(float)
        drawn, whole = 0.0, bool(have)
        for name, each in have.items():
            share = weights[name] / total
            for id, value in zip(each.topk_ids[place].tolist(), each.topk_logprobs[place].tolist(), strict=True):
                if id >= 0:
                    mixed[id] += share * math.exp(value)
            whole = whole and not math.isnan(each.logprobs[place])
            drawn += share * math.exp(float(each.logprobs[place])) if whole else 0.0
        rows.append([(id, math.log(p)) for id, p in mixed.items() if p > 0])
        own.append(min(0.0, math.log(drawn)) if whole and drawn > 0 else math.nan)
    return own, rows
