"""A recipe: one YAML file that says everything about a dataset, and how it is loaded, changed and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from kdgen.dedupe import AnyDedupe
from kdgen.errors import UserError
from kdgen.export import AnyFormat, Messages
from kdgen.filters import AnyFilter
from kdgen.loops import Loop
from kdgen.prompts import Prompt
from kdgen.record import Frozen, digest
from kdgen.resources import builtins, find
from kdgen.sandbox.box import Sandbox
from kdgen.seeds import Seeds
from kdgen.stages import AnyStage, PoolStage
from kdgen.teachers import AnyTeacher, parse_spec
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.bill import Budget
from kdgen.teachers.keys import refuse_keys
from kdgen.terms import Ack, Use
from kdgen.uses import check_use
from kdgen.yamls import Key, Source, explain, load_yaml, parse_value

TRANSPORT = {
    "concurrency",
    "timeout",
    "attempts",
    "patience",
    "base_url",
    "base_urls",
    "api_key_env",
    "api_key_file",
    "threads",
    "delay",
    "rpm",
    "tpm",
    "batch_dir",
}
# What a recipe says beside what its rows are made of.
NOT_OF_ROWS = {"about", "paper", "teachers", "seeds", "budget", "use", "student", "terms", "loop"}
OWN_FIELDS = {*TeacherSpec.model_fields} - {"provider", "model", "lacks"}


def _seeds(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class Recipe(Frozen):
    """Everything about one dataset. A verb is a built-in recipe with its seeds filled in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    paper: str = ""
    seeds: Annotated[Seeds | None, BeforeValidator(_seeds)] = None
    teachers: dict[str, AnyTeacher]
    stages: tuple[AnyStage, ...] = Field(min_length=1)
    filters: tuple[AnyFilter, ...] = ()
    dedupe: tuple[AnyDedupe, ...] = ()
    export: AnyFormat = Messages()
    budget: Budget = Budget()
    sandbox: Sandbox = Sandbox()
    loop: Loop | None = None
    target: int | None = Field(None, ge=1)
    seed: int = 0
    use: Use = Field("internal", description="what the rows are for; the teachers' terms are judged by it")
    student: str = Field("", description="the model that will be trained on the rows, as the terms may name it")
    terms: dict[str, Ack] = Field(
        {}, description="terms that do not plainly allow it, each with why you may all the same"
    )

    def leaves(self) -> Iterator[tuple[str, TeacherSpec]]:
        """The teachers that are models, by role."""
        for role, spec in self.teachers.items():
            if isinstance(spec, TeacherSpec):
                yield role, spec

    @property
    def executes(self) -> bool:
        """Whether a stage runs programs that a teacher wrote."""
        return any(stage.executes for stage in self.stages)

    @property
    def seed_free(self) -> bool:
        """Whether it takes no seeds."""
        return self.stages[0].seedless

    @property
    def batched(self) -> bool:
        """Whether a teacher is asked through batches."""
        return any(spec.mode == "batch" for _, spec in self.leaves())

    def reach(self, roles: Iterable[str]) -> list[str]:
        """The models' roles that may answer when `roles` are asked."""
        found: dict[str, None] = {}
        for role in sorted(roles):
            spec = self.teachers[role]
            found |= dict.fromkeys((role,) if isinstance(spec, TeacherSpec) else spec.members)
        return list(found)

    def prompts(self) -> Iterator[Prompt]:
        """Every prompt that a stage holds."""
        for stage in self.stages:
            yield from (prompt for _, prompt in stage.prompts())

    @property
    def digest(self) -> str:
        """Stands for all that can change a row: prompts by their text, transport left out."""
        teachers = {
            role: {name: value for name, value in spec.model_dump(mode="json").items() if name not in TRANSPORT}
            for role, spec in self.teachers.items()
        }
        texts = [prompt.digest for prompt in self.prompts()]
        rest = self.model_dump(mode="json", exclude=NOT_OF_ROWS)
        return digest(rest, teachers, texts)

    def check(self, where: Callable[[Key], str]) -> None:
        """Raise UserError for everything that can be known to be wrong without seeds and without sending.

        `where` says in which line a key stands.
        """
        for number, stage in enumerate(self.stages):
            at = where(("stages", number))
            for role in sorted(stage.roles):
                if role not in self.teachers:
                    raise UserError(
                        f"stage {stage.name} asks {role!r}, which is no teacher of this recipe",
                        where=at,
                        hint=f"teachers has: {', '.join(self.teachers)}",
                    )
            stage.check(at)
            if stage.seedless and number:
                hint = "let it be the first, or a recipe of its own"
                raise UserError(f"{stage.name} takes no records, and others come before it", where=at, hint=hint)
        if self.seed_free and self.seeds is not None:
            cause = f"seeds have no effect: {self.stages[0].name} makes its tasks without"
            raise UserError(cause, where=where(("seeds",)), hint="leave SEEDS out, and say --target N")
        models = dict(self.leaves())
        for role, spec in self.teachers.items():
            if isinstance(spec, TeacherSpec):
                spec.check()
                if spec.mode == "batch" and not spec.batchable():
                    spec.batches()
                continue
            spec.check(role)
            for member in spec.members:
                if member not in models:
                    hint = f"members are models: {', '.join(models)}"
                    raise UserError(
                        f"{member!r} is no model of this recipe", where=where(("teachers", role)), hint=hint
                    )
        asked = {role for stage in self.stages for role in (*stage.roles, *self.reach(stage.roles))}
        for role in self.teachers:
            if role not in asked:
                raise UserError(
                    f"no stage asks the teacher {role!r}",
                    where=where(("teachers", role)),
                    hint=f"take it out, or let a stage ask it: `to: {role}`",
                )
        check_use(self, where, models)
        if self.loop and self.loop.reads == "pool" and not any(isinstance(stage, PoolStage) for stage in self.stages):
            cause = "loop.reads: pool has no effect: no stage grows a pool"
            raise UserError(cause, where=where(("loop", "reads")), hint="reads: seeds, or reads: rows")
        if self.loop and self.loop.reads == "rows" and self.seed_free:
            cause = f"loop.reads: rows has no effect: {self.stages[0].name} makes its tasks without"
            raise UserError(cause, where=where(("loop", "reads")), hint="reads: seeds")
        if self.sandbox != Sandbox() and not self.executes:
            cause = "sandbox has no effect: no stage runs programs"
            raise UserError(cause, where=where(("sandbox",)), hint="take it out")
        for number, method in enumerate(self.dedupe):
            explicit = method.against_seeds and "against_seeds" in method.model_fields_set
            if explicit and not any(stage.consumes for stage in self.stages):
                cause = "against_seeds has no effect: no stage makes new tasks, so every row is a seed's"
                raise UserError(cause, where=where(("dedupe", number, "against_seeds")), hint="take it out")


