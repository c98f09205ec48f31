"""Tables of facts that ship with kdgen, each with its sources and the day on which it was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent


def read_table(name: str) -> Any:
    """The content of a table. It is tested before it ships, so it is read by the fast parser, without line numbers."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 (both are safe)
