"""From a request to a stored reply: asked once, retried in one place, stopped at once, never endless."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from server import Answer, FakeWire, Script, echo_answer, last

from kdgen.errors import BudgetReached, EndpointError, Interrupted, Rejected, UserError
from kdgen.teachers.base import Call, Fault, Params, Raw, Request
from kdgen.teachers.bill import Bill, Budget
from kdgen.teachers.dispatch import Backoff, Dispatch
from kdgen.teachers.halt import Halt
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.openai import OpenAI


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


class Bench:
    """A dispatch over a wire of this process."""

    def __init__(self, path: Path, script: Script = echo_answer, *, grace: float = 5, wait: Any = None, **spec: Any):
        self.wire = FakeWire(script, wait)
        self.ledger = Ledger(path)
        self.halt = Halt(grace)
        self.bill = Bill(spec.pop("budget", Budget()))
        self.spec = OpenAI(model="m", base_url="http://stub/v1", **({"max_tokens": 20} | spec))
        self.dispatch = self.another()

    def another(self) -> Dispatch:
        made = Dispatch(self.spec, self.ledger, self.bill, self.halt)
        made._wire = self.wire
        return made

    def request(self, number: int = 0) -> Request:
        params = Params(**{name: getattr(self.spec, name) for name in Params.model_fields})
        return self.spec.request(Call([{"role": "user", "content": f"task {number} "}], params))

    async def ask(self, *numbers: int) -> list[Any]:
        asked = (self.dispatch.complete(self.request(number)) for number in numbers)
        return await asyncio.gather(*asked, return_exceptions=True)

    def claims(self) -> int:
        return int(self.ledger.one("SELECT count(*) FROM claims")[0])


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    noted: list[float] = []

    async def sleep(self: Halt, seconds: float) -> None:
        noted.append(seconds)
        await asyncio.sleep(0)
        self.check()

    monkeypatch.setattr(Halt, "sleep", sleep)
    return noted


def bad_for(number: int, status: int) -> Script:
    return lambda body, seen: Answer(status=status) if f"task {number} " in last(body) else echo_answer(body, seen)


def test_one_request_asked_many_times_is_sent_once(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", wait=lambda: 0.01)
        replies = await bench.ask(*[1] * 20, 2)
        assert len(bench.wire.requests) == 2
        assert len({reply.text for reply in replies[:20]}) == 1
        assert (bench.bill.requests, bench.bill.hits) == (2, 19)
        await bench.ledger.close()

    run(go())


def test_two_roles_that_ask_the_same_pay_once(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", wait=lambda: 0.05)
        judge = bench.another()
        one, two = await asyncio.gather(bench.dispatch.complete(bench.request()), judge.complete(bench.request()))
        assert one.text == two.text
        assert len(bench.wire.requests) == 1
        await bench.ledger.close()

    run(go())


def test_what_the_ledger_holds_opens_no_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db")
        await bench.ask(1)
        monkeypatch.setattr(OpenAI, "connect", lambda self: pytest.fail("a wire was opened"))
        fresh = Dispatch(bench.spec, bench.ledger, bench.bill, bench.halt)
        assert (await fresh.complete(bench.request(1))).text
        await fresh.close()
        await bench.ledger.close()

    run(go())


def test_all_who_asked_hear_of_a_refusal(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", lambda body, seen: Answer(status=400), wait=lambda: 0.01)
        ends = await bench.ask(1, 1, 1)
        assert [type(end) for end in ends] == [Rejected] * 3
        assert {end.reason for end in ends} == {"endpoint_refused"}
        assert len(bench.wire.requests) == 1
        assert bench.claims() == 0
        await bench.ledger.close()

    run(go())


@pytest.mark.parametrize("most", [1, 3, 50])
def test_no_more_than_concurrency_are_in_flight(tmp_path: Path, most: int) -> None:
    busy = peak = 0

    class Counting(FakeWire):
        async def send(self, request: Request) -> Raw:
            nonlocal busy, peak
            busy += 1
            peak = max(peak, busy)
            try:
                return await super().send(request)
            finally:
                busy -= 1

    async def go() -> None:
        bench = Bench(tmp_path / "l.db", concurrency=most)
        bench.wire = bench.dispatch._wire = Counting(echo_answer, lambda: random.uniform(0.02, 0.04))
        await bench.ask(*range(100))
        await bench.ledger.close()

    run(go())
    assert peak == min(most, 50) if most < 50 else most / 2 <= peak <= most


def test_a_record_is_given_up_only_while_the_endpoint_serves_others(tmp_path: Path, slept: list[float]) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", bad_for(3, 503), attempts=4, wait=lambda: 0.001, concurrency=4)
        ends = await bench.ask(*range(200))
        lost = [end for end in ends if isinstance(end, BaseException)]
        assert [(type(end), getattr(end, "reason", "")) for end in lost] == [(Rejected, "endpoint_failed")]
        tries = sum(request.key == bench.request(3).key for request in bench.wire.requests)
        assert tries >= 4
        assert bench.claims() == 0
        await bench.ledger.close()

    run(go())


@pytest.mark.parametrize("status", [429, 503, 500])
def test_an_endpoint_that_serves_nobody_ends_the_run(tmp_path: Path, slept: list[float], status: int) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", lambda body, seen: Answer(status=status), patience=0, attempts=50)
        ends = await bench.ask(*range(30))
        assert {type(end) for end in ends} == {EndpointError}
        assert isinstance(bench.halt.reason, EndpointError)
        assert len(bench.wire.requests) < 60
        assert bench.claims() == 0
        await bench.ledger.close()

    run(go())


def test_a_patient_run_lives_through_an_outage(tmp_path: Path, slept: list[float]) -> None:
    down = {"left": 60}

    def script(body: dict[str, Any], seen: int) -> Answer:
        down["left"] -= 1
        return Answer(status=503) if down["left"] >= 0 else echo_answer(body, seen)

    async def go() -> None:
        bench = Bench(tmp_path / "l.db", script, patience=60)
        ends = await bench.ask(*range(10))
        assert [end for end in ends if isinstance(end, BaseException)] == []
        assert bench.bill.failures == 60
        await bench.ledger.close()

    run(go())


def test_a_halt_lets_what_is_in_flight_arrive(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", wait=lambda: 0.2, concurrency=4, grace=10)
        asking = asyncio.create_task(bench.ask(*range(30)))
        while len(bench.wire.requests) < 4:
            await asyncio.sleep(0.005)
        bench.halt.set(Interrupted("stop"))
        ends = await asking
        came = [end for end in ends if not isinstance(end, BaseException)]
        assert len(came) == 4, "a reply on its way was thrown away"
        assert {type(end) for end in ends if isinstance(end, BaseException)} == {Interrupted}
        assert len(bench.wire.requests) == 4, "a request went out after the halt"
        assert bench.ledger.one("SELECT count(*) FROM calls") == (4,)
        assert bench.claims() == 0
        await bench.ledger.close()

    run(go())


def test_a_halt_does_not_wait_beyond_its_grace(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", wait=lambda: 60, concurrency=4, grace=0.05)
        asking = asyncio.create_task(bench.ask(*range(30)))
        while len(bench.wire.requests) < 4:
            await asyncio.sleep(0.005)
        bench.halt.set(Interrupted("stop"))
        ends = await asking
        assert {type(end) for end in ends} == {Interrupted}
        assert bench.bill.maybe_billed == 4
        assert bench.claims() == 0
        await bench.ledger.close()

    run(go())


def test_a_cancelled_request_gives_its_claim_back(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", wait=lambda: 60)
        asking = asyncio.create_task(bench.dispatch.complete(bench.request()))
        while not bench.wire.requests:
            await asyncio.sleep(0.005)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert bench.claims() == 0
        await bench.ledger.close()

    run(go())


def test_a_request_waits_for_the_reply_of_another_process(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db")
        with closing(Elsewhere(tmp_path / "l.db")) as other:
            assert await other.book.claim(bench.request())
            asking = asyncio.create_task(bench.dispatch.complete(bench.request()))
            await asyncio.sleep(0.2)
            assert not asking.done()
            body = Answer("from elsewhere").body()
            await other.book.settle(bench.request(), "t", 0.0, Raw(body, {}))
            assert (await asking).text == "from elsewhere"
            assert bench.wire.requests == []
            assert (bench.bill.requests, bench.bill.hits) == (0, 1)
            await other.book.close()
        await bench.ledger.close()

    run(go())


class Elsewhere:
    """Another process's ledger, as far as the file can tell."""

    def __init__(self, path: Path) -> None:
        self.book = Ledger(path)

    def close(self) -> None:
        """Closed by the test."""


