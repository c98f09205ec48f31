"""A dataset is a function of seeds, recipe and replies: running again asks only for what the ledger lacks."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import (
    Answer,
    FakeWire,
    Made,
    Server,
    command,
    echo_answer,
    environment,
    invented,
    kdgen,
    last,
    leftovers,
    make,
    paid,
    published,
    start,
    tasks,
    write_seeds,
)

from kdgen.teachers.openai import OpenAI

TEACHER = ("-t", "openai:Qwen3-8B@http://127.0.0.1:9/v1")


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeWire]:
    """Put a wire of this process in the place of the teacher's."""

    def put(*arguments: Any) -> FakeWire:
        wire = FakeWire(*arguments)
        monkeypatch.setattr(OpenAI, "connect", wire.open)
        return wire

    return put


@pytest.fixture
def no_wire(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From here on, opening a wire fails the test."""
    return lambda: monkeypatch.setattr(OpenAI, "connect", lambda self: pytest.fail("a wire was opened"))


def mixed(body: dict[str, Any], seen: int) -> Answer:
    """Answers, and now and then a refusal or a cut reply, by the text alone."""
    kind = sum(map(ord, last(body))) % 10
    if kind == 0:
        return Answer("I'm sorry, I cannot help with that.")
    if kind == 1:
        return Answer("half an answ", finish="length")
    return echo_answer(body, seen)


def invent(body: dict[str, Any], seen: int) -> Answer:
    """Eight new tasks to a self-instruct prompt, answers to the rest."""
    text = "\n".join(message["content"] for message in body["messages"])
    if "numbered 9 to 16" not in text:
        return echo_answer(body, seen)
    return Answer("\n".join(f"{n}. Speak of {invented(f'{text}{n}', 10)}." for n in range(9, 17)))


def balanced(made: Made) -> None:
    """Rule 6, from the files and not from the program's own check."""
    counts = made.manifest["counts"]
    rows, rejects = len(made.rows()), len(made.rows("rejects.jsonl"))
    assert counts["rows"] == rows == len(made.rows("data.jsonl"))
    assert sum(counts["rejects"].values()) == rejects
    assert counts["seeds"] + counts["generated"] == rows + rejects + counts["demonstrations"]


@pytest.mark.parametrize("recipe", ["label/answer", "label/rationale", "expand/evol", "expand/self-instruct"])
def test_a_second_run_sends_nothing_and_writes_the_same_bytes(
    tmp_path: Path, connect: Callable[..., FakeWire], no_wire: Callable[[], None], recipe: str
) -> None:
    def answer(body: dict[str, Any], seen: int) -> Answer:
        text = "\n".join(message["content"] for message in body["messages"])
        if "verdict" in text:
            return Answer('{"verdict": "different"}')
        made = invent(body, seen)
        return Answer(f"{made.text}\nAnswer: {invented(text, 1)}") if recipe == "label/rationale" else made

    wire = connect(answer)
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(12))
    asked = ("run", recipe, "--seeds", seeds, *TEACHER)
    first = make(*asked, folder=tmp_path / "one", ledger=tmp_path / "l.db")
    balanced(first)
    assert first.manifest["counts"]["rows"] > 5
    assert first.manifest["requests"]["sent"] == len(wire.requests) == len({request.key for request in wire.requests})
    no_wire()
    for folder in ("one", "two"):
        again = make(*asked, folder=tmp_path / folder, ledger=tmp_path / "l.db")
        assert again.error is None
        assert again.files == first.files
        assert again.manifest["requests"]["sent"] == 0
        balanced(again)


