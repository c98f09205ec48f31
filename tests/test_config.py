"""Recipes: what is wrong with one is said by file, line and key; options change it; its digest follows what makes rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdgen.config import Recipe, load_recipe
from kdgen.errors import UserError
from kdgen.resources import builtins

PROMPT = "---\nabout: x\nvariables: {instruction: the task}\n---\n[[user]]\n{{ instruction }}\n"
RECIPE = """\
name: mine
teachers:
  teacher:
    provider: scripted
    path: t.jsonl
stages:
  - stage: label
    method: answer
    prompt: ./p.md
    existing: keep
filters:
  - {filter: refusal}
dedupe:
  - {method: exact}
export: {format: alpaca}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and all that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "p.md").write_text(PROMPT)
    (tmp_path / "t.jsonl").write_text('{"reply": "It is {digest}."}\n')
    (tmp_path / "s.jsonl").write_text('{"instruction": "Name a river."}\n')
    return tmp_path


STAGE = RECIPE[RECIPE.index("  - stage") : RECIPE.index("filters")]
BAD: list[tuple[str, str, str, str]] = [
    ("top_key", "filters:", "tragets: 3\nfilters:", ":11: unknown key 'tragets'\n  hint: did you mean target"),
    ("top_key_far", "filters:", "zzz: 3\nfilters:", ":11: unknown key 'zzz'\n  hint: known here: name, about,"),
    ("stage_key", "existing", "exsting", ":10: unknown key 'stages.0.exsting'\n  hint: did you mean existing"),
    ("params_key", "existing: keep", "params: {temprature: 0}", ":10: unknown key 'stages.0.params.temprature'\n  hint: did you mean temp"),
    ("teacher_key", "path:", "pth:", ":5: unknown key 'teachers.teacher.pth'\n  hint: did you mean path?"),
    ("filter_key", "refusal", "refusal, withn: 3", ":12: unknown key 'filters.0.withn'\n  hint: did you mean within?"),
    ("dedupe_key", "exact", "exact, feilds: [task]", ":14: unknown key 'dedupe.0.feilds'\n  hint: did you mean fields?"),
    ("export_key", "alpaca", "alpaca, reasonng: fold", ":15: unknown key 'export.reasonng'\n  hint: did you mean reasoning?"),
    ("seeds_key", "filters:", "seeds: {path: s.jsonl, lmit: 1}\nfilters:", ":11: unknown key 'seeds.lmit'\n  hint: did you mean limit?"),
    ("method", "method: answer", "method: answr", ":7: stages.0: 'label/answr' is not one of its kinds\n  hint: did you mean label/answer"),
    ("stage", "stage: label", "stage: lable", ":7: stages.0: 'lable/answer' is not one of its kinds\n  hint: did you mean label/answer"),
    ("method_none", "    method: answer\n", "", ":7: stages.0: say which stage and method it is\n  hint: one of label/answer"),
    ("stage_text", STAGE, "  - label/answer\n", ":7: stages.0: say which stage"),
    ("provider", "scripted", "scriptd", ":3: teachers.teacher: 'scriptd' is not one of its kinds\n  hint: did you mean scripted?"),
    ("provider_none", "    provider: scripted\n", "", ":3: teachers.teacher: `provider:` is missing\n  hint: one of openai,"),
    ("filter", "refusal", "refusl", ":12: filters.0: 'refusl' is not one of its kinds\n  hint: did you mean refusal?"),
    ("filter_none", "filter: refusal", "fliter: refusal", ":12: filters.0: `filter:` is missing\n  hint: one of length,"),
    ("filter_text", "{filter: refusal}", "refusal", ":12: filters.0: a mapping belongs here (it is 'refusal')"),
    ("dedupe", "exact", "exat", ":14: dedupe.0: 'exat' is not one of its kinds\n  hint: did you mean exact?"),
    ("export", "alpaca", "alpacca", ":15: export: 'alpacca' is not one of its kinds\n  hint: did you mean alpaca?"),
    ("export_text", "{format: alpaca}", "alpaca", ":15: export: a mapping belongs here (it is 'alpaca')"),
    ("twice", "filters:", "name: again\nfilters:", ":11: 'name' stands twice"),
    ("twice_inside", "existing: keep", "existing: keep\n    existing: keep", ":11: 'existing' stands twice"),
    ("open", "{format: alpaca}", "{format: alpaca", ":16: the YAML is broken: "),
    ("tab", "  - {filter", "\t- {filter", ":12: the YAML is broken: found character '\\t'"),
    ("endless", "name: mine", "name: &a [*a]", ":1: the YAML is nested without end"),
    ("list", RECIPE, "- x\n", ":1: a recipe is a mapping of keys\n  hint: kdgen recipes show NAME"),
    ("empty", RECIPE, "", ":1: a recipe is a mapping of keys"),
    ("name_none", "name: mine\n", "", ":1: name is missing"),
    ("name_path", "name: mine", "name: ../mine", ":1: name: String should match pattern"),
    ("teachers_list", "  teacher:\n    provider: scripted\n    path: t.jsonl", "  - x", ":2: teachers: a mapping belongs here"),
    ("teacher_null", "    provider: scripted\n    path: t.jsonl\n", "", ":3: teachers.teacher: a mapping belongs here"),
    ("stages_empty", f"stages:\n{STAGE}", "stages: []\n", ":6: stages: Tuple should have at least 1 item"),
    ("stages_text", f"stages:\n{STAGE}", "stages: x\n", ":6: stages: a list belongs here (it is 'x')"),
    ("pattern", "refusal", "pattern, patterns: ['(']", ":12: filters.0.patterns: '(' is not a regular expression"),
    ("range", "existing: keep", "params: {temperature: 3}", ":10: stages.0.params.temperature: Input should be less"),
    ("target", "filters:", "target: 0\nfilters:", ":11: target: Input should be greater than or equal to 1 (it is 0)"),
    ("role", "existing: keep", "to: judge", ":7: stage label/answer asks 'judge', which is no teacher"),
    ("role_idle", "stages:", "  judge: {provider: local}\nstages:", ":6: no stage asks the teacher 'judge'\n  hint: take it out"),
    ("prompt", "./p.md", "./none.md", ":9: stages.0.prompt: no such file: "),
    ("prompt_builtin", "./p.md", "label/anser", ":9: stages.0.prompt: no built-in prompt is named 'label/anser'\n  hint: did you mean"),
    ("script", "t.jsonl", "none.jsonl", "none.jsonl: cannot read the replies"),
    ("no_seeds", "\nfilters:", "\nseeds: none.jsonl\nfilters:", "none.jsonl: there is no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_recipes(kdgen: Callable[..., Any], folder: Path, old: str, new: str, said: str) -> None:
    assert RECIPE.count(old)
    (folder / "mine.yaml").write_text(RECIPE.replace(old, new, 1))
    seeds = () if "seeds:" in new else ("--seeds", "s.jsonl")
    told = kdgen("run", "mine.yaml", *seeds, "-o", "out", "--ledger", "ledger.db")
    assert told.code == 2 and told.out == "" and told.err.count("\n") <= 2
    assert (f"error: {folder}/mine.yaml{said}" if said.startswith(":") else said) in told.err
    assert not (folder / "out").exists() and not (folder / "ledger.db").exists()
    assert kdgen("check", "mine.yaml").err == told.err


def test_the_same_recipe_without_mistakes_runs(kdgen: Callable[..., Any], folder: Path) -> None:
    told = kdgen("run", "mine.yaml", "--seeds", "s.jsonl", "-o", "out", "--ledger", "ledger.db")
    assert told.code == 0 and (folder / "out/data.jsonl").is_file()


def test_a_recipe_that_is_not_there(kdgen: Callable[..., Any], folder: Path) -> None:
    assert f"no such file: {folder}/none.yaml" in kdgen("run", "none.yaml").err
    told = kdgen("run", "label/anser")
    assert (
        told.code == 2
        and "no built-in config is named 'label/anser'" in told.err
        and "did you mean label/answer" in told.err
    )
    (folder / "mine.yaml").write_bytes(RECIPE.encode() + b"about: caf\xe9\n")
    assert "mine.yaml: invalid UTF-8 at byte" in kdgen("run", "mine.yaml").err


def test_a_seed_file_of_a_recipe_is_found_beside_it(
    kdgen: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.yaml").write_text(RECIPE + "seeds: {path: s.jsonl, limit: 1}\n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert kdgen("run", "../mine.yaml", "-q").code == 0


SETS: list[tuple[tuple[str, ...], str]] = [
    (("--set", "stages.0.exsting=keep"), "--set stages.0.exsting: unknown key 'stages.0.exsting'\n  hint: did you mean existing"),
    (("--set", "nope.a.b=1"), "--set nope.a.b: unknown key 'nope'\n  hint: did you mean name or loop?"),
    (("--set", "stages.3.existing=keep"), "--set stages.3.existing: stages has 1 items, numbered from 0\n  hint: '3' is"),
    (("--set", "stages.-1.existing=keep"), "--set stages.-1.existing: stages has 1 items"),
    (("--set", "stages.first.existing=keep"), "stages has 1 items, numbered from 0\n  hint: 'first' is none of them"),
    (("--set", "stages.².existing=keep"), "stages has 1 items"),
    (("--set", "stages..x=1"), "stages has 1 items"),
    (("--set", "name.x=1"), "--set name.x: name is 'mine' and holds no keys"),
    (("--set", "name.x.y=1"), "--set name.x.y: name is 'mine' and holds no keys"),
    (("--set", "target"), "--set: 'target' is not key.path=value\n  hint: --set stages.0.rounds=3"),
    (("--set", "=3"), "--set: '=3' is not key.path=value"),
    (("--set", "target=[1"), "--set target: the value is not YAML"),
    (("--set", "target=abc"), "--set target: target: Input should be a valid integer"),
    (("--set", "target=2020-01-01"), "--set target: target: Input should be a valid integer"),
    (("--set", "target=5", "--set", "target=0"), "--set target: target: Input should be greater than or equal to 1"),
    (("--set", "filters=[{filter: refusl}]"), "--set filters: filters.0: 'refusl' is not one of its kinds"),
    (("-t", "opnai:x"), "--teacher: 'opnai' is not a teacher\n  hint: did you mean openai?"),
    (("-t", "zzz"), "--teacher: 'zzz' is not a teacher\n  hint: a teacher is one of local"),
    (("-t", ""), "--teacher: '' is not a teacher"),
    (("-t", "openai:"), "--teacher: 'openai:' names no model"),
    (("-t", "openai"), "--teacher: 'openai' names no model"),
    (("-t", "openai:@http://x"), "no model is named"),
    (("-t", "judge=scripted:t.jsonl"), "--teacher: the recipe has no role 'judge'\n  hint: the recipe has: teacher"),
    (("-t", "scripted:none.jsonl"), "none.jsonl: cannot read the replies: No such file"),
    (("-t", "local:qwen"), "there is no local model named 'qwen'"),
    (("-t", "local:none.gguf"), "none.gguf cannot be read"),
    (("--format", "zzz"), "--format: 'zzz' is no format\n  hint: one of messages, prompt-completion, alpaca, sharegpt"),
    (("--map", "instruktion=x"), "--map: 'instruktion=x' is not FIELD=COLUMN\n  hint: did you mean instruction"),
    (("--map", "instruction"), "--map: 'instruction' is not FIELD=COLUMN"),
    (("--map", "instruction=instruktion"), "s.jsonl:1: the row has no column 'instruktion'\n  hint: did you mean instruction?"),
    (("--on-bad-seed", "maybe"), "--on-bad-seed: 'maybe' is neither fail nor skip"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), SETS, ids=[" ".join(options) for options, _ in SETS])
def test_bad_options(kdgen: Callable[..., Any], folder: Path, options: tuple[str, ...], said: str) -> None:
    told = kdgen("run", "mine.yaml", "--seeds", "s.jsonl", "-o", "out", "--ledger", "ledger.db", *options)
    assert told.code == 2 and told.out == "" and told.err.count("\n") <= 2
    assert said in told.err
    assert not (folder / "out").exists() and not (folder / "ledger.db").exists()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('{"reply": "x"}\n{"reply": "x"\n', "t.jsonl:2: Invalid JSON"),
        ('{"reply": "x"}\n\n{"relpy": "x"}\n', "t.jsonl:3: relpy"),
        ('{"regex": "(", "reply": "x"}\n', "t.jsonl:1: regex: missing )"),
        ('{"reply": "x", "finish": "done"}\n', "t.jsonl:1: finish"),
        ("\n", "t.jsonl: there is no rule in it\n  hint: "),
    ],
)
def test_bad_scripts(kdgen: Callable[..., Any], folder: Path, rules: str, said: str) -> None:
    (folder / "t.jsonl").write_text(rules)
    told = kdgen("run", "mine.yaml", "--seeds", "s.jsonl", "-o", "out")
    assert told.code == 2 and said in told.err and not (folder / "out").exists()


def test_set_reaches_every_place(folder: Path) -> None:
    sets = [
        "stages.0.existing=replace", "filters=[]", "target=7", "export.reasoning=think", "stages.0.params.temperature=0.5",
        "budget={tokens: 9}", "teachers.teacher.max_tokens=5", "seeds=s.jsonl",
        "seeds.limit=3", "about='a: b=c'", "dedupe.0.fields=[output]",
    ]  # fmt: skip
    made = load_recipe("mine.yaml", sets=sets)
    assert made.stages[0].model_dump()["existing"] == "replace" and made.filters == () and made.target == 7
    assert made.export.reasoning == "think" and made.stages[0].params.temperature == 0.5 and made.budget.tokens == 9
    assert made.about == "a: b=c" and made.dedupe[0].model_dump()["fields"] == ("output",)
    assert made.seeds is not None and made.seeds.limit == 3 and made.seeds.path == str(folder / "s.jsonl")


def test_a_teacher_keeps_the_parameters_of_its_role(folder: Path) -> None:
    text = RECIPE.replace("path: t.jsonl", "path: t.jsonl\n    temperature: 0.3\n    concurrency: 9")
    (folder / "mine.yaml").write_text(text)
    spec = dict(load_recipe("mine.yaml", teachers=["openai:Qwen3-8B@http://h/v1"]).leaves())["teacher"].model_dump()
    assert spec["temperature"] == 0.3 and spec["base_url"] == "http://h/v1" and spec["model"] == "Qwen3-8B"
    assert spec["concurrency"] != 9, "concurrency belongs to an endpoint"


def digest_with(**changes: Any) -> str:
    sets = changes.pop("sets", ())
    return load_recipe("mine.yaml", sets=sets, **changes).digest


def test_the_digest_follows_what_can_change_a_row(folder: Path) -> None:
    plain = digest_with()
    for same in (
        "about=other",
        "teachers.teacher.concurrency=3",
        "teachers.teacher.timeout=5",
        "seeds=s.jsonl",
    ):
        assert digest_with(sets=[same]) == plain, same
    bounded = "teachers.teacher.max_tokens=5"
    assert digest_with(sets=[bounded, "budget.tokens=9"]) == digest_with(sets=[bounded])
    changes = (
        "seed=1",
        "target=3",
        "stages.0.params.temperature=1",
        "filters=[]",
        "export.format=messages",
        "teachers.teacher.model=x",
    )
    assert len({plain, *(digest_with(sets=[change]) for change in changes)}) == len(changes) + 1
    (folder / "p.md").write_text(PROMPT.replace("{{ instruction }}", "Do {{ instruction }}"))
    assert digest_with() != plain


@pytest.mark.parametrize("name", builtins("configs"))
def test_recipes_that_ship_load(name: str) -> None:
    made = load_recipe(name)
    assert isinstance(made, Recipe) and made.about.endswith(".") and made.paper and name.endswith(f"/{made.name}")
    with pytest.raises(UserError, match="unknown key"):
        load_recipe(name, sets=["nothing=1"])