def test_the_worst_case_is_set_aside_before_sending(tmp_path: Path) -> None:
    async def go() -> None:
        first = Bench(tmp_path / "size.db")
        room = len(first.request().body) + 20
        await first.ledger.close()
        cap = Budget(tokens=3 * room + room // 2)
        bench = Bench(tmp_path / "l.db", lambda body, seen: Answer("x", usage=(room - 20, 20)), budget=cap)
        bench.wire.wait = lambda: 0.05
        ends = await bench.ask(*range(8))
        assert bench.wire.peak == 3, "more is in flight than the cap holds at worst"
        paid = sum(not isinstance(end, BudgetReached) for end in ends)
        assert 3 <= paid == len(bench.wire.requests)
        assert bench.bill.tokens <= 3 * room + room // 2
        assert bench.claims() == 0
        await bench.ledger.close()

    run(go())


def test_what_a_lost_reply_may_have_cost_counts(tmp_path: Path, slept: list[float]) -> None:
    """Each broken reply may have been billed in full, so a cap for three requests is spent by three of them."""

    class Breaking(FakeWire):
        async def send(self, request: Request) -> Raw:
            self.requests.append(request)
            raise Fault("transient", "the connection broke", billed=True)

    async def go() -> None:
        size = Bench(tmp_path / "size.db")
        room = len(size.request().body) + 20
        await size.ledger.close()
        bench = Bench(tmp_path / "l.db", budget=Budget(tokens=3 * room), patience=1000)
        bench.wire = bench.dispatch._wire = Breaking()
        [end] = await bench.ask(0)
        assert isinstance(end, BudgetReached)
        assert len(bench.wire.requests) == 3
        assert bench.bill.tokens == 0, "what was not seen to be paid is not called paid"
        await bench.ledger.close()

    run(go())


def test_a_budget_in_money_needs_a_price(tmp_path: Path) -> None:
    async def go() -> None:
        bench = Bench(tmp_path / "l.db", budget=Budget(usd=1))
        [end] = await bench.ask(0)
        assert isinstance(end, UserError)
        assert bench.wire.requests == []
        await bench.ledger.close()

    run(go())


def test_every_attempt_takes_its_turn_at_the_pace(tmp_path: Path, slept: list[float]) -> None:
    async def go() -> None:
        bad: Script = lambda body, seen: Answer(status=500) if seen < 2 else echo_answer(body, seen)  # noqa: E731
        bench = Bench(tmp_path / "l.db", bad, rpm=60, attempts=9)
        ends = await bench.ask(*range(4))
        assert len(bench.wire.requests) == 12
        assert not [end for end in ends if isinstance(end, BaseException)]
        assert len([wait for wait in slept if wait > 4]) >= 6, "a retry went out before its turn"
        await bench.ledger.close()

    run(go())


@pytest.mark.parametrize("others", [True, False], ids=["others-are-served", "nobody-is-served"])
def test_a_request_that_waits_leaves_its_slot_to_others_while_they_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    def script(body: dict[str, Any], seen: int) -> Answer:
        refused = not seen and (not others or last(body).startswith(("task 0 ", "task 1 ")))
        return Answer(status=429) if refused else echo_answer(body, seen)

    async def go() -> None:
        gate, waiting = asyncio.Event(), []

        async def sleep(self: Halt, seconds: float) -> None:
            waiting.append(seconds)
            await gate.wait()

        monkeypatch.setattr(Halt, "sleep", sleep)
        bench = Bench(tmp_path / "l.db", script, concurrency=2)
        bench.dispatch.limits.concurrency.trouble = 0.0 if others else 1.0
        asking = asyncio.create_task(bench.ask(*range(20)))
        while len(waiting) < 2 or (others and len(bench.wire.requests) < 20):
            await asyncio.sleep(0.001)
        # Nobody passes those that wait where the endpoint refuses everybody.
        assert len(bench.wire.requests) == (20 if others else 2)
        gate.set()
        assert not [end for end in await asking if isinstance(end, BaseException)]
        await bench.ledger.close()

    run(go())


def test_waits_double_and_never_undercut_the_endpoint() -> None:
    class State:
        def __init__(self, attempt: int, after: float | None) -> None:
            self.attempt_number = attempt
            self.outcome = type("O", (), {"exception": lambda _: Fault("rate", "", retry_after=after)})()

    waits = {n: [Backoff()(State(n, None)) for _ in range(300)] for n in (1, 2, 3, 20)}  # type: ignore[arg-type]
    assert max(waits[1]) <= 0.5 < max(waits[2]) <= 1 < max(waits[3]) <= 2
    assert 30 < max(waits[20]) <= 60
    assert min(Backoff()(State(1, 9.0)) for _ in range(100)) >= 9  # type: ignore[arg-type]


def test_retrying_stands_in_one_place() -> None:
    """Rule 5: retry is in one place, and the SDK's own is off."""
    package = Path(__file__).parent.parent / "kdgen"
    users = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"^\s*(?:from|import) tenacity", path.read_text(), re.M)
    ]
    assert users == ["dispatch.py"]
    for path in package.rglob("*.py"):
        for client in re.findall(r"Async(?:OpenAI|Anthropic)\([^)]*", path.read_text()):
            assert "max_retries=0" in client
