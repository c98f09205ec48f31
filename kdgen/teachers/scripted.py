"""The scripted teacher: replies from a file, for tests, examples and replays."""

from __future__ import annotations

import asyncio
import hashlib
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, ValidationError

from kdgen.errors import UserError
from kdgen.record import Frozen
from kdgen.teachers import invented
from kdgen.teachers.base import Call, Fault, Params, Raw, Reply, Request, TeacherSpec, Wire, chat_body


class Rule(Frozen):
    """One line of the file: which requests it answers, and with what.

    A rule without a condition answers everything. `contains` and `regex` look at the text of all messages; `nth` at the
    number of the draw; `open` at whether the user's turn is to be written. In `reply`, `{digest}` stands for 8 hex digits
    of the request, `{last}` for the last message, and `\\1` … for the groups of `regex`. `status` makes an HTTP error of it.
    `told` are the tokens of a text that was to be scored (see `calls.Told`); what a rule does not tell of tokens is invented.
    """

    contains: str | None = None
    regex: str | None = None
    nth: int | None = None
    open: bool | None = None
    reply: str = ""
    reasoning: str = ""
    refusal: str = ""
    finish: Literal["stop", "length", "content_filter"] = "stop"
    status: int = 200
    logprobs: list[Any] | None = None
    told: dict[str, Any] | None = None


class Scripted(TeacherSpec):
    """Replies from `path`, a JSONL file of rules of which the first that fits answers."""

    provider: Literal["scripted"] = "scripted"
    path: str = ""
    delay: float = Field(0, ge=0, description="seconds each reply takes")
    concurrency: int = Field(64, ge=1)

    takes: ClassVar[frozenset[str]] = frozenset(Params.model_fields)

    @cached_property
    def stem(self) -> str:
        """The model's name: the file's stem where the recipe gives none."""
        return self.model or Path(self.path).stem

    @property
    def scores(self) -> None:
        """Either: a rule can be anything."""

    @cached_property
    def label(self) -> str:
        """scripted: and the stem."""
        return f"scripted:{self.stem}"

    def check(self) -> None:
        """The file must be there and each line a rule."""
        load_rules(self.path)

    def body(self, call: Call) -> dict[str, Any]:
        """The chat-completions body, with the file's stem as the model."""
        body = {**chat_body(self.stem, call), **({"open": "user"} if call.open else {})}
        if call.score is not None:
            body["score"] = call.score
        elif call.tokens and call.params.logprobs is not None:
            body["return_token_ids"] = True
        return body

    def shut(self) -> tuple[str, str] | None:
        """None: a rule can be anything."""
        return None

    def deaf(self) -> tuple[str, str] | None:
        """None: a rule can be anything."""
        return None

    def ignored(self, params: Params, reply: Reply) -> list[str]:
        """None: what the file says is the reply."""
        return []

    def connect(self) -> Wire:
        """Read the file."""
        return ScriptedWire(load_rules(self.path), self.delay)


@lru_cache(maxsize=8)
def load_rules(path: str) -> tuple[Rule, ...]:
    """The rules of a file. Raises UserError with file and line."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read the replies: {error.strerror}", where=path or "scripted", hint="--teacher scripted:FILE"
        ) from None
    rules = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rule = Rule.model_validate_json(line)
            pattern = re.compile(rule.regex or "")
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{key + ': ' if key else ''}{first['msg']}", where=f"{path}:{number}") from None
        except re.error as wrong:
            raise UserError(f"regex: {wrong}", where=f"{path}:{number}") from None
        try:
            pattern.sub(rule.reply if rule.regex else "", "")  # the template is looked at even where nothing is found
        except (re.error, IndexError) as wrong:
            hint = r"\1 is the first group of regex; a backslash of your own is \\ (in JSON \\\\)"
            raise UserError(f"reply: {wrong}", where=f"{path}:{number}", hint=hint) from None
        rules.append(rule)
    if not rules:
        raise UserError("there is no rule in it", where=path, hint='{"reply": "…"} answers everything')
    return tuple(rules)


class ScriptedWire:
    """Answers in the chat-completions dialect, so that everything after the wire is the real thing."""

    def __init__(self, rules: tuple[Rule, ...], delay: float) -> None:
        self.rules = rules
        self.delay = delay

    async def send(self, request: Request) -> Raw:
        """The first rule that fits. Raises Fault where it is an error, or none fits."""
        body = orjson.loads(request.body)
        text = "\n".join(message["content"] for message in body["messages"])
        if self.delay:
            await asyncio.sleep(self.delay)
        for rule in self.rules:
            if (
                rule.nth not in (None, request.nth)
                or rule.open not in (None, "open" in body)
                or (rule.contains and rule.contains not in text)
            ):
                continue
            found = re.search(rule.regex, text) if rule.regex else None
            if rule.regex and found is None:
                continue
            if rule.status != 200:
                kind: Literal["never", "transient"] = "transient" if rule.status >= 500 else "never"
                raise Fault(kind, f"HTTP {rule.status}: {rule.reply}", status=rule.status)
            return Raw(orjson.dumps(self._reply(rule, body, text, found, request.nth)), {})
        raise Fault("never", "no rule of the script answers this request")

    def _reply(
        self, rule: Rule, body: dict[str, Any], text: str, found: re.Match[str] | None, nth: int
    ) -> dict[str, Any]:
        reply = found.expand(rule.reply) if found else rule.reply
        if "{digest}" in reply:
            reply = reply.replace("{digest}", hashlib.sha256(f"{nth}{text}".encode()).hexdigest()[:8])
        if "{last}" in reply and body["messages"]:
            reply = reply.replace("{last}", body["messages"][-1]["content"])
        message: dict[str, Any] = {"role": "assistant", "content": reply}
        if rule.reasoning:
            message["reasoning"] = rule.reasoning
        if rule.refusal:
            message["refusal"] = rule.refusal
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": rule.finish}
        if rule.logprobs is not None:
            choice["logprobs"] = {"content": rule.logprobs}
        more: dict[str, Any] = {}
        if "score" in body:
            made = invented.scored(body["messages"], body["score"])
            pieces = [list(piece) for piece in made.pieces or ()]
            more["told"] = {**made._asdict(), "pieces": pieces} if rule.told is None else rule.told
        elif "return_token_ids" in body:
            choice.setdefault("logprobs", {"content": invented.content(reply, body["top_logprobs"])})
            more["prompt_token_ids"] = invented.ids(text)
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(reply.split())}
        return {"model": body["model"], "choices": [choice], "usage": usage, **more}

    async def close(self) -> None:
        """Nothing to release."""
