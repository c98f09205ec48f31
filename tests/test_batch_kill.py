"""kill -9 at each point of a batch's life: nothing is submitted twice, nothing is lost, the files come out the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from batch_server import BatchServer
from server import ledger_rows, leftovers, make, paid, start, tasks, write_seeds

from kdgen.errors import ComeBack
from kdgen.teachers.batch_apis import AnthropicBatches, OpenAIBatches

SEEDS = 160
# Where the server is held: a file came, a batch came but was not taken in, it was taken in, looked at, and read in part.
POINTS = [("openai", each) for each in ("upload", "arrive", "create", "status", "results")]
POINTS += [("anthropic", each) for each in ("arrive", "create", "status", "results")]


@pytest.mark.parametrize(("wire", "point"), POINTS)
def test_kill_9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wire: str, point: str) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(SEEDS))
    ledger = tmp_path / "l.db"
    with BatchServer(anthropic=wire == "anthropic") as server:
        server.hold, server.cut = point, 140
        asked = ("label", seeds, *server.asked)
        with start(*map(str, asked), "-q", "-o", "out", "--ledger", str(ledger), cwd=tmp_path) as run:
            assert server.wait(point)
            while point == "results" and run.poll() is None and len(paid(ledger)) < 128:
                time.sleep(0.01)  # two parts of the results are committed, the rest is on its way
            run.kill()
            run.communicate(timeout=30)
        assert run.returncode == -9
        known = paid(ledger)
        assert (0 < len(known) < SEEDS) if point == "results" else not known
        assert not (tmp_path / "out" / "data.jsonl").exists()
        server.release()
        made = make(*asked, "--no-wait", folder=tmp_path / "out", ledger=ledger)
        if point in ("upload", "arrive"):  # it never came to a batch, so now it does, once that is sure
            assert isinstance(made.error, ComeBack) and not server.batches
            for api in (OpenAIBatches, AnthropicBatches):
                monkeypatch.setattr(api, "settles", 0.0)
            made = make(*asked, "--no-wait", folder=tmp_path / "out", ledger=ledger)
            assert isinstance(made.error, ComeBack) and len(server.batches) == 1
            made = make(*asked, "--no-wait", folder=tmp_path / "out", ledger=ledger)
        assert made.error is None, made.error
        assert len(server.batches) == 1 and len(server.keys) == SEEDS and server.repeats() == 0
        whole = make(*asked, folder=tmp_path / "whole")
    assert made.manifest["counts"]["rows"] == SEEDS
    assert whole.error is None and made.files == whole.files, whole.error
    assert {key.hex() for (key,) in ledger_rows(ledger, "SELECT key FROM calls")} == set(server.keys)
    assert ledger_rows(ledger, "SELECT count(*) FROM batch_items") == [(0,)]
    assert ledger_rows(ledger, "SELECT sum(tokens) FROM spend") == [(20 * SEEDS,)], "the month has the server's bill"
    assert leftovers(tmp_path / "out") == [] and sorted(path.name for path in tmp_path.glob("l.db*")) == ["l.db"]


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_batch_that_a_server_takes_in_when_its_sender_is_dead(tmp_path: Path, wire: str) -> None:
    """The next run looks for it too early, and does not take that for an answer."""
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(3))
    with BatchServer(anthropic=wire == "anthropic") as server:
        server.hold, server.slow = "arrive", True
        asked = ("label", seeds, *server.asked, "--no-wait")
        with start(*map(str, asked), "-q", "-o", "out", "--ledger", "l.db", cwd=tmp_path) as run:
            assert server.wait("arrive")
            run.kill()
            run.communicate(timeout=30)
        assert isinstance(make(*asked, folder=tmp_path / "out", ledger=tmp_path / "l.db").error, ComeBack)
        server.release()
        assert server.wait("create")
        made = make(*asked, folder=tmp_path / "out", ledger=tmp_path / "l.db")
        assert made.error is None and made.manifest["counts"]["rows"] == 3
        assert len(server.batches) == 1 and server.repeats() == 0
