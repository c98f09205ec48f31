"""Cleaning of conversations that people shared (ShareGPT, WildChat): what a page left in them, and which are lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any, Literal

from pydantic import Field

from kdgen.filters.text import REFUSALS
from kdgen.readers import BadRow
from kdgen.record import Frozen, Record

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SIDES = {**ROLES, "chatgpt": "assistant", "bard": "assistant", "bing": "assistant"}
WITHIN = 200  # a refusal stands at the beginning, as for the filter of that name
FENCE = re.compile(r"^[ \t]*(`{3,})[^`\n]*\n.*?(?:^[ \t]*\1[ \t]*$|\Z)", re.M | re.S)
# A turn is HTML where a page's own markup opens and ends it: that somebody talks about tags is no reason.
PAGE = re.compile(
    r"(?s)(?:<(?:p|pre|ul|h[1-6]|table|blockquote)>|<ol(?: start=\"\d+\")?>|"
    r"<div class=\"[^\">]*\b(?:markdown|prose|whitespace-pre-wrap)\b).*</[a-z][a-z0-9]*>"
)
OPENED = re.compile(r"^([ \t]*`{3,})[ \t]*\n?([\w+#.-]*?)(?:Copy code)+[ \t]*\n?", re.M)
LEFT = r"(?:[\w+#.-]*?Copy code|Share Prompt|Regenerate response|Copy ?\d+ chars / \d+ words)"
LEFT_LINE = re.compile(rf"^[ \t]*{LEFT}[ \t]*(?:\n|\Z)", re.M)
COUNTERS = re.compile(
    r"\A\d{1,3} / \d{1,3}[ \t]*\n+(?=\s*\S)|(?<=\S)[ \t]*\n\s*\d{1,3} / \d{1,3}\Z"
)  # of a stripped text
MODELS = r"(?:chatgpt|gpt-?\d|bard|claude|gemini|bing chat|copilot|llama|an? (?:large )?language model|an? ai\b)"
MAKERS = r"(?:openai|anthropic|google|meta ai|microsoft|mistral ai|deepseek|alibaba)"
IDENTITY = re.compile(
    rf"\b(?:(?:i am|i'm|my name is|as) {MODELS}|"
    rf"(?:i am|i'm|i was|i've been)\b[^.!?\n]{{0,60}}\b(?:trained|created|developed|made|built) by {MAKERS}|"
    r"my (?:knowledge|training)(?: data)?(?:'s)? (?:cut-?off|only goes|ends in|was last updated))",
    re.I,
)


class Clean(Frozen):
    """How conversations are cleaned, and which of them are lost (each is a reject, with its place and reason).

    `html` makes Markdown of turns that are a page's HTML; `ui` takes out what buttons and page counters left
    ("Copy code", "Share Prompt", "1 / 2" as a turn's first or last line). Empty turns and assistant turns before the
    first question go. `order` says what two turns of one side in a row are: one turn (`merge`), or a reason to lose the
    row. `identity` loses a row whose assistant says what model it is, or declines. `rounds` is the fewest questions,
    answered or not: one at the end is the task. `languages` (any, where empty), `toxic` and `redacted` go by the row's
    columns `language`, `toxic` and `redacted`, as WildChat has them: `toxic: false` loses the rows that are. Of the
    rows with one first question the first is kept, with `same_opening: keep` all.
    """

    html: bool = True
    ui: bool = True
    order: Literal["merge", "reject"] = "merge"
    identity: Literal["reject", "keep"] = "reject"
    rounds: int = Field(1, ge=1)
    languages: tuple[str, ...] = ()
    toxic: bool = True
    redacted: bool = True
    same_opening: Literal["reject", "keep"] = "reject"

    def turns(self, turns: Any, row: dict[str, Any]) -> list[dict[str, str]]:
        """The cleaned turns of a raw row: a system message or none, then user and assistant by turns.

        Raises BadRow: `bad_seed` for what is no conversation or lacks a column, else the reason why the row is lost.
        """
        self._columns(row)
        said: list[dict[str, str]] = []
        for number, (side, content) in enumerate(_sides(turns), 1):
            text = self._text(content)
            if not text or (side == "assistant" and all(turn["role"] == "system" for turn in said)):
                continue
            if side == "system" and any(turn["role"] != "system" for turn in said):
                raise BadRow(f"turn {number} is a system message inside of the conversation", reason="broken_order")
            if said and said[-1]["role"] == side:
                if self.order == "reject":
                    raise BadRow(f"turn {number} is the {side}'s, as the one before it", reason="broken_order")
                said[-1]["content"] += f"\n\n{text}"
            else:
                said.append({"role": side, "content": text})
        asked = sum(turn["role"] == "user" for turn in said)
        if asked == 0:
            raise BadRow("nothing is asked in the conversation", reason="too_few_rounds")
        if asked < self.rounds:
            raise BadRow(f"{asked} of the {self.rounds} rounds it is to have", reason="too_few_rounds")
        if self.identity == "reject":
            for turn in said:
                if turn["role"] == "assistant":
                    _own_words(turn["content"])
        return said

    def opening(self, record: Record) -> str:
        """The first question, as it is compared with other rows': "" where it is not."""
        first = next((turn.content for turn in record.history if turn.role == "user"), record.instruction)
        return " ".join(first.casefold().split()) if self.same_opening == "reject" else ""

    def _columns(self, row: dict[str, Any]) -> None:
        """Raise BadRow where the row's own columns say that it is not wanted, or do not say what is asked of them."""
        if self.languages:
            language = row.get("language")
            if not isinstance(language, str):
                raise BadRow("the row has no column 'language' with a text", hint="take `clean.languages` out")
            if language.casefold() not in {known.casefold() for known in self.languages}:
                raise BadRow(f"its language is {language!r}", reason="language")
        for name, kept in (("toxic", self.toxic), ("redacted", self.redacted)):
            if not kept:
                if not isinstance(row.get(name), bool):
                    raise BadRow(f"the row has no column {name!r} with true or false", hint=f"take `clean.{name}` out")
                if row[name]:
                    raise BadRow(f"its column {name!r} is true", reason=name)

    def _text(self, text: str) -> str:
        text = text.replace("\r\n", "\n").strip()
        if self.html and PAGE.fullmatch(text):
            text = markdown(text)
        if self.ui:
            text = _outside(OPENED.sub(r"\1\2\n", text), lambda part: LEFT_LINE.sub("", part))
            text = COUNTERS.sub("", text.strip())
        return text.strip()


def _sides(turns: Any) -> list[tuple[str, str]]:
    """(side, text) of each raw turn. Raises BadRow, which counts turns as the file does."""
    if not isinstance(turns, list) or not turns:
        raise BadRow("messages is not a list of turns")
    found = []
    for number, turn in enumerate(turns, 1):
        raw = turn if isinstance(turn, dict) else {}
        role, content = raw.get("role", raw.get("from")), raw.get("content", raw.get("value"))
        if not isinstance(role, str) or role not in SIDES or not isinstance(content, str | None):
            raise BadRow(f"turn {number} needs a role (system, user, assistant) and a text content")
        found.append((SIDES[role], content or ""))
    return found


def _own_words(text: str) -> None:
    """Raise BadRow where an assistant's turn, its code aside, says what model it is, or declines."""
    plain = _outside(text, lambda part: part, code=False).replace("’", "'")
    if who := IDENTITY.search(plain):
        raise BadRow(f"the assistant speaks of what it is: {who.group()!r}", reason="model_identity")
    if no := REFUSALS.search(plain[:WITHIN]):
        raise BadRow(f"the assistant declines: {no.group()!r}", reason="refusal")


def _outside(text: str, change: Callable[[str], str], *, code: bool = True) -> str:
    """`text` with `change` made to what is not fenced code, which may be left out."""
    parts, at = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[at : fence.start()]), fence.group() if code else ""]
        at = fence.end()
    return "".join([*parts, change(text[at:])])


