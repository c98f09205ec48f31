"""Prompts: what a file may say, what is wrong with it by file and line, and how it renders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdgen.errors import Rejected, UserError
from kdgen.prompts import Prompt, load_prompt
from kdgen.record import Message
from kdgen.resources import builtins

HEAD = "---\nabout: what it asks\nvariables:\n  instruction: the task\n---\n"
PLAIN = HEAD + "[[user]]\n{{ instruction }}\n"
BOTH = HEAD.replace("---\n[[", "").replace("task\n", "task\n  input: i\n") + (
    "[[system]]\nBe brief.\n{% if input %}\nUse: {{ input }}\n{% endif %}\n[[user]]\n{{ instruction }}\n"
)


def prompt(tmp_path: Path, text: str | bytes) -> Prompt:
    path = tmp_path / "p.md"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_prompt(path, "p")


@pytest.mark.parametrize("name", builtins("prompts"))
def test_prompts_that_ship_say_what_they_are(name: str) -> None:
    found = load_prompt(builtins("prompts")[name], name)
    assert found.about.endswith((".", "?")) and (
        found.turns[-1].role == "user" or name in ("expand/magpie", "feedback/reward", "feature/alone", "feature/score")
    )
    assert all(meaning and isinstance(meaning, str) for meaning in found.variables.values())


def test_a_prompt_renders_its_turns(tmp_path: Path) -> None:
    made = prompt(tmp_path, BOTH)
    assert made.render({"instruction": "Say hi.", "input": ""}) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say hi."},
    ]
    assert made.render({"instruction": "I", "input": "x"})[0]["content"] == "Be brief.\nUse: x"
    said = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    roles = [turn["role"] for turn in made.render({"instruction": "I", "input": ""}, said)]
    assert roles == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in prompt(tmp_path, PLAIN).render({"instruction": "I"}, said)] == ["a", "b", "I"]


def test_a_turn_that_renders_to_nothing_is_left_out(tmp_path: Path) -> None:
    text = PLAIN.replace("[[user]]", "[[system]]\n{% if instruction == 'x' %}X{% endif %}\n[[user]]")
    assert [turn["role"] for turn in prompt(tmp_path, text).render({"instruction": "y"})] == ["user"]
    assert [turn["role"] for turn in prompt(tmp_path, text).render({"instruction": "x"})] == ["system", "user"]


@pytest.mark.parametrize(
    "text", ["{{ 1 }}", "{% raw %}", "{# no #}", "[[system]]", "\\1", "---\nabout: x\n---", "a\r\nb"]
)
def test_seed_text_is_data(tmp_path: Path, text: str) -> None:
    assert prompt(tmp_path, PLAIN).render({"instruction": text}) == [{"role": "user", "content": text}]


@pytest.mark.parametrize("text", [PLAIN.replace("\n", "\r\n"), "\ufeff" + PLAIN, PLAIN.rstrip(), PLAIN + "\n\n"])
def test_bom_crlf_and_last_lines_change_nothing(tmp_path: Path, text: str) -> None:
    made, plain = prompt(tmp_path, text), prompt(tmp_path, PLAIN)
    assert made.digest == plain.digest and made.render({"instruction": "x"}) == plain.render({"instruction": "x"})


def test_the_digest_follows_the_text_alone(tmp_path: Path) -> None:
    plain = prompt(tmp_path, PLAIN).digest
    assert prompt(tmp_path, PLAIN.replace("what it asks", "other words").replace("the task", "it")).digest == plain
    assert prompt(tmp_path, PLAIN.replace("{{ instruction }}", "Do: {{ instruction }}")).digest != plain
    assert prompt(tmp_path, PLAIN.replace("[[user]]", "[[system]]")).digest != plain


def test_a_template_can_reach_nothing(tmp_path: Path) -> None:
    for inside in (
        "{{ instruction | round }}",
        "{{ instruction.__class__.__mro__ }}",
        "{{ instruction.x }}",
        "{{ 1 / 0 }}",
        "{{ instruction.strip }}",
        "{{ [instruction] | map('random') | list }}",
        "{{ instruction | center(instruction) }}",
        "{{ [instruction, 1] | sort }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ):
        made = prompt(tmp_path, PLAIN.replace("{{ instruction }}", "{{ instruction }}" + inside))
        with pytest.raises(Rejected, match="prompt_failed: p cannot be rendered: ") as found:
            made.render({"instruction": "x"})
        assert "0x" not in found.value.detail
    with pytest.raises(UserError, match="uses 'range' but does not declare it"):
        prompt(tmp_path, PLAIN + "{% for n in range(9) %}{{ n }}{% endfor %}\n")
    with pytest.raises(UserError, match=r"p\.md:10: the prompt uses 'x' but does not declare it"):
        prompt(tmp_path, PLAIN + "{% set x = 1 %}\n[[assistant]]\n{{ x }}\n")


BAD: list[tuple[str, str, str, str]] = [
    ("undeclared", "ion }}", "ion }}\n\n{{ instructions }}", ":9: the prompt uses 'instructions' but does not declare it\n  hint: did"),
    ("undeclared_far", "ion }}", "ion }}{{ zz }}", ":7: the prompt uses 'zz' but does not declare it\n  hint: declare"),
    ("unused", "the task", "the task\n  input: i", ":5: the prompt declares 'input' but never uses it"),
    ("open_block", "{{ instruction }}", "{% if instruction %}x", ":7: the template is broken: Unexpected end of template"),
    ("open_print", "{{ instruction }}", "\n{{ instruction \n", ":8: the template is broken: unexpected end of template"),
    ("no_filter", "{{ instruction }}", "{{ instruction | nosuch }}", ":7: the template is broken: No filter named 'nosuch'"),
    ("random", "{{ instruction }}", "{{ instruction | random }}", ":7: the template is broken: No filter named 'random'"),
    ("include", "{{ instruction }}", "{{ instruction }}\n{% include 'x.md' %}", ":8: {% include %} is not possible: a prompt is one file"),
    ("import", "{{ instruction }}", "{{ instruction }}{% import 'x.md' as x %}", ":7: {% import %} is not possible"),
    ("from_import", "{{ instruction }}", "\n\n{{ instruction }}{% from 'x.md' import y %}", ":9: {% import %} is not possible"),
    ("extends", "{{ instruction }}", "{% extends 'x.md' %}{{ instruction }}", ":7: {% extends %} is not possible"),
    ("deep", "{{ instruction }}", "{{ " + "(" * 5000 + "instruction" + ")" * 5000 + " }}", ":7: the template is nested too deeply"),
    ("deep_loops", "{{ instruction }}", "{% for x in instruction %}" * 30 + "{% endfor %}" * 30, ":7: the template is nested"),
    ("across_turns", "{{ instruction }}\n", "{{ instruction }}\n[[assistant]]\n\nx\n{% endif %}\n", ":11: the template is broken"),
    ("no_front", HEAD, "", ":1: a prompt begins with front matter\n  hint: --- / about:"),
    ("empty", PLAIN, "", ":1: a prompt begins with front matter"),
    ("front_open", PLAIN, "---\nabout: x\n", ":1: a prompt begins with front matter"),
    ("front_yaml", "what it asks", "[what", ":3: the front matter is not YAML: expected ',' or ']'"),
    ("front_list", "about: what it asks\nvariables:\n  instruction: the task", "- x", ":2: the front matter is a mapping"),
    ("front_key", "about", "abuot", ":2: unknown key 'abuot' in the front matter\n  hint: did you mean about?"),
    ("front_key_far", "about", "zzz", ":2: unknown key 'zzz' in the front matter\n  hint: known here: about, paper, variables"),
    ("front_twice", "about: what", "about: x\nabout: what", ":3: 'about' stands twice"),
    ("variable_twice", "the task", "the task\n  instruction: again", ":5: 'instruction' stands twice"),
    ("about_list", "what it asks", "[x]", ":2: about is not a text"),
    ("variables_list", "variables:\n  instruction: the task", "variables: [instruction]", ":3: variables is a mapping"),
    ("variables_none", "variables:\n  instruction: the task", "variables:", ":6: the prompt uses 'instruction'"),
    ("variable_list", "the task", "[x]", ":4: the meaning of 'instruction' is not a text"),
    ("no_turn", "[[user]]\n", "", ":6: the text begins with a line [[system]] or [[user]]"),
    ("odd_turn", "[[user]]", "[[usr]]", ":6: the text begins with a line [[system]] or [[user]]"),
    ("not_given", "instruction", "instruktion", "/p.md): the prompt asks for 'instruktion', which this stage does not give\n  hint: did"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_prompts(label: Callable[..., Any], tmp_path: Path, old: str, new: str, said: str) -> None:
    assert PLAIN.count(old)
    (tmp_path / "p.md").write_text(PLAIN.replace(old, new))
    told = label("s.jsonl", '{"instruction": "x"}\n', "--set", "stages.0.prompt=./p.md")
    assert told.code == 2 and (f"/p.md{said}" if said.startswith(":") else said) in told.err
    assert told.err.count("\n") <= 2 and not (tmp_path / "out").exists() and not (tmp_path / "ledger.db").exists()


def test_prompts_that_cannot_be_read(label: Callable[..., Any], tmp_path: Path) -> None:
    seed, option = '{"instruction": "x"}\n', "stages.0.prompt="
    (tmp_path / "p.md").write_bytes(PLAIN.encode().replace(b"the task", b"t\xe9"))
    assert "p.md: invalid UTF-8 at byte " in label("s.jsonl", seed, "--set", option + "./p.md").err
    said = label("s.jsonl", seed, "--set", option + "./none.md").err
    assert said.startswith("error: --set stages.0.prompt: stages.0.prompt: no such file: ") and "none.md" in said
    said = label("s.jsonl", seed, "--set", option + "label/anser").err
    assert "no built-in prompt is named 'label/anser'" in said and "hint: did you mean label/answer " in said
