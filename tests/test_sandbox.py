"""The sandbox: hostile programs are contained, each with its reason, and nothing of them is left running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server import ROOT

from kdgen.errors import EndpointError, UserError
from kdgen.sandbox import box as boxes
from kdgen.sandbox.box import Outcome, Sandbox

SYSTEM_PYTHON = "/usr/bin/python3"
Run = Callable[..., Outcome]


def isolated() -> str:
    """Why nothing can be isolated here, if so."""
    try:
        Sandbox().ready()
    except UserError as error:
        return str(error)
    return ""


CANNOT = isolated()


def as_somebody(mode: boxes.Mode, folder: Path, box: Sandbox, source: str, **more: object) -> Outcome:
    """What an ordinary user gets: a copy of the jail, run as nobody with the system's Python."""
    spec = boxes._spec(box.model_copy(update={"python": SYSTEM_PYTHON}), mode, source, "", {})
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", SYSTEM_PYTHON]
    jail = subprocess.Popen(
        [*command, *boxes._jail()[1:-1], str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, cwd="/"
    )
    with jail:
        assert jail.stdin is not None and jail.stdout is not None
        jail.stdin.write(spec)
        jail.stdin.flush()
        return boxes._outcome(jail.stdout.read())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the jail that everybody may read."""
    folder = Path("/var/tmp") / f"kdgen-jail-{os.getpid()}"
    shutil.copytree(ROOT / "kdgen/sandbox", folder / "kdgen/sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "kdgen/__init__.py").touch()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["here", "somebody", "bwrap"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a program in isolation: as whoever runs the tests, as an ordinary user, and with bubblewrap."""
    if CANNOT:
        pytest.skip(CANNOT)
    if request.param == "here":
        return lambda source, **limits: asyncio.run(Sandbox(**limits).run(source))
    if os.geteuid() != 0 or not os.path.exists(SYSTEM_PYTHON) or not shutil.which("setpriv"):
        pytest.skip("only root can become somebody else")
    if request.param == "bwrap" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    mode: boxes.Mode = "bwrap" if request.param == "bwrap" else "own"
    folder = request.getfixturevalue("copy")
    return lambda source, **limits: as_somebody(mode, folder, Sandbox(**limits), source)


def alive(mark: str) -> list[str]:
    """The processes anywhere whose command line or environment has `mark`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            said = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
            if mark.encode() in said:
                found.append(pid)
    return found


NAME = "import ctypes; ctypes.CDLL(None).prctl(15, b'%s')\n"
HOSTILE = {
    "fork bomb": ("import os\nwhile True: os.fork()", "processes"),
    "fork bomb that goes on": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "processes",
    ),
    "threads": ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()", None),
    "endless loop": ("while True: pass", "timeout"),
    "endless sleep": ("import time; time.sleep(999)", "timeout"),
    "deaf to signals": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        "timeout",
    ),
    "10 GB at once": ("x = bytearray(10 << 30)", "memory"),
    "10 GB bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
    "memory of many": (
        "import os, time\nfor n in range(8):\n    if not os.fork():\n        x = bytearray(b'1') * (60 << 20)\n"
        "        time.sleep(99)\ntime.sleep(99)",
        "memory",
    ),
    "huge output": ("while True: print('x' * 1000)", "output"),
    "huge complaint": ("import sys\nwhile True: print('x' * 1000, file=sys.stderr)", "output"),
    "kills itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed"),
    "one big file": ("f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 20))", "failed"),
    "many files": ("for n in range(99): open(str(n), 'wb').write(bytes(1 << 20))", "failed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_ended_with_its_reason(run: Run, name: str) -> None:
    source, reason = HOSTILE[name]
    mark = f"kd{os.getpid()}x{sorted(HOSTILE).index(name)}"[:15]
    made = run(NAME % mark + source, cpu=1, wall=3.0, memory=192, disk=8)
    assert made.reason == (reason or made.reason) != "ok", made.stderr[-300:]
    assert len(made.stdout) <= 65536 and len(made.stderr) <= 65536
    assert alive(mark) == []


def test_the_first_process_inside_cannot_be_killed(run: Run) -> None:
    source = "import os\nfor n in (15, 9, 19):\n    try: os.kill(1, n)\n    except OSError: pass\nprint('on')"
    assert run(source)[:3] == ("ok", 0, "on\n")


def test_children_that_went_their_own_way_are_ended(run: Run) -> None:
    mark = f"kd{os.getpid()}d"
    source = (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        os.close(1); os.close(2)\n"
        "        time.sleep(99)\n    os._exit(0)\nos.wait(); print('bye')"
    )
    assert run(NAME % mark + source)[:3] == ("ok", 0, "bye\n")
    assert alive(mark) == []


TRY = "import sys\ntry:\n    %s\nexcept OSError as error: print(type(error).__name__)\nelse: print('DONE')"


@pytest.mark.parametrize(
    "act",
    [
        "open('/usr/new', 'w')",
        "open('/etc/new', 'w')",
        "open('/new', 'w')",
        "open('/dev/shm/../../new', 'w')",
        "open(sys.executable, 'r+b')",
        "__import__('os').mkdir('/root/new')",
        "__import__('os').chmod('/usr', 0o777)",
        "__import__('os').mknod('null', 0o20666, 0x103)",
        "__import__('os').setuid(0)",
        "__import__('os').chroot('.')",
        "__import__('os').listdir('/proc/1/root/')",
        "open('/proc/1/mem', 'rb')",
        "open('/proc/sys/kernel/core_pattern', 'w')",
        "__import__('socket').create_connection(('127.0.0.1', PORT), 2)",
        "__import__('socket').create_connection(('::1', PORT), 2)",
        "__import__('socket').create_connection(('192.0.2.1', 80), 2)",
        "__import__('socket').getaddrinfo('example.org', 80)",
        "__import__('socket').socket(16, 3)",
        "__import__('socket').socket(40, 1)",
        "__import__('os').memfd_create('x')",
    ],
)
def test_what_a_program_may_not_do(run: Run, act: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = run(TRY % act.replace("PORT", str(server.getsockname()[1])))
    assert made.reason == "ok" and made.stdout.strip() != "DONE", made


def test_system_calls_that_lead_out_are_refused(run: Run) -> None:
    source = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.unshare(0x10000000), libc.mount(b'x', b'/tmp', b'tmpfs', 0, None), libc.ptrace(0, 0, 0, 0),"
        "libc.shmget(0, 4096, 0o1600), libc.syscall(435, 0, 0), libc.syscall(425, 8, 0))"
    )
    assert run(source).stdout == "-1 -1 -1 -1 -1 -1\n"


def test_the_users_files_and_environment_are_not_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    secret = tmp_path / "secret.txt"
    secret.write_text("sk-secret")
    secret.chmod(0o644)
    source = (
        "import os, glob\nos.symlink(%r, 'link'); os.symlink('/', 'top')\n"
        "for path in (%r, 'link', 'top' + %r, '/proc/1/environ', '/proc/self/environ', '/proc/1/cwd/' + %r):\n"
        "    try: print(open(path).read().replace(chr(0), ' '))\n"
        "    except OSError as error: print(type(error).__name__)\n"
        "print(dict(os.environ), os.listdir('/'), os.listdir('.'), glob.glob('/proc/*/environ'))\n"
    ) % ((str(secret),) * 4)
    made = run(source)
    assert made.reason == "ok" and "secret" not in made.stdout.replace("'link'", ""), made
    assert "FileNotFoundError" in made.stdout and "'HOME': '/tmp'" in made.stdout
    home = run(TRY % f"print(sorted(__import__('os').listdir({str(Path.home())!r})))")
    shown = set(os.listdir(Path.home())) if os.access(Path.home(), os.R_OK) else set()
    assert not {name for name in shown if repr(name) in home.stdout} - set(Path(sys.base_prefix).parts)


def test_an_ordinary_program_says_the_same_each_time(run: Run) -> None:
    source = (
        "import os\nopen('a.txt', 'w').write('é'); print(open('a.txt').read(), object(), hash('x'), {'a', 'b', 'c'},"
        "os.getcwd(), os.getpid(), os.uname().nodename)\nimport threading\n"
        "threading.Thread(target=print, args=('thread',)).start()"
    )
    first, second = run(source), run(source)
    assert first.reason == "ok", first
    assert first == second and "é" in first.stdout and "/tmp" in first.stdout


def go(source: str, stdin: str = "", files: dict[str, str] | None = None, **limits: object) -> Outcome:
    if CANNOT:
        pytest.skip(CANNOT)
    return asyncio.run(Sandbox(**limits).run(source, stdin, files))


def test_input_and_files_are_there() -> None:
    made = go(
        "import other\nprint(input(), other.X, open('d/n.txt').read())",
        "a line\n",
        {"other.py": "X = 3", "d/n.txt": "n"},
    )
    assert made[:3] == ("ok", 0, "a line 3 n\n")
    assert go("print(open('/dev/stdin').read() == 'y' * 300000)", "y" * 300000).stdout == "True\n"
    assert "Bad file descriptor" in go("import os; os.write(0, b'x')", "text").stderr


def test_a_failure_is_told() -> None:
    made = go("print(1)\nraise ValueError('no')")
    assert made[:3] == ("failed", 1, "1\n") and made.why == "failed: ValueError: no"
    assert go("import sys; sys.exit(3)").why == "failed: exit status 3"
    assert go("x = (").why.startswith("failed: SyntaxError")
    assert go("print('\\udcff', b'\\xff'.decode('latin-1'))").reason == "ok"


def test_packages_of_a_given_python_can_be_imported(tmp_path: Path) -> None:
    made = go("import pydantic")
    assert made.reason == "failed" and "No module named 'pydantic'" in made.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    site = next((tmp_path / "v").glob("lib/python*/site-packages"))
    (site / "mine.py").write_text("X = 4")
    assert go("import mine; print(mine.X)", python=str(tmp_path / "v/bin/python")).stdout == "4\n"
    with pytest.raises(UserError, match="no Python runs at"):
        go("", python=str(tmp_path / "none"))


def test_many_run_at_once_and_a_cancelled_one_is_ended() -> None:
    mark = f"kd{os.getpid()}c"

    async def all_of_them() -> None:
        box = Sandbox()
        made = await asyncio.gather(*(box.run(f"print({n})") for n in range(8)))
        assert [each.stdout for each in made] == [f"{n}\n" for n in range(8)]
        slow = asyncio.create_task(box.run(NAME % mark + "print(1)\nimport time; time.sleep(99)"))
        while not alive(mark):
            await asyncio.sleep(0.01)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert alive(mark) == []

    if CANNOT:
        pytest.skip(CANNOT)
    asyncio.run(all_of_them())


def test_without_isolation_there_are_limits_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    mark = f"kd{os.getpid()}n"
    box = Sandbox(isolation="none", cpu=1, wall=3.0, memory=192)

    def say(source: str) -> Outcome:
        return asyncio.run(box.run(NAME % mark + source))

    made = say("import os; print(os.getcwd(), dict(os.environ))")
    assert made.reason == "ok" and "secret" not in made.stdout
    assert not Path(made.stdout.split()[0]).exists()
    assert say("while True: pass").reason == "timeout"
    assert say("x = bytearray(10 << 30)").reason == "memory"
    assert say("while True: print('x' * 1000)").reason == "output"
    daemon = (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork(): time.sleep(99)\n    os._exit(0)\n"
    )
    assert say(daemon + "os.wait()").reason == "ok"
    assert alive(mark) == []


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which no namespace can be had."""
    monkeypatch.setattr(
        boxes, "_jail", lambda: [sys.executable, "-c", 'print(\'{"error": "unshare : not permitted"}\')']
    )
    monkeypatch.setattr(shutil, "which", lambda name: None)
    boxes._mode.cache_clear()
    yield
    boxes._mode.cache_clear()


def test_where_nothing_can_be_isolated_nothing_runs(nowhere: None) -> None:
    with pytest.raises(UserError) as told:
        Sandbox().ready()
    assert "cannot be isolated here" in str(told.value) and "unshare : not permitted" in str(told.value)
    assert "isolation to none" in told.value.hint and told.value.exit_code == 2
    assert Sandbox(isolation="none").ready() == "none"


def test_a_machine_without_room_is_an_error_of_its_own() -> None:
    for told in (b"", json.dumps({"error": "unshare: no space"}).encode()):
        with pytest.raises(EndpointError, match="could not run a program"):
            boxes._outcome(told)


def test_a_program_that_outlives_its_caller_is_killed() -> None:
    """SIGKILL for kdgen itself: the jail sees that nobody listens and ends the program."""
    if CANNOT:
        pytest.skip(CANNOT)
    mark = f"kd{os.getpid()}k"
    program = NAME % mark + "import time; time.sleep(99)"
    code = f"import asyncio; from kdgen.sandbox.box import Sandbox; asyncio.run(Sandbox().run({program!r}))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as caller:
        tick = threading.Event()
        while not alive(mark):
            tick.wait(0.01)
        caller.kill()
    for _ in range(1000):
        if not alive(mark):
            return
        tick.wait(0.01)
    raise AssertionError("the program still runs")
