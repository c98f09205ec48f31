"""The jail: runs one program and watches it. A script of its own: it is started afresh, without kdgen and without an environment.

The specification comes on standard input, the outcome goes to standard output, both as JSON. Standard input stays open:
when it closes, whoever asked has gone, and the program is killed.

With `own` the program runs in new user, mount, process, network, IPC and host-name namespaces on a read-only root that
holds the interpreter and the system's libraries alone; with `bwrap` bubblewrap makes the same; with `none` it has
limits and an empty environment, and nothing more. In the first two a system-call filter forbids the program what could
lead around the namespaces (new namespaces, mounts, tracing, memory that no limit counts, sockets of other families).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from kdgen.sandbox.inside import INSIDE, MACHINES, NEW_PID, NEW_REST, NEW_USER, SCRATCH, become, call, fail

NOBODY = 65534  # whom root's programs run as
TICK = 0.02
PATIENCE = 10.0  # with processes that the kernel does not let go
NOSUID, NODEV, REC, SLAVE, DETACH = 2, 4, 0x4000, 0x80000, 2
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR, PIVOT_ROOT = 428, 429, 442, (155, 41)
CWD, EMPTY_PATH, RECURSIVE, CLOEXEC = -100, 0x1000, 0x8000, 0o2000000
READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4
PDEATHSIG, SUBREAPER = 1, 36


def write(path: str, text: str) -> None:
    """Write a file of /proc in one go."""
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


def own(spec: dict[str, Any], fds: Sequence[int], status: int) -> int:
    """Start the program in namespaces of our own; the process that is the first inside."""
    if platform.machine() not in MACHINES:
        raise OSError(f"no system-call filter for {platform.machine()}")
    user, group = os.geteuid(), os.getegid()
    go, told = os.pipe()
    # Only a process outside may give root's programs another user; the kernel does not count root's processes.
    helper = os.fork() if user == 0 else None
    if helper == 0:
        os.close(told)
        os._exit(0 if os.read(go, 1) and _map(os.getppid()) else 1)
    call("unshare", NEW_USER | NEW_PID)
    if helper is None:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{INSIDE} {user} 1")
        write("/proc/self/gid_map", f"{INSIDE} {group} 1")
    else:
        os.write(told, b"x")
        if os.waitpid(helper, 0)[1]:
            raise OSError("no user could be mapped")
    first = os.fork()
    if first:
        return first
    try:
        call("prctl", PDEATHSIG, signal.SIGKILL)
        call("unshare", NEW_REST)
        call("sethostname", b"sandbox", 7)
        _enter(spec)
        program = os.fork()
        if not program:
            become(spec, fds, status, SCRATCH)
        while (ended := os.waitpid(-1, 0))[0] != program:
            pass
        os.write(status, b"S%d\n" % ended[1])
        os._exit(0)  # and the kernel kills whoever is left inside
    except BaseException as error:
        fail(status, error)


def _map(pid: int) -> bool:
    for users in (f"0 0 1\n{INSIDE} {NOBODY} 1", f"{INSIDE} 0 1"):
        with contextlib.suppress(OSError):
            write(f"/proc/{pid}/uid_map", users)
            write(f"/proc/{pid}/gid_map", users)
            return True
    return False


def _enter(spec: dict[str, Any]) -> None:
    """A root of its own: what `binds` names, read-only, and an empty /tmp of a limited size."""
    call("mount", None, b"/", None, REC | SLAVE, None)
    trees = [
        (path, call("syscall", OPEN_TREE, CWD, path.encode(), 1 | CLOEXEC | RECURSIVE))
        for path in (*spec["binds"], *spec["devices"])
    ]
    call("mount", b"tmpfs", SCRATCH.encode(), b"tmpfs", NOSUID | NODEV, b"size=1m,mode=755")
    os.chdir(SCRATCH)
    os.mkdir("proc")
    os.mkdir("tmp")
    size = f"size={spec['disk']},nr_inodes=4096,mode=1777"
    call("mount", b"tmpfs", b"tmp", b"tmpfs", NOSUID | NODEV, size.encode())
    for path, tree in trees:
        os.makedirs(os.path.dirname("." + path), exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{tree}"):
            os.makedirs("." + path)
        else:
            os.close(os.open("." + path, os.O_CREAT | os.O_WRONLY))
        flags = NO_SUID if path in spec["devices"] else READ_ONLY | NO_SUID | NO_DEV
        _set(tree, b"", EMPTY_PATH | RECURSIVE, flags)
        call("syscall", MOVE_MOUNT, tree, b"", CWD, ("." + path).encode(), 4)
        os.close(tree)
    for path, target in spec["links"].items():
        os.symlink(target, "." + path)
    with contextlib.suppress(OSError):  # a container that hides parts of /proc lets nobody see another
        call("mount", b"proc", b"proc", b"proc", NOSUID | NODEV, b"subset=pid")
    call("syscall", PIVOT_ROOT[MACHINES[platform.machine()][0]], b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/")
    _set(CWD, b"/", 0, READ_ONLY)


def _set(folder: int, path: bytes, how: int, flags: int) -> None:
    call("syscall", MOUNT_SETATTR, folder, path, how, struct.pack("QQQQ", flags, 0, 0, 0), 32)


def bwrap(spec: dict[str, Any], fds: Sequence[int], status: int) -> int:
    """Start the program with bubblewrap, which runs this file again inside."""
    told = os.memfd_create("spec")
    os.write(told, json.dumps(spec).encode())
    os.lseek(told, 0, os.SEEK_SET)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside.py")
    argv = [spec["bwrap"], "--unshare-all", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    argv += ["--uid", str(INSIDE), "--gid", str(INSIDE)]
    argv += ["--size", str(spec["disk"]), "--tmpfs", SCRATCH]
    for path in spec["binds"]:
        argv += ["--ro-bind", path, path]
    for path in spec["devices"]:
        argv += ["--dev-bind", path, path]
    for path, target in spec["links"].items():
        argv += ["--symlink", target, path]
    argv += ["--ro-bind", script, "/inside.py"]
    argv += ["--remount-ro", "/", "--", spec["argv"][0], "-I", "-S", "/inside.py", str(told), str(status)]
    child = os.fork()
    if child:
        return child
    try:
        for place, fd in enumerate(fds):
            os.dup2(fd, place)
        os.set_inheritable(told, True)
        os.set_inheritable(status, True)
        os.execve(argv[0], argv, {})
    except BaseException as error:
        fail(status, error)


def none(spec: dict[str, Any], fds: Sequence[int], status: int) -> int:
    """Start the program with limits alone, in a new folder."""
    child = os.fork()
    return child or become(spec, fds, status, spec["scratch"])


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children") as file:
                    found += [int(child) for child in file.read().split()]
    return found


def used(pids: Sequence[int]) -> int:
    """The bytes of memory that are these processes' own."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm") as file:
            numbers = file.read().split()
            total += int(numbers[1]) - int(numbers[2])
    return total * resource.getpagesize()