@pytest.mark.parametrize(("change", "sent"), [("add", 1), ("add-at-top", 1), ("edit", 1), ("delete", 0)])
def test_one_changed_seed_of_a_hundred(
    tmp_path: Path, connect: Callable[..., FakeWire], change: str, sent: int
) -> None:
    wire = connect(echo_answer)
    rows = tasks(100)
    seeds = write_seeds(tmp_path / "seeds.jsonl", rows)
    before = make("label", seeds, *TEACHER, folder=tmp_path / "out")
    assert len(wire.requests) == 100
    new = {"id": "new", "instruction": "Say what nobody has said before."}
    match change:
        case "add":
            rows.insert(50, new)
        case "add-at-top":
            rows.insert(0, new)
        case "edit":
            rows[50] = {**rows[50], "instruction": "Say something else."}
        case "delete":
            del rows[50]
    write_seeds(seeds, rows)
    wire.requests.clear()
    after = make("label", seeds, *TEACHER, folder=tmp_path / "out")
    assert len(wire.requests) == after.manifest["requests"]["sent"] == sent
    assert [row["seeds"] for row in after.rows()] == [[row["id"]] for row in rows]
    old = {row["id"]: row for row in before.rows()}
    fresh = [row for row in after.rows() if row["id"] not in old]
    assert len(fresh) == sent
    assert all(old[row["id"]] == row for row in after.rows() if row["id"] in old)
    balanced(after)


def test_seeds_without_ids_keep_theirs_when_others_come_and_go(
    tmp_path: Path, connect: Callable[..., FakeWire]
) -> None:
    wire = connect(echo_answer)
    rows = [{"instruction": row["instruction"]} for row in tasks(30)]
    seeds = write_seeds(tmp_path / "seeds.jsonl", rows)
    before = make("label", seeds, *TEACHER, folder=tmp_path / "out")
    write_seeds(seeds, [{"instruction": "A new one."}, *rows[5:]])
    wire.requests.clear()
    after = make("label", seeds, *TEACHER, folder=tmp_path / "out")
    assert len(wire.requests) == 1
    assert after.rows()[1:] == before.rows()[5:]


def test_a_new_seed_changes_a_small_share_of_self_instruct(tmp_path: Path, connect: Callable[..., FakeWire]) -> None:
    """One call shows 8 of 175 seeds, so a 176th is in 1 of 22; draws of a pool that moved would change them all."""
    wire = connect(invent)
    from kdgen.resources import builtins

    rows = [json.loads(line) for line in builtins("seeds")["general"].read_text().splitlines()]
    assert len(rows) == 175
    sets = ("--set", "stages.0.calls=100", "--set", "stages.0.rounds=1", "--set", "stages.0.novelty=null")
    shares = []
    for place in (0, 175):
        seeds = write_seeds(tmp_path / "seeds.jsonl", rows)
        book = tmp_path / f"{place}.db"
        asked = ("run", "expand/self-instruct", "--seeds", seeds, *TEACHER, "--set", "target=null", *sets)
        make(*asked, folder=tmp_path / f"a{place}", ledger=book)
        jobs = [request for request in wire.requests if b"numbered 9 to 16" in request.body]
        assert len(jobs) == 100
        new = {"id": "brand-new", "instruction": "Name a tool that a cooper uses."}
        write_seeds(seeds, [*rows[:place], new, *rows[place:]])
        wire.requests.clear()
        make(*asked, folder=tmp_path / f"b{place}", ledger=book)
        shares.append(sum(b"numbered 9 to 16" in request.body for request in wire.requests) / 100)
        wire.requests.clear()
    assert shares[0] == shares[1], "where in the file a seed stands changes what is drawn"
    assert 0 < shares[0] < 0.1


def test_order_is_input_order_whatever_the_delays(tmp_path: Path, connect: Callable[..., FakeWire]) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(150))
    made = []
    for attempt in range(3):
        dice = random.Random(attempt)
        connect(mixed, lambda dice=dice: dice.choice([0, 0, 0.001, 0.02]))
        made.append(make("label", seeds, *TEACHER, folder=tmp_path / f"o{attempt}"))
    assert made[0].files == made[1].files == made[2].files
    kept = [row["seeds"][0] for row in made[0].rows()]
    lost = [row["seeds"][0] for row in made[0].rows("rejects.jsonl")]
    assert kept == sorted(kept)
    assert lost == sorted(lost)
    assert len(lost) > 5
    assert len(kept) + len(lost) == 150
    balanced(made[0])


