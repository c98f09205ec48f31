"""The ledger: claims, owners that live and die, commits, and files that are no ledger."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from server import FakeWire, environment, make, tasks, write_seeds

from kdgen.errors import EndpointError, UserError
from kdgen.teachers.base import Raw, Request
from kdgen.teachers.ledger import Ledger


def asked(number: int = 0, nth: int = 0) -> Request:
    return Request("openai.chat", b'{"n":%d}' % number, nth)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_reply_comes_back_byte_for_byte(tmp_path: Path) -> None:
    raw = Raw(b'{"odd":  "\xc3\xa9\\u00e9 spacing kept" }\n', {"x-request-id": "r1"})

    async def go() -> None:
        book = Ledger(tmp_path / "deep" / "ledger.db")
        assert book.get(asked().key) is None
        assert await book.claim(asked())
        await book.settle(asked(), "openai:m", 1.5, raw)
        assert book.get(asked().key) == raw
        assert not await book.claim(asked()), "a paid request can be claimed again"
        await book.close()
        again = Ledger(tmp_path / "deep" / "ledger.db")
        assert again.get(asked().key) == raw
        await again.close()

    run(go())
    with sqlite3.connect(tmp_path / "deep" / "ledger.db") as db:
        row = db.execute("SELECT wire, nth, request, reply, teacher, sent_at FROM calls").fetchone()
    db.close()
    assert row == ("openai.chat", 0, b'{"n":0}', raw.body, "openai:m", 1.5)


def test_repeated_draws_and_dialects_are_calls_of_their_own() -> None:
    keys = {asked(0).key, asked(1).key, asked(0, 1).key, Request("other", asked(0).body).key}
    assert len(keys) == 4
    assert asked(0).key == Request("openai.chat", b'{"n":0}', room=99).key


def test_a_reply_is_on_disk_when_settle_returns(tmp_path: Path) -> None:
    async def go() -> None:
        book = Ledger(tmp_path / "ledger.db")
        await book.claim(asked())
        await book.settle(asked(), "t", 0.0, Raw(b"{}", {}))
        with sqlite3.connect(tmp_path / "ledger.db") as other:
            assert other.execute("SELECT count(*) FROM calls").fetchone() == (1,)
            assert other.execute("SELECT count(*) FROM claims").fetchone() == (0,)
        other.close()
        assert book._connect().execute("PRAGMA synchronous").fetchone() == (2,)
        await book.close()

    run(go())


def test_a_living_owner_is_waited_for(tmp_path: Path) -> None:
    async def go() -> None:
        mine, other = Ledger(tmp_path / "ledger.db"), Ledger(tmp_path / "ledger.db")
        assert await mine.claim(asked())
        assert not await other.claim(asked())
        waiting = asyncio.create_task(other.wait(asked()))
        await asyncio.sleep(0.2)
        assert not waiting.done(), "it did not wait for the owner"
        await mine.settle(asked(), "t", 0.0, Raw(b'{"paid":1}', {}))
        assert (await waiting) == Raw(b'{"paid":1}', {})
        assert (mine.orphans, other.orphans) == (0, 0)
        await mine.close()
        await other.close()

    run(go())


def test_an_owner_that_gives_up_hands_the_claim_on(tmp_path: Path) -> None:
    async def go() -> None:
        mine, other = Ledger(tmp_path / "ledger.db"), Ledger(tmp_path / "ledger.db")
        assert await mine.claim(asked())
        waiting = asyncio.create_task(other.wait(asked()))
        await asyncio.sleep(0.1)
        await other.free(asked())
        assert not await other.claim(asked()), "one owner can free the claim of another"
        await mine.free(asked())
        assert await waiting is None
        assert await other.claim(asked())
        assert other.orphans == 0, "a claim that was given back is no orphan"
        await mine.close()
        await other.close()

    run(go())


DIES = """
import asyncio, os, sys
from pathlib import Path
from kdgen.teachers.base import Request
from kdgen.teachers.ledger import Ledger
async def go():
    book = Ledger(Path(sys.argv[1]))
    assert await book.claim(Request("openai.chat", b'{"n":0}'))
    print("claimed", flush=True)
    if sys.argv[2] == "wait":
        await asyncio.sleep(60)
    os.kill(os.getpid(), 9)
