"""The list of what a recipe's `stages:` can hold. A new method is one class and one name here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from kdgen.stages.align import Align, Fuse
from kdgen.stages.annotate import Annotate
from kdgen.stages.answer import Answer, Rationale
from kdgen.stages.base import Ask, PoolStage, Stage
from kdgen.stages.branch import Branch
from kdgen.stages.candidates import Candidates
from kdgen.stages.choose import Choose
from kdgen.stages.cite import Cite, Grade
from kdgen.stages.compare import Compare
from kdgen.stages.contrast import Contrast
from kdgen.stages.dialogue import Dialogue
from kdgen.stages.draw import Draw, Pool
from kdgen.stages.edit import Edit
from kdgen.stages.evol import Evol
from kdgen.stages.hard_cases import HardCases
from kdgen.stages.judge import Judge
from kdgen.stages.kin import Kin
from kdgen.stages.logprobs import Logprobs, Score
from kdgen.stages.magpie import Magpie
from kdgen.stages.oss_instruct import OssInstruct
from kdgen.stages.pair import Each, Pair
from kdgen.stages.paraphrase import Paraphrase
from kdgen.stages.perplexity import Perplexity
from kdgen.stages.program import Program, Tora
from kdgen.stages.rank import Rank
from kdgen.stages.repair import Repair
from kdgen.stages.rephrase import Rephrase
from kdgen.stages.reward import RewardModel
from kdgen.stages.rewrite import Rewrite
from kdgen.stages.round_trip import RoundTrip
from kdgen.stages.sample import Sample
from kdgen.stages.self_instruct import SelfInstruct
from kdgen.stages.star import Star
from kdgen.stages.states import Embed, HiddenStates
from kdgen.stages.steps import Steps
from kdgen.stages.transcript import Transcript
from kdgen.stages.verify import Verify
from kdgen.stages.write import Write

FAMILIES = ("label", "expand", "curate", "feature", "feedback", "self")


def _which(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('stage')}/{value.get('method')}"
    return f"{getattr(value, 'stage', None)}/{getattr(value, 'method', None)}"


AnyStage = Annotated[
    Annotated[Answer, Tag("label/answer")]
    | Annotated[Rationale, Tag("label/rationale")]
    | Annotated[Sample, Tag("label/sample")]
    | Annotated[Transcript, Tag("label/transcript")]
    | Annotated[Program, Tag("label/program")]
    | Annotated[Tora, Tag("label/tora")]
    | Annotated[Annotate, Tag("label/annotate")]
    | Annotated[Choose, Tag("label/choose")]
    | Annotated[Rewrite, Tag("label/rewrite")]
    | Annotated[SelfInstruct, Tag("expand/self-instruct")]
    | Annotated[Evol, Tag("expand/evol")]
    | Annotated[Magpie, Tag("expand/magpie")]
    | Annotated[Paraphrase, Tag("expand/paraphrase")]
    | Annotated[HardCases, Tag("expand/hard-cases")]
    | Annotated[Write, Tag("curate/write")]
    | Annotated[Branch, Tag("curate/branch")]
    | Annotated[Rephrase, Tag("curate/rephrase")]
    | Annotated[Cite, Tag("curate/cite")]
    | Annotated[Grade, Tag("curate/grade")]
    | Annotated[RoundTrip, Tag("curate/round-trip")]
    | Annotated[Dialogue, Tag("curate/dialogue")]
    | Annotated[OssInstruct, Tag("curate/oss-instruct")]
    | Annotated[Logprobs, Tag("feature/logprobs")]
    | Annotated[Score, Tag("feature/score")]
    | Annotated[Perplexity, Tag("feature/perplexity")]
    | Annotated[HiddenStates, Tag("feature/hidden")]
    | Annotated[Embed, Tag("feature/embed")]
    | Annotated[Align, Tag("feature/align")]
    | Annotated[Fuse, Tag("feature/fuse")]
    | Annotated[Verify, Tag("feedback/verify")]
    | Annotated[Repair, Tag("feedback/repair")]
    | Annotated[Candidates, Tag("feedback/candidates")]
    | Annotated[Judge, Tag("feedback/judge")]
    | Annotated[Compare, Tag("feedback/compare")]
    | Annotated[Rank, Tag("feedback/rank")]
    | Annotated[Pair, Tag("feedback/pair")]
    | Annotated[Each, Tag("feedback/each")]
    | Annotated[Contrast, Tag("feedback/contrast")]
    | Annotated[Steps, Tag("feedback/steps")]
    | Annotated[Edit, Tag("feedback/edit")]
    | Annotated[RewardModel, Tag("feedback/reward")]
    | Annotated[Star, Tag("self/star")]
    | Annotated[Kin, Tag("self/kin")],
    Discriminator(_which),
]

METHODS = (
    "label/answer",
    "label/rationale",
    "label/sample",
    "label/transcript",
    "label/program",
    "label/tora",
    "label/annotate",
    "label/choose",
    "label/rewrite",
    "expand/self-instruct",
    "expand/evol",
    "expand/magpie",
    "expand/paraphrase",
    "expand/hard-cases",
    "curate/write",
    "curate/branch",
    "curate/rephrase",
    "curate/cite",
    "curate/grade",
    "curate/round-trip",
    "curate/dialogue",
    "curate/oss-instruct",
    "feature/logprobs",
    "feature/score",
    "feature/perplexity",
    "feature/hidden",
    "feature/embed",
    "feature/align",
    "feature/fuse",
    "feedback/verify",
    "feedback/repair",
    "feedback/candidates",
    "feedback/judge",
    "feedback/compare",
    "feedback/rank",
    "feedback/pair",
    "feedback/each",
    "feedback/contrast",
    "feedback/steps",
    "feedback/edit",
    "feedback/reward",
    "self/star",
    "self/kin",
)

__all__ = ["FAMILIES", "METHODS", "AnyStage", "Ask", "Draw", "Pool", "PoolStage", "Stage"]
