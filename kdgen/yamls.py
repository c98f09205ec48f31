"""YAML with a memory: every key knows its line, so that an error can name it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from kdgen.errors import UserError
from kdgen.resources import did_you_mean

Key = tuple[str | int, ...]


class Source:
    """A parsed file, with where each of its keys came from."""

    def __init__(self, path: Path, tree: dict[str, Any], lines: dict[Key, str]) -> None:
        self.path = path
        self.tree = tree
        self.lines = lines

    def where(self, key: Key) -> str:
        """`file:line` (or the option) of a key, or of the nearest one above it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, f"{self.path}:1")

    def set(self, key: list[str], value: Any, origin: str) -> None:
        """Set one value by its path; a number is an index into a list. Raises UserError where there is no such place."""
        here: Any = self.tree
        done: Key = ()
        for place, part in enumerate(key):
            last = place == len(key) - 1
            if isinstance(here, list):
                if not part.isdecimal() or int(part) >= len(here):
                    raise UserError(
                        f"{'.'.join(map(str, done))} has {len(here)} items, numbered from 0",
                        where=origin,
                        hint=f"{part!r} is none of them",
                    )
                done = (*done, int(part))
                if last:
                    here[int(part)] = value
                here = here[int(part)]
            elif isinstance(here, dict):
                done = (*done, part)
                if last:
                    here[part] = value
                elif not isinstance(below := here.get(part), dict | list):
                    if below is not None and part != "seeds":
                        raise UserError(f"{'.'.join(map(str, done))} is {below!r} and holds no keys", where=origin)
                    here[part] = {} if below is None else {"path": below}
                    self.lines.setdefault(done, origin)
                here = here[part]
            else:
                raise UserError(f"{'.'.join(map(str, done))} is {here!r} and holds no keys", where=origin)
        for old in [line for line in self.lines if line[: len(done)] == done]:
            del self.lines[old]
        self.lines[done] = origin

    def check(self) -> None:
        """Raise UserError for a value that JSON, and so no request, hash or manifest, can hold."""
        waiting: list[tuple[Key, Any]] = [((), self.tree)]
        while waiting:
            key, value = waiting.pop()
            if isinstance(value, dict):
                waiting += [((*key, name), below) for name, below in value.items()]
            elif isinstance(value, list):
                waiting += [((*key, place), below) for place, below in enumerate(value)]
            elif wrong := _unfit(value):
                raise UserError(f"{'.'.join(map(str, key))} is {wrong}", where=self.where(key))


def _unfit(value: Any) -> str:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a number beyond 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return "no finite number"
    if isinstance(value, str):
        if "\0" in value:
            return "a text with a NUL in it"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "no UTF-8"
    return ""


def parse_value(text: str, where: str) -> Any:
    """A value as YAML reads it; a path that begins with a dot is relative to the working folder."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value is not YAML: {_problem(error)}", where=where) from None
    return str(Path(value).absolute()) if isinstance(value, str) and value.startswith(("./", "../")) else value


def load_yaml(path: Path) -> Source:
    """Read a mapping. Raises UserError with file and line for a syntax error or a key that stands twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start + 1}", where=str(path), hint="save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    lines: dict[Key, str] = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            _walk(root, (), path, lines)
        tree = yaml.safe_load(text)
    except RecursionError:
        raise UserError("the YAML is nested without end", where=f"{path}:1", hint="an alias contains itself") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"the YAML is broken: {_problem(error)}", where=where) from None
    if not isinstance(tree, dict):
        raise UserError("a recipe is a mapping of keys", where=f"{path}:1", hint="kdgen recipes show NAME prints one")
    return Source(path, tree, lines)


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or str(error).splitlines()[0])


