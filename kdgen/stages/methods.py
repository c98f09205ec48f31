"""The table of methods. A stage's module is imported when a recipe first names it.

All of them together would be a fifth of the time to the first request.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

METHODS = {
    "label/answer": "answer.Answer",
    "label/rationale": "answer.Rationale",
    "label/sample": "sample.Sample",
    "label/transcript": "transcript.Transcript",
    "label/program": "program.Program",
    "label/tora": "program.Tora",
    "label/annotate": "annotate.Annotate",
    "label/choose": "choose.Choose",
    "label/rewrite": "rewrite.Rewrite",
    "expand/self-instruct": "self_instruct.SelfInstruct",
    "expand/evol": "evol.Evol",
    "expand/magpie": "magpie.Magpie",
    "expand/paraphrase": "paraphrase.Paraphrase",
    "expand/hard-cases": "hard_cases.HardCases",
    "curate/write": "write.Write",
    "curate/branch": "branch.Branch",
    "curate/rephrase": "rephrase.Rephrase",
    "curate/cite": "cite.Cite",
    "curate/grade": "cite.Grade",
    "curate/round-trip": "round_trip.RoundTrip",
    "curate/dialogue": "dialogue.Dialogue",
    "curate/oss-instruct": "oss_instruct.OssInstruct",
    "feature/logprobs": "logprobs.Logprobs",
    "feature/score": "logprobs.Score",
    "feature/perplexity": "perplexity.Perplexity",
    "feature/hidden": "states.HiddenStates",
    "feature/embed": "states.Embed",
    "feature/align": "align.Align",
    "feature/fuse": "align.Fuse",
    "feedback/verify": "verify.Verify",
    "feedback/repair": "repair.Repair",
    "feedback/candidates": "candidates.Candidates",
    "feedback/judge": "judge.Judge",
    "feedback/compare": "compare.Compare",
    "feedback/rank": "rank.Rank",
    "feedback/pair": "pair.Pair",
    "feedback/each": "pair.Each",
    "feedback/contrast": "contrast.Contrast",
    "feedback/steps": "steps.Steps",
    "feedback/edit": "edit.Edit",
    "feedback/reward": "reward.RewardModel",
    "self/star": "star.Star",
    "self/kin": "kin.Kin",
}


def class_of(name: str) -> Any:
    """The class of the method `family/method`, or None where there is none of that name."""
    if name not in METHODS:
        return None
    module, cls = METHODS[name].split(".")
    return getattr(import_module(f"kdgen.stages.{module}"), cls)


def named(value: Any) -> str:
    """The `family/method` that a recipe says."""
    told = value if isinstance(value, dict) else {}
    return f"{told.get('stage')}/{told.get('method')}"
