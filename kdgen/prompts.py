"""Prompts are data: a file of front matter and strict, sandboxed Jinja, compiled once.

A prompt file is

    ---
    about: what it asks for
    variables:
      instruction: the task
    ---
    [[system]]
    You answer briefly.
    [[user]]
    {{ instruction }}

What the text uses and what the front matter declares must agree, and the stage that owns the prompt
must give what is declared; anything else is an error when the recipe loads. Seed text is only ever the
value of a variable, never a template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import yaml
from pydantic import BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from kdgen.errors import Rejected, UserError
from kdgen.record import Frozen, Message, digest
from kdgen.resources import did_you_mean, find

ROLE = re.compile(r"^\[\[(system|user|assistant)\]\][ \t]*$", re.M)
HEAD = re.compile(r"\A---\r?\n(.*?)^---[ \t]*\r?\n", re.S | re.M)
KEYS = ("about", "paper", "variables")
FRONT = "--- / about: … / variables: {instruction: …} / ---"


def _shown(value: Any) -> Any:
    """What `{{ }}` shows. A function shows its address, which is another in each run: `x.strip` for `x.strip()`."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise TypeError("a function stands in the place of a text (are its brackets missing?)")
    return value


_jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
)
_jinja.globals.clear()  # so that `range` and the like are undeclared when a prompt loads, not when it is rendered
_jinja.filters.pop("random")  # a prompt that draws would be another request each time
OTHER_FILES = (jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport, jinja2.nodes.Extends)


FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,  # a RecursionError is one
)


class Turn(Frozen):
    """One message of a prompt, as a template."""

    role: str
    template: str

    @cached_property
    def render(self) -> Callable[[dict[str, Any]], str]:
        """The compiled template; a text without any markup is itself."""
        if not any(mark in self.template for mark in ("{{", "{%", "{#")):
            return lambda variables: self.template
        compiled = _jinja.from_string(self.template)
        # What Template.render does, without merging in globals: a prompt has its declared variables and nothing else.
        return lambda variables: _jinja.concat(compiled.root_render_func(compiled.new_context(variables, shared=True)))


class Prompt(Frozen):
    """A loaded prompt. `render` is pure: the same variables give the same messages."""

    name: str
    about: str
    paper: str = ""
    variables: dict[str, str]
    turns: tuple[Turn, ...]

    @property
    def digest(self) -> str:
        """Stands for the prompt's text; its name and description do not count."""
        return digest([[turn.role, turn.template] for turn in self.turns])

    def render(self, variables: dict[str, Any], history: Sequence[Message] = ()) -> list[dict[str, str]]:
        """The messages to send; `history` stands between the system message and the rest.

        Raises Rejected where a template fails on its variables: earlier steps may have been paid for by then, and the
        next record may be fine. A message that renders to nothing is left out.
        """
        messages: list[dict[str, str]] = []
        placed = not history
        for turn in self.turns:
            if not placed and turn.role != "system":
                messages += [{"role": message.role, "content": message.content} for message in history]
                placed = True
            try:
                content = turn.render(variables).strip()
            except FAILURES as error:
                raise Rejected("prompt_failed", f"{self.name} cannot be rendered: {error}") from None
            if content:
                messages.append({"role": turn.role, "content": content})
        return messages

    def expect(self, given: Iterable[str], where: str) -> None:
        """Raise UserError where the prompt declares a variable that its stage does not give."""
        given = set(given)
        for name in self.variables:
            if name not in given:
                hint = did_you_mean(name, given) or f"the stage gives: {', '.join(sorted(given))}"
                raise UserError(f"the prompt asks for {name!r}, which this stage does not give", where=where, hint=hint)


