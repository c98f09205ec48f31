"""What batches may cost and how much a provider takes of them: budgets of a run and of a month, full queues, rate limits."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from batch_server import BatchServer, Line, chat_line, expired_line
from server import Made, ledger_rows, make, start, tasks, write_seeds

from kdgen.errors import BudgetReached, ComeBack, EndpointError, Pending, UserError
from kdgen.teachers.base import Call, Fault, Params
from kdgen.teachers.bill import Bill, Budget
from kdgen.teachers.budget import Hold
from kdgen.teachers.chain import Chain
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.prices import prices_file

ROOM = 50
MOST = 310  # tokens that a request of these tests is within, as a budget counts it
Label = Callable[..., Made]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at batches without a pause."""
    monkeypatch.setattr("kdgen.cli.job.POLL", 0.01)


@pytest.fixture
def label(tmp_path: Path) -> Label:
    """`kdgen label` through batches of a server, on one ledger, with a bound on each reply."""

    def run(server: BatchServer, *options: object, seeds: Any = 10, name: str = "out", room: object = ROOM) -> Made:
        rows = tasks(seeds) if isinstance(seeds, int) else seeds
        path = write_seeds(tmp_path / "seeds.jsonl", rows)
        bound = ("--set", f"teachers.teacher.max_tokens={room}")
        return make("label", path, *server.asked, *bound, *options, folder=tmp_path / name, ledger=tmp_path / "l.db")

    return run


def spoken(line: Line) -> int:
    """Tokens that a result was billed for."""
    body = (line["response"] or {}).get("body") or {}
    return sum(body.get("usage", {}).values())


def billed(server: BatchServer) -> int:
    """The server's own count."""
    return sum(spoken(line) for batch in server.batches.values() for line in batch.lines)


def worst(body: dict[str, Any]) -> int:
    """The most tokens that a request can be billed for, as a budget counts it."""
    import orjson

    return len(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)) + ROOM


def within(server: BatchServer, cap: int) -> bool:
    """Whether no batch could have passed the cap, even at its worst, beside what was billed before it."""
    before = 0
    for batch in server.batches.values():
        if before + sum(worst(body) for _, body in batch.requests) > cap:
            return False
        before += sum(spoken(line) for line in batch.lines)
    return True


@pytest.mark.parametrize("wait", [True, False])
def test_what_a_budget_has_room_for_goes_first_and_the_rest_when_it_is_back(label: Label, wait: bool) -> None:
    cap = 1_200
    options = ("--budget-tokens", cap, *(() if wait else ("--no-wait",)))
    with BatchServer() as server:
        made = label(server, *options)
        while not wait and isinstance(made.error, ComeBack):
            made = label(server, *options)
        assert made.error is None, made.error
        assert made.manifest["counts"]["rows"] == 10
        sizes = [len(batch.requests) for batch in server.batches.values()]
        assert len(sizes) > 2 and sum(sizes) == 10 and server.repeats() == 0
        assert within(server, cap) and billed(server) <= cap


@pytest.mark.parametrize("wait", [True, False])
def test_a_budget_of_a_run_is_never_passed_over_all_its_invocations(label: Label, tmp_path: Path, wait: bool) -> None:
    with BatchServer() as server:
        body = OpenAI(model="Qwen3-8B", base_url=server.url).body(
            Call([{"role": "user", "content": "x" * 80}], Params(max_tokens=ROOM))
        )
        cap = worst(body) + 5 * 20
        options = ("--budget-tokens", cap, *(() if wait else ("--no-wait",)))
        made = label(server, *options)
        invocations = 1
        while isinstance(made.error, ComeBack):
            made = label(server, *options)
            invocations += 1
        assert isinstance(made.error, BudgetReached), made.error
        assert made.error.exit_code == 4 and f"of {cap} tokens are used" in str(made.error)
        done = len(server.keys)
        assert 2 <= done < 10 and invocations == (1 if wait else done + 1)
        assert within(server, cap) and billed(server) <= cap
        assert label(server, "--budget-tokens", 100_000).manifest["counts"]["rows"] == 10
        assert server.repeats() == 0 and len(server.keys) == 10
        assert ledger_rows(tmp_path / "l.db", "SELECT * FROM parts") == []


