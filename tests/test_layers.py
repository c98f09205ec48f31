"""The shape of the package: imports point down, importing does nothing, modules stay small (design rules 1 and 2)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from server import ROOT, environment

PACKAGE = ROOT / "kdgen"
# A module may import from lines above its own, and from its own package. A package is named without its modules.
LAYERS = [
    {"kdgen", "aio", "errors", "record"},
    {"agreement", "features", "judging", "parse", "resources", "sandbox", "solutions", "tables"},
    {"loops"},
    {"filters", "prompts", "readers", "selection", "yamls"},
    {"cleaning", "documents"},
    {"shapes"},
    {"banks", "dedupe", "seeds", "store"},
    {"codebooks", "rubrics", "teachers", "verifiers"},
    {"export", "stages", "terms"},
    {"uses"},
    {"config"},
    {"manifest", "programs", "questions"},
    {"asking"},
    {"card", "progress"},
    {"bundle"},
    {"known"},
    {"runner"},
    {"planning"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {
    "vllm",
    "torch",
    "pydantic",
    "openai",
    "aiohttp",
    "numpy",
    "pyarrow",
    "xllamacpp",
    "rapidfuzz",
    "jinja2",
    "yaml",
    "rich.progress",
    "anthropic",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The package or module that a file belongs to, as LAYERS names it."""
    inner = path.relative_to(PACKAGE)
    return inner.parts[0] if len(inner.parts) > 1 else (inner.stem if inner.stem != "__init__" else "kdgen")


def imports(path: Path) -> set[str]:
    """The units of kdgen that a file imports, those for type checking alone left out."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{name.name}" for name in node.names} if module == "kdgen" else {module}
    units = set()
    for name in found:
        if name.split(".")[0] == "kdgen":
            parts = name.split(".")
            known = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
            units.add(parts[1] if known else "kdgen")
    return units


def test_every_module_has_its_layer() -> None:
    missing = sorted({unit(path) for path in MODULES} - set(LEVEL))
    assert not missing, f"say in LAYERS where they stand: {missing}"
    assert not sorted(set(LEVEL) - {unit(path) for path in MODULES}), "LAYERS names what is gone"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    here = unit(path)
    up = {name for name in imports(path) if name != here and LEVEL[name] >= LEVEL[here]}
    assert not up, f"{here} (layer {LEVEL[here]}) imports {sorted(up)}, which is not below it"


def test_the_layer_test_sees_an_import_that_points_up(tmp_path: Path) -> None:
    odd = tmp_path / "odd.py"
    odd.write_text(
        "def f():\n    from kdgen.runner import Run\n    import kdgen.cli.work\n    from kdgen import __version__\n"
    )
    assert imports(odd) == {"runner", "cli", "kdgen"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 330


IMPORT_ALL = r"""
import collections, importlib, json, os, pkgutil, sys

told = {"environment": [], "files": [], "imported": 0}
import pydantic, typer, yaml, orjson, jinja2, tenacity  # what other people's modules do is not looked at

def ours():
    frame = sys._getframe(2)
    while frame and frame.f_code.co_filename.endswith(("/os.py", "_collections_abc.py>", "<frozen os>", "_abc.py")) or \
            frame and "frozen" in frame.f_code.co_filename and "importlib" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and "/kdgen/" in frame.f_code.co_filename

plain = os._Environ.__getitem__
def read(self, key):
    if ours():
        told["environment"].append(str(key))
    return plain(self, key)
os._Environ.__getitem__ = read

def hook(event, args):
    if event in ("os.mkdir", "os.rename", "socket.connect", "subprocess.Popen", "os.symlink"):
        told["files"].append([event, str(args[0])])
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        told["files"].append([event, str(args[0])])
sys.addaudithook(hook)

import kdgen
for module in pkgutil.walk_packages(kdgen.__path__, "kdgen."):
    if module.name != "kdgen.__main__":
        importlib.import_module(module.name)
        told["imported"] += 1
told["environment"] = sorted(set(told["environment"]))
sys.__stderr__.write("TOLD" + json.dumps(told))
"""


def outcome(code: str, cwd: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_importing_does_nothing(tmp_path: Path) -> None:
    stdout, stderr = outcome(IMPORT_ALL, tmp_path)
    said, _, told = stderr.partition("TOLD")
    seen = json.loads(told)
    assert stdout == said == ""
    assert seen["environment"] == [], "importing kdgen reads the environment"
    assert seen["files"] == [] and list(tmp_path.iterdir()) == []
    assert seen["imported"] >= len(MODULES) - 3


def test_the_import_test_sees_a_read_of_the_environment(tmp_path: Path) -> None:
    """The watch itself: a module under a folder named kdgen that reads, makes a file and prints is seen."""
    package = tmp_path / "kdgen"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "bad.py").write_text(
        'import os\nos.getenv("PLANTED")\nos.environ.get("OTHER")\nos.makedirs("made")\nprint("hi")\n'
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + IMPORT_ALL
    stdout, stderr = outcome(code, tmp_path)
    seen = json.loads(stderr.partition("TOLD")[2])
    assert stdout == "hi\n"
    assert seen["environment"] == ["OTHER", "PLANTED"]
    assert seen["files"]


def test_the_command_line_starts_light(tmp_path: Path) -> None:
    code = "import sys, json, kdgen.cli; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(outcome(code, tmp_path)[0]))
    assert "kdgen.cli" in loaded
    assert not loaded & HEAVY


def test_loading_every_module_leaves_the_heavy_ones_for_later(tmp_path: Path) -> None:
    code = (
        "import sys, json, kdgen.runner, kdgen.teachers.local, kdgen.teachers.openai, kdgen.teachers.http;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = set(json.loads(outcome(code, tmp_path)[0]))
    assert not loaded & {"openai", "aiohttp", "numpy", "xllamacpp", "anthropic", "pyarrow"}
