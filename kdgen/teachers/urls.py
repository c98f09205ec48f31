"""What can be known of a base URL without asking it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

# Each provider's own address, and the variable by which its SDK could be sent elsewhere.
HOMES = {
    "openai": ("OPENAI_BASE_URL", "https://api.openai.com/v1"),
    "anthropic": ("ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
}
SHAPE = "base_url looks like http://HOST:PORT/v1"


def wrong_url(url: str) -> Iterator[tuple[str, str]]:
    """Why `url` cannot be asked, with the way out. Passwords and queries are not repeated: they may be secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        if ":" not in host:
            host.removesuffix(".").encode("idna")
        fit = parts.scheme in ("http", "https") and bool(host) and url.isprintable() and " " not in url
        secret = "@" in parts.netloc
    except ValueError:  # a UnicodeError is one
        fit, secret = False, "@" in url
    if secret:
        yield "base_url holds a user name or a password", "put the key in a variable and name it: api_key_env: MY_KEY"
    elif not fit:
        yield f"{url.partition('?')[0]!r} is not a URL", SHAPE
    elif "?" in url or "#" in url:
        yield "base_url has a query", f"a path is added to it: {SHAPE}"


def unfit(provider: str) -> dict[str, str]:
    """Why the address in that variable cannot be asked, with the way out."""
    name, _ = HOMES[provider]
    given = os.environ.get(name, "")
    return (
        {
            f"{name}: {cause.replace('base_url', 'it')}": f"set it again, or unset it: {hint}"
            for cause, hint in wrong_url(given)
        }
        if given
        else {}
    )


def moved(provider: str) -> list[str]:
    """What to tell of the variable by which a provider's SDK is sent to a gateway: its host, nothing that may be secret."""
    name, home = HOMES[provider]
    given = os.environ.get(name, "").rstrip("/")
    if given in ("", home):
        return []
    return [
        f"{name} sends {provider}:MODEL to {urlsplit(given).hostname}; prices and terms are counted as {provider}'s own"
    ]
