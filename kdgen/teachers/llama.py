"""What the local runtime answers on its own port, and how a text that is given is scored by it, a token at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import orjson

from kdgen.teachers.calls import Fault
from kdgen.teachers.turns import MARK, before_mark

FORCED = 1e4  # what is added to the logit of the token that stands there; logprobs are told as they are without it
EVERY = 1 << 20  # more tokens than any model has
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Runtime:
    """One llama.cpp server in this process."""

    server: Any
    key: str
    timeout: float

    def opened(self, messages: Messages) -> str:
        """The text before a user's turn, by the model's own template; only the runtime's port fills that in."""
        made = self._filled([*messages, {"role": "user", "content": MARK}])
        if (prefix := before_mark(made)) is None:
            raise Fault("never", "the model's chat template has no place for a user's words", status=400)
        return prefix

    def told(self, messages: Messages) -> dict[str, Any]:
        """The token ids of a prompt, and what is known of the model that reads them."""
        return {"prompt_token_ids": self._ids(self._filled(messages)), "facts": self._facts()}

    def score(self, identity: str, body: Mapping[str, Any], stopped: Callable[[], str]) -> dict[str, Any]:
        """The tokens of the last message, each with its logprob and the likeliest in its place.

        llama.cpp tells logprobs only of what it writes. So it writes one token after each prefix of the text, and the token
        that stands there is forced on it. Prefixes are kept from one token to the next, never from another request:
        what a request is answered depends on nothing but the request.
        """
        before, whole = self._filled(body["messages"][:-1]), self._filled(body["messages"], False)
        prompt, full = self._ids(before), self._ids(whole)
        if full[: len(prompt)] != prompt:
            return {**_scored(identity, len(full), 0), "told": {"wrong": "prompt_not_prefix"}}
        found = []
        for place in range(len(prompt), len(full)):
            if wrong := stopped():
                raise Fault("transient", wrong)
            found.append(self._told(full[:place], full[place], body["score"], place > len(prompt)))
        told = {
            "prompt_ids": prompt,
            "ids": full[len(prompt) :],
            "logprobs": [entry["logprob"] for entry in found],
            "top": [[[top["id"], top["logprob"]] for top in entry["top_logprobs"]] for entry in found],
            "pieces": [entry["bytes"] for entry in found],
        }
        return {**_scored(identity, len(prompt), len(found)), "told": told, "facts": self._facts()}

    def _told(self, prefix: list[int], token: int, top: int, cached: bool) -> dict[str, Any]:
        """What the model tells of `token` after `prefix`. It keeps silent where it wrote a piece of a character.

        Another token is forced then, and of all that it could have written the one that stands there is looked up.
        """
        if entry := self._forced(prefix, token, top, cached):
            return entry
        for many in (top, EVERY):
            entry = self._forced(prefix, prefix[0], many, True)
            found = next((each for each in entry.get("top_logprobs") or () if each["id"] == token), None)
            if found is not None:
                return {**found, "top_logprobs": entry["top_logprobs"][: max(1, top)]}
        raise Fault("never", f"the runtime tells nothing of token {token}", status=400)

    def _forced(self, prefix: list[int], token: int, top: int, cached: bool) -> dict[str, Any]:
        made = self.server.handle_completions(
            {
                "prompt": prefix, "max_tokens": 1, "logprobs": max(1, top), "cache_prompt": cached, "seed": 0,
                "temperature": 1.0, "samplers": [], "logit_bias": [[token, FORCED]],
            }
        )  # fmt: skip
        if wrong := made.get("error"):
            status = int(wrong.get("code") or 500)
            raise Fault("never" if status < 500 else "transient", str(wrong.get("message")), status=status)
        entries = (made["choices"][0].get("logprobs") or {}).get("content") or []
        entry: dict[str, Any] = entries[0] if len(entries) == 1 and entries[0]["id"] == token else {}
        return entry

    def _facts(self) -> dict[str, Any]:
        template = str(self._port("GET", "/props").get("chat_template", ""))
        return {"chat_template_sha256": hashlib.sha256(template.encode()).hexdigest()}

    def _filled(self, messages: Messages, open: bool = True) -> str:
        return str(
            self._port("POST", "/apply-template", {"messages": messages, "add_generation_prompt": open}).get(
                "prompt", ""
            )
        )

    def _ids(self, text: str) -> list[int]:
        asked = {"content": text, "add_special": True, "parse_special": True}
        return [int(each) for each in self._port("POST", "/tokenize", asked).get("tokens") or ()]

    def _port(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        place = urlsplit(self.server.listening_address)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        with closing(HTTPConnection(place.hostname or "", place.port, timeout=self.timeout)) as port:
            try:
                port.request(verb, path, None if body is None else orjson.dumps(body), headers)
                reply: dict[str, Any] = orjson.loads(port.getresponse().read())
            except (OSError, HTTPException, orjson.JSONDecodeError) as error:
                raise Fault("transient", f"the runtime does not answer {path}: {error}") from None
        if wrong := reply.get("error"):
            raise Fault("never", str(wrong.get("message")), status=int(wrong.get("code") or 400))
        return reply


def _scored(identity: str, came: int, went: int) -> dict[str, Any]:
    """The chat completion that says that a text was scored."""
    choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
    usage = {"prompt_tokens": came, "completion_tokens": went, "total_tokens": came + went}
    return {"object": "chat.completion", "model": identity, "choices": [choice], "usage": usage}