def test_a_budget_in_dollars_is_kept_at_batch_prices(label: Label, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {Qwen3-8B: {input: 1000, output: 1000, batch: 0.5}}")
    with BatchServer() as server:
        made = label(server, "--prices", prices, "--budget-usd", "1", "--no-wait")
        assert isinstance(made.error, ComeBack)
        (batch,) = server.batches.values()
        fit = sum(worst(body) for _, body in batch.requests)
        assert fit * 0.0005 <= 1 < (fit + max(worst(body) for _, body in batch.requests)) * 0.0005
        made = label(server, "--prices", prices, "--budget-usd", "1")
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        assert billed(server) * 0.0005 <= 1
        assert made.manifest["dataset"]["cost_usd"] == pytest.approx(billed(server) * 0.0005)


def test_a_budget_in_dollars_needs_a_price(label: Label) -> None:
    with BatchServer() as server:
        made = label(server, "--budget-usd", "1")
        assert isinstance(made.error, UserError) and "no price is known" in str(made.error)
        assert not server.batches


def test_what_earlier_runs_have_out_counts(label: Label) -> None:
    with BatchServer() as server:
        server.at_once = False
        assert isinstance(label(server, "--no-wait").error, ComeBack)
        (batch,) = server.batches.values()
        out = sum(worst(body) for _, body in batch.requests)
        cap = out + worst(batch.requests[0][1]) // 2
        assert isinstance(label(server, "--no-wait", "--budget-tokens", cap, seeds=12).error, ComeBack)
        assert len(server.batches) == 1, "ten are out, and the next could pass the cap"
        server.finish()
        server.at_once = True
        assert label(server, "--budget-tokens", cap, seeds=12).manifest["counts"]["rows"] == 12


def test_what_is_out_without_a_bound_rules_a_budget_out(label: Label) -> None:
    with BatchServer() as server:
        server.at_once = False
        label(server, "--no-wait", room="null")
        said = "10 requests are out in batches without a bound"
        for option, name in (("--budget-tokens", "out"), ("--budget-tokens-month", "other")):
            made = label(server, option, 10_000, name=name)
            assert isinstance(made.error, UserError) and said in str(made.error)
        assert len(server.batches) == 1
        assert isinstance(label(server, "--budget-tokens", 10_000, "--no-wait", name="other").error, ComeBack)
        assert len(server.batches) == 2, "a run's budget is of what it asks for"


def test_a_run_is_of_one_dataset(label: Label, tmp_path: Path) -> None:
    """Two datasets of one recipe, ledger and budget: neither pays for the other, and neither's end is the other's."""
    with BatchServer() as server:
        server.at_once = False
        rows = tasks(40)
        cap = 10 * MOST
        options = ("--budget-tokens", cap, "--no-wait")
        assert isinstance(label(server, *options, seeds=rows[:10], name="a").error, ComeBack)
        assert isinstance(label(server, *options, seeds=rows[10:20], name="b").error, ComeBack)
        assert [len(batch.requests) for batch in server.batches.values()] == [10, 10]
        server.finish()
        assert label(server, *options, seeds=rows[10:20], name="b").error is None, "which imports both"
        spent = sum(map(spoken, server.batches["batch-0"].lines))
        made = label(server, *options, seeds=[*rows[:10], *rows[20:]], name="a")
        assert isinstance(made.error, ComeBack)
        more = [worst(body) for _, body in server.batches["batch-2"].requests]
        assert spent + sum(more) <= cap < spent + sum(more) + max(more), "what it asked for before counts"
        server.finish()
        server.at_once = True
        assert label(server, seeds=[*rows[:10], *rows[20:]], name="a").error is None, "it ends without a budget"
        assert ledger_rows(tmp_path / "l.db", "SELECT * FROM parts") == []
        assert label(server, "--budget-tokens", MOST, seeds=rows[:30], name="a").error is None, "another run"


def test_what_another_process_imports_counts(label: Label, tmp_path: Path) -> None:
    """One waits with a budget; another, of another dataset, imports what it has out."""
    with BatchServer() as server:
        server.at_once = False
        rows = tasks(10)
        cap = 6 * MOST
        seeds = write_seeds(tmp_path / "first.jsonl", rows)
        bound = ("--set", f"teachers.teacher.max_tokens={ROOM}", "--budget-tokens", str(cap))
        with start(
            "label", str(seeds), *server.asked, *bound, "-q", "-o", "first", "--ledger", "l.db", cwd=tmp_path
        ) as run:
            assert server.wait("status")
            server.finish()
            assert label(server, seeds=rows[:2], name="other").manifest["counts"]["rows"] == 2
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=60)
        (batch,) = server.batches.values()
        (before,) = ledger_rows(tmp_path / "l.db", "SELECT count(*) FROM parts")[0]
        assert before == len(batch.requests) < 10
        made = label(server, *bound[2:], "--no-wait", seeds=rows, name="first")
        assert isinstance(made.error, ComeBack) and within(server, cap)