def watch(spec: dict[str, Any], child: int, out: int, err: int, status: int) -> dict[str, Any]:
    """Read what the program says until it has ended, and end it where it passes a limit."""
    texts = {out: bytearray(), err: bytearray(), status: bytearray()}
    poll = select.poll()
    for fd in (0, *texts):
        poll.register(fd, select.POLLIN | select.POLLHUP)
    opened, reason, begun, due = len(texts), "", time.monotonic(), 0.0
    helpers = {"own": 1, "bwrap": 2, "none": 0}[spec["mode"]]
    while True:
        for fd, _ in poll.poll(TICK * 1000 if opened else 1):
            data = os.read(fd, 65536)
            if fd == 0:
                reason = reason or "cancelled"
            elif not data:
                poll.unregister(fd)
                opened -= 1
            else:
                room = (1 << 16 if fd == status else spec["output"]) - len(texts[fd])
                texts[fd] += data[: max(0, room)]
                reason = reason or ("output" if len(data) > room else "")
        now = time.monotonic()
        if not reason and now > begun + spec["wall"]:
            reason = "timeout"
        elif not reason and now > due and sys.platform == "linux":
            pids, due = tree(child), now + TICK
            reason = "processes" if len(pids) - helpers > spec["processes"] else ""
            reason = reason or ("memory" if used(pids) > spec["memory"] else "")
        if reason:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
            break
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
    _, ended, usage = os.wait4(child, 0)
    clear()
    for fd, heard in texts.items():
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while len(heard) < spec["output"] and (data := os.read(fd, 65536)):
                heard.extend(data[: spec["output"] - len(heard)])
    lines = bytes(texts[status]).decode("utf-8", "replace").splitlines()
    if trouble := next((line[1:] for line in lines if line.startswith("E")), ""):
        return {"error": trouble}
    if "R" not in lines and not reason:
        return {"error": bytes(texts[err]).decode("utf-8", "replace").strip()[-300:] or "nothing began"}
    ended = next((int(line[1:]) for line in lines if line.startswith("S")), ended)
    code = os.waitstatus_to_exitcode(ended)
    code = 128 - code if spec["mode"] == "bwrap" and 128 < code < 193 else code
    # Bubblewrap does not tell how long the program was busy, only when it ended.
    busy = now - begun if spec["mode"] == "bwrap" else usage.ru_utime + usage.ru_stime
    # One that is deaf to the limit's signal is killed a second later; the kernel's two clocks differ.
    if not reason and (code == -signal.SIGXCPU or (code == -signal.SIGKILL and busy > spec["cpu"] / 2)):
        reason = "timeout"
    said = {name: bytes(texts[fd]).decode("utf-8", "replace") for name, fd in (("stdout", out), ("stderr", err))}
    return {"reason": reason, "status": code, **said}


