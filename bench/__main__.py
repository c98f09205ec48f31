"""`python -m bench [dispatch|start|replay|memory|pace …] [--full]`: Markdown tables on stdout.

CPU seconds and ratios count; the wall clock of a shared machine does not. What is compared is interleaved.
"""

from __future__ import annotations

import argparse
import os
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.measure import (
    CACHE,
    HERE,
    KDGEN,
    PYTHON,
    Server,
    Took,
    grown,
    middle,
    note,
    server,
    table,
    took,
    write_seeds,
)
from bench.measure import start as start_command
from kdgen.terms import table as terms

CLIENTS = ("bare sdk", "bare aiohttp", "bare socket", "kdgen lean", "kdgen sdk")
ANSWER = (
    '{"reply": "Answer {digest}. ' + "light river engine model answer number table field sound metal " * 10 + '"}\n'
)


def label(folder: Path, seeds: Path, teacher: str, *sets: str, fresh: bool = True) -> list[str]:
    """The command that labels `seeds`, with a ledger and a dataset of its own; `fresh` removes what is there."""
    out, ledger = folder / "out", folder / "ledger.db"
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
        for file in folder.glob("ledger.db*"):
            file.unlink()
    changes = [part for each in sets for part in ("--set", each)]
    return [*KDGEN, "label", str(seeds), "-t", teacher, *changes, "-o", str(out), "--ledger", str(ledger), "-q"]


def ask(client: str, folder: Path, seeds: Path, host: Server, most: int) -> Took:
    """One client over the seeds; every one sends the same requests."""
    env = {"OPENAI_BASE_URL": host.base, "OPENAI_API_KEY": "x"}
    who, _, kind = client.partition(" ")
    if who == "bare":
        command = [PYTHON, str(HERE / "clients.py"), kind, host.base, str(seeds), str(folder / "bare.jsonl"), str(most)]
    else:
        teacher = f"openai:Qwen3-8B@{host.base}" if kind == "lean" else "openai:Qwen3-8B"
        command = label(folder, seeds, teacher, f"teachers.teacher.concurrency={most}")
        command += [] if kind == "lean" else ["--ack-terms", f"openai.api@{terms().read}"]
    return took(command, env=env, cwd=folder)


def dispatch(options: argparse.Namespace, folder: Path) -> None:
    """Requests to a server: kdgen with its ledger next to bare clients without."""
    count = options.rows or 2000
    seeds = folder / "seeds.jsonl"
    write_seeds(seeds, count)
    cells = [(latency, most) for most in options.in_flight for latency in (0, 50)]
    rows = []
    with server() as host:
        for latency, most in cells:
            runs: dict[str, list[Took]] = {client: [] for client in options.clients}
            flying: dict[str, int] = {}
            for _ in range(options.repeat):
                for client in options.clients:
                    host.reset(latency)
                    runs[client].append(ask(client, folder, seeds, host, most))
                    stats = host.stats()
                    assert stats["requests"] == stats["distinct"] == count, stats
                    flying[client] = stats["most_in_flight"]
            base = middle(runs[options.clients[0]])
            for client in options.clients:
                run = middle(runs[client])
                per = 1000 * run.cpu / count
                cell = (most, f"{latency} ms", client, per, run.cpu / base.cpu, run.wall, run.wall / base.wall)
                rows.append((*cell, f"{count / run.wall:,.0f}", f"{run.rss:.0f}", flying[client] or "-"))
                note(f"{most} {latency} ms {client}: {per:.2f} CPU-s per 1,000, {run.wall:.1f} s, {run.rss:.0f} MiB")
    print(f"## dispatch: {count:,} seeds, median of {options.repeat}, CPU and wall of the whole process\n")
    of = options.clients[0]
    head = ("in flight", "latency", "client", "CPU-s per 1,000", f"x {of}", "wall s", f"x {of}", "rows/s", "peak MiB")
    table((*head, "most in flight seen"), rows)


