"""Conversations as seeds: what a page left goes, what is not wanted is lost with its place and reason, nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdgen.cleaning import Clean, markdown
from kdgen.errors import UserError
from kdgen.readers import BadRow
from kdgen.record import Record, Reject
from kdgen.seeds import Seeds, read, scan


def talk(*said: str, **columns: Any) -> dict[str, Any]:
    """A ShareGPT row of turns such as "u:Hello"."""
    sides = {"u": "human", "a": "gpt", "s": "system", "x": "tool"}
    return {"conversations": [{"from": sides[turn[0]], "value": turn[2:]} for turn in said], **columns}


def cleaned(*said: str, **options: Any) -> list[str]:
    turns = Clean(**options).turns(talk(*said)["conversations"], {})
    return [f"{turn['role'][0]}:{turn['content']}" for turn in turns]


def rows(tmp_path: Path, talks: list[dict[str, Any]], **spec: Any) -> list[Any]:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in talks))
    seeds = Seeds(path=str(path), **spec)
    return list(read(seeds, path, scan(seeds, path)))


PAGE = (
    '<div class="markdown prose w-full"><p>Use <code>x &lt; 1</code> and <strong>bold</strong>:</p><ol><li><p>One</p></li>'
    '<li>Two<ul><li>inner</li></ul></li></ol><pre><div class="bg-black"><div><span>python</span><button>Copy code</button>'
    '</div><div><code class="hljs language-python"><span class="k">if</span> a &lt; b:\n\n\n    go()\n</code></div></div></pre>'
    "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>x|y</td></tr></tbody></table>"
    '<p>See <a href="https://e.org">here</a>.</p></div>'
)


def test_a_page_becomes_markdown() -> None:
    assert markdown(PAGE) == (
        "Use `x < 1` and **bold**:\n\n1. One\n2. Two\n   - inner\n\n```python\nif a < b:\n\n\n    go()\n```\n\n"
        "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n\nSee [here](https://e.org)."
    )


@pytest.mark.parametrize(
    "text",
    [
        "Why is <p>x</p> not centred?",
        "Write `<p>x</p>`:\n\n```html\n<p>x</p>\n```",
        "<div id='a'><b>fix my page</b></div>",
        "<!DOCTYPE html><html><p>x</p></html>",
        "a < b and c > d",
        "Copy code from one file to another.",
        "He scored 1 / 2",
        "1 / 2",
        "It is\n\n1 / 2 of it\n\nor so",
        "```html\n<button>\nCopy code\n</button>\n```",
    ],
)
def test_what_only_looks_like_leftovers_stays(text: str) -> None:
    assert cleaned(f"u:{text}") == [f"u:{text}"]
    assert cleaned("u:Go.", f"a:{text}") == ["u:Go.", f"a:{text}"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("1 / 2\n\nIt is so.", "It is so."),
        ("It is so.\n\n 3 / 3", "It is so."),
        ("Share Prompt\nIt is so.", "It is so."),
        ("It is so.\nCopy123 chars / 20 words", "It is so."),
        ("So:\n```\npythonCopy code\nx = 1\n```", "So:\n```python\nx = 1\n```"),
        ("So:\n```pythonCopy codex = 1\n```", "So:\n```python\nx = 1\n```"),
        ("So:\nCopy code\nx", "So:\nx"),
    ],
)
def test_what_buttons_left_goes(text: str, left: str) -> None:
    assert cleaned("u:Go.", f"a:{text}") == ["u:Go.", f"a:{left}"]
    assert cleaned("u:Go.", f"a:{text}", ui=False) == ["u:Go.", f"a:{text}"]


@pytest.mark.parametrize(
    "page", ["<p>" * 5000 + "x" + "</p>", "<ul><li>" * 3000 + "x</li>", "<p>a</li></td></pre>b</p>"]
)
def test_a_hostile_page_ends(page: str) -> None:
    assert cleaned("u:Go.", f"a:{page}")[1].strip("a:- ")


def test_turns_are_put_in_order() -> None:
    assert cleaned("s:Be kind.", "a:Hello!", "u:Hi", "a: ", "a:Yes?", "u:One", "u:Two") == [
        "s:Be kind.",
        "u:Hi",
        "a:Yes?",
        "u:One\n\nTwo",
    ]
    for broken in (("u:One", "u:Two"), ("u:One", "a:b", "s:x", "u:c")):
        with pytest.raises(BadRow) as lost:
            cleaned(*broken, order="reject")
        assert lost.value.reason == "broken_order"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (("u:Hi", "a:As an AI language model, I have no colour."), "model_identity"),
        (("u:Hi", "a:I’m ChatGPT, a model."), "model_identity"),
        (("u:Hi", "a:I was made and trained by OpenAI."), "model_identity"),
        (("u:Hi", "a:My knowledge cutoff is 2021."), "model_identity"),
        (("u:Hi", "a:I'm sorry, but I cannot help with that.", "u:Why?"), "refusal"),
        (("a:Hello",), "too_few_rounds"),
        (("u:", "a:Hello"), "too_few_rounds"),
    ],
)
def test_what_loses_a_row(said: tuple[str, ...], reason: str) -> None:
    with pytest.raises(BadRow) as lost:
        cleaned(*said)
    assert lost.value.reason == reason


def test_talk_about_models_is_no_identity() -> None:
    for text in ("OpenAI made ChatGPT.", "Claude Monet was a painter.", "```\nprint('I am ChatGPT')\n```"):
        assert cleaned("u:As an AI language model, who are you?", f"a:{text}")[1] == f"a:{text}"
    assert cleaned("u:Hi", "a:I am ChatGPT.", identity="keep")[1] == "a:I am ChatGPT."


def test_lost_rows_say_where_and_why(tmp_path: Path) -> None:
    wild = {"language": "English", "toxic": False, "redacted": False}
    talks = [
        talk("u:Name a sea.", "a:Red.", "u:Another?", **wild),
        talk("u:Nenne ein Meer.", **wild | {"language": "German"}),
        talk("u:Bad.", **wild | {"toxic": True}),
        talk("u:Call me NAME_1.", **wild | {"redacted": True}),
        talk("u:name a  SEA.", "a:Black.", **wild),
        talk("u:Who?", "a:I am ChatGPT.", **wild),
        talk("u:Last."),
    ]
    options = {"languages": ["english"], "toxic": False, "redacted": False}
    made = rows(tmp_path, talks[:6], clean=options)
    assert isinstance(made[0], Record)
    assert (made[0].instruction, [turn.content for turn in made[0].history]) == ("Another?", ["Name a sea.", "Red."])
    assert [(row.reason, row.detail.split(": ")[0]) for row in made[1:] if isinstance(row, Reject)] == [
        ("language", "talks.jsonl:2"),
        ("toxic", "talks.jsonl:3"),
        ("redacted", "talks.jsonl:4"),
        ("same_opening", "talks.jsonl:5"),
        ("model_identity", "talks.jsonl:6"),
    ]
    with pytest.raises(UserError, match="no column 'language'"):
        rows(tmp_path, talks, clean=options)
    assert rows(tmp_path, talks, clean=options, on_bad="skip")[6].reason == "bad_seed"


def test_a_mistake_is_still_a_mistake(tmp_path: Path) -> None:
    for row in (talk("x:1"), {"instruction": "Name a sea."}, {"conversations": ["Hi"]}):
        with pytest.raises(UserError) as error:
            rows(tmp_path, [talk("u:Hi"), row], clean={})
        assert "talks.jsonl:2" in str(error.value.where)
    (tmp_path / "a.md").write_text("A text.")
    with pytest.raises(UserError, match="clean has no effect"):
        scan(Seeds(path="a.md", clean=Clean()), tmp_path / "a.md")


def test_clean_conversations_are_the_rows_they_were(tmp_path: Path) -> None:
    talks = [talk("s:Be kind.", "u:Hi", "a:Yes?", "u:Name a sea.", "a:Red."), talk("u:Name a river.")]
    assert rows(tmp_path, talks) == rows(tmp_path, talks, clean={})


def test_a_run_balances(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    talks = [
        talk("u:Name a sea."),
        talk("u:Name a sea.", "a:Red"),
        talk("u:Who?", "a:I am ChatGPT."),
        talk("u:Name one."),
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    (tmp_path / "r.jsonl").write_text('{"reply": "Well, {digest}."}\n')
    recipe = {
        "name": "talks",
        "seeds": {"path": "talks.jsonl", "clean": {}},
        "teachers": {"teacher": {"provider": "scripted", "path": "r.jsonl"}},
        "stages": [{"stage": "label", "method": "answer", "prompt": "label/answer"}],
    }
    (tmp_path / "talks.yaml").write_text(json.dumps(recipe))
    said = kdgen("run", "./talks.yaml", "-o", "out", "--json", "-q")
    assert said.code == 0, said.err
    counts = json.loads(said.out)["counts"]
    assert (counts["seeds"], counts["rows"]) == (4, 2)
    lost = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in lost) == ["model_identity", "same_opening"]
