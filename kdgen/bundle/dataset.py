"""A dataset folder as it is read: its records, one by one, and its manifest. Nothing here writes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from kdgen import features
from kdgen.bundle.rivals import Rivals
from kdgen.errors import UserError
from kdgen.export import FeatureFormat, Format, Triples
from kdgen.record import BLANK, Candidate, Message, Record
from kdgen.store import RECORDS

BLOCK = 1 << 20
FIELDS = BLANK.keys()
SAID = {"kdgen", "name", "about", "counts", "hashes", "teachers", "terms", "use", "student"}
NESTED: dict[str, type[Message] | type[Candidate]] = {"history": Message, "candidates": Candidate}
put = object.__setattr__
KEYS = {kind: frozenset(kind.model_fields) for kind in NESTED.values()}


class Dataset:
    """One version of a dataset: `.current` is followed once, so that what a run publishes meanwhile is not mixed in."""

    def __init__(self, folder: Path, version: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.version = version
        self.manifest = manifest
        self.sha256 = ""

    @classmethod
    def at(cls, name: str) -> Dataset:
        """Raises UserError where `name` is no dataset's folder or version."""
        folder = Path(name).expanduser()
        version = (folder / ".current").resolve() if (folder / ".current").exists() else folder
        try:
            manifest = orjson.loads((version / "manifest.json").read_bytes())
            whole = (version / RECORDS).is_file() and manifest.keys() >= SAID
        except (OSError, orjson.JSONDecodeError, AttributeError):
            whole = False
        if not whole:
            raise UserError("no dataset that kdgen made", where=name, hint=_instead(folder))
        return cls(folder, version, manifest)

    @property
    def name(self) -> str:
        """What its recipe is called."""
        return str(self.manifest.get("name") or self.folder.name)

    def place(self, number: int) -> str:
        """Where a record stands, for a person; numbers are from 0."""
        return f"{self.folder / RECORDS}:{number + 1}"

    def lines(self) -> Iterator[bytes]:
        """The lines of its records. Once all are read, `sha256` is theirs."""
        sums = hashlib.sha256()
        try:
            with (self.version / RECORDS).open("rb") as file:
                # Read and summed a block at a time: a line at a time would take as long as making its row.
                while block := file.read(BLOCK):
                    block += file.readline()
                    sums.update(block)
                    yield from block.splitlines(keepends=True) if b"\r" not in block else io.BytesIO(block)
        except FileNotFoundError:
            cause = "the version that was read is gone: two runs have published since"
            raise UserError(cause, where=str(self.folder), hint="run the same command again") from None
        self.sha256 = sums.hexdigest()

    def records(self, form: Format) -> Iterator[tuple[int, int, Record]]:
        """(number, bytes of its line, record); with its feature, where the format is of one. Numbers are from 0."""
        told = features.open(self.version).read(form.feature) if isinstance(form, FeatureFormat) else iter(())
        held = next(told, None)
        rivals = Rivals(self) if isinstance(form, Triples) else None
        for number, line in enumerate(self.lines()):
            record = record_of(line, self, number)
            if rivals is not None:
                put(record, "__dict__", record.__dict__ | {"meta": {**record.meta, "rival": rivals.of(record)}})
            if held is not None and held[0] == record.id:
                record = record.featured({form.feature: held[1]})  # type: ignore[attr-defined]
                held = next(told, None)
            yield number, len(line), record
        if rivals is not None:
            rivals.close()
        if held is not None:
            cause = f"the features are not of these records: there is none with the id {held[0]}"
            raise UserError(cause, where=str(self.folder), hint="run the recipe again")

    def fitted(self, form: Format) -> Format:
        """The format as this dataset's features let it be. Raises UserError where it has none."""
        if not isinstance(form, FeatureFormat):
            return form
        held = features.open(self.version)
        names = [name for name in held.names if held.kind(name) == "topk"]
        name = form.feature or (names[0] if names else "")
        facts = held.facts(name) if name in names else []
        return form.fitted(names, facts, str(self.folder))

    def facts(self, name: str) -> list[dict[str, Any]]:
        """What made a feature, one for each teacher."""
        return [features.facts_data(each) for each in features.open(self.version).facts(name)]

    def check(self) -> None:
        """Raise UserError where the records are not those that the run wrote."""
        told = self.manifest.get("hashes", {}).get("files", {}).get(RECORDS)
        if told and told != self.sha256:
            cause = f"{RECORDS} is not what the run wrote: its SHA-256 is not the manifest's"
            raise UserError(
                cause, where=str(self.folder), hint="run the recipe again: it writes the file anew from the ledger"
            )


def _instead(folder: Path) -> str:
    if not folder.exists():
        return "there is no such folder; a run names it with -o DIR [out/<recipe name>]"
    inner = sorted(path.parent.name for path in folder.glob("*/manifest.json") if not path.parent.name.startswith("."))
    if inner:
        return f"it holds datasets: {', '.join(str(folder / name) for name in inner[:5])}"
    return "the folder that a run made, with records.jsonl and manifest.json in it"


def record_of(line: bytes, dataset: Dataset, number: int) -> Record:
    """The record of a line. What kdgen wrote is trusted as far as its keys; what a row takes of it is checked with the row.

    Raises UserError for a line that is no record.
    """
    try:
        fields = orjson.loads(line)
        if fields.keys() != FIELDS:
            return Record.model_validate(fields)
        if fields["history"] or fields["candidates"]:
            for name, kind in NESTED.items():
                fields[name] = tuple(_nested(kind, each) for each in fields[name])
        record = Record.__new__(Record)
        put(record, "__pydantic_private__", None)
        put(record, "__dict__", fields)  # all that a format looks at; a whole pydantic object takes longer than the row
        return record
    except (orjson.JSONDecodeError, AttributeError, TypeError, ValidationError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"no record: {cause}", where=dataset.place(number), hint="run the recipe again") from None


def _nested(kind: type[Message] | type[Candidate], fields: Any) -> Any:
    """A turn or a candidate; one without all of its keys is validated."""
    if not isinstance(fields, dict) or fields.keys() != KEYS[kind]:
        return kind.model_validate(fields)
    made = kind.__new__(kind)
    put(made, "__dict__", fields)
    return made


def row_of(form: Format, record: Record, dataset: Dataset, number: int) -> dict[str, Any] | None:
    """The checked row of a record, or None where it has no place. Raises UserError that names the record of a bad one."""
    try:
        row = form.row(record)
        if row is not None:
            form.check(row)
        return row
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        cause = f"record {record.id}: {at} of its row in {form.format}: {first['msg']}"
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        cause = f"record {record.id}: not what a stage of kdgen leaves: {type(error).__name__}: {error}"
    raise UserError(cause, where=dataset.place(number), hint="mend the record, or leave it out") from None