def start(options: argparse.Namespace, folder: Path) -> None:
    """What a user waits for before anything happens."""
    script = Path(PYTHON).with_name("kdgen")
    kdgen = [str(script)] if script.exists() else KDGEN
    commands = {"import typer": [PYTHON, "-c", "import typer"], "kdgen --help": [*kdgen, "--help"]}
    runs: dict[str, list[Took]] = {name: [] for name in commands}
    for _ in range(9):
        for name, command in commands.items():
            runs[name].append(took(command, cwd=folder))
    base = middle(runs["import typer"])
    print("## start: median of 9, alternating\n")
    rows = []
    for name in commands:
        run = middle(runs[name])
        rows.append((name, run.wall * 1000, run.cpu * 1000, run.cpu / base.cpu, f"{run.rss:.0f}"))
    table(("command", "wall ms", "CPU ms", "x", "peak MiB"), rows)
    most = 1.5 * base.wall + 0.05
    print(f"The target for --help is 1.5 x import typer + 50 ms = {most * 1000:.0f} ms.\n")
    seeds = folder / "few.jsonl"
    write_seeds(seeds, 100)
    waits: dict[str, list[float]] = {client: [] for client in options.clients}
    with server() as host:
        for _ in range(5):
            for client in options.clients:
                host.reset(0)
                run = ask(client, folder, seeds, host, 64)
                waits[client].append(host.stats()["first_at"] - run.began)
    print("## start: seconds from start to the first request at the server, of 5\n")
    table(("client", "median", "least"), [(client, median(times), min(times)) for client, times in waits.items()])


def replay(options: argparse.Namespace, folder: Path) -> None:
    """The same command again: everything is in the ledger."""
    count = options.rows or (100_000 if options.full else 20_000)
    seeds, script = folder / "seeds.jsonl", folder / "answers.jsonl"
    write_seeds(seeds, count)
    script.write_text(ANSWER, encoding="utf-8")
    teacher = f"scripted:{script}"
    fill = took(label(folder, seeds, teacher, "teachers.teacher.concurrency=1024"), cwd=folder)
    note(f"filled: {fill.wall:.1f} s")
    again = label(folder, seeds, teacher, "teachers.teacher.concurrency=1024", fresh=False)
    runs = [took(again, cwd=folder) for _ in range(options.repeat)]
    rows = [_speed("fill (scripted)", fill, count), _speed("replay", middle(runs), count)]
    print(f"## replay: {count:,} calls in the ledger\n")
    table(("pass", "wall s", "rows/s", "CPU s", "rows per CPU-s", "CPU-s per 1,000", "peak MiB"), rows)
    if options.profile:
        _profile(again, folder)