def test_pool_rounds_do_not_depend_on_delays(tmp_path: Path, connect: Callable[..., FakeWire]) -> None:
    made = []
    for attempt in range(2):
        dice = random.Random(attempt)
        connect(invent, lambda dice=dice: dice.choice([0, 0.001, 0.01]))
        asked = ("expand", "general", *TEACHER, "--target", "60", "--set", "stages.0.calls=3")
        made.append(make(*asked, folder=tmp_path / f"o{attempt}"))
    assert made[0].files == made[1].files
    assert max(row["meta"]["round"] for row in made[0].rows()) >= 2
    balanced(made[0])


@pytest.mark.parametrize("recipe", ["expand/self-instruct", "label/answer"])
def test_a_target_stops_the_run(tmp_path: Path, connect: Callable[..., FakeWire], recipe: str) -> None:
    wire = connect(invent if recipe.startswith("expand") else mixed)
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(100))
    made = make("run", recipe, "--seeds", seeds, *TEACHER, "--target", "20", folder=tmp_path / "out")
    assert (made.manifest["stopped"], made.manifest["counts"]["rows"]) == ("target", 20)
    assert len(wire.requests) < 40, "much was asked that no row needed"
    balanced(made)


@pytest.mark.parametrize(
    ("stopped", "sets"),
    [
        ("candidate_cap", ["stages.0.max_candidates=30"]),
        ("dry", ["stages.0.novelty=0.12"]),
        ("rounds", ["target=null", "stages.0.rounds=2"]),
        ("seeds", ["stages.0.max_candidates=8"]),
    ],
)
def test_why_a_run_stopped_is_said(
    tmp_path: Path, connect: Callable[..., FakeWire], capsys: pytest.CaptureFixture[str], stopped: str, sets: list[str]
) -> None:
    # For "dry" the first round's tasks share words with each other and the seeds, so no later one is new enough.
    connect(invent)
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(30))
    extra = [part for each in sets for part in ("--set", each)]
    name = "expand/self-instruct"
    if stopped == "seeds":
        name, extra = "label/answer", []
    target = () if "target=null" in sets else ("--target", "200")
    made = make("run", name, "--seeds", seeds, *TEACHER, *target, *extra, folder=tmp_path / "out")
    assert made.error is None, made.error
    assert made.manifest["stopped"] == stopped
    assert made.manifest["counts"]["rows"] < 200
    balanced(made)