def test_what_may_have_been_billed_is_known_to_the_next_invocation(tmp_path: Path) -> None:
    spec = OpenAI(model="Qwen3-8B", base_url="http://127.0.0.1:9/v1", max_tokens=ROOM)

    async def go() -> None:
        for tokens in (30, 60):
            ledger, bill = Ledger(tmp_path / "l.db"), Bill(Budget(tokens=100))
            chain = Chain(ledger, "a")
            chain.join()
            chain.tell([spec], bill)
            assert bill.of_chain is not None and bill.of_chain().tokens == tokens - 30
            bill.failed(Fault("transient", "no reply", billed=True), worst=Hold(30, 0.0))
            await (chain.leave(bill) if tokens == 30 else chain.end())
            await ledger.close()
        assert ledger_rows(tmp_path / "l.db", "SELECT * FROM lost") == []

    asyncio.run(go())


def test_a_month_is_shared_and_ends_up_with_what_was_paid(label: Label, tmp_path: Path) -> None:
    """Every end of a request gives its reservation back: an answer, an error, no time, a batch that fails."""
    state = ["first"]

    def result(key: str, body: dict[str, Any]) -> Line | None:
        number = int(body["messages"][-1]["content"].split(" number ")[1].split(" ")[0])
        if state[0] == "first" and number % 4:
            return (None, chat_line(key, body, 500), expired_line(key, body))[number % 4 - 1]
        return chat_line(key, body)

    def spent() -> int:
        return int(ledger_rows(tmp_path / "l.db", "SELECT sum(tokens) FROM spend")[0][0])

    cap = 3_500
    options = ("--budget-tokens-month", cap)
    with BatchServer(result) as server:
        server.at_once = False
        assert isinstance(label(server, *options, "--no-wait").error, ComeBack)
        (batch,) = server.batches.values()
        assert spent() == sum(worst(body) for _, body in batch.requests)
        batch.state, batch.errors = "failed", [{"code": "invalid", "message": "no"}]
        assert isinstance(label(server, *options, "--no-wait").error, EndpointError)
        assert spent() == 0
        server.at_once = True
        assert isinstance(label(server, *options, "--no-wait").error, ComeBack)
        state[0] = "second"
        made = label(server, *options)
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        assert (
            spent() == billed(server) == sum(made.manifest["dataset"]["tokens"][name] for name in ("input", "output"))
        )
        other = label(server, *options, seeds=tasks(250)[10:], name="other")
        assert isinstance(other.error, BudgetReached) and f"of {cap:,} tokens are used of" in str(other.error)
        assert spent() == billed(server) <= cap
        assert server.repeats() == 10 + 7, "only what had no reply was asked for again"


def test_an_online_request_waits_for_what_batches_turn_out_to_cost() -> None:
    spec = OpenAI(model="Qwen3-8B", base_url="http://127.0.0.1:9/v1", max_tokens=ROOM)
    request = spec.request(Call([{"role": "user", "content": "x"}], Params(max_tokens=ROOM)))

    async def go() -> None:
        bill = Bill(Budget(tokens=1_000))
        bill.out.put("elsewhere", {"k": Hold(900, 0.0)})
        with pytest.raises(Pending):
            await bill.reserve(spec, request)
        bill.out.back("elsewhere", "k")
        assert (await bill.reserve(spec, request)).tokens < 1_000
        bill = Bill(Budget(tokens=100))
        bill.out.put("elsewhere", {"k": Hold(100, 0.0)})
        with pytest.raises(BudgetReached):
            await bill.reserve(spec, request)

    asyncio.run(go())