def memory(options: argparse.Namespace, folder: Path) -> None:
    """Peak memory against the number of seeds."""
    top = options.rows or (1_000_000 if options.full else 100_000)
    script = folder / "answers.jsonl"
    script.write_text('{"reply": "Answer {digest}."}\n', encoding="utf-8")
    rows = []
    for count in (top // 50, top // 5, top):
        seeds = folder / "seeds.jsonl"
        write_seeds(seeds, count)
        began = time.monotonic()
        run = took(label(folder, seeds, f"scripted:{script}"), cwd=folder)
        note(f"{count:,} seeds: {time.monotonic() - began:.0f} s, {run.rss:.0f} MiB")
        rows.append(_speed(f"{count:,} seeds", run, count))
    print("## memory: scripted teacher, 64 in flight\n")
    table(("job", "wall s", "rows/s", "CPU s", "rows per CPU-s", "CPU-s per 1,000", "peak MiB"), rows)


def export(options: argparse.Namespace, folder: Path) -> None:
    """A dataset exported: plain, in Parquet, and cut by everything that takes memory."""
    count = options.rows or (1_000_000 if options.full else 100_000)
    seeds, script = folder / "seeds.jsonl", folder / "answers.jsonl"
    write_seeds(seeds, 1)
    script.write_text(ANSWER, encoding="utf-8")
    took(label(folder, seeds, f"scripted:{script}"), cwd=folder)
    made = grown(folder / "out", folder / "many", count)
    cut = [
        "--split",
        "train=0.9,test=0.1",
        "--subsets",
        f"{count // 100},{count // 10}",
        "--order",
        "length",
        "--pack",
        "4096",
    ]
    rows = []
    for name, more in (
        ("messages", []),
        ("messages, think", ["--set", "reasoning=think"]),
        ("alpaca", ["--to", "alpaca"]),
        ("messages, Parquet shards", ["--as", "hf"]),
        ("messages, split, subsets, order, packing", cut),
    ):
        command = [*KDGEN, "export", str(made), "--to", "messages", *more, "-o", str(folder / "exported"), "-q"]
        runs = [took(command, cwd=folder) for _ in range(options.repeat)]
        rows.append(_speed(name, middle(runs), count))
        note(f"{name}: {count / middle(runs).wall:,.0f} rows/s")
    print(f"## export: {count:,} records\n")
    table(("export", "wall s", "rows/s", "CPU s", "rows per CPU-s", "CPU-s per 1,000", "peak MiB"), rows)


def pace(options: argparse.Namespace, folder: Path) -> None:
    """Two processes with one key and one ledger, at a server that allows 600 requests a minute."""
    rpm, count = 600, options.rows or 600
    ledger = folder / "ledger.db"
    rows = []
    with server() as host:
        for latency in (50, 2000):
            for file in folder.glob("ledger.db*"):
                file.unlink()
            host.reset(latency, rpm)
            waits = []
            for number in range(2):
                seeds = folder / f"seeds{number}.jsonl"
                write_seeds(seeds, count, number * count)
                command = [
                    *KDGEN,
                    "label",
                    str(seeds),
                    "-t",
                    f"openai:Qwen3-8B@{host.base}",
                    "--ledger",
                    str(ledger),
                    "-q",
                ]
                command += ["--set", "teachers.teacher.concurrency=64", "-o", str(folder / f"out{latency}-{number}")]
                waits.append(start_command(command, cwd=folder, name=f".bench{number}.log"))
            for wait in waits:
                wait()
            stats = host.stats()
            seconds = stats["last_at"] - stats["first_at"]
            served = stats["requests"] - stats["limited"]
            assert served == 2 * count, stats
            share = served / seconds * 60 / rpm
            note(f"{latency} ms: {share:.1%} of the limit, {stats['limited']} refused")
            refused = f"{stats['limited'] / stats['requests']:.1%}"
            rows.append(
                (f"{latency} ms", served, seconds, served / seconds * 60, f"{share:.1%}", stats["limited"], refused)
            )
    print(f"## pace: two processes, one ledger, {rpm} requests a minute allowed\n")
    table(("latency", "served", "seconds", "a minute", "of the limit", "429", "of all"), rows)


def _speed(name: str, run: Took, count: int) -> tuple[object, ...]:
    per = f"{count / run.wall:,.0f}", run.cpu, f"{count / run.cpu:,.0f}", 1000 * run.cpu / count
    return (name, run.wall, *per, f"{run.rss:.0f}")


def _profile(command: list[str], folder: Path) -> None:
    """The same command under cProfile: the functions that take longest themselves."""
    found = folder / "profile"
    took([PYTHON, "-m", "cProfile", "-o", str(found), *command[1:]], cwd=folder)
    print("```")
    pstats.Stats(str(found)).strip_dirs().sort_stats("tottime").print_stats(30)
    print("```")


def _warm(options: argparse.Namespace, folder: Path) -> None:
    """One request of each client, so that no run that counts compiles modules."""
    seeds = folder / "warm.jsonl"
    write_seeds(seeds, 1)
    with server() as host:
        for client in options.clients:
            ask(client, folder, seeds, host, 1)
    script = Path(PYTHON).with_name("kdgen")
    took([str(script), "--help"] if script.exists() else [*KDGEN, "--help"], cwd=folder)


PARTS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "start": start,
    "dispatch": dispatch,
    "replay": replay,
    "memory": memory,
    "pace": pace,
    "export": export,
}


def main() -> None:
    """Parse the options and run the parts."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [all]")
    parser.add_argument("--full", action="store_true", help="the sizes that the targets name")
    parser.add_argument("--rows", type=int, help="rows instead of each part's own number")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each cell")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--clients", nargs="+", default=list(CLIENTS), choices=CLIENTS, help="the first is the measure")
    parser.add_argument("--profile", action="store_true", help="profile the replay as well")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part is named {unknown[0]!r}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="kdgen-bench-") as folder:
        os.environ[CACHE] = str(Path(folder) / "pyc")
        _warm(options, Path(folder))
        for name in options.parts or PARTS:
            place = Path(folder) / name
            place.mkdir()
            PARTS[name](options, place)
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
