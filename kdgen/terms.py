"""What the terms of the teachers' makers say to a use: judged from a dated table, acknowledged by the user.

The table (tables/terms.yaml) is for orientation. What it does not plainly allow, the user must acknowledge, row by row.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from kdgen.errors import TermsNotAcknowledged, UserError
from kdgen.record import Frozen
from kdgen.tables import read_table
from kdgen.teachers.base import TeacherSpec

HOME = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}
PRIVATE = (".local", ".internal", ".lan", ".localhost", ".home.arpa", ".svc")

Use = Literal["research", "internal", "commercial", "redistribute"]
Status = Literal["allowed", "conditional", "unknown", "restricted", "blocked"]
UNKNOWN = "No row covers it: look for the model's licence or the terms of who runs it, and what they say on training."
SEVERITY: tuple[Status, ...] = ("allowed", "conditional", "unknown", "restricted", "blocked")


class Ack(Frozen):
    """The user's word that they may: the date of the row that they read, and why."""

    date: datetime.date
    why: str = Field(min_length=1)


class Conditions(Frozen):
    """What goes along with the rows. Each is said in the card."""

    notice: str = ""
    attribution: str = ""
    name_prefix: str = ""
    passthrough: tuple[str, ...] = ()
    non_competing: bool = False
    disclose: bool = False

    def notices(self) -> list[str]:
        """The sentences for the card."""
        lines = [self.notice] if self.notice else []
        if self.attribution:
            lines.append(f'What is made from these rows shows: "{self.attribution}".')
        if self.name_prefix:
            lines.append(
                f'The name of a model trained on these rows begins with "{self.name_prefix}" once it is shared.'
            )
        lines += [f"Passed on with these rows: {url}" for url in self.passthrough]
        if self.non_competing:
            lines.append("Not for training models that compete with those of the teacher's maker.")
        if self.disclose:
            lines.append("Written by a model: do not present it as written by people.")
        return lines


class Case(Frozen):
    """What a row says to some uses, or to students with some names."""

    use: tuple[Use, ...] = ()
    student: tuple[str, ...] = ()
    status: Status
    asks: str

    def fits(self, use: Use, student: str) -> bool:
        """Whether this case is the user's."""
        return (not self.use or use in self.use) and (not self.student or _like(student.lower(), self.student))


class Row(Frozen):
    """One set of terms and which teachers it is of; tables/terms.yaml says what the fields mean."""

    key: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    route: Literal["api", "weights", "none"]
    hosts: tuple[str, ...] = ()
    passes: bool = False
    providers: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    status: Status
    asks: str
    when: tuple[Case, ...] = ()
    conditions: Conditions = Conditions()
    source: str
    since: datetime.date | None = None
    read: datetime.date | None = None
    certainty: Literal["high", "medium", "low"]

    def at(self, host: str) -> bool:
        """Whether these are the terms of the API at `host`."""
        return any(host == own or host.endswith(f".{own}") for own in self.hosts)

    def of(self, spec: TeacherSpec) -> bool:
        """Whether these are the terms of this very kind of teacher."""
        if spec.provider not in self.providers:
            return False
        return not self.licences or (not _is_file(spec.model) and spec.origin().get("licence") in self.licences)

    def names(self, owner: str | None, model: str, repackers: tuple[str, ...]) -> bool:
        """Whether these are the terms of a model with this name."""
        return _like(model, self.models) and (owner is None or owner in self.owners or owner in repackers)


class Table(Frozen):
    """The rows, and the day on which they were read where a row does not say otherwise."""

    read: datetime.date
    repackers: tuple[str, ...] = ()
    rows: tuple[Row, ...]

    def rows_of(self, spec: TeacherSpec) -> tuple[list[Row], bool]:
        """The rows that hold for a teacher, and whether there are terms that no row covers.

        Most terms of an API stand alone; those of one that resells, or of one's own server, hold beside the model's.
        """
        if own := [row for row in self.rows if row.of(spec)]:
            return own, False
        hosts = _hosts(spec)
        found = [row for row in self.rows if any(row.at(host) for host in hosts)]
        strange = spec.provider in HOME and any(
            not _private(host) and not any(row.at(host) for row in found) for host in hosts
        )
        if found and not strange and not any(row.passes for row in found):
            return found, False
        owner, model = _name(spec.model)
        named = [row for row in self.rows if row not in found and row.names(owner, model, self.repackers)]
        return found + named, strange or not named


class Verdict(Frozen):
    """What one row says to this use."""

    key: str
    status: Status
    asks: str
    read: datetime.date
    source: str = ""
    since: datetime.date | None = None
    certainty: str = "low"

    @property
    def flag(self) -> str:
        """The option that acknowledges it."""
        return f"--ack-terms {self.key}@{self.read}"