def load_prompt(path: Path, name: str = "") -> Prompt:
    """Read a prompt file. Raises UserError with file and line for what is wrong with it."""
    try:
        source = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start + 1}", where=str(path), hint="save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read the prompt: {error.strerror}", where=str(path)) from None
    head = HEAD.match(source)
    if not head:
        raise UserError("a prompt begins with front matter", where=f"{path}:1", hint=FRONT)
    front, variables, lines = _front(head.group(1), path)
    body, shift = source[head.end() :], source.count("\n", 0, head.end())
    parts = ROLE.split(body)
    if parts[0].strip() or len(parts) < 3:
        raise UserError("the text begins with a line [[system]] or [[user]]", where=f"{path}:{shift + 1}")
    turns = tuple(Turn(role=role, template=text.strip()) for role, text in zip(parts[1::2], parts[2::2], strict=True))
    used: dict[str, int] = {}
    for mark, text, turn in zip(ROLE.finditer(body), parts[2::2], turns, strict=True):
        blank = text[: len(text) - len(text.lstrip())].count("\n")
        used = _used(turn, shift + body.count("\n", 0, mark.end()) + blank, path) | used
    for variable, line in used.items():
        if variable not in variables:
            hint = did_you_mean(variable, variables) or "declare it under variables: in the front matter"
            raise UserError(f"the prompt uses {variable!r} but does not declare it", where=f"{path}:{line}", hint=hint)
    for variable in variables:
        if variable not in used:
            raise UserError(f"the prompt declares {variable!r} but never uses it", where=lines[variable])
    about, paper = front.get("about", ""), front.get("paper", "")
    return Prompt(name=name or str(path), about=about, paper=paper, variables=variables, turns=turns)


def _front(text: str, path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The front matter's texts, its variables, and where each key of both stands."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}:{mark.line + 2}" if mark else str(path)
        raise UserError(f"the front matter is not YAML: {problem or error}", where=where) from None
    lines: dict[str, str] = {}
    top = _mapping(root, "the front matter", path, lines)
    for key, value in top.items():
        if key not in KEYS:
            hint = did_you_mean(key, KEYS) or f"known here: {', '.join(KEYS)}"
            raise UserError(f"unknown key {key!r} in the front matter", where=lines[key], hint=hint)
        if key != "variables" and not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{key} is not a text", where=lines[key])
    given = _mapping(top.pop("variables", None), "variables", path, lines)
    if wrong := next((name for name, value in given.items() if not isinstance(value, yaml.ScalarNode)), ""):
        raise UserError(f"the meaning of {wrong!r} is not a text", where=lines[wrong])
    front, variables = ({key: str(node.value) for key, node in part.items()} for part in (top, given))
    return front, variables, lines


def _mapping(node: yaml.Node | None, what: str, path: Path, lines: dict[str, str]) -> dict[str, yaml.Node]:
    """The values of a YAML mapping by key, the line of each key noted in `lines`."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~")):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{what} is a mapping", where=f"{path}:{node.start_mark.line + 2}", hint=FRONT)
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name, where = str(key.value), f"{path}:{key.start_mark.line + 2}"
        if name in found:
            raise UserError(f"{name!r} stands twice", where=where)
        found[name], lines[name] = value, where
    return found


def _used(turn: Turn, above: int, path: Path) -> dict[str, int]:
    """The variables of a turn with the line of each; `above` lines stand before it."""
    try:
        tree = _jinja.parse(turn.template)
        _ = turn.render
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the template is broken: {error.message}", where=f"{path}:{error.lineno + above}") from None
    except (RecursionError, SyntaxError):
        raise UserError("the template is nested too deeply", where=f"{path}:{above + 1}") from None
    for node in tree.find_all(OTHER_FILES):
        what = f"{{% {type(node).__name__.lower().removeprefix('from')} %}} is not possible"
        raise UserError(f"{what}: a prompt is one file", where=f"{path}:{node.lineno + above}")
    return {name: _line(turn.template, name) + above for name in jinja2.meta.find_undeclared_variables(tree)}


def _line(body: str, name: str) -> int:
    found = re.search(rf"\b{re.escape(name)}\b", body)
    return body.count("\n", 0, found.start()) + 1 if found else 1


def _resolve(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    base = (info.context or {}).get("base", Path())
    try:
        path = find("prompts", value, base)
    except UserError as error:
        # The recipe's own error then, which knows the line.
        raise PydanticCustomError("no_prompt", "{cause}", {"cause": error.cause, "hint": error.hint}) from None
    return load_prompt(path, value)


PromptFile = Annotated[Prompt, BeforeValidator(_resolve)]
"""A recipe's `prompt:` — a built-in's name or a path relative to the recipe — loaded and checked."""
