"""The last step into the jail: limits, the system-call filter, and the program in this process's place.

Bubblewrap runs this file as a script inside its namespaces, so it imports nothing of kdgen.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
INSIDE = 1000  # the user inside
SCRATCH = "/tmp"  # the one inside
NEW_USER, NEW_PID = 0x10000000, 0x20000000
NEW_REST = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x40000000  # mounts, cgroups, host name, IPC, network
NO_NEW_PRIVS, SECCOMP, NO_RANDOMIZE = 38, 22, 0x0040000
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97

# Numbers on x86-64 and on 64-bit ARM.
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CLONE, SOCKET, SOCKETPAIR = (56, 220), (41, 198), (53, 199)
CLONE3 = 435
FAMILIES = (1, 2, 10)  # local, IPv4, IPv6: the others are not all of a network namespace
DENIED = (
    (165, 40), (166, 39), (155, 41), (161, 51), (272, 97), (308, 268), (101, 117), (310, 270), (311, 271), (321, 280),
    (298, 241), (250, 219), (248, 217), (249, 218), (323, 282), (319, 279), (29, 194), (64, 190), (68, 186), (240, 180),
    (246, 104), (175, 105), (313, 273), (303, 264), (304, 265), *((number, number) for number in (
        425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 447)),
)  # fmt: skip
# mount umount2 pivot_root chroot unshare setns ptrace process_vm_readv process_vm_writev bpf
# perf_event_open keyctl add_key request_key userfaultfd memfd_create shmget semget msgget mq_open
# kexec_load init_module finit_module name_to_handle_at open_by_handle_at
# io_uring (3), open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_getfd, mount_setattr, memfd_secret


def call(name: str, *args: Any) -> int:
    """A function of the C library; raises OSError where it fails."""
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    done = int(getattr(LIBC, name)(*wide))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} {args[0] if name == 'syscall' else ''}: {os.strerror(number)}")
    return done


def become(spec: dict[str, Any], fds: Sequence[int], status: int, folder: str) -> NoReturn:
    """Turn this process into the program."""
    try:
        jailed = spec["mode"] != "none"
        os.setsid()
        if spec["mode"] == "own" and os.getuid() == 0:
            os.setgroups([])
            os.setresgid(INSIDE, INSIDE, INSIDE)
            os.setresuid(INSIDE, INSIDE, INSIDE)
        os.chdir(folder)
        for name, text in spec["files"].items():
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "xb") as file:
                file.write(text.encode("utf-8", "replace"))
        for place, fd in enumerate(fds):
            os.dup2(fd, place)
        for what, most in (
            ("AS", spec["memory"]), ("CPU", spec["cpu"]), ("FSIZE", spec["disk"]), ("NOFILE", 256), ("CORE", 0),
            ("MEMLOCK", 0), ("MSGQUEUE", 0), ("NPROC", spec["processes"] + 3 + (0 if jailed else _busy())),
        ):  # fmt: skip
            with contextlib.suppress(ValueError, OSError, AttributeError):  # not known here, or lower already
                resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, most + (what == "CPU")))
        if jailed:
            LIBC.personality(NO_RANDOMIZE)  # addresses that a program prints are the same each time
            _forbid()
        os.set_inheritable(status, False)
        os.write(status, b"R\n")
        os.execve(spec["argv"][0], spec["argv"], spec["env"])
    except BaseException as error:
        fail(status, error)


def _busy() -> int:
    """The threads that this user has running anywhere: without namespaces they count as well."""
    count = 0
    for pid in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError):
            if pid.isdigit() and os.stat(f"/proc/{pid}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def _forbid() -> None:
    """Install the system-call filter."""
    place, arch = MACHINES[platform.machine()]
    load, equal, least, any_of, answer, fine, error = 0x20, 0x15, 0x35, 0x45, 0x06, 0x7FFF0000, 0x50000
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, error | EPERM), (load, 0, 0, 0)]
    code += [(least, 0, 1, 0x40000000), (answer, 0, 0, error | ENOSYS)]
    for numbers in DENIED:
        code += [(equal, 0, 1, numbers[place]), (answer, 0, 0, error | EPERM)]
    code += [(equal, 0, 1, CLONE3), (answer, 0, 0, error | ENOSYS)]
    code += [
        (equal, 0, 4, CLONE[place]),
        (load, 0, 0, 16),
        (any_of, 0, 1, NEW_USER | NEW_PID | NEW_REST),
        (answer, 0, 0, error | EPERM),
    ]
    code += [(answer, 0, 0, fine)]
    for numbers in (SOCKET, SOCKETPAIR):
        code += [(equal, 0, 3 + len(FAMILIES), numbers[place]), (load, 0, 0, 16)]
        code += [(equal, len(FAMILIES) - n, 0, family) for n, family in enumerate(FAMILIES)]
        code += [(answer, 0, 0, error | EAFNOSUPPORT), (answer, 0, 0, fine)]
    code += [(answer, 0, 0, fine)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters))
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", SECCOMP, 2, program, 0, 0)


def fail(status: int, error: BaseException) -> NoReturn:
    """Say what went wrong before the program began."""
    with contextlib.suppress(OSError):
        os.write(status, f"E{error}\n".encode(errors="replace"))
    os._exit(1)


if __name__ == "__main__":
    with open(int(sys.argv[1])) as handed:
        told = json.load(handed)
    become(told, (), int(sys.argv[2]), SCRATCH)