asyncio.run(go())
"""


def test_a_dead_owner_is_taken_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    died = subprocess.run([sys.executable, "-c", DIES, str(path), "now"], env=environment(), timeout=30, check=False)
    assert died.returncode == -9

    async def go() -> None:
        book = Ledger(path)
        assert await book.claim(asked()), "the dead owner's claim still holds"
        assert book.orphans == 1
        await book.settle(asked(), "t", 0.0, Raw(b"{}", {}))
        await book.close()

    run(go())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.db"], "the dead owner's lock was left behind"


def test_who_waits_for_an_owner_that_dies_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with subprocess.Popen(
        [sys.executable, "-c", DIES, str(path), "wait"], env=environment(), stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"claimed\n"

        async def go() -> None:
            book = Ledger(path)
            assert not await book.claim(asked())
            waiting = asyncio.create_task(book.wait(asked()))
            await asyncio.sleep(0.2)
            assert not waiting.done(), "a living process in the middle of a request was overtaken"
            owner.kill()
            assert await waiting is None
            assert await book.claim(asked())
            await book.close()

        run(go())


@pytest.mark.parametrize("kind", ["text", "garbage", "folder", "newer", "cut", "other", "wal", "signed"])
def test_a_file_that_is_no_ledger_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "ledger.db"
    if kind == "folder":
        path.mkdir()
    elif kind in ("newer", "cut"):
        run(filled(path, 200))
        if kind == "newer":
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version=99")
            db.close()
        else:
            content = bytearray(path.read_bytes())
            content[4096:] = b"\xaa" * (len(content) - 4096)
            path.write_bytes(content)
    elif kind in ("other", "wal", "signed"):
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA journal_mode={'WAL' if kind == 'wal' else 'DELETE'}")
            db.execute("CREATE TABLE calls (name TEXT)")
            if kind == "signed":
                db.execute("CREATE TABLE claims (name TEXT)")
                db.execute("PRAGMA application_id=7")
        db.close()
    else:
        path.write_bytes(b"these are my notes\n" * 400 if kind == "text" else os.urandom(9000))
    before = path.read_bytes() if path.is_file() else b""
    wire = FakeWire()
    monkeypatch.setattr("kdgen.teachers.scripted.Scripted.connect", wire.open)
    rules = write_seeds(tmp_path / "rules.jsonl", [{"reply": "x"}])
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(3))
    made = make("label", seeds, "-t", f"scripted:{rules}", folder=tmp_path / "out", ledger=path)
    assert isinstance(made.error, UserError), made.error
    assert made.error.exit_code == 2
    assert str(path) in str(made.error)
    assert made.error.hint
    assert wire.requests == []
    if kind not in ("folder", "cut"):
        assert path.read_bytes() == before, "a file that is not kdgen's was changed"
        assert list(tmp_path.glob("ledger.db?*")) == []


def test_a_ledger_of_before_it_was_signed_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    run(filled(path, 3))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA application_id=0")
    db.close()
    run(filled(path, 3))
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == 0x6B646765
    db.close()


async def filled(path: Path, count: int) -> None:
    book = Ledger(path)
    await asyncio.gather(
        *(book.settle(asked(number), "t", 0.0, Raw(b'{"x":"%s"}' % (b"y" * 100), {})) for number in range(count))
    )
    await book.close()


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    run(filled(tmp_path / "ledger.db", 1))
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        assert db.execute("SELECT count(*) FROM calls").fetchone() == (1,)
    db.close()


def test_writes_that_come_together_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    plain = Ledger._connect

    def traced(self: Ledger) -> sqlite3.Connection:
        connection = plain(self)
        connection.set_trace_callback(said.append)
        return connection

    monkeypatch.setattr(Ledger, "_connect", traced)
    run(filled(tmp_path / "ledger.db", 400))
    assert sum("INSERT OR IGNORE INTO calls" in line for line in said) == 400
    assert 1 <= said.count("COMMIT") <= 40


def test_an_operation_that_fails_tells_who_waits_and_the_ledger_goes_on(tmp_path: Path) -> None:
    async def go() -> None:
        book = Ledger(tmp_path / "ledger.db")
        with pytest.raises(ZeroDivisionError):
            await book.transact(lambda db: 1 // 0)
        with pytest.raises(EndpointError, match="cannot be written"):
            await book.transact(lambda db: db.execute("INSERT INTO nothing VALUES (1)"))
        assert await book.claim(asked())
        await book.settle(asked(), "t", 0.0, Raw(b"{}", {}))
        assert book.get(asked().key) is not None
        await book.close()

    run(go())


def test_a_failed_commit_leaves_nothing_of_its_batch(tmp_path: Path) -> None:
    async def go() -> None:
        book = Ledger(tmp_path / "ledger.db")

        def half(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO paces VALUES ('half', 1)")
            raise sqlite3.OperationalError("database or disk is full")

        with pytest.raises(EndpointError, match="disk is full"):
            await book.transact(half)
        assert book.all("SELECT * FROM paces") == []
        await book.close()

    run(go())


def test_a_pace_is_shared_by_all_who_share_the_file(tmp_path: Path) -> None:
    async def go() -> None:
        first, second = (Ledger(tmp_path / "ledger.db", lambda: 50.0) for _ in range(2))
        waits = [await book.pace({"m/requests": 100}) for book in (first, second, first)]
        assert waits == [0, 100, 200]
        assert await second.pace({"other": 7, "m/requests": 100}) == 300
        assert await first.pace({"other": 7}) == 7
        assert await first.pace({"none": 1}) == 0
        await first.close()
        await second.close()

    run(go())


def test_what_an_endpoint_told_one_process_another_knows(tmp_path: Path) -> None:
    async def go() -> None:
        now = 50.0
        first, second = (Ledger(tmp_path / "ledger.db", lambda: now) for _ in range(2))
        assert second.limit("m/requests", 3600) is None
        await first.told("m/requests", 600)
        now += 3600
        assert second.limit("m/requests", 3600) == 600
        now += 1
        assert second.limit("m/requests", 3600) is None
        await first.close()
        await second.close()

    run(go())


def test_closing_leaves_the_file_alone_and_no_lock(tmp_path: Path) -> None:
    run(filled(tmp_path / "ledger.db", 3))
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.db"]