def test_a_straggler_is_reserved_at_its_online_price(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("models: {Qwen3-8B: {input: 1000, output: 1000, batch: 0.5}}")
    spec = OpenAI(model="Qwen3-8B", mode="batch")
    request = spec.request(Call([{"role": "user", "content": "x"}], Params(max_tokens=ROOM)))
    bill = Bill(Budget(usd=1.0), prices_file(path))
    assert bill.worst(spec, request, "online").usd == 2 * bill.worst(spec, request, "batch").usd > 0
    assert asyncio.run(bill.reserve(spec, request)) == bill.worst(spec, request, "online")


def full(most: int) -> Callable[[int], web.Response | None]:
    """What a server does whose queue takes so many requests."""

    def refuse(size: int) -> web.Response | None:
        told = {"error": {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}}
        return web.json_response(told, status=400) if size > most else None

    return refuse


def test_a_queue_that_refuses_is_fed_less_at_a_time(label: Label) -> None:
    with BatchServer() as server:
        server.refuse, server.at_once, server.looks = full(3), False, 3
        made = label(server)
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        assert [len(batch.requests) for batch in server.batches.values()] == [2] * 5
        assert server.most == 2, "one at a time"
        assert made.manifest["counts"]["rejects"] == {}


def test_a_batch_that_fails_for_a_full_queue_is_submitted_when_others_have_ended(
    label: Label, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kdgen.teachers.batch_apis.OpenAIBatches.max_requests", 4)
    with BatchServer() as server:
        server.queue, server.at_once, server.looks = 5, False, 4
        made = label(server)
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        states = [(len(batch.requests), batch.state) for batch in server.batches.values()]
        assert states == [(4, "completed"), (4, "failed"), (2, "failed"), (4, "completed"), (2, "completed")]
        assert server.repeats() == 0
    assert {row[0] for row in ledger_rows(tmp_path / "l.db", "SELECT state FROM batches")} == {"ended", "held"}


def test_a_batch_that_alone_is_too_much_for_the_queue_is_halved(label: Label) -> None:
    with BatchServer() as server:
        server.queue, server.at_once, server.looks = 3, False, 2
        assert label(server).manifest["counts"]["rows"] == 10
        assert [len(batch.requests) for batch in server.batches.values()] == [10, 5, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("later", [True, False])
def test_a_request_that_is_too_much_for_an_empty_queue_ends_the_run(label: Label, later: bool) -> None:
    with BatchServer() as server:
        server.queue, server.refuse = (0, lambda size: None) if later else (9, full(0))
        made = label(server)
        assert isinstance(made.error, EndpointError) and "no room for one request" in str(made.error)


def test_a_rate_limit_ends_the_run_only_where_nothing_is_out(
    label: Label, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kdgen.teachers.batch_apis.OpenAIBatches.max_requests", 4)
    calls = [0]

    def refuse(size: int) -> web.Response | None:
        calls[0] += 1
        return web.json_response({"error": {"message": "slow down"}}, status=429) if calls[0] in (1, 3) else None

    with BatchServer() as server:
        server.refuse = refuse
        made = label(server)
        assert isinstance(made.error, EndpointError) and "slow down" in str(made.error) and not server.batches
        assert ledger_rows(tmp_path / "l.db", "SELECT DISTINCT state, tries FROM batch_items") == [("again", 0)]
        made = label(server)
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        assert [len(batch.requests) for batch in server.batches.values()] == [4, 4, 2]


def test_polls_that_fail_for_a_while_are_borne(label: Label, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchServer() as server:
        server.at_once, server.looks, server.faults = False, 2, 5
        assert label(server).manifest["counts"]["rows"] == 10
        assert server.repeats() == 0
        monkeypatch.setattr("kdgen.teachers.batch.STUMBLES", 4)
        server.faults = 1_000
        made = label(server, seeds=12)
        assert isinstance(made.error, EndpointError) and "out of order" in str(made.error)
        server.faults = 0
        assert label(server, seeds=12).manifest["counts"]["rows"] == 12
        assert server.repeats() == 0


def test_what_a_run_without_a_budget_has_out_counts_for_the_month_that_it_was_made_in(
    label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent() -> dict[str, int]:
        return dict(ledger_rows(tmp_path / "l.db", "SELECT month, tokens FROM spend"))

    monkeypatch.setattr("kdgen.teachers.bill.this_month", lambda: "2026-11")
    with BatchServer() as server:
        server.at_once = False
        assert isinstance(label(server, "--no-wait").error, ComeBack)
        (batch,) = server.batches.values()
        out = sum(worst(body) for _, body in batch.requests)
        assert spent() == {"2026-11": out}
        capped = ("--budget-tokens-month", out + MOST // 2, "--no-wait")
        assert isinstance(label(server, *capped, seeds=tasks(20)[10:], name="other").error, ComeBack)
        assert len(server.batches) == 1, "the month has no room beside what is out"
        monkeypatch.setattr("kdgen.teachers.bill.this_month", lambda: "2026-12")
        server.finish()
        assert label(server).error is None
        assert spent() == {"2026-11": billed(server)}, "no other month had room set aside for it"
