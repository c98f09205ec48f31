"""Whether every teacher takes what the stages ask of it, and nothing that it is set to do is without effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kdgen.errors import UserError
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.bill import Budget
from kdgen.teachers.roles import Cascade
from kdgen.yamls import Key

if TYPE_CHECKING:
    from kdgen.config import Recipe


def check_use(recipe: Recipe, where: Callable[[Key], str], models: dict[str, TeacherSpec]) -> None:
    """Every teacher takes what its stages ask of it, and nothing that it is set to do is without effect."""
    opened = {role for stage in recipe.stages for role in recipe.reach(stage.opens)}
    for role in sorted(opened):
        if (shut := models[role].shut()) is not None:
            raise UserError(f"{models[role].label} cannot write a user's turn: {shut[0]}",
                            where=where(("teachers", role)), hint=shut[1].replace("ROLE", role))  # fmt: skip
    forced = {role for stage in recipe.stages for role in recipe.reach(stage.forced)}
    for role in sorted(forced):
        if (deaf := models[role].deaf()) is not None:
            raise UserError(f"{models[role].label} cannot score a text: {deaf[0]}",
                            where=where(("teachers", role)), hint=deaf[1])  # fmt: skip
    repaired, whole = set[str](), set[str]()
    for number, stage in enumerate(recipe.stages):
        asking = f"{where(('stages', number))}: stage {stage.name} asking"
        settled = {role: models[role].settle(stage.params, f"{asking} {role}")[0] for role in recipe.reach(stage.roles)}
        for role in sorted(settled):
            scores = role in recipe.reach(stage.scorers)
            if models[role].scores not in (None, scores):
                cause = "says numbers, and no words" if not scores else "says words, and no number"
                hint = "a reward model is for feedback/reward alone: provider: vllm, base_url: …, api: classify"
                raise UserError(f"{models[role].label} {cause}", where=f"{asking} {role}", hint=hint)
        bounded = {role for role, params in settled.items() if params.max_tokens is not None or models[role].scores}
        bounded |= {*recipe.reach(stage.forced)}
        if recipe.budget != Budget() and (endless := next((role for role in settled if role not in bounded), "")):
            cause = f"a budget needs a bound on each reply, and {models[endless].label} has none"
            hint = f"--set teachers.{endless}.max_tokens=…, or max_tokens in the stage's params"
            raise UserError(cause, where=f"{asking} {endless}", hint=hint)
        least = stage.reads_logprobs
        given = {role: -1 if params.logprobs is None else params.logprobs for role, params in settled.items()}
        if least is not None and (mute := next((role for role in given if given[role] < least), "")):
            cause = f"it reads logprobs, and {mute} is not asked for {'enough ' if given[mute] >= 0 else ''}logprobs"
            hint = f"--set stages.{number}.params.logprobs={least}"
            raise UserError(cause, where=f"{asking} {mute}", hint=hint)
        repaired |= {*recipe.reach(stage.validates)}
        whole |= set() if stage.cut_is_fine else bounded
        for team in (recipe.teachers[role] for role in stage.roles):
            if not isinstance(team, Cascade) or team.min_logprob is None:
                continue
            if mute := next((role for role in team.of[:-1] if settled[role].logprobs is None), ""):
                cause = f"min_logprob has no effect: {mute} is not asked for logprobs"
                raise UserError(cause, where=f"{asking} {mute}", hint=f"--set teachers.{mute}.logprobs=0")
    for role, spec in models.items():
        if getattr(spec, "template", None) is not None and role not in opened:
            cause = f"template has no effect: no stage has {role} write a user's turn"
            raise UserError(cause, where=where(("teachers", role, "template")), hint="take it out")
        if spec.repairs and role not in repaired:
            cause = f"repairs has no effect: no stage that asks {role} checks its replies"
            raise UserError(cause, where=where(("teachers", role, "repairs")), hint="take it out")
        if spec.on_cut == "retry" and role not in whole:
            cause = f"on_cut: retry has no effect: no stage that needs whole replies of {role} bounds them"
            raise UserError(cause, where=where(("teachers", role, "on_cut")), hint="set max_tokens, or take it out")
