"""API keys: where they come from, and that none comes out again.

A key comes from the environment, or from a file that the user names; never from a recipe or the command line, which are
published, logged and seen by others. It is read when a wire opens and goes into one header. Servers and proxies repeat what
they were sent, in errors, ids and replies, so whatever arrives is searched for the key before anything else sees it.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from kdgen.errors import UserError
from kdgen.yamls import Key as Place
from kdgen.yamls import Source

MARK = "[key]"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# How the keys of well-known providers begin; what follows is long and has a digit.
KEYLIKE = re.compile(
    r"\b(?:(?:sk|pk|xai|nvapi|pplx|glpat)-|sk_|AIza|Bearer )(?=[A-Za-z_.-]*[0-9])[A-Za-z0-9_.-]{20,}"
    r"|\b(?:gsk|hf|r8|gh[pousr])_(?=[A-Za-z]*[0-9])[A-Za-z0-9]{20,}"
)
USERINFO = re.compile(r"(?<=://)[^/?#\s@]+(?=@)")
ESCAPED = re.compile(rb"\\(?:u00([2-7][0-9A-Fa-f])|(/))")
HINT = "keys come from the environment (api_key_env: NAME), from --env-file PATH or from api_key_file: PATH"


class Key:
    """A key and the forms in which a server may send it back. One as short as a word is not searched for."""

    def __init__(self, key: str) -> None:
        kept = len(key) >= 16 or (len(key) >= 8 and any(mark.isdigit() for mark in key))
        self._forms = tuple(dict.fromkeys(_forms(key.encode()))) if kept else ()
        self._texts = tuple(form.decode() for form in self._forms)

    def strike(self, body: bytes) -> bytes:
        """`body` without the key; the same object where it does not hold it."""
        if any(form in body for form in self._forms):
            body = self._without(body)
        if self._forms and (b"\\u00" in body or b"\\/" in body):
            plain = ESCAPED.sub(_unescape, body)
            return self._without(plain) if any(form in plain for form in self._forms) else body
        return body

    def _without(self, body: bytes) -> bytes:
        for form in self._forms:
            body = body.replace(form, MARK.encode())
        return body

    def clean(self, text: str) -> str:
        """`text` without the key."""
        return self.strike(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """`headers` without the key; the same object where they do not hold it."""
        if any(form in value for value in headers.values() for form in self._texts):
            return {name.lower(): self.clean(value) for name, value in headers.items()}
        return headers


def _forms(key: bytes) -> Iterator[bytes]:
    """The key as it is, as it stands in JSON and in URLs, in hex, and in base64 wherever it begins in what is encoded."""
    yield key
    yield json.dumps(key.decode()).encode()[1:-1]
    yield quote(key, safe="").encode()
    yield "".join(f"%{byte:02X}" for byte in key).encode()
    yield "".join(f"%{byte:02x}" for byte in key).encode()
    yield key.hex().encode()
    yield key.hex().upper().encode()
    for before in range(3):
        text = base64.b64encode(bytes(before) + key)[-(-before * 8 // 6) : (before + len(key)) * 8 // 6]
        yield text
        yield text.replace(b"+", b"-").replace(b"/", b"_")


def _unescape(found: re.Match[bytes]) -> bytes:
    mark = b"/" if found[2] else bytes([int(found[1], 16)])
    return found[0] if mark in b'"\\\x7f' else mark


def guarded(sdk: Any, key: str) -> Any:
    """An HTTP client for an official SDK, which sees no reply, header or error that holds the key."""
    import httpx2

    secret = Key(key)

    class Client(sdk.DefaultAioHttpClient):  # type: ignore[misc] # the SDKs declare it as a value
        async def send(self, *arguments: Any, **options: Any) -> Any:
            try:
                response = await super().send(*arguments, **options)
                # What is read as a stream, a file of results, is searched line by line where it is read.
                streams = options.get("stream") and response.is_success
                body = b"" if streams else await response.aread()
            except Exception as error:
                if secret.clean(str(error)) == str(error):
                    raise
                raise httpx2.RemoteProtocolError(secret.clean(str(error))) from None
            clean, headers = secret.strike(body), secret.headers(response.headers)
            if streams or (clean is body and headers is response.headers):
                return response
            kept = {
                name: value for name, value in headers.items() if name not in ("content-encoding", "content-length")
            }
            return httpx2.Response(response.status_code, headers=kept, content=clean, request=response.request)

    return Client()


# Where keys come from


def env_name(name: str) -> str:
    """The name of an environment variable, and not a key in its place."""
    if not NAME.fullmatch(name) or looks_like_key(name):
        raise PydanticCustomError("secret", "this is no name of an environment variable", {"hint": HINT})
    return name


EnvName = Annotated[str, AfterValidator(env_name)]


def looks_like_key(text: str) -> bool:
    """Whether a single word is rather a key than a name or a path. Never of what is in the environment."""
    if KEYLIKE.search(text):
        return True
    mixed = any(mark.isdigit() for mark in text) and any(mark.isalpha() for mark in text)
    return mixed and len(text) >= 20 and re.fullmatch(r"[A-Za-z0-9+=]+", text) is not None and text not in os.environ


def may_send_key(spec: Any) -> bool:
    """Whether a teacher's key is sent: to its provider, and to an address of the user's only where the recipe names it."""
    return spec.base_url is None or "api_key_env" in spec.model_fields_set or spec.api_key_file is not None


def key_needs(spec: Any, *, needed: bool) -> dict[str, str]:
    """What is wrong with the key that a teacher names, with the way out; nothing of the key's own."""
    try:
        key = key_of(spec)
    except UserError as error:
        return {error.cause: error.hint}
    if needed and not key:
        name = spec.api_key_env
        hint = f"export {name}=…, or --env-file PATH, or use the embedded teacher: --teacher local"
        return (
            {f"{name} is not set": hint}
            if spec.api_key_file is None
            else {"api_key_file is empty": "put the key into it"}
        )
    return {}


