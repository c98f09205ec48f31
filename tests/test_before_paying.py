"""What can be known to be wrong is said before anything is paid, and exit code 2 says that nothing was sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from server import Answer, Made, Server, echo_answer, make, recipe_file, tasks, write_seeds

from kdgen.errors import EndpointError, UserError

ANSWER = {"stage": "label", "method": "answer", "prompt": "label/answer"}
RATIONALE = {"stage": "label", "method": "rationale", "prompt": "label/rationale"}
EVOL = {
    "stage": "expand",
    "method": "evol",
    "rounds": 1,
    "operations": {"deepen": "expand/evol/deepen"},
    "equal": "expand/evol/equal",
    "answer": "label/answer",
}
EXPAND = {"stage": "expand", "method": "self-instruct", "prompt": "expand/self-instruct"}
SCRIPT = {"provider": "scripted", "path": "rules.jsonl"}


def two(server: Server, **judge: Any) -> dict[str, Any]:
    """A recipe of two stages, each with a teacher at the server; the judge's key is in a variable of its own."""
    at = {"provider": "openai", "model": "Qwen3-8B", "base_url": server.url, "max_tokens": 50}
    return {
        "name": "two",
        "teachers": {
            "teacher": {**at, "api_key_env": "TEACHER_KEY"},
            "judge": {**at, "api_key_env": "JUDGE_KEY"} | judge,
        },
        "stages": [ANSWER, {**ANSWER, "to": "judge", "prompt": "label/brief"}],
    }


def ran(tmp_path: Path, recipe: dict[str, Any], *more: str, count: int = 3, name: str = "out") -> Made:
    """One run over `count` seeds with the ledger of the folder."""
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(count))
    write_seeds(tmp_path / "rules.jsonl", [{"reply": "It is {digest}."}])
    path = recipe_file(tmp_path / "two.yaml", recipe)
    return make("run", path, "--seeds", seeds, *more, folder=tmp_path / name, ledger=tmp_path / "l.db")


def test_a_missing_key_of_the_second_teacher_is_found_before_the_first_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-one")
    with Server() as server:
        made = ran(tmp_path, two(server))
        assert isinstance(made.error, UserError) and "JUDGE_KEY is not set" in made.error.cause
        assert "export JUDGE_KEY=" in made.error.hint and server.bodies == []

        monkeypatch.setenv("JUDGE_KEY", "sk-two")
        assert ran(tmp_path, two(server)).error is None
        assert len(server.bodies) == 6

        for name in ("TEACHER_KEY", "JUDGE_KEY"):
            monkeypatch.delenv(name)
        again = ran(tmp_path, two(server))
        assert again.error is None and len(server.bodies) == 6, "a run that the ledger answers needs nothing"


def test_what_the_ledger_answers_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage was made elsewhere: only the second's teacher must be here."""
    for name in ("TEACHER_KEY", "JUDGE_KEY"):
        monkeypatch.setenv(name, "sk-x")
    with Server() as server:
        ran(tmp_path, two(server))
        monkeypatch.delenv("TEACHER_KEY")
        made = ran(tmp_path, two(server, temperature=0.5))
        assert made.error is None and len(server.bodies) == 9
        made = ran(tmp_path, two(server, temperature=0.5), count=4)
        assert isinstance(made.error, UserError) and "TEACHER_KEY" in made.error.cause and len(server.bodies) == 9


def test_a_missing_package_of_the_second_teacher_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-one")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with Server() as server:
        recipe = two(server)
        recipe["teachers"]["judge"] = {"provider": "local", "max_tokens": 9}
        made = ran(tmp_path, recipe)
        assert isinstance(made.error, UserError) and "xllamacpp is not installed" in made.error.cause
        assert "kdgen[local]" in made.error.hint and server.bodies == []


def test_a_mistake_that_shows_late_has_the_exit_code_of_a_run_that_goes_on(tmp_path: Path) -> None:
    """The seed file grows while the run goes: what stood in it first is paid by then."""

    def grow(body: dict[str, Any], seen: int) -> Answer:
        with (tmp_path / "seeds.jsonl").open("a") as file:
            file.write('{"instruction": "One more."}\n')
        return echo_answer(body, seen)

    with Server(grow) as server:
        recipe = two(server)
        recipe["teachers"] = {"teacher": {**recipe["teachers"]["teacher"]}}
        del recipe["teachers"]["teacher"]["api_key_env"]
        recipe["stages"] = [ANSWER]
        made = ran(tmp_path, recipe, count=200)
        assert server.bodies
    assert isinstance(made.error, EndpointError) and "changed while it was read" in made.error.cause
    assert "in the ledger" in made.error.hint


@pytest.mark.parametrize("cap", ["tokens", "usd"])
def test_a_budget_needs_a_bound_of_every_stage_before_the_first(tmp_path: Path, cap: str) -> None:
    with Server() as server:
        recipe = two(server, max_tokens=None)
        for spec in recipe["teachers"].values():
            del spec["api_key_env"]
        made = ran(tmp_path, recipe, f"--budget-{cap}", "1000")
        assert isinstance(made.error, UserError) and "asking judge" in made.error.where
        assert "a budget needs a bound on each reply" in made.error.cause
        assert "teachers.judge.max_tokens" in made.error.hint and server.bodies == []


