"""What replies tell of tokens: of those that a teacher wrote, and of those that it was given to score."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdgen.errors import Rejected
from kdgen.features.spelling import place_of
from kdgen.teachers.calls import Reply, Told
from kdgen.teachers.chat import MALFORMED, malformed

# What a piece of a character decodes to. Of such tokens it is not known what they spell.
LOST = "\ufffd".encode()
THINK = re.compile(rb"</?think>")  # an empty thought, which templates of thinking models set before an answer
CLOSING = 8  # the most tokens with which a template ends a turn


def read_told(body: Mapping[str, Any]) -> Told:
    """The tokens of a scored text, of a teacher that tells them in kdgen's own form."""
    try:
        told = body["told"]
        if reason := told.get("wrong"):
            raise Rejected(str(reason), WRONG.get(str(reason), ""))
        top = [[(int(id), float(logprob)) for id, logprob in row] for row in told["top"]]
        pieces = told.get("pieces")
        spelled = pieces and [bytes(each) for each in pieces]
        made = _whole(Told(told["prompt_ids"], told["ids"], told["logprobs"], top, spelled))
        return made if told.get("states") is None else made._replace(layers=told["layers"], states=_states(told))
    except (*MALFORMED, ValueError) as error:
        raise malformed("told", error) from None


WRONG = {"prompt_not_prefix": "the tokens of the prompt alone do not begin those of the whole conversation"}


def prompt_told(whole: Mapping[str, Any], before: Mapping[str, Any]) -> Told:
    """The tokens of a scored text, of vLLM: the whole conversation as a prompt, and the part before it."""
    try:
        prompt, full = list(before["prompt_token_ids"]), list(whole["prompt_token_ids"])
        rows = whole["prompt_logprobs"]
        if full[: len(prompt)] != prompt:
            raise Rejected("prompt_not_prefix", WRONG["prompt_not_prefix"])
        if len(rows) != len(full):
            raise Rejected("tokens_differ", f"{len(full)} tokens, and logprobs of {len(rows)}")
        ids, logprobs, top, pieces = full[len(prompt) :], [], [], []
        for token, row in zip(ids, rows[len(prompt) :], strict=True):
            given = row[str(token)]
            logprobs.append(float(given["logprob"]))
            pieces.append(str(given.get("decoded_token") or "").encode())
            ranked = sorted(row.items(), key=lambda pair: (-pair[1]["logprob"], pair[0]))
            top.append([(int(id), float(each["logprob"])) for id, each in ranked])
    except (*MALFORMED, ValueError) as error:
        raise malformed("prompt_logprobs", error) from None
    known = not any(not piece or LOST in piece for piece in pieces)
    return Told(prompt, ids, logprobs, top, pieces if known else None)


def generated(reply: Reply) -> Told:
    """The tokens that a teacher wrote. Raises Rejected where the reply tells none, or others than it says."""
    body = reply.body
    try:
        content = body["choices"][0].get("logprobs", {}).get("content") or ()
        ids = [entry.get("id") for entry in content]
        pieces = [_bytes(entry) for entry in content]
        logprobs = [float(entry["logprob"]) for entry in content]
        tops = [entry.get("top_logprobs") or () for entry in content]
        told_ids = body["choices"][0].get("token_ids")
        if not content:
            raise Rejected("no_logprobs", "the reply tells no logprobs")
        if told_ids is not None and all(id is not None for id in ids) and list(told_ids) != ids:
            raise Rejected("tokens_differ", f"{len(told_ids)} token ids, and logprobs of {len(ids)} other tokens")
        prompt = [int(each) for each in body.get("prompt_token_ids") or ()]
        if any(id is None for id in ids) or any(each.get("id") is None for top in tops for each in top):
            words = [[(_bytes(each) or b"", float(each["logprob"])) for each in top] for top in tops]
            return Told((), (), logprobs, (), [each or b"" for each in pieces], words)
        top = [[(int(each["id"]), float(each["logprob"])) for each in row] for row in tops]
    except (*MALFORMED, ValueError) as error:
        raise malformed("logprobs", error) from None
    unspelled = any(each is None or LOST in each for each in pieces)
    whole = None if unspelled else [each or b"" for each in pieces]
    return _whole(Told(prompt, [int(id) for id in ids], logprobs, top, whole))


def spells(told: Told, text: str, thought: bool = False) -> None:
    """Raise Rejected where the tokens do not spell `text`: closing tokens may follow, and a thought may come before."""
    if told.pieces is None:
        return
    spelled, said = b"".join(told.pieces), text.encode()
    start = place_of(told.pieces, said)
    if start < 0 or (start and not thought and THINK.sub(b"", spelled[:start]).strip()):
        raise Rejected("tokens_differ", f"the tokens spell {spelled[:80]!r}, the answer is {said[:80]!r}")
    end, place, after = start + len(said), 0, 0
    for piece in told.pieces:
        after += place >= end
        place += len(piece)
    if after > CLOSING:
        raise Rejected("tokens_differ", f"{after} tokens stand behind the answer {said[-80:]!r}")


def _states(told: Mapping[str, Any]) -> Any:
    """Hidden states [L, n, d]: lists of numbers, or the bytes of them in base64 with `dtype` and `width`."""
    import numpy as np

    shape = (len(told["layers"]), len(told["ids"]), int(told.get("width", -1)) if told["ids"] else 0)
    if isinstance(told["states"], str):
        flat = np.frombuffer(base64.b64decode(told["states"]), np.dtype(str(told["dtype"])))
    else:
        flat = np.array(told["states"], np.float32)
    return flat.reshape(shape)


def vector_of(reply: Reply) -> list[float]:
    """The vector of a reply. Raises Rejected where there is none."""
    try:
        made = [float(number) for number in reply.body["data"][0]["embedding"]]
        if not made or not all(map(math.isfinite, made)):
            raise ValueError("there are no numbers")
    except (*MALFORMED, ValueError) as error:
        raise malformed("data[0].embedding", error) from None
    return made


def _bytes(entry: Mapping[str, Any]) -> bytes | None:
    """A token's bytes; of a server that gives none, those of its text."""
    if isinstance(entry.get("bytes"), Sequence):
        return bytes(entry["bytes"])
    token = entry.get("token")
    return token.encode() if isinstance(token, str) else None


def _whole(told: Told) -> Told:
    n = len(told.ids)
    if not n == len(told.logprobs) == len(told.top) or (told.pieces is not None and len(told.pieces) != n):
        raise Rejected("tokens_differ", f"{n} tokens, {len(told.logprobs)} logprobs and {len(told.top)} rows")
    return told