def signalled(
    tmp_path: Path, server: Server, sign: signal.Signals, *, times: int = 1, after: int = 40
) -> tuple[int, str]:
    """kdgen label as a process, sent a signal once the server has seen `after` requests."""
    with start(
        "label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}", "-o", "out", "--ledger", "l.db", cwd=tmp_path
    ) as run:
        assert server.wait(after)
        for _ in range(times):
            run.send_signal(sign)
            time.sleep(0.05)
        _, said = run.communicate(timeout=60)
        return run.returncode, said


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_publishes_nothing_and_the_same_command_completes_it(
    tmp_path: Path, sign: signal.Signals
) -> None:
    write_seeds(tmp_path / "seeds.jsonl", tasks(120))
    with Server(mixed, latency=0.03) as server:
        code, said = signalled(tmp_path, server, sign)
        assert code == 130
        assert sign.name in said
        assert "hint:" in said
        assert not (tmp_path / "out" / "data.jsonl").exists()
        assert leftovers(tmp_path / "out") == []
        kept = paid(tmp_path / "l.db")
        assert len(kept) == len(server.answered), "a reply that came within the grace was thrown away"
        assert 30 < len(server.bodies) < 120
        asked = ("label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}")
        done = kdgen(*asked, "-o", "out", "--ledger", "l.db", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert server.repeats() == 0, "something was paid twice"
        assert len(server.bodies) == 120
        whole = kdgen(*asked, "-o", "whole", "--ledger", "other.db", cwd=tmp_path)
        assert whole.returncode == 0, whole.stderr
    assert published(tmp_path / "out", card=True) == published(tmp_path / "whole", card=True)
    assert sorted(path.name for path in tmp_path.glob("l.db*")) == ["l.db"]


def test_an_interrupted_run_leaves_the_dataset_of_before(tmp_path: Path) -> None:
    rows = tasks(120)
    write_seeds(tmp_path / "seeds.jsonl", rows[:10])
    with Server(latency=0.03) as server:
        asked = ("label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}", "-o", "out", "--ledger", "l.db")
        assert kdgen(*asked, cwd=tmp_path).returncode == 0
        before = published(tmp_path / "out", card=True)
        write_seeds(tmp_path / "seeds.jsonl", rows)
        code, _ = signalled(tmp_path, server, signal.SIGINT)
    assert code == 130
    assert published(tmp_path / "out", card=True) == before


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds.jsonl", tasks(120))
    with Server(lambda body, seen: Answer("late", delay=20)) as server:
        code, _ = signalled(tmp_path, server, signal.SIGINT, times=2, after=8)
    assert code == 130


def test_a_run_that_the_ledger_answers_can_be_interrupted(tmp_path: Path, connect: Callable[..., FakeWire]) -> None:
    """Nothing is asked, so nobody who asks hears of the halt: the runner itself must."""
    from kdgen.errors import Interrupted
    from kdgen.manifest import Tally
    from kdgen.progress import Quiet

    connect(echo_answer)
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(300))
    make("label", seeds, *TEACHER, folder=tmp_path / "out")

    sent: list[int] = []

    class Stopper(Quiet):
        def tick(self, tally: Tally, bill: Any) -> None:
            if tally.rows >= 10 and not sent:  # a second one would end this very process
                sent.append(tally.rows)
                signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdgen.cli.job.watcher", lambda quiet: Stopper())
        made = make("label", seeds, *TEACHER, folder=tmp_path / "two", ledger=tmp_path / "out.db")
    assert isinstance(made.error, Interrupted)
    assert not (tmp_path / "two" / "data.jsonl").exists()


def test_two_processes_on_one_ledger_pay_each_request_once(tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds.jsonl", tasks(80))
    with Server(mixed, latency=0.02) as server:
        asked = ("label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}", "--ledger", "l.db")
        server.held = True
        runs = [start(*asked, "-o", name, cwd=tmp_path) for name in ("one", "two")]
        while len(list(tmp_path.glob("l.db-owner-*"))) < 2:  # both hold the ledger before the first reply
            assert all(run.poll() is None for run in runs), [
                run.communicate()[1] for run in runs if run.poll() is not None
            ]
            time.sleep(0.02)
        server.held = False
        ends = [run.communicate(timeout=60)[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], ends
    assert len(server.bodies) == len(set(server.bodies)) == 80
    assert published(tmp_path / "one", card=True) == published(tmp_path / "two", card=True)
    sent = [json.loads((tmp_path / name / "manifest.json").read_text())["requests"]["sent"] for name in ("one", "two")]
    assert sum(sent) == 80


def test_two_runs_cannot_write_one_dataset(tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds.jsonl", tasks(30))
    with Server() as server:
        server.held = True
        asked = ("label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}", "-o", "out", "--ledger", "l.db")
        with start(*asked, cwd=tmp_path) as first:
            assert server.wait(1)
            second = kdgen(*asked, cwd=tmp_path)
            server.held = False
            assert second.returncode == 6
            assert str(first.pid) in second.stderr
            assert first.wait(60) == 0
            first.communicate()


def test_a_command_is_the_same_from_a_pipe(tmp_path: Path) -> None:
    """Rows on stdout are those of a dataset folder."""
    import subprocess

    rows = write_seeds(tmp_path / "seeds.jsonl", tasks(20)).read_bytes()
    with Server(mixed) as server:
        asked = ("-t", f"openai:Qwen3-8B@{server.url}", "--ledger", "l.db", "-q")
        assert kdgen("label", "seeds.jsonl", *asked, "-o", "out", cwd=tmp_path).returncode == 0
        piped = subprocess.run(
            command("label", "-", *asked, "-o", "-"),
            input=rows,
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            check=False,
        )
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == (tmp_path / "out" / "data.jsonl").read_bytes()
    assert len(server.bodies) == 20
