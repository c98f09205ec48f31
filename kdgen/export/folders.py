"""Formats of a whole folder: what a trainer needs beside its rows."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from kdgen.export.base import Format, asked, tools_of
from kdgen.export.chat import NAMES
from kdgen.export.preference import pair_of
from kdgen.export.shapes import FLAG, TEXT, WHOLE, WORDS
from kdgen.record import Candidate, Record


class LlamaFactory(Format):
    """LLaMA-Factory's `dataset_dir`: rows in its ShareGPT form, and `dataset_info.json` that says so.

    `stage`: `sft` is `{"conversations", "system", "tools"}`, `preference` adds `chosen` and `rejected`, `kto` `kto_tag`, and `pt` is
    `{"text"}`. It trains on every answer of a conversation; `mask_history: true` leaves the last one. Turns that do not
    alternate have no place.
    """

    TRAINERS: ClassVar[str] = "LLaMA-Factory (`dataset_dir`)"

    format: Literal["llamafactory"] = "llamafactory"
    reasoning: Literal["drop", "fold", "think"] = "drop"
    stage: Literal["sft", "preference", "kto", "pt"] = "sft"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The row of the stage."""
        if self.stage == "pt":
            return {"text": record.text} if record.text and not record.output else None
        turns = [{"from": NAMES[turn.role], "value": turn.content} for turn in asked(record)]
        odd = all(turn["from"] in ("human", "observation") for turn in turns[::2])
        if (
            not record.instruction
            or not odd
            or not len(turns) % 2
            or any(turn["from"] != "gpt" for turn in turns[1::2])
        ):
            return None
        system = record.system if self.system == "keep" else ""
        tools = tools_of(record)
        row = {"conversations": turns, "system": system, "tools": json.dumps(tools) if tools else ""}
        if self.stage == "preference":
            pair = pair_of(record)
            return None if pair is None else {**row, "chosen": self._said(pair[0]), "rejected": self._said(pair[1])}
        label = record.meta.get("label")
        if not record.output or (self.stage == "kto" and not isinstance(label, bool)):
            return None
        turns.append(self._said(record))
        return {**row, "kto_tag": label} if self.stage == "kto" else row

    def _said(self, of: Record | Candidate) -> dict[str, str]:
        return {"from": "gpt", "value": self.answer(of)}

    def shape(self) -> dict[str, Any]:
        """Turns, and system message and tools beside them, empty where there are none."""
        if self.stage == "pt":
            return {"text": WORDS}
        turn = {"from": ("human", "gpt", "observation"), "value": TEXT}
        shape: dict[str, Any] = {"conversations": [turn], "system": TEXT, "tools": TEXT}
        if self.stage == "preference":
            shape |= {"chosen": turn, "rejected": turn}
        if self.stage == "kto":
            shape["kto_tag"] = FLAG
        return shape

    def beside(self, name: str, files: dict[str, str]) -> dict[str, bytes]:
        """dataset_info.json, with a dataset for each file: `NAME` is the first split, `NAME_test` another."""
        columns = {"messages": "conversations"} | {key: key for key in self.shape() if key != "conversations"}
        about: dict[str, Any] = {"formatting": "sharegpt", "columns": columns}
        if self.stage == "preference":
            about["ranking"] = True
        if self.stage == "pt":
            about = {"columns": {"prompt": "text"}}
        names = [name, *(f"{name}_{split}" for split in list(files)[1:])]
        told = {called: {"file_name": file, **about} for called, file in zip(names, files.values(), strict=True)}
        return {"dataset_info.json": json.dumps(told, indent=2).encode() + b"\n"}


class Beir(Format):
    """BEIR's folder: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`: MTEB, Sentence Transformers, Tevatron.

    A document is in the corpus once, however many queries lead to it; its id is its seed's.
    """

    TRAINERS: ClassVar[str] = "retrieval benchmarks: BEIR, MTEB, Sentence Transformers' IR evaluator"

    format: Literal["beir"] = "beir"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """A query, and the document that serves it."""
        if not record.task or not record.text or not record.seeds:
            return None
        title = record.extra.get("title")
        return {
            "query-id": _id(record.id),
            "query": record.task,
            "corpus-id": _id(record.seeds[0]),
            "title": title if isinstance(title, str) else "",
            "text": record.text,
            "score": 1,
        }

    def shape(self) -> dict[str, Any]:
        """The columns of the three tables."""
        told = {"query-id": WORDS, "query": WORDS, "corpus-id": WORDS, "title": TEXT, "text": WORDS}
        return {**told, "score": WHOLE}


class Triples(Format):
    """`{"anchor", "positive", "negative"}`: a query, the document that serves it, and one that does not, drawn from the others.

    Drawn at random: it is not a hard negative, and now and then it may serve too.
    """

    TRAINERS: ClassVar[str] = "Sentence Transformers (triplet and ranking losses), ColBERT"

    format: Literal["triples"] = "triples"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The texts; `kdgen export` puts the other document into `meta.rival`."""
        rival = record.meta.get("rival")
        if not record.task or not record.text or not isinstance(rival, str) or not rival:
            return None
        return {"anchor": record.task, "positive": record.text, "negative": rival}

    def shape(self) -> dict[str, Any]:
        """Three texts."""
        return {"anchor": WORDS, "positive": WORDS, "negative": WORDS}


def _id(name: str) -> str:
    """An id without the space that ends one in qrels."""
    return re.sub(r"\s", lambda found: quote(found[0]), name)
