"""Rows for retrievers and rerankers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kdgen.export.base import Format
from kdgen.export.shapes import TEXT, WORDS
from kdgen.record import Record


class Retrieval(Format):
    """A query with the text that it is for.

    `layout`: `pair` is `{"query", "positive"}` (Sentence Transformers), `lists` `{"query", "pos": […], "neg": []}`
    (FlagEmbedding), `passages` `{"query_id", "query", "positive_passages": [{"docid", "title", "text"}],
    "negative_passages": []}` (Tevatron), where `docid` is the seed's id.
    """

    TRAINERS: ClassVar[str] = "Sentence Transformers, FlagEmbedding (`lists`), Tevatron (`passages`)"

    format: Literal["retrieval"] = "retrieval"
    reasoning: Literal["drop"] = "drop"
    system: Literal["drop"] = "drop"
    layout: Literal["pair", "lists", "passages"] = "pair"

    def row(self, record: Record) -> dict[str, Any] | None:
        """The pair, where the record has both sides."""
        query, text = record.task, record.text
        if not query or not text:
            return None
        if self.layout == "pair":
            return {"query": query, "positive": text}
        if self.layout == "lists":
            return {"query": query, "pos": [text], "neg": []}
        title = record.extra.get("title")
        passage = {"docid": record.seeds[0], "title": title if isinstance(title, str) else "", "text": text}
        return {"query_id": record.id, "query": query, "positive_passages": [passage], "negative_passages": []}

    def shape(self) -> dict[str, Any]:
        """By the layout."""
        if self.layout == "pair":
            return {"query": WORDS, "positive": WORDS}
        if self.layout == "lists":
            return {"query": WORDS, "pos": [WORDS], "neg": [WORDS, 0]}
        passage = {"docid": WORDS, "title": TEXT, "text": WORDS}
        return {"query_id": WORDS, "query": WORDS, "positive_passages": [passage], "negative_passages": [passage, 0]}