def load_recipe(
    name: str,
    *,
    sets: Sequence[str] = (),
    teachers: Sequence[str] = (),
    changes: dict[str, Any] | None = None,
    iteration: int | None = None,
) -> Recipe:
    """Load a built-in by name or a file by path, with `--set key.path=value`, `--teacher` and a verb's `changes`.

    With `iteration`, from 0, it is the recipe of that one of its loop.

    Raises UserError with file and line, or with the option, for whatever is wrong.
    """
    path = find("configs", name, Path.cwd())
    source = load_yaml(path)
    for spec in teachers:
        _set_teacher(source, spec)
    for key, value in (changes or {}).items():
        source.set(key.split("."), value, "the command line")
    for assignment in sets:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"{assignment!r} is not key.path=value", where="--set", hint="--set stages.0.rounds=3")
        source.set(key.split("."), parse_value(text, f"--set {key}"), f"--set {key}")
    if iteration is not None:
        _iterate(source, iteration)
    source.check()
    refuse_keys(source)
    seeds = source.tree.get("seeds")
    if isinstance(seeds, dict) and "path" not in seeds:
        cause = f"there are no seeds on which {' and '.join(f'seeds.{name}' for name in seeds)} could have an effect"
        raise UserError(cause, where=source.where(("seeds",)), hint="SEEDS after the verb, or seeds.path")
    _anchor(source.tree, path.parent)
    try:
        recipe = Recipe.model_validate(source.tree, context={"base": path.parent})
    except ValidationError as error:
        raise explain(error, source, Recipe) from None
    recipe.check(source.where)
    return recipe


