"""What kdgen is measured against: the same requests, one JSON line written per reply, and nothing else.

`python bench/clients.py KIND BASE_URL SEEDS OUT IN_FLIGHT`, where KIND is sdk (the official client on its
default transport), aiohttp, or socket (HTTP/1.1 by hand: the floor for Python).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import IO, Any
from urllib.parse import urlsplit

SYSTEM = "You are a careful expert. Give a correct, complete and concise answer."


def body_of(line: str) -> dict[str, Any]:
    """What `kdgen label` asks about a seed."""
    task = json.loads(line)["instruction"]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    return {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 512}


async def spread(lines: list[str], most: int, ask: Callable[[str], Awaitable[None]]) -> None:
    """`ask` about every line, `most` at once."""
    gate = asyncio.Semaphore(most)

    async def one(line: str) -> None:
        async with gate:
            await ask(line)

    await asyncio.gather(*(one(line) for line in lines))


async def sdk(base: str, lines: list[str], out: IO[str], most: int) -> None:
    """The official SDK, as its README shows it; only its 5 s to connect are more, as a busy machine may need."""
    import openai

    async with openai.AsyncOpenAI(api_key="x", base_url=base, max_retries=0, timeout=600) as client:

        async def ask(line: str) -> None:
            reply = await client.chat.completions.create(**body_of(line))
            out.write(json.dumps({"text": reply.choices[0].message.content}) + "\n")

        await spread(lines, most, ask)


async def aiohttp(base: str, lines: list[str], out: IO[str], most: int) -> None:
    """One aiohttp session."""
    import aiohttp as http

    async with http.ClientSession(connector=http.TCPConnector(limit=most)) as session:

        async def ask(line: str) -> None:
            async with session.post(f"{base}/chat/completions", json=body_of(line)) as response:
                reply = await response.json()
            out.write(json.dumps({"text": reply["choices"][0]["message"]["content"]}) + "\n")

        await spread(lines, most, ask)


async def socket(base: str, lines: list[str], out: IO[str], most: int) -> None:
    """HTTP/1.1 written by hand over `most` connections."""
    url = urlsplit(base)
    left = iter(lines)

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        for line in left:
            body = json.dumps(body_of(line)).encode()
            head = f"POST {url.path}/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            size = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
            reply = json.loads(await reader.readexactly(size))
            out.write(json.dumps({"text": reply["choices"][0]["message"]["content"]}) + "\n")
        writer.close()

    await asyncio.gather(*(worker() for _ in range(min(most, len(lines)))))


KINDS = {"sdk": sdk, "aiohttp": aiohttp, "socket": socket}


def main() -> None:
    """Run one client over a seed file."""
    kind, base, seeds, path, most = sys.argv[1:]
    with open(seeds, encoding="utf-8") as file:
        lines = file.readlines()
    with open(path, "w", encoding="utf-8") as out:
        asyncio.run(KINDS[kind](base, lines, out, int(most)))


if __name__ == "__main__":
    main()