def clear() -> None:
    """Kill what is left of a program. Of one in a namespace of our own the kernel has left nothing."""
    end = time.monotonic() + PATIENCE
    while (left := tree(os.getpid())[1:]) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)


def entered(text: str) -> int:
    """A file that holds the program's input, open for reading alone."""
    data = text.encode("utf-8", "replace")
    if sys.platform == "linux":
        fd = os.memfd_create("stdin")
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    import tempfile

    with tempfile.NamedTemporaryFile() as spooled:
        spooled.write(data)
        spooled.flush()
        return os.open(spooled.name, os.O_RDONLY)


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Run one program to its end: `reason` (where it was stopped), `status`, `stdout`, `stderr`; or an `error`."""
    if sys.platform == "linux":
        call("prctl", SUBREAPER, 1)  # orphans come to this process, which ends them
    out, err, status = os.pipe(), os.pipe(), os.pipe()
    start = {"own": own, "bwrap": bwrap, "none": none}[spec["mode"]]
    child = start(spec, (entered(spec["stdin"]), out[1], err[1]), status[1])
    for pipe in (out, err, status):
        os.close(pipe[1])
    return watch(spec, child, out[0], err[0], status[0])


def main() -> None:
    """Run what standard input says: a line with its length, then the specification."""
    with open(0, "rb", buffering=0, closefd=False) as file:
        count, text = int(file.readline() or 0), b""
        while len(text) < count and (part := file.read(count - len(text))):
            text += part
    spec = json.loads(text)
    try:
        if spec["mode"] == "none":
            import tempfile

            with tempfile.TemporaryDirectory(prefix="kdgen-", ignore_cleanup_errors=True) as folder:
                told = run({**spec, "scratch": folder})
        else:
            told = run(spec)
    except OSError as error:
        told = {"error": str(error)}
    os.write(1, json.dumps(told).encode())