class Ruling(Frozen):
    """What holds for one teacher: the most restrictive of the rows that are its, and what goes into the card."""

    role: str
    teacher: str
    use: Use
    verdicts: tuple[Verdict, ...] = Field(min_length=1)
    notices: tuple[str, ...] = ()
    ack: Ack | None = None

    @property
    def worst(self) -> Verdict:
        """The verdict that counts."""
        return self.verdicts[0]

    @property
    def status(self) -> Status:
        """The status that counts."""
        return self.worst.status

    @property
    def key(self) -> str:
        """The key to acknowledge."""
        return self.worst.key

    def acknowledged(self, ack: Ack | None) -> Ruling:
        """The ruling with its acknowledgement, where it needs one and this is of the row as it stands."""
        holds = ack is not None and self.status != "allowed" and ack.date == self.worst.read
        return self.model_copy(update={"ack": ack}) if holds else self

    def lines(self) -> list[str]:
        """For a person: status, what is asked, source and dates, of each row that does not plainly allow."""
        lines = [f"{self.role} ({self.teacher}): {self.status}"]
        for each in [row for row in self.verdicts if row.status != "allowed"] or [self.worst]:
            since = f"in force since {each.since}, " if each.since else ""
            lines.append(f"  {each.key}: {each.asks}")
            lines.append(f"    {each.source or 'no source'} ({since}read {each.read}, certainty {each.certainty})")
        if self.ack:
            lines.append(f"  acknowledged as of {self.ack.date}: {self.ack.why}")
        return lines

    def data(self) -> dict[str, Any]:
        """For the manifest."""
        return {"key": self.key, "status": self.status, **self.model_dump(mode="json")}


@cache
def table() -> Table:
    """The table that ships, read when it is first needed."""
    return Table.model_validate(read_table("terms"))


def judge(
    specs: Mapping[str, TeacherSpec], use: Use = "internal", student: str = "", rows: Table | None = None
) -> list[Ruling]:
    """What the terms say, teacher by teacher: whoever is asked counts, judges and simulated users too."""
    return [_rule(role, spec, use, student, rows or table()) for role, spec in specs.items()]


def gate(rulings: Iterable[Ruling], acks: Mapping[str, Ack]) -> list[Ruling]:
    """The rulings with what was acknowledged. Raises TermsNotAcknowledged for what is neither allowed nor acknowledged.

    An acknowledgement holds for the row as it was read on its date, not for what the row says since.
    """
    passed = [ruling.acknowledged(acks.get(ruling.key)) for ruling in rulings]
    if left := [ruling for ruling in passed if ruling.status != "allowed" and ruling.ack is None]:
        lines = [f"the teachers' terms do not plainly allow `use: {left[0].use}`"]
        for ruling in left:
            lines += ruling.lines()
            if old := acks.get(ruling.key):
                lines.append(f"  acknowledged as of {old.date}, but read anew on {ruling.worst.read}: look again")
        flags = " ".join(dict.fromkeys(ruling.worst.flag for ruling in left))
        raise TermsNotAcknowledged(
            "\n  ".join(lines),
            hint=f"where you may all the same, add {flags}, or to the recipe, terms: {{KEY: {{date: …, why: …}}}}",
        )
    return passed


def parse_ack(text: str) -> tuple[str, Ack]:
    """`KEY@DATE` as --ack-terms takes it. Raises UserError."""
    key, at, date = text.rpartition("@")
    try:
        if not at or not key:
            raise ValueError
        return key, Ack(date=datetime.date.fromisoformat(date), why="--ack-terms on the command line")
    except ValueError:
        raise UserError(
            f"{text!r} is not KEY@DATE", where="--ack-terms", hint="--ack-terms openai.api@2026-11-24"
        ) from None


def _rule(role: str, spec: TeacherSpec, use: Use, student: str, rows: Table) -> Ruling:
    found, gap = rows.rows_of(spec)
    verdicts: list[Verdict] = []
    notices = [] if _is_file(spec.model) else [spec.origin().get("notice", "")]
    for row in found:
        case = next((each for each in row.when if each.fits(use, student)), row)
        asks, prefix, last = case.asks, row.conditions.name_prefix, student.rsplit("/", 1)[-1]
        if prefix and last and case.status != "allowed" and not last.lower().startswith(prefix.lower()):
            asks += f" ({last!r} does not begin so.)"
        more = {"key": row.key, "source": row.source, "since": row.since, "certainty": row.certainty}
        verdicts.append(Verdict(status=case.status, asks=asks, read=row.read or rows.read, **more))
        notices += row.conditions.notices()
    if gap:
        host = next((host for host in _hosts(spec) if host not in HOME.values()), "")
        key = f"{spec.label}@{host}" if host else spec.label
        verdicts.append(Verdict(key=key, status="unknown", asks=UNKNOWN, read=rows.read))
    verdicts.sort(key=lambda each: -SEVERITY.index(each.status))
    unique = tuple(dict.fromkeys(each for each in notices if each))
    return Ruling(role=role, teacher=spec.label, use=use, verdicts=tuple(verdicts), notices=unique)


def _hosts(spec: TeacherSpec) -> list[str]:
    """The hosts that a teacher is asked at; none where it runs in this process."""
    urls = [getattr(spec, "base_url", None), *(getattr(spec, "base_urls", None) or ())]
    hosts = [urlsplit(url).hostname or "" for url in urls if url]
    return hosts or [HOME[spec.provider]] if spec.provider in HOME else hosts


def _private(host: str) -> bool:
    """Whether a host is on the user's own network, so that what runs there is the user's own."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(PRIVATE)
    return address.is_private or address.is_loopback


def _is_file(model: str) -> bool:
    return model.endswith(".gguf")


def _name(model: str) -> tuple[str | None, str]:
    """(owner, model) in small letters; the folder of a path is no owner."""
    parts = model.lower().removesuffix(".gguf").split("/")
    path = _is_file(model) or model.startswith((".", "/", "~"))
    return (parts[-2] if len(parts) > 1 and not path else None), parts[-1]


def _like(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
