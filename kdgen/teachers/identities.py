"""A model by what it is: a name on the hub, or a folder of one's own with the digest of its files."""

from __future__ import annotations

import os
from pathlib import Path

from kdgen.record import digest
from kdgen.teachers.models import file_digest

MODEL_FILES = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".model", ".jinja", ".txt", ".tiktoken")


def path_of(name: str) -> str:
    """A model as its library takes it: a folder with ~ filled in, or the name."""
    folder = Path(os.path.expanduser(name))
    return str(folder) if folder.exists() else name


def name_of(name: str) -> str:
    """A model as rows name it: of a folder its name alone."""
    return Path(name).name if name.startswith(("/", "~", ".")) or Path(name).exists() else name


def identity_of(name: str) -> str:
    """A model as the ledger knows it: a hub's name as it is, a folder by its name and its files' digest."""
    folder = Path(os.path.expanduser(name))
    if not folder.exists():
        return name
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    found = [(file.name, file_digest(file)) for file in files if file.is_file() and file.suffix in MODEL_FILES]
    return f"{folder.name}@{digest(found)[:12]}"