def test_rounds_are_the_most_there_are_with_a_target_too(tmp_path: Path) -> None:
    for rounds, requests in ((1, 4), (2, 8)):
        recipe = {
            "name": "r",
            "teachers": {"teacher": SCRIPT},
            "stages": [{**EXPAND, "rounds": rounds, "novelty": None}],
            "target": 99,
            "export": {"format": "messages"},
        }
        write_seeds(tmp_path / "seeds.jsonl", tasks(9))
        write_seeds(tmp_path / "rules.jsonl", [{"reply": "9. Name {digest}\n10. Find {digest}"}])
        path = recipe_file(tmp_path / "r.yaml", recipe | {"stages": [*recipe["stages"], ANSWER]})  # type: ignore[misc]
        made = make("run", path, "--seeds", tmp_path / "seeds.jsonl", folder=tmp_path / f"o{rounds}")
        assert made.error is None, made.error
        assert made.manifest["stopped"] == "rounds"
        assert made.manifest["stages"]["expand/self-instruct"]["in"] == requests


CHEAP = {**SCRIPT, "model": "cheap"}
BEST = {**SCRIPT, "model": "best"}
CASCADE = {"provider": "cascade", "of": ["cheap", "best"], "min_logprob": -1}
WITHOUT_EFFECT: list[tuple[str, dict[str, Any], str]] = [
    (
        "min_logprob",
        {"teachers": {"cheap": CHEAP, "best": BEST, "teacher": CASCADE}},
        "min_logprob has no effect: cheap is not asked for logprobs",
    ),
    ("repairs", {"teachers": {"teacher": {**SCRIPT, "repairs": 1}}}, "repairs has no effect: no stage that asks teacher"),
    (
        "repairs_of_another",
        {"teachers": {"teacher": {**SCRIPT, "repairs": 1}, "judge": SCRIPT}, "stages": [{**EVOL, "judge": "judge"}]},
        "repairs has no effect: no stage that asks teacher",
    ),
    ("on_cut", {"teachers": {"teacher": {**SCRIPT, "on_cut": "retry"}}}, "on_cut: retry has no effect"),
    (
        "on_cut_of_lists",
        {"teachers": {"teacher": {**SCRIPT, "on_cut": "retry", "max_tokens": 9}}, "stages": [EXPAND]},
        "on_cut: retry has no effect",
    ),
    ("fields", {"dedupe": [{"method": "exact", "fields": []}]}, "dedupe.0.fields"),
    ("against_seeds", {"dedupe": [{"method": "exact", "against_seeds": True}]}, "against_seeds has no effect"),
    ("against_seeds_rouge", {"dedupe": [{"method": "rouge-l", "against_seeds": True}]}, "against_seeds has no effect"),
]  # fmt: skip
WITH_EFFECT: list[tuple[str, dict[str, Any]]] = [
    (
        "min_logprob",
        {"teachers": {"cheap": {**CHEAP, "logprobs": 0}, "best": BEST, "teacher": CASCADE}},
    ),
    ("repairs", {"teachers": {"teacher": {**SCRIPT, "repairs": 1}}, "stages": [RATIONALE]}),
    (
        "repairs_of_a_judge",
        {"teachers": {"teacher": SCRIPT, "judge": {**SCRIPT, "repairs": 1}}, "stages": [{**EVOL, "judge": "judge"}]},
    ),
    ("on_cut", {"teachers": {"teacher": {**SCRIPT, "on_cut": "retry"}}, "stages": [{**ANSWER, "params": {"max_tokens": 9}}]}),
    ("against_seeds", {"dedupe": [{"method": "exact", "against_seeds": True}], "stages": [EVOL]}),
    ("rouge_as_it_is", {"dedupe": [{"method": "rouge-l"}]}),
]  # fmt: skip


def loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    from kdgen.config import load_recipe

    write_seeds(tmp_path / "rules.jsonl", [{"reply": "x"}])
    recipe = {"name": "r", "teachers": {"teacher": SCRIPT}, "stages": [ANSWER], **changes}
    load_recipe(str(recipe_file(tmp_path / "r.yaml", recipe)))


@pytest.mark.parametrize(
    ("changes", "cause"), [case[1:] for case in WITHOUT_EFFECT], ids=[case[0] for case in WITHOUT_EFFECT]
)
def test_an_option_without_effect_is_an_error(tmp_path: Path, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(UserError) as found:
        loaded(tmp_path, changes)
    assert cause in found.value.cause and found.value.where


@pytest.mark.parametrize("changes", [case[1] for case in WITH_EFFECT], ids=[case[0] for case in WITH_EFFECT])
def test_an_option_with_one_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded(tmp_path, changes)