def _walk(node: yaml.Node, at: Key, path: Path, lines: dict[Key, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            where = f"{path}:{key.start_mark.line + 1}"
            if here in lines:
                raise UserError(f"{key.value!r} stands twice", where=where)
            lines[here] = where
            _walk(value, here, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[(*at, number)] = f"{path}:{item.start_mark.line + 1}"
            _walk(item, (*at, number), path, lines)


def explain(error: ValidationError, source: Source, model: type[BaseModel]) -> UserError:
    """The first problem of a validation error as the user's own words: file, line, key, cause, and what was meant."""
    problems = [each for each in error.errors() if not _follows(each["loc"], each["type"], error)]
    first = problems[0]
    key, here = _key(first["loc"], source.tree)
    name = ".".join(str(part) for part in key)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    hint = ""
    if first["type"] == "extra_forbidden":
        known = _fields(model, first["loc"][:-1], source.tree)
        cause = f"unknown key {name!r}"
        hint = did_you_mean(str(key[-1]), known) or f"known here: {', '.join(known)}"
    elif first["type"] == "missing":
        cause = f"{name} is missing"
    elif first["type"] == "union_tag_invalid":
        context = first["ctx"]
        tags, tag = str(context["expected_tags"]).replace("'", "").split(", "), str(context["tag"])
        given = "None" not in tag.split("/")
        cause = f"{name}: {tag!r} is not one of its kinds" if given else f"{name}: say which stage and method it is"
        hint = (did_you_mean(tag, tags) if given else "") or f"one of {', '.join(tags)}"
    elif first["type"] == "union_tag_not_found":
        by = str(first["ctx"]["discriminator"]).strip("'")
        cause = f"{name}: `{by}:` is missing"
        hint = f"one of {', '.join(_kinds(model, first['loc'], by, source.tree))}"
    else:
        hint = str(first.get("ctx", {}).get("hint", ""))
        plain = PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
        cause = f"{name}: {plain}"
        if isinstance(here, str | int | float | bool) and first["type"] not in ("no_prompt", "secret"):
            cause += f" (it is {here!r})"
    return UserError(cause + more, where=source.where(key), hint=hint)


PLAIN = {
    "model_attributes_type": "a mapping belongs here",
    "model_type": "a mapping belongs here",
    "dict_type": "a mapping belongs here",
    "tuple_type": "a list belongs here",
}


def _follows(loc: tuple[int | str, ...], kind: str, error: ValidationError) -> bool:
    """Whether a list counts as too short only since an item of it is wrong."""
    return kind == "too_short" and any(other["loc"][:-1][: len(loc)] == loc for other in error.errors())


def _key(loc: tuple[int | str, ...], tree: Any) -> tuple[Key, Any]:
    """The path in the file for pydantic's location, which also names the kinds of unions."""
    key: Key = ()
    for place, part in enumerate(loc):
        if _inside(tree, part):
            tree = tree[part]
        elif place < len(loc) - 1:
            continue
        else:
            tree = None
        key = (*key, part)
    return key, tree


def _inside(tree: Any, part: str | int) -> bool:
    if isinstance(tree, list):
        return isinstance(part, int) and part < len(tree)
    return isinstance(tree, dict) and part in tree


def _fields(model: type[BaseModel], loc: tuple[int | str, ...], tree: Any) -> list[str]:
    """The field names known where `loc` leads."""
    return list(dict.fromkeys(name for option in _options(model, loc, tree) for name in option.model_fields))


def _kinds(model: type[BaseModel], loc: tuple[int | str, ...], by: str, tree: Any) -> list[str]:
    """The kinds that a union tells apart by the field `by`."""
    options = _options(model, loc, tree)
    return [str(option.model_fields[by].default) for option in options if by in option.model_fields]


def _options(model: type[BaseModel], loc: tuple[int | str, ...], tree: Any) -> list[type[BaseModel]]:
    """The models that may stand where `loc` leads."""
    annotation: Any = model
    for part in loc:
        options = [_told(option, tree) for option in _models(annotation)]
        tree = tree[part] if _inside(tree, part) else tree
        for option in options:
            if isinstance(part, str) and part in option.model_fields:
                annotation = option.model_fields[part].annotation
                break
        else:
            # A union's kind narrows the choice; an index or a role's name does not.
            kinds = [option for option in options if isinstance(part, str) and part in _tags(option)]
            annotation = kinds[0] if kinds else annotation
    return [_told(option, tree) for option in _models(annotation)]


def _told(option: type[BaseModel], here: Any) -> type[BaseModel]:
    """The model itself, or the one of its kinds that what stands here names."""
    kind_of = getattr(option, "kind_of", None)
    return (kind_of(here) if kind_of else None) or option


def _tags(model: type[BaseModel]) -> set[str]:
    return {field.default for field in model.model_fields.values() if isinstance(field.default, str)}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Union or get_args(annotation):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []
