"""Fixtures: the command line in this process, scripted teachers, and hypothesis without a clock or a database."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import settings

from kdgen.cli import main

settings.register_profile("kdgen", deadline=None, database=None, derandomize=True)
settings.register_profile("search", deadline=None, database=None, max_examples=5000)
settings.load_profile("kdgen")


class Said(NamedTuple):
    """What one command left: its exit code, its data and its talk."""

    code: int
    out: str
    err: str


@pytest.fixture
def kdgen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command line in this process, in `tmp_path`, with no key in the environment.

    Anything but a KdgenError or an ordinary exit goes through, as a traceback would.
    """
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.endswith("_API_KEY") or name.startswith(("KDGEN_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)

    def run(*arguments: object, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Write the rules of a scripted teacher and name it as `--teacher` does. A rule may be its reply alone."""

    def write(*rules: str | dict[str, Any], name: str = "teacher") -> str:
        lines = [{"reply": rule} if isinstance(rule, str) else rule for rule in rules]
        path = tmp_path / f"{name}.rules.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines or [{"reply": "It is {digest}."}]))
        return f"scripted:{path}"

    return write


@pytest.fixture
def label(kdgen: Callable[..., Said], script: Callable[..., str], tmp_path: Path) -> Callable[..., Said]:
    """`kdgen label FILE`, the file written first where `content` is given, into `out` with the ledger `ledger.db`."""

    def run(name: str, content: bytes | str | None = None, *arguments: object, stdin: bytes = b"") -> Said:
        if content is not None:
            data = content.encode() if isinstance(content, str) else content
            (tmp_path / name).write_bytes(data)
        base = ("label", name, "-t", script(), "-o", "out", "--ledger", "ledger.db")
        return kdgen(*base, *arguments, stdin=stdin)

    return run