def load_iterations(name: str, **options: Any) -> list[Recipe]:
    """The recipe of each iteration of a recipe's loop, or the one recipe of one without. See `load_recipe`."""
    recipe = load_recipe(name, **options)
    if recipe.loop is None:
        return [recipe]
    return [load_recipe(name, **options, iteration=number) for number in range(len(recipe.loop.iterations))]


def _iterate(source: Source, number: int) -> None:
    """Change the recipe as its loop says for one iteration."""
    loop = Loop.model_validate(source.tree["loop"])
    for place, key, value in loop.changes(number):
        where = source.where(("loop", "iterations", place, key))
        if key.split(".")[0] in ("loop", "name", "seeds"):
            raise UserError(
                f"an iteration cannot change {key}", where=where, hint="it changes teachers, stages, filters …"
            )
        source.set(key.split("."), value, where)


def _set_teacher(source: Source, spec: str) -> None:
    """`--teacher [ROLE=]SPEC`: another teacher in a role, with the role's sampling parameters kept."""
    known = source.tree.get("teachers")
    known = known if isinstance(known, dict) else {}
    role, equals, rest = spec.partition("=")
    # A colon begins what a provider takes, and that may hold a "=" of its own.
    role, spec = (role, rest) if equals and (role in known or ":" not in role) else ("teacher", spec)
    if role not in known:
        hint = f"the recipe has: {', '.join(map(str, known))}"
        raise UserError(f"the recipe has no role {role!r}", where="--teacher", hint=hint)
    old = known[role] if isinstance(known[role], dict) else {}
    kept = {name: value for name, value in old.items() if name in OWN_FIELDS}
    new = parse_spec(spec)
    if new["provider"] != old.get("provider"):
        kept.pop("concurrency", None)
    if new["provider"] == "scripted":
        new["path"] = str(Path(new["path"]).absolute())
    if _is_file(new):
        new["model"] = str(Path(os.path.expanduser(new["model"])).absolute())
    source.set(["teachers", role], kept | new, "--teacher")


def _is_file(spec: dict[str, Any]) -> bool:
    """Whether a teacher's model is a file or folder of the user's own."""
    model = str(spec.get("model", ""))
    return model.endswith(".gguf") or (
        spec.get("provider") in ("vllm", "transformers") and model.startswith((".", "~", "/"))
    )


def _anchor(tree: dict[str, Any], base: Path) -> None:
    """Make the file paths of seeds and teachers absolute: in a recipe they are relative to it."""
    teachers = tree.get("teachers")
    for spec in teachers.values() if isinstance(teachers, dict) else ():
        if not isinstance(spec, dict):
            continue
        for field, isfile in (("path", True), ("api_key_file", True), ("model", _is_file(spec))):
            if isfile and isinstance(spec.get(field), str):
                spec[field] = str(base / os.path.expanduser(spec[field]))
    stages = tree.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        for field in ("tokenizer", "teacher_tokenizer") if isinstance(stage, dict) else ():
            if isinstance(stage.get(field), str):
                stage[field] = str(base / os.path.expanduser(stage[field]))
    sandbox = tree.get("sandbox")
    if isinstance(sandbox, dict) and isinstance(sandbox.get("python"), str) and sandbox["python"]:
        sandbox["python"] = str(base / os.path.expanduser(sandbox["python"]))
    seeds = tree.get("seeds")
    path = seeds.get("path") if isinstance(seeds, dict) else seeds
    if isinstance(path, str) and path != "-" and not path.startswith("package:") and path not in builtins("seeds"):
        path = str(base / os.path.expanduser(path))
        tree["seeds"] = {**seeds, "path": path} if isinstance(seeds, dict) else path
