"""`kdgen doctor`: the whole set-up, one line per check. Nothing is sent but to servers that are named, and nothing is billed."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from kdgen import __version__
from kdgen.cli.job import pretty
from kdgen.cli.teachers import specs_of
from kdgen.errors import UserError
from kdgen.sandbox.box import Sandbox
from kdgen.teachers.ledger import VERSION
from kdgen.teachers.local import cpus
from kdgen.teachers.models import MODELS, cache_dir
from kdgen.teachers.prices import shipped
from kdgen.teachers.probe import probe, version
from kdgen.terms import table

Level = Literal["ok", "warn", "fail"]
DEFAULT = "qwen2.5-coder-0.5b"
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "VLLM_API_KEY")
# What changes a run and is easily forgotten.
SETTINGS = (
    "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_CUSTOM_HEADERS", "KDGEN_LEDGER", "KDGEN_CACHE", "KDGEN_MODELS_DIR", "KDGEN_PRICES", "KDGEN_DEBUG",
)  # fmt: skip
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
PACKAGES = "pydantic typer orjson aiohttp openai tenacity jinja2 yaml numpy rapidfuzz rich dotenv".split()
OPTIONAL = (("anthropic", "anthropic:"), ("vllm", "vllm: in this process"))
SCARCE, FULL = 2e9, 1e8
OLD, SKEWED = 90, 60.0


class Check(NamedTuple):
    """One line of the report."""

    name: str
    level: Level
    said: str
    hint: str = ""


def doctor(names: Sequence[str], *, ledger: str, as_json: bool) -> bool:
    """Print every check; whether none failed. The servers of `names` (specs, recipe files) are asked for their models."""
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _cache,
        _embedded,
        lambda: _ledger(Path(ledger)),
        lambda: _disk(Path(ledger)),
        _keys,
        _settings,
        _gpu,
        _sandbox,
        _tables,
        lambda: _servers(names),
    )
    checks = [check for look in looks for check in look()]
    if as_json:
        print(pretty({"checks": [check._asdict() for check in checks]}), end="")
    else:
        for check in checks:
            print(
                f"{check.level:5} {check.name:10} {check.said}" + (f"\n{'':17}hint: {check.hint}" if check.hint else "")
            )
    return all(check.level != "fail" for check in checks)


def _python() -> Iterator[Check]:
    enough = sys.version_info >= (3, 11)
    said = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cpus()} CPUs"
    yield Check("python", "ok" if enough else "fail", said, "" if enough else "kdgen needs Python 3.11 or newer")
    yield Check("kdgen", "ok", f"{__version__}, ledgers of version {VERSION}")


def _packages() -> Iterator[Check]:
    lost = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    said = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("openai", "aiohttp", "pydantic", "typer")
                     if name not in lost)  # fmt: skip
    if lost:
        yield Check("packages", "fail", f"missing: {', '.join(lost)}", "pip install --force-reinstall kdgen")
    else:
        yield Check("packages", "ok", said)
    have, install = version("local")
    yield Check(
        "local", "warn" if install else "ok", have, f"the embedded teacher needs it: {install}" if install else ""
    )
    for name, what in OPTIONAL:
        have, install = version(name)
        yield Check(name, "ok", have + (f" (only {what} needs it: {install})" if install else ""))
    parquet = importlib.util.find_spec("pyarrow")
    yield Check("parquet", "ok", f"pyarrow {importlib.metadata.version('pyarrow')}" if parquet
                else "pyarrow is not installed (only .parquet files need it: pip install 'kdgen[parquet]')")  # fmt: skip


def _sandbox() -> Iterator[Check]:
    try:
        how = "Linux namespaces" if Sandbox().ready() == "own" else "bubblewrap"
        yield Check("sandbox", "ok", f"programs that teachers write run in {how}")
    except UserError as error:
        yield Check("sandbox", "warn", f"only methods that run programs need it: {error.cause}", error.hint)


def _cache() -> Iterator[Check]:
    folder = cache_dir()
    trouble = _unwritable(folder)
    hint = "set KDGEN_CACHE to another folder" if trouble else ""
    yield Check("cache", "fail" if trouble else "ok", str(folder) + (f": {trouble}" if trouble else ""), hint)


def _unwritable(folder: Path) -> str:
    """Why nothing can be written in a folder, or in the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"


def _embedded() -> Iterator[Check]:
    """The named models that are here, read in full: what a disk has lost since is seen too."""
    own = os.environ.get("KDGEN_MODELS_DIR")
    for name, model in MODELS.items():
        places = [Path(own) / model.file] if own else []
        path = next((each for each in (*places, cache_dir() / "models" / model.file) if each.is_file()), None)
        if path is None:
            if name == DEFAULT:
                get = f"kdgen teachers pull {name}; the first run does it too"
                yield Check("model", "warn", f"{name} is not here ({model.size / 1e6:,.0f} MB)", get)
            continue
        try:
            with path.open("rb") as file:
                fine = hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
        except OSError as error:
            yield Check("model", "fail", f"{name}: {path} cannot be read ({error.strerror})")
            continue
        hint = "" if fine else f"remove {path}, then: kdgen teachers pull {name}"
        yield Check(
            "model", "ok" if fine else "fail", f"{name}: its SHA-256 is {'' if fine else 'not '}the publisher's", hint
        )


