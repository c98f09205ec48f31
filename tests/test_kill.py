"""kill -9 at random moments, again and again: nothing paid is paid twice, nothing is lost, nothing half is seen.

KDGEN_KILLS sets how often (8 in the suite); KDGEN_KILL_SEED which moments.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from server import (
    Answer,
    Server,
    echo_answer,
    kdgen,
    last,
    ledger_rows,
    leftovers,
    paid,
    published,
    start,
    tasks,
    write_seeds,
)

KILLS = int(os.environ.get("KDGEN_KILLS", "8"))
SEED = int(os.environ.get("KDGEN_KILL_SEED", "20"))
SEEDS, CONCURRENCY = 300, 8
# What a kill can lose: what is in flight, and replies on their way to the disk, which a slot does not wait for. These are
# bounded too: a request is claimed before it is sent, and its claim queues behind them.
AT_RISK = 3 * CONCURRENCY


def mixed(body: dict[str, Any], seen: int) -> Answer:
    """Answers, refusals and cut replies, by the text alone."""
    kind = sum(map(ord, last(body))) % 12
    if kind == 0:
        return Answer("I'm sorry, I cannot help with that.")
    if kind == 1:
        return Answer("half an answ", finish="length")
    return echo_answer(body, seen)


@pytest.mark.slow
def test_kill_9_again_and_again(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    write_seeds(tmp_path / "seeds.jsonl", tasks(SEEDS))
    kills = in_flight = early = 0
    committed_at: list[tuple[int, set[str]]] = []
    with Server(mixed, latency=0.02) as server:
        asked = ("label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}", "-q")
        while True:
            began = len(server.bodies)
            with start(*asked, "-o", "out", "--ledger", "l.db", cwd=tmp_path) as run:
                if kills < KILLS:
                    # Most kills fall between requests, some while the program starts.
                    if dice.random() < 0.15:
                        time.sleep(dice.uniform(0, 0.7))
                        early += 1
                    else:
                        server.wait(began + dice.randint(1, max(2, 2 * SEEDS // KILLS)), timeout=20)
                        time.sleep(dice.uniform(0, 0.03))
                    run.kill()
                _, said = run.communicate(timeout=120)
            code, ended = run.returncode, len(server.bodies)
            kept = paid(tmp_path / "l.db")
            assert not (tmp_path / "out" / "data.jsonl").exists() or code == 0
            if code == 0:
                break
            assert code == -9, said
            kills += 1
            lost = set(server.bodies[began:ended]) - kept
            assert len(lost) <= AT_RISK
            in_flight += len(lost)
            committed_at.append((len(server.bodies), kept))
        for mark, committed in committed_at:
            assert not committed & set(server.bodies[mark:]), "a reply that was on disk was paid for again"
        repeats, total = server.repeats(), len(server.bodies)
        assert len(set(server.bodies)) == SEEDS
        # What a killed process had sent may reach the server a moment after it was counted, so by kills, not by count.
        assert repeats <= kills * AT_RISK, "more was asked twice than can have been in flight at the kills"
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        whole = kdgen(*asked, "-o", "whole", "--ledger", "whole.db", cwd=tmp_path)
        assert whole.returncode == 0, whole.stderr
    print(
        f"\n{kills} kills ({early} at start), {total} requests for {SEEDS} seeds: {repeats} repeated of {in_flight} in flight"
    )
    assert published(tmp_path / "out", card=True) == published(tmp_path / "whole", card=True)
    assert (
        manifest["counts"]["seeds"] == SEEDS == manifest["counts"]["rows"] + sum(manifest["counts"]["rejects"].values())
    )
    assert leftovers(tmp_path / "out") == []
    assert ledger_rows(tmp_path / "l.db", "SELECT count(*) FROM calls") == [(SEEDS,)]
    assert ledger_rows(tmp_path / "l.db", "SELECT count(*) FROM claims") == [(0,)]
    assert sorted(path.name for path in tmp_path.glob("l.db*")) == ["l.db"], "locks of dead owners were left behind"
    assert kills == KILLS or ended == SEEDS


@pytest.mark.slow
def test_kill_9_while_publishing_shows_one_whole_version(tmp_path: Path) -> None:
    """Two versions in turn, killed at any moment of writing and publishing: a reader sees one of them whole."""
    dice = random.Random(SEED)
    rows = tasks(60)
    with Server(mixed) as server:
        asked = ("label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}", "-q", "--ledger", "l.db", "-o")
        versions = []
        for count in (60, 40):
            write_seeds(tmp_path / "seeds.jsonl", rows[:count])
            assert kdgen(*asked, f"v{count}", cwd=tmp_path).returncode == 0
            versions.append(published(tmp_path / f"v{count}", card=True))
        assert kdgen(*asked, "out", cwd=tmp_path).returncode == 0
        began = time.monotonic()
        assert kdgen(*asked, "out", cwd=tmp_path).returncode == 0
        length = time.monotonic() - began
        for turn in range(max(6, KILLS)):
            write_seeds(tmp_path / "seeds.jsonl", rows[: (60, 40)[turn % 2]])
            with start(*asked, "out", cwd=tmp_path) as run:
                time.sleep(dice.uniform(0.5, 1.05) * length)
                run.kill()
                run.communicate(timeout=60)
            assert published(tmp_path / "out", card=True) in versions
        write_seeds(tmp_path / "seeds.jsonl", rows)
        done = kdgen(*asked, "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert published(tmp_path / "out", card=True) == versions[0]
    assert leftovers(tmp_path / "out") == []
    assert len(server.bodies) == 60
    assert len(list((tmp_path / "out" / ".versions").iterdir())) <= 2
