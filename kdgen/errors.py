"""Every way a run can end early, each with its exit code, its cause and its fix."""

from __future__ import annotations

import errno
from typing import ClassVar


class KdgenError(Exception):
    """A run that ends early for a reason that a person can act on.

    `cause` says what is wrong, `where` is a file and line (or a recipe key), `hint` says what to do.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        head = f"{self.where}: {self.cause}" if self.where else self.cause
        return f"{head}\n  hint: {self.hint}" if self.hint else head


class UserError(KdgenError):
    """The user's mistake, found before anything was sent."""

    exit_code = 2


class EndpointError(KdgenError):
    """The endpoint, or the disk, cannot serve this run; what was paid is in the ledger."""

    exit_code = 3


DISK = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EACCES: "it is not yours to write or read: another place, or other permissions",
    errno.EPERM: "it is not yours to write or read: another place, or other permissions",
    errno.EROFS: "nothing can be written there: another place",
    errno.EIO: "the disk fails: another place",
    errno.EMFILE: "raise the limit with `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
}


def disk_error(error: OSError, path: object = "") -> EndpointError:
    """What the operating system refuses, as an error that a person can act on."""
    hint = DISK.get(error.errno or 0, "see to it")
    return EndpointError(
        f"the disk does not serve: {error.strerror or error}",
        where=str(path or error.filename or ""),
        hint=f"{hint}, then run the same command: what was paid is in the ledger",
    )


class BudgetReached(KdgenError):
    """The next request could have passed the budget, so it was not sent."""

    exit_code = 4


class GateFailed(KdgenError):
    """A quality gate failed; the published dataset was left as it was."""

    exit_code = 5


class DatasetBusy(KdgenError):
    """Another run holds the dataset."""

    exit_code = 6


class TermsNotAcknowledged(KdgenError):
    """The teacher's terms do not plainly allow this use and nobody has said why they may."""

    exit_code = 7


class Interrupted(KdgenError):
    """Ctrl-C or SIGTERM; nothing half was published."""

    exit_code = 130


class ComeBack(KdgenError):
    """Batches are on their way; run the same command later."""

    exit_code = 75


class Pending(Exception):
    """A record's reply is in a batch that has not come back; a later pass goes on with it."""


class Rejected(Exception):
    """One record cannot go on. It becomes a row of rejects.jsonl and the run continues."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