BLOCKS = {"p", "div", "section", "article"}
MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*"}
SILENT = {"button", "script", "style", "svg"}
KNOWN = BLOCKS | MARKS.keys() | SILENT | {f"h{n}" for n in range(1, 7)}
KNOWN |= {"a", "blockquote", "code", "li", "ol", "pre", "table", "td", "th", "tr", "ul"}
DEEPEST = 60  # what is nested further counts as text of the element around it


def markdown(text: str) -> str:
    """A chat page's HTML as Markdown: paragraphs, headings, lists, tables, links, emphasis, code with its language."""
    page = _Page()
    page.feed(text)
    page.close()
    while len(page.open) > 1:
        page.end()
    return _outside("".join(page.open[0].parts), lambda part: re.sub(r"\n(?:[ \t]*\n)+", "\n\n", part)).strip()


class _Element:
    def __init__(self, tag: str, attributes: dict[str, str], around: set[str], raw: bool) -> None:
        self.tag, self.attributes, self.around, self.raw = tag, attributes, around | {tag}, raw
        self.parts: list[str] = []
        self.cells: list[str] = []
        self.code: tuple[str, str] | None = None
        start = attributes.get("start", "1")
        self.next = int(start) if start.isdecimal() and len(start) < 9 else 1


class _Page(HTMLParser):
    """Elements that are open, outermost first; one that ends is written into the one around it."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [_Element("", {}, set(), raw=False)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        top, attributes = self.open[-1], {name: value or "" for name, value in attrs}
        if tag == "br":
            top.parts.append("\n")
        elif tag == "hr":
            top.parts.append("\n\n---\n\n")
        elif tag == "img" and attributes.get("src"):
            top.parts.append(f"![{attributes.get('alt', '')}]({attributes['src']})")
        elif tag in KNOWN and len(self.open) < DEEPEST:
            raw = top.raw or tag == "pre" or "whitespace-pre" in attributes.get("class", "")
            self.open.append(_Element(tag, attributes, top.around, raw))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open[-1].around:
            while self.open[-1].tag != tag:
                self.end()
            self.end()

    def handle_data(self, data: str) -> None:
        top = self.open[-1]
        if not SILENT & top.around:
            top.parts.append(data if top.raw else re.sub(r"\s+", " ", data))

    def end(self) -> None:
        """Write the innermost open element into the one around it."""
        done = self.open.pop()
        tag, top, text = done.tag, self.open[-1], "".join(done.parts)
        flat = text.strip()
        if tag == "code" and "pre" in top.around:
            named = re.search(r"\blanguage-([\w+#.-]+)", done.attributes.get("class", ""))
            pre = next(element for element in reversed(self.open) if element.tag == "pre")
            pre.code = (named.group(1) if named else "", text)
        elif tag == "pre":
            language, code = done.code or ("", text)
            fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`{3,}", code)), 3)
            top.parts.append(f"\n\n{fence}{language}\n{code.strip(chr(10))}\n{fence}\n\n")
        elif tag == "code":
            top.parts.append(f"`{text}`" if text else "")
        elif tag in MARKS:
            top.parts.append(f"{MARKS[tag]}{flat}{MARKS[tag]}" if flat else text)
        elif tag == "a":
            top.parts.append(f"[{flat}]({done.attributes['href']})" if done.attributes.get("href") else text)
        elif tag == "li":
            marker = f"{top.next}. " if top.tag == "ol" else "- "
            top.next += 1
            lines = re.sub(r"\n[ \t]*(?=\n)", "\n", flat).split("\n")
            inner = "\n".join(f"{' ' * len(marker)}{line}" if line.strip() else "" for line in lines).lstrip()
            top.parts.append(f"\n{marker}{inner}\n" if "\n\n" in inner else f"\n{marker}{inner}")
        elif tag in ("td", "th"):
            top.cells.append(re.sub(r"\s+", " ", flat).replace("|", "\\|"))
        elif tag == "tr":
            table = next((element for element in reversed(self.open) if element.tag == "table"), top)
            table.parts.append(f"\n| {' | '.join(done.cells)} |" + ("" if table.code else _rule(done.cells)))
            table.code = ("", "")
        elif tag == "blockquote":
            top.parts.append("\n\n" + "\n".join(f"> {line}".rstrip() for line in flat.split("\n")) + "\n\n")
        elif tag[:1] == "h":
            top.parts.append(f"\n\n{'#' * int(tag[1])} {flat}\n\n")
        elif tag in ("ol", "ul") and "li" in top.around:
            top.parts.append(f"\n{text.strip()}\n")
        elif tag not in SILENT:
            top.parts.append(f"\n\n{text if done.raw else flat}\n\n")


def _rule(cells: list[str]) -> str:
    """What stands under a table's first row."""
    return f"\n|{' --- |' * len(cells)}"
