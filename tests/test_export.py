"""Export: the rows that trainers read, with and without reasoning, system message, input and history."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from kdgen.export import (
    FORMATS,
    Alpaca,
    AnyFormat,
    Messages,
    Retrieval,
    ShareGPT,
    Text,
)
from kdgen.record import Message, Record

SAID = (Message(role="user", content="A"), Message(role="assistant", content="B"))
PLAIN = Record(id="r", instruction="I", output="O")
FULL = Record(id="r", instruction="I", input="N", output="O", reasoning="R", system="S", history=SAID)
FOLDED, THOUGHT = "R\n\nAnswer: O", "<think>\nR\n</think>\n\nO"


def turns(*said: str) -> list[dict[str, str]]:
    roles = {"S": "system", "A": "user", "B": "assistant", "I\n\nN": "user", "I": "user"}
    return [{"role": roles.get(text, "assistant"), "content": text} for text in said]


ROWS: list[tuple[AnyFormat, Record, dict[str, Any]]] = [
    (Messages(), PLAIN, {"messages": turns("I", "O")}),
    (Messages(), FULL, {"messages": turns("S", "A", "B", "I\n\nN", "O")}),
    (Messages(system="drop"), FULL, {"messages": turns("A", "B", "I\n\nN", "O")}),
    (Messages(reasoning="fold"), FULL, {"messages": turns("S", "A", "B", "I\n\nN", FOLDED)}),
    (Messages(reasoning="think"), FULL, {"messages": turns("S", "A", "B", "I\n\nN", THOUGHT)}),
    (Messages(reasoning="think"), PLAIN, {"messages": turns("I", "O")}),
    (Messages(reasoning="fold"), PLAIN, {"messages": turns("I", "O")}),
    (Messages(reasoning="apart"), PLAIN, {"messages": turns("I", "O")}),
    (
        Messages(reasoning="apart", system="drop"),
        FULL,
        {"messages": [*turns("A", "B", "I\n\nN"), {"role": "assistant", "content": "O", "reasoning_content": "R"}]},
    ),
    (Alpaca(), PLAIN, {"instruction": "I", "input": "", "output": "O"}),
    (Alpaca(), FULL, {"instruction": "I", "input": "N", "output": "O", "system": "S", "history": [["A", "B"]]}),
    (
        Alpaca(reasoning="fold", system="drop"),
        FULL,
        {"instruction": "I", "input": "N", "output": FOLDED, "history": [["A", "B"]]},
    ),
    (Alpaca(reasoning="think"), PLAIN, {"instruction": "I", "input": "", "output": "O"}),
    (
        ShareGPT(),
        PLAIN,
        {"conversations": [{"from": "human", "value": "I"}, {"from": "gpt", "value": "O"}]},
    ),
    (
        ShareGPT(reasoning="think"),
        FULL,
        {
            "conversations": [
                {"from": "human", "value": "A"},
                {"from": "gpt", "value": "B"},
                {"from": "human", "value": "I\n\nN"},
                {"from": "gpt", "value": THOUGHT},
            ],
            "system": "S",
        },
    ),
]


@pytest.mark.parametrize(("form", "record", "row"), ROWS)
def test_rows(form: AnyFormat, record: Record, row: dict[str, Any]) -> None:
    assert form.row(record) == row
    assert list(form.row(record) or ()) == list(row)


def test_the_system_message_can_be_dropped_everywhere() -> None:
    for form in (Messages(system="drop"), Alpaca(system="drop"), ShareGPT(system="drop")):
        assert '"S"' not in json.dumps(form.row(FULL))


@pytest.mark.parametrize("form", [Messages(), Alpaca(), ShareGPT()])
def test_half_a_row_has_no_place(form: AnyFormat) -> None:
    assert form.row(Record(id="r", instruction="I")) is None
    assert form.row(Record(id="r", output="O", text="T")) is None


def test_a_history_that_is_no_pairs_has_no_place_in_alpaca() -> None:
    odd = [SAID[1:], SAID[:1], (*SAID, SAID[1]), (SAID[1], SAID[0]), (Message(role="system", content="x"), *SAID)]
    for history in odd:
        record = FULL.model_copy(update={"history": history})
        assert Alpaca().row(record) is None
        made = ShareGPT().row(record)
        assert made is not None and len(made["conversations"]) == len(history) + 2


def test_options_that_a_format_does_not_have() -> None:
    for form in (Alpaca, ShareGPT):
        with pytest.raises(ValidationError):
            form.model_validate({"reasoning": "apart"})


def test_the_names_of_formats_are_complete() -> None:
    union, _ = get_args(AnyFormat)
    assert sorted(form.model_fields["format"].default for form in get_args(union)) == sorted(FORMATS)


def test_a_document_is_a_row_of_text_and_an_answer_is_not() -> None:
    assert Text().row(Record(id="r", text="T")) == {"text": "T"}
    assert Text().row(Record(id="r")) is Text().row(Record(id="r", text="T", output="O")) is None
    assert Messages().row(Record(id="r", text="T")) is None


def test_a_query_and_its_document_in_the_layouts_of_retrievers() -> None:
    record = Record(id="r", instruction="Q", text="D", seeds=("d1",), extra={"title": "T"})
    assert list(Retrieval().row(record) or ()) == ["query", "positive"]
    assert Retrieval().row(record) == {"query": "Q", "positive": "D"}
    assert Retrieval(layout="lists").row(record) == {"query": "Q", "pos": ["D"], "neg": []}
    passages = Retrieval(layout="passages").row(record)
    assert passages == {
        "query_id": "r",
        "query": "Q",
        "positive_passages": [{"docid": "d1", "title": "T", "text": "D"}],
        "negative_passages": [],
    }
    for half in (Record(id="r", instruction="Q", seeds=("d",)), Record(id="r", text="D", seeds=("d",))):
        assert all(Retrieval(layout=layout).row(half) is None for layout in ("pair", "lists", "passages"))


@pytest.mark.parametrize("form", ["messages", "alpaca", "sharegpt"])
def test_the_data_file_holds_the_rows_of_the_format(label: Callable[..., Any], tmp_path: Path, form: str) -> None:
    seed = {"messages": [{"role": turn.role, "content": turn.content} for turn in (*SAID, SAID[0])]}
    assert label("s.jsonl", json.dumps(seed), "--format", form).code == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out/data.jsonl").read_bytes().splitlines()]
    (record,) = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_bytes().splitlines()]
    made = {"messages": Messages(), "alpaca": Alpaca(), "sharegpt": ShareGPT()}[form]
    assert row == made.row(Record.model_validate(record)) and "It is " in json.dumps(row)


def test_what_has_no_place_is_a_reject(label: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        {"instruction": "I"},
        {"messages": [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "u"}]},
    ]
    said = label("s.jsonl", "".join(json.dumps(row) + "\n" for row in rows), "--format", "alpaca", "--json")
    assert json.loads(said.out)["counts"]["rejects"] == {"no_place_in_format": 1}
    (reject,) = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_bytes().splitlines()]
    assert (reject["stage"], reject["detail"], reject["instruction"]) == ("export", "alpaca", "u")
