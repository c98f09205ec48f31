"""Batches as files that `vllm run-batch` answers, on this machine or wherever the folder can be carried.

A batch is NAME.jsonl in OpenAI's format; a person runs vLLM on it, which writes NAME.out.jsonl line by line. A batch has
ended when every request of it has its line.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import orjson
from pydantic import JsonValue

from kdgen.errors import UserError
from kdgen.teachers.base import Request, Sought, Status
from kdgen.teachers.batch_apis import openai_result, request_lines
from kdgen.teachers.batch_sdk import Result, readable

PATH = "/v1/chat/completions"


class BatchFiles:
    """The batches in one folder; a batch's id is the path of its file."""

    max_requests: ClassVar[int] = 1_000_000
    max_bytes: ClassVar[int] = 2_000_000_000
    nameless: ClassVar[bool] = False
    settles: ClassVar[float] = 0.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, name: str) -> Path:
        return (self._folder / f"{name}.jsonl").absolute()

    async def submit(self, name: str, requests: Sequence[Request]) -> str:
        """Write the file; it is there whole or not at all."""
        path = self._path(name)
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.writelines(request_lines(requests, PATH))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(part)
            hint = "name a folder that can be written: batch_dir"
            raise UserError(f"a batch cannot be written: {error.strerror}", where=str(path), hint=hint) from None
        return str(path)

    async def find(self, sought: Sought) -> str | None:
        """The file, if it was written."""
        path = self._path(sought.name)
        return str(path) if path.exists() else None

    async def status(self, remote: str) -> Status:
        """A batch whose file was taken away has ended with what was answered until then."""
        asked = sum(1 for _ in _lines(Path(remote)))
        if not asked:
            return Status("ended", "its file is gone")
        answered = {key for key, _ in _answers(remote)}
        return Status("ended" if len(answered) >= asked else "running")

    async def results(self, remote: str) -> AsyncGenerator[Result, None]:
        """The answers that are there. A line that is cut is of a request that has none yet."""
        for answer in _answers(remote):
            yield answer

    async def cancel(self, remote: str) -> None:
        """Take the file away, so that nobody runs it any more."""
        with suppress(FileNotFoundError):
            os.unlink(remote)

    async def close(self) -> None:
        """Nothing is open."""


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def _answers(remote: str) -> Iterator[Result]:
    for line in _lines(_output(remote)):
        if (answer := readable(line, openai_result)) is not None:
            yield answer


def _output(remote: str) -> Path:
    return Path(remote).with_suffix(".out.jsonl")


def command(remote: str, model: str, served: str, options: Mapping[str, JsonValue]) -> str:
    """The command that answers a batch with `model`, known in it as `served`, on an engine with these `options`."""
    parts = ["vllm", "run-batch", "-i", remote, "-o", str(_output(remote)), "--model", model]
    parts += ["--served-model-name", served] if served != model else []
    return shlex.join([*parts, *(part for name, value in options.items() for part in _flag(name, value))])


def _flag(name: str, value: JsonValue) -> list[str]:
    """An argument of the engine as its command line has it."""
    name = name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={orjson.dumps(value).decode() if isinstance(value, dict) else value}"]