def check_key(spec: Any) -> None:
    """Raise UserError where a teacher names two places of one key."""
    if spec.api_key_file is not None and "api_key_env" in spec.model_fields_set:
        raise UserError("api_key_env and api_key_file are both set", where=spec.label, hint="name the key in one place")


def key_of(spec: Any) -> str:
    """The key that a teacher's file or variable holds, or nothing. Raises UserError where it cannot be one."""
    name, again = spec.api_key_env, "set it again"
    if spec.api_key_file is not None:
        name, again = "api_key_file", "the file holds the key and nothing else"
        try:
            key = Path(spec.api_key_file).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(f"api_key_file cannot be read: {cause}", where=spec.label, hint=again) from None
    else:
        key = os.environ.get(name, "").strip()
    if not key.isascii() or any(mark.isspace() or not mark.isprintable() for mark in key):
        raise UserError(f"{name} holds characters that no key has", where=spec.label, hint=again)
    return key


def load_env_file(path: Path) -> list[str]:
    """Add the variables of a .env file that the environment lacks; their names. Raises UserError with file and line."""
    from io import StringIO

    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot be read: {cause}", where=f"--env-file {path}") from None
    added = []
    for line in parse_stream(StringIO(text)):
        if line.error or (line.key is not None and (line.value is None or not NAME.fullmatch(line.key))):
            raise UserError("this line is not NAME=VALUE", where=f"{path}:{line.original.line}")
        if line.key is not None and not os.environ.get(line.key):
            os.environ[line.key] = line.value or ""
            added.append(line.key)
    return added


# Where they may not stand


def refuse_keys(source: Source) -> None:
    """Raise UserError where a recipe, or what the command line changes in it, holds a key. The key is not repeated."""
    for place, value in _strings(source.tree, ()):
        if KEYLIKE.search(value) or (place[-1] == "api_key_file" and looks_like_key(value)):
            raise UserError(f"{_dotted(place)} looks like an API key", where=source.where(place), hint=HINT)


def _dotted(place: Iterable[str | int]) -> str:
    return ".".join(MARK if KEYLIKE.search(str(part)) else str(part) for part in place)


def _strings(tree: object, at: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _strings(value, (*at, str(name)))
            if at and KEYLIKE.search(str(name)):
                yield (*at, str(name)), str(name)
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _strings(value, (*at, number))
    elif isinstance(tree, str):
        yield at, tree


def masked(text: str) -> str:
    """`text` without what looks like a key or a password, for messages that repeat what the user wrote."""
    return USERINFO.sub(MARK, KEYLIKE.sub(MARK, text))
