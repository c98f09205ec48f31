"""One record of each kind, for the examples of the formats: what is shown is what they write."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from kdgen.export.base import Format
from kdgen.features import Facts, TopK
from kdgen.record import Candidate, Message, Record

ASKED: dict[str, Any] = {"id": "q1", "instruction": "What is 6 x 7?", "seeds": ("q1",)}
ANSWER = Record(**ASKED, output="42", reasoning="6 x 7 is 42.", system="Be brief.")
PAIR = Record(
    **ASKED,
    output="42",
    candidates=(Candidate(output="42", score=5, writer="good"), Candidate(output="41", score=1, writer="bad")),
)
DOCUMENT = Record(id="d1", text="Water boils at 100 °C at sea level.", seeds=("d1",))
QUERY = Record(
    id="q2", instruction="boiling point of water", text=DOCUMENT.text, seeds=("d1",), extra={"title": "Water"}
)
SPOKEN = Record(
    id="t1", instruction="And 42 / 7?", output="6", seeds=("t1",),
    history=(Message(role="user", content="What is 6 x 7?"), Message(role="assistant", content="42")),
)  # fmt: skip
LABELLED = Record(**ASKED, output="42", meta={"label": True})
SCORED = Record(**ASKED, output="42", meta={"score": 4.5, "scores": {"helpful": 5, "brief": 4}})
JUDGED = Record(**ASKED, output="42", meta={"scores": {"accuracy": 5}, "reasons": {"accuracy": "It is right."}})
VERIFIED = Record(**ASKED, meta={"gold": "42", "verifier": {"type": "math", "gold": "42"}})
STEPS = Record(**ASKED, meta={"steps": {"labelled": [{"text": "6 x 7 is 42.", "label": True, "share": 1.0}]}})
REWRITTEN = Record(
    **ASKED,
    output="42",
    meta={"rewrite": {"output": {"rounds": [{"critique": "Say the number.", "output": "I know it."}]}}},
)
OPS: list[Any] = [
    {"op": "keep", "old": [0, 1], "new": [0, 1], "weights": [1.0, 1.0]},
    {"op": "replace", "old": [1, 2], "new": [1, 2], "weights": [-1.0, 1.0]},
]
EDITED = Record(
    **ASKED, output="42", candidates=(Candidate(output="42"), Candidate(output="41")), meta={"edit": {"ops": OPS}}
)
TOLD: dict[str, Any] = {"feature": "top", "k": 2}
RIVAL = QUERY.model_copy(update={"meta": {"rival": "Ice melts at 0 °C."}})
OF = {
    "triples": RIVAL,
    "text": DOCUMENT, "retrieval": QUERY, "beir": QUERY, "critique": REWRITTEN, "edits": EDITED, "evaluator": JUDGED,
    "kto": LABELLED, "axolotl-kto": LABELLED, "preference": PAIR, "ranked": PAIR, "openai-preference": PAIR,
    "axolotl-preference": PAIR, "reward": SCORED, "prompt": VERIFIED, "openai-rft": VERIFIED, "stepwise": STEPS,
    "openai": SPOKEN, "axolotl-chat": SPOKEN,
}  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {
    "evaluator": {"rubric": "accuracy"}, "axolotl": TOLD, "axolotl-legacy": TOLD, "distillkit": {**TOLD, "vocab": 16}, "uld": TOLD,
}  # fmt: skip


def example_of(name: str) -> tuple[Record, dict[str, Any]]:
    """A record that has a place in the format, and the settings that the format needs."""
    record = ANSWER.featured({"top": _feature()}) if "feature" in NEEDED.get(name, {}) else OF.get(name, ANSWER)
    return record, {"format": name, **NEEDED.get(name, {})}


def _feature() -> TopK:
    """What a teacher of a vocabulary of 16 tells of an answer of one token and the closing one."""
    import numpy as np

    logprobs = np.array([[-0.25, -2.5], [-0.5, -3.0]], np.float32)
    ids = np.array([7, 2], np.int32)
    top = np.array([[7, 4], [2, 7]], np.int32)
    prompt = np.array([1, 5, 3], np.int32)
    facts = Facts(teacher="example", vocab_size=16, k=2)
    return TopK(prompt, ids, logprobs[:, 0], top, logprobs, np.log1p(-np.exp(logprobs).sum(1)), facts)


def settings_of(kind: type[Format]) -> list[str]:
    """The settings of a format as `--set` takes them, the default first."""
    told = []
    for name, piece in kind.model_fields.items():
        values = get_args(piece.annotation) if get_origin(piece.annotation) is Literal else ()
        if name == "format" or len(values) == 1:
            continue
        plain = piece.default
        others = [str(value) for value in values if value != plain]
        told.append(f"{name}={'|'.join([str(plain), *others]) if values else '…'}")
    return told
