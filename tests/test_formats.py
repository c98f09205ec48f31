"""The formats of trainers and services: their rows, their shapes, and that no setting is silent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets_made import dataset, lines_of
from pydantic import TypeAdapter, ValidationError

from kdgen.export import (
    EXPORTS,
    PIECES,
    AnyExport,
    Beir,
    FeatureFormat,
    LlamaFactory,
    Messages,
    OpenAIChat,
    PromptCompletion,
)
from kdgen.export.examples import example_of
from kdgen.export.shapes import FLAG, JSON, NUMBER, TEXT, WHOLE, WORDS, checker
from kdgen.record import Candidate, Message, Record

SAID = (Message(role="user", content="A"), Message(role="assistant", content="B"))
FULL = Record(
    id="f", instruction="I", input="N", output="O", reasoning="R", system="S", history=SAID, seeds=("f",), text="",
    extra={"topic": "t", "tools": [{"type": "function", "function": {"name": "add"}}]},
    meta={
        "label": True, "score": 3, "scores": {"a": 1}, "gold": "G", "verifier": {"type": "exact", "gold": "G"},
        "steps": {"labelled": [{"text": "s", "label": True, "share": 0.25}]},
        "reasons": {"accuracy": "Yes.", "quality": "No."},
    },
    candidates=(Candidate(output="O", reasoning="R", score=2), Candidate(output="X", reasoning="R2", score=1)),
)  # fmt: skip
PLAIN = FULL.model_copy(update={"history": (), "extra": {}})
TEXTUAL = FULL.model_copy(update={"text": "T", "output": ""})
USER = {"role": "user", "content": "I\n\nN"}
TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "A"},
    {"role": "assistant", "content": "B"},
    USER,
]


def form_of(name: str, **settings: Any) -> Any:
    needed = example_of(name)[1]
    return TypeAdapter[Any](AnyExport).validate_python({**needed, **settings}, context={"base": Path.cwd()})


def row(name: str, record: Record = FULL, **settings: Any) -> Any:
    form = form_of(name, **settings)
    made = form.row(record)
    if made is not None:
        form.check(made)
    return made


@pytest.mark.parametrize("name", EXPORTS)
def test_the_example_has_its_shape(name: str) -> None:
    record, settings = example_of(name)
    made = row(name, record, **settings)
    assert made is not None and json.loads(json.dumps(made)) == made
    assert EXPORTS[name].TRAINERS
    with pytest.raises(ValidationError):
        form_of(name).check({**made, "other": 1})
    with pytest.raises(ValidationError):
        form_of(name).check({next(iter(made)): 1.5})


def test_shapes_are_strict() -> None:
    for kind, good, bad in [
        (TEXT, ["", "x"], [1, None, b"x"]),
        (WORDS, ["x"], ["", None]),
        (NUMBER, [1, 1.5, -2], ["1", True, float("nan"), float("inf"), None]),
        (WHOLE, [1], [1.5, "1", True]),
        (FLAG, [True], [1, "true"]),
        (JSON, [1, None, {"a": []}], []),
        (f"{NUMBER}?", [None, 1], ["x"]),
        (("a", "b"), ["a"], ["c", 1]),
        ([TEXT], [["x"]], [[], "x", [1], ("x",)]),
        ([TEXT, 0], [[], ["x"]], [[1]]),
        ({"a": TEXT, "b?": FLAG}, [{"a": "x"}, {"a": "x", "b": True}], [{}, {"a": "x", "c": 1}, {"a": "x", "b": None}]),
    ]:
        check = checker(kind)  # type: ignore[arg-type]
        for value in good:
            check(value)
        for value in bad:
            with pytest.raises(ValidationError):
                check(value)


def test_prompt_and_completion() -> None:
    tools = FULL.extra["tools"]
    assert row("prompt-completion") == {
        "prompt": TURNS, "completion": [{"role": "assistant", "content": "O"}], "tools": tools
    }  # fmt: skip
    assert row("prompt-completion", reasoning="apart")["completion"][0]["reasoning_content"] == "R"
    assert row("prompt-completion", PLAIN, style="text") == {"prompt": "S\n\nI\n\nN", "completion": "O"}
    assert row("prompt-completion", PLAIN, style="text", system="drop")["prompt"] == "I\n\nN"
    assert row("prompt-completion", style="text") is None, "turns before the task have no place in a text"


def test_weights_say_which_turns_are_trained_on() -> None:
    def weights(made: dict[str, Any], key: str = "weight") -> list[Any]:
        return [turn.get(key) for turn in made["messages"]]

    assert weights(row("openai")) == [None, None, 0, None, 1]
    assert weights(row("openai", weights="turns")) == [None, None, 1, None, 1]
    assert weights(row("openai", PLAIN)) == [None, None, None], "one answer needs no weight"
    assert weights(row("messages")) == [None] * 5
    assert weights(row("messages", weights="answer")) == [None, None, 0, None, 1]
    assert weights(row("messages", weights="turns")) == [None, None, 1, None, 1]
    assert weights(row("axolotl-chat"), "train") == [False, False, False, False, True]
    assert weights(row("axolotl-chat", weights="turns"), "train") == [False, False, True, False, True]


@pytest.mark.parametrize(("gold", "text"), [(7, "7"), (0, "0"), ("G", "G"), (None, "")])
def test_a_right_answer_is_text(gold: Any, text: str) -> None:
    record = FULL.model_copy(update={"meta": {**FULL.meta, "gold": gold}})
    assert row("prompt", record)["answer"] == row("openai-rft", record)["answer"] == text


def test_tools_stand_where_a_trainer_looks_for_them() -> None:
    tools = FULL.extra["tools"]
    for name in ("messages", "openai", "prompt-completion", "axolotl-chat", "preference", "kto", "prompt"):
        assert row(name)["tools"] == tools and "tools" not in row(name, PLAIN)
    assert row("openai-preference")["input"]["tools"] == tools
    assert json.loads(row("llamafactory")["tools"]) == tools and row("llamafactory", PLAIN)["tools"] == ""
    sharegpt = FULL.model_copy(update={"history": ()})
    assert json.loads(row("sharegpt", sharegpt)["tools"]) == tools and "tools" not in row("sharegpt", PLAIN)
    odd = FULL.model_copy(update={"extra": {"tools": "hammer"}})
    assert "tools" not in row("messages", odd)


def test_what_a_tool_said_has_no_place_where_calls_are_needed() -> None:
    said = (
        *SAID,
        Message(role="user", content="I\n\nN"),
        Message(role="assistant", content="call"),
        Message(role="tool", content="7"),
    )
    tooled = FULL.model_copy(update={"history": said})
    assert (
        row("openai", tooled)
        is row("openai-preference", tooled)
        is row("openai-rft", tooled)
        is row("bedrock", tooled)
        is None
    )
    assert [turn["from"] for turn in row("llamafactory", tooled)["conversations"]] == [
        "human", "gpt", "human", "gpt", "observation", "gpt",
    ]  # fmt: skip
    assert row("messages", tooled)["messages"][-2] == {"role": "tool", "content": "7"}


def test_openai_and_bedrock() -> None:
    good, bad = {"role": "assistant", "content": "O"}, {"role": "assistant", "content": "X"}
    made = row("openai-preference", PLAIN)
    assert made == {"input": {"messages": [TURNS[0], USER]}, "preferred_output": [good], "non_preferred_output": [bad]}
    assert row("openai-rft", PLAIN, columns=["topic"], gold_as="reference") == {
        "messages": [TURNS[0], USER], "reference": "G", "verifier": '{"type": "exact", "gold": "G"}'
    }  # fmt: skip
    assert row("openai-rft", columns=["topic"])["topic"] == "t"
    assert row("openai-rft", Record(id="x", instruction="I")) is None, "there is nothing to grade by"
    assert row("bedrock") == {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "S"}],
        "messages": [
            {"role": turn["role"], "content": [{"text": turn["content"]}]}
            for turn in (*TURNS[1:], {"role": "assistant", "content": "O"})
        ],
    }
    assert row("bedrock", FULL.model_copy(update={"history": SAID[:1]})) is None
    assert "system" not in row("bedrock", system="drop")


def test_axolotl() -> None:
    good, bad = {"role": "assistant", "content": "O"}, {"role": "assistant", "content": "X"}
    assert row("axolotl-preference") == {"messages": TURNS, "chosen": good, "rejected": bad}
    made = row("axolotl-preference", layout="orpo")
    assert made == {"system": "S", "chosen": [*TURNS[1:], good], "rejected": [*TURNS[1:], bad]}
    assert row("axolotl-kto", PLAIN) == {"system": "S", "prompt": "I\n\nN", "completion": "O", "label": True}
    assert row("axolotl-kto") is None


def test_llamafactory_is_a_folder_that_says_what_its_columns_are(kdgen: Any, tmp_path: Path) -> None:
    records = [FULL.model_copy(update={"id": f"r{n}", "seeds": (f"s{n}",)}) for n in range(30)]
    records.append(TEXTUAL.model_copy(update={"id": "t", "seeds": ("t",)}))
    dataset(tmp_path / "d", records, name="mine")
    for stage, columns in {
        "sft": {"messages": "conversations", "system": "system", "tools": "tools"},
        "preference": {
            "messages": "conversations", "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected",
        },
        "kto": {"messages": "conversations", "system": "system", "tools": "tools", "kto_tag": "kto_tag"},
        "pt": {"prompt": "text"},
    }.items():  # fmt: skip
        split = () if stage == "pt" else ("--split", "train=2,test=1")
        said = kdgen("export", "d", "--to", "llamafactory", "--set", f"stage={stage}", "-o", stage, *split)
        assert said.code == 0, said.err
        told = json.loads((tmp_path / stage / "dataset_info.json").read_text())
        assert list(told) == (["mine"] if stage == "pt" else ["mine", "mine_test"])
        assert told["mine"]["columns"] == columns and told["mine"].get("ranking", False) is (stage == "preference")
        for about in told.values():
            rows = lines_of(tmp_path / stage / about["file_name"])
            assert rows and all(set(about["columns"].values()) == set(each) for each in rows)
    assert lines_of(tmp_path / "preference/train.jsonl")[0]["conversations"][-1]["from"] == "human"
    assert lines_of(tmp_path / "kto/train.jsonl")[0]["conversations"][-1] == {"from": "gpt", "value": "O"}


def test_beir_has_each_document_and_each_query_once(kdgen: Any, tmp_path: Path) -> None:
    records = [
        Record(id=f"q {n}", instruction=f"query {n}", text=f"doc {n % 3}", seeds=(f"d\t{n % 3}",), extra={"title": "T"}) for n in range(9)
    ]  # fmt: skip
    dataset(tmp_path / "d", records)
    assert kdgen("export", "d", "--to", "beir", "--split", "train=1,test=1", "-o", "x").code == 0
    corpus, queries = lines_of(tmp_path / "x/corpus.jsonl"), lines_of(tmp_path / "x/queries.jsonl")
    assert sorted(each["text"] for each in corpus) == ["doc 0", "doc 1", "doc 2"] and len(queries) == 9
    judged = []
    for split in ("train", "test"):
        head, *lines = (tmp_path / f"x/qrels/{split}.tsv").read_text().splitlines()
        assert head == "query-id\tcorpus-id\tscore"
        judged.append([line.split("\t") for line in lines])
    ids = {each["_id"] for each in corpus}, {each["_id"] for each in queries}
    assert all(query in ids[1] and doc in ids[0] and score == "1" for split in judged for query, doc, score in split)
    assert not {doc for _, doc, _ in judged[0]} & {doc for _, doc, _ in judged[1]}, "a document is in one split"
    assert json.loads((tmp_path / "x/manifest.json").read_text())["files"]["corpus.jsonl"]["rows"] == 3


def test_the_other_document_of_a_triple_moves_little(kdgen: Any, tmp_path: Path) -> None:
    """It is another text; a document more moves the few draws that it wins; alone there is none."""

    def queries(documents: list[int]) -> list[Record]:
        pairs = [(n, each) for n in documents for each in (0, 1)]
        return [
            Record(id=f"q{n}-{each}", instruction=f"query {n} {each}", text=f"doc {n}", seeds=(f"d{n}",))
            for n, each in pairs
        ]

    def triples(name: str) -> dict[str, str]:
        said = kdgen("export", name, "--to", "triples", "-o", f"{name}.jsonl")
        assert said.code == 0, said.err
        rows = lines_of(tmp_path / f"{name}.jsonl")
        assert all(each["positive"] != each["negative"] for each in rows)
        return {each["anchor"]: each["negative"] for each in rows}

    dataset(tmp_path / "d", queries([*range(100)]))
    dataset(tmp_path / "e", queries([*range(50), 100, *range(50, 100)]))
    before, after = triples("d"), triples("e")
    moved = [anchor for anchor in before if before[anchor] != after[anchor]]
    assert len(set(before.values())) > 40 and len(moved) < 15 and all(after[anchor] == "doc 100" for anchor in moved)
    dataset(tmp_path / "one", queries([1]))
    assert kdgen("export", "one", "--to", "triples").code == 5
    said = kdgen("export", "d", "--to", "triples", "--split", "a=1,b=1")
    assert said.code == 2 and "no split would keep to itself" in said.err


KNOBS: dict[str, dict[str, tuple[Any, Record]]] = {
    "messages": {"reasoning": ("fold", FULL), "system": ("drop", FULL), "weights": ("turns", FULL)},
    "prompt-completion": {"reasoning": ("apart", FULL), "system": ("drop", FULL), "style": ("text", PLAIN)},
    "alpaca": {"reasoning": ("think", FULL), "system": ("drop", FULL)},
    "sharegpt": {"reasoning": ("think", FULL), "system": ("drop", FULL)},
    "text": {},
    "retrieval": {"layout": ("lists", example_of("retrieval")[0])},
    "critique": {"layout": ("chain", example_of("critique")[0])},
    "edits": {},
    "evaluator": {},
    "kto": {"reasoning": ("fold", FULL), "system": ("drop", FULL)},
    "preference": {"reasoning": ("apart", FULL), "system": ("drop", FULL)},
    "ranked": {"reasoning": ("think", FULL), "system": ("drop", FULL)},
    "reward": {"reasoning": ("think", FULL), "system": ("drop", FULL)},
    "prompt": {"system": ("drop", FULL), "gold_as": ("solution", FULL)},
    "stepwise": {"labels": ("soft", FULL)},
    "openai": {"reasoning": ("fold", FULL), "system": ("drop", FULL), "weights": ("turns", FULL)},
    "openai-preference": {"reasoning": ("fold", FULL), "system": ("drop", FULL)},
    "openai-rft": {"system": ("drop", FULL), "gold_as": ("g", FULL), "columns": (["topic"], FULL)},
    "bedrock": {"reasoning": ("think", FULL), "system": ("drop", FULL)},
    "axolotl-chat": {"reasoning": ("apart", FULL), "system": ("drop", FULL), "weights": ("turns", FULL)},
    "axolotl-preference": {"reasoning": ("fold", FULL), "system": ("drop", FULL), "layout": ("orpo", FULL)},
    "axolotl-kto": {"reasoning": ("fold", PLAIN), "system": ("drop", PLAIN)},
    "llamafactory": {"reasoning": ("fold", FULL), "system": ("drop", FULL), "stage": ("kto", FULL)},
    "beir": {},
    "triples": {},
}
ELSEWHERE = {("evaluator", "rubric"), ("evaluator", "aspect")}  # test_knobs has them on a run of a judge


@pytest.mark.parametrize("name", EXPORTS)
def test_no_setting_is_silent(name: str) -> None:
    """Each value of each field writes another row, or is refused."""
    if issubclass(EXPORTS[name], FeatureFormat):
        return  # test_export_features has those
    for field, piece in EXPORTS[name].model_fields.items():
        if field == "format" or (name, field) in ELSEWHERE:
            continue
        if field not in KNOBS[name]:  # one value alone: any other is an error
            for other in ("fold", "keep"):
                with pytest.raises(ValidationError):
                    form_of(name, **{field: other})
            continue
        value, record = KNOBS[name][field]
        plain, flipped = row(name, record), row(name, record, **{field: value})
        assert plain is not None and flipped is not None and plain != flipped, (name, field)
        assert value != piece.default


def test_every_value_of_reasoning_and_system_means_the_same_everywhere() -> None:
    told = {"fold": "R\n\nAnswer: O", "think": "<think>\nR\n</think>\n\nO"}
    for name in EXPORTS:
        for way, answer in told.items():
            try:
                made = row(name, PLAIN, reasoning=way)
            except ValidationError:
                continue
            if made is not None:
                assert json.dumps(answer)[1:-1] in json.dumps(made), (name, way)
        for system, there in (("keep", True), ("drop", False)):
            try:
                made = row(name, PLAIN, system=system)
            except ValidationError:
                continue
            if made is not None:
                assert ('"S"' in json.dumps(made) or '"S\\n\\n' in json.dumps(made)) is there, (name, system)


def test_each_class_says_its_row_and_stands_in_the_table() -> None:
    for kind in PIECES:
        assert kind.__doc__ and re.search(r"`\{|layout|folder|BEIR", kind.__doc__), kind
    assert {Messages, OpenAIChat, PromptCompletion, LlamaFactory, Beir} <= set(PIECES)