def _ledger(path: Path) -> Iterator[Check]:
    if not path.exists():
        trouble = _unwritable(path.parent)
        yield Check("ledger", "fail" if trouble else "ok", f"{path} is not there yet" + (f": {trouble}" if trouble else ""),
                    "name another with --ledger PATH" if trouble else "")  # fmt: skip
        return
    sizes = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.exists())
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=2)) as db:
            made = db.execute("PRAGMA user_version").fetchone()[0]
            if made != VERSION:
                hint = "use the kdgen that made it, or another --ledger"
                yield Check("ledger", "fail", f"{path} is of version {made}, this kdgen writes {VERSION}", hint)
                return
            sound = db.execute("PRAGMA quick_check").fetchone()[0]
            if sound != "ok":
                yield Check("ledger", "fail", f"{path} is damaged: {sound}", "restore it from a copy, or move it away")
                return
            counts = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("calls", "claims")}  # noqa: S608
            out = db.execute(
                "SELECT count(*) FROM batches WHERE state IN ('prepared','submitted','cancelling')"
            ).fetchone()
            said = f"{path}: {counts['calls']:,} replies, {sizes / 1e6:,.1f} MB, SQLite {sqlite3.sqlite_version}"
            said += f", {out[0]} batches out" if out[0] else ""
            said += f", {counts['claims']} requests in flight or left by a crash" if counts["claims"] else ""
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
            yield Check("ledger", "ok", said)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            yield Check("ledger", "warn", f"{path} is being written by another process")
        else:
            yield Check("ledger", "fail", f"{path}: {error}", "name another with --ledger PATH")
    except sqlite3.Error as error:
        yield Check("ledger", "fail", f"{path}: {error}", "restore it from a copy, or move it away")


def _disk(ledger: Path) -> Iterator[Check]:
    for place in (ledger.absolute().parent, cache_dir()):
        folder = next(each for each in (place, *place.parents) if each.exists())
        free = shutil.disk_usage(folder).free
        level: Level = "fail" if free < FULL else "warn" if free < SCARCE else "ok"
        hint = "" if level == "ok" else "a reply that cannot be stored ends the run: free some space"
        yield Check("disk", level, f"{free / 1e9:,.1f} GB free at {folder}", hint)


def _keys() -> Iterator[Check]:
    for name in KEYS:
        key = os.environ.get(name, "").strip()
        if not key:
            yield Check("key", "ok", f"{name} is not set")
        elif not key.isascii() or any(mark.isspace() for mark in key):
            yield Check("key", "fail", f"{name} holds characters that no key has", "set it again")
        else:
            yield Check("key", "ok", f"{name} is set")


def _settings() -> Iterator[Check]:
    given = [name for name in SETTINGS if os.environ.get(name)]
    yield Check("settings", "ok", f"set: {', '.join(given)}" if given else "none in the environment")
    for name, what in (("OPENAI_BASE_URL", "openai:"), ("ANTHROPIC_BASE_URL", "anthropic:")):
        if os.environ.get(name):
            hint = f"unset it, or name the address in the recipe: {what}MODEL@BASE_URL"
            yield Check(
                "settings", "warn", f"{name} sends {what}MODEL, and its key, to another address than its own", hint
            )
    proxies = [name for name in os.environ if name.upper() in PROXIES and os.environ[name]]
    if any(name.upper() != "NO_PROXY" for name in proxies):
        said = f"{', '.join(sorted(proxies))}: anthropic: and openai: go through it; openai: and vllm: at a BASE_URL do not"
        yield Check("proxy", "ok", said)
    else:
        yield Check("proxy", "ok", "none in the environment")


def _gpu() -> Iterator[Check]:
    cards = len(list(Path("/dev").glob("nvidia[0-9]*"))) + Path("/dev/kfd").exists()
    here = importlib.util.find_spec("vllm") is not None
    if here and not cards:
        hint = "on a GPU it is 10 to 100 times as fast; a server elsewhere is vllm:MODEL@BASE_URL"
        yield Check("gpu", "warn", "none is seen, so vllm:MODEL runs on the CPU or not at all", hint)
    else:
        yield Check("gpu", "ok", f"{cards} seen" if cards else "none (only vllm: in this process asks for one)")


def _tables() -> Iterator[Check]:
    today = datetime.now(UTC).date()
    for name, read in (("prices", shipped().read), ("terms", table().read)):
        age = (today - (read or date.min)).days
        old = f"{age} days old: look whether it still holds" if age > OLD else ""
        yield Check(name, "warn" if old else "ok", f"the table was read on {read}", old)


def _servers(names: Sequence[str]) -> Iterator[Check]:
    specs = [spec for name in names for _, spec, _, _ in specs_of(name)]
    for spec, answers in zip(specs, asyncio.run(probe(specs)) if specs else [], strict=True):
        for answer in answers:
            if answer.trouble:
                yield Check("server", "fail", f"{spec.label} at {answer.url}: {answer.trouble}", answer.hint)
                continue
            engine = f" ({answer.engine})" if answer.engine else ""
            level: Level = "warn" if answer.notes else "ok"
            yield Check(
                "server", level, f"{spec.label} at {answer.url}{engine}" + "".join(f"; {note}" for note in answer.notes)
            )
            if answer.skew is not None:
                far = abs(answer.skew) > SKEWED
                ahead = f"{abs(answer.skew):.0f} s {'ahead of' if answer.skew > 0 else 'behind'} {answer.url}"
                said = f"the clock here is {ahead}" if far else f"the clock agrees with {answer.url}"
                yield Check(
                    "clock", "warn" if far else "ok", said, "set the clock: waits and dates go by it" if far else ""
                )
