"""Dataset folders as a run leaves them, written without one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdgen.record import Record
from kdgen.store import dumps

TEACHER = {"label": "scripted:t", "licence": "apache-2.0", "origin": "https://example.com/t"}
TERMS = {
    "key": "t.terms", "status": "conditional", "role": "teacher", "teacher": "scripted:t", "use": "internal", "ack": None,
    "notices": ["Built with T."],
    "verdicts": [{"key": "t.terms", "status": "conditional", "asks": "Say so.", "read": "2026-11-24", "source": ""}],
}  # fmt: skip


def dataset(folder: Path, records: Iterable[Record], *, name: str = "made", licence: str = "CC0-1.0") -> Path:
    """A dataset of these records."""
    folder.mkdir(parents=True)
    lines = b"".join(dumps(record.__dict__) for record in records)
    (folder / "records.jsonl").write_bytes(lines)
    manifest: dict[str, Any] = {
        "kdgen": "0.1.0", "name": name, "about": f"About {name}.", "paper": "arXiv 1606.07947", "use": "internal", "student": "",
        "counts": {"rows": lines.count(b"\n")}, "teachers": {"teacher": TEACHER}, "terms": [TERMS],
        "seeds": {"licence": licence},
        "hashes": {
            "recipe": "r" * 20, "prompts": {}, "seeds": {"s.jsonl": "5" * 64},
            "files": {"records.jsonl": hashlib.sha256(lines).hexdigest()},
        },
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def answers(count: int, *, of: str = "", seeds: int = 0) -> list[Record]:
    """Answered tasks, each of its own seed or of one of `seeds`."""
    return [
        Record(
            id=f"{of}r{number}", instruction=f"Task {of}{number}", output=f"Answer {number} " + "so " * (number % 7),
            seeds=(f"{of}s{number % seeds if seeds else number}",), meta={"score": (number * 7) % 11},
        )
        for number in range(count)
    ]  # fmt: skip


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
