"""Budgets of a calendar month: kept in the ledger, over all runs and processes that share it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from server import Answer, Made, Server, make, tasks, write_seeds

from kdgen.errors import BudgetReached
from kdgen.teachers import bill as bills
from kdgen.teachers.base import Fault, Request
from kdgen.teachers.bill import Bill, Budget
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.prices import Prices, Row

SPEC = OpenAI(model="Qwen3-8B", base_url="http://127.0.0.1:9/v1", max_tokens=50)
PRICES = Prices(own={"Qwen3-8B": Row(input=1e6, output=1e6)})  # a dollar a token


def label(tmp_path: Path, name: str, *more: str, server: Server, count: int = 20) -> Made:
    seeds = write_seeds(tmp_path / f"{name}.jsonl", [{**task, "id": f"{name}{task['id']}"} for task in tasks(count)])
    extra = ("--set", "teachers.teacher.concurrency=4", "--set", "teachers.teacher.max_tokens=50")
    teacher = f"openai:Qwen3-8B@{server.url}"
    return make("label", seeds, "-t", teacher, *extra, *more, folder=tmp_path / name, ledger=tmp_path / "l.db")


def spender() -> Server:
    return Server(lambda body, seen: Answer("so it is", usage=(60, 40)))


def test_a_month_counts_every_run_of_the_ledger(tmp_path: Path) -> None:
    with spender() as server:
        assert label(tmp_path, "first", server=server, count=10).error is None
        assert server.tokens == 1000
        capped = label(tmp_path, "first", "--budget-tokens-month", "2000", "--limit", "10", server=server)
        assert capped.error is None and server.tokens == 1000  # nothing to ask, nothing to pay
        capped = label(tmp_path, "first", "--budget-tokens-month", "2000", server=server)
        assert isinstance(capped.error, BudgetReached) and "of 2,000 tokens are used of 2" in capped.error.cause
        assert 1000 < server.tokens <= 2000
        assert label(tmp_path, "first", "--budget-tokens-month", "9000", server=server).error is None
        assert server.tokens == 2000  # 20 seeds at 100 tokens, none of them paid twice


def test_another_month_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with spender() as server:
        assert label(tmp_path, "first", server=server, count=10).error is None
        monkeypatch.setattr(bills, "this_month", lambda: "2027-01")
        assert label(tmp_path, "first", "--budget-tokens-month", "2000", server=server, count=15).error is None
        assert server.tokens == 1500


def test_a_month_in_dollars(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models:\n  Qwen3-8B: {input: 1000, output: 1000}\n")
    asked = ("--prices", str(tmp_path / "prices.yaml"), "--budget-usd-month", "1.5")
    with spender() as server:
        made = label(tmp_path, "first", *asked, server=server)
        assert isinstance(made.error, BudgetReached) and "of $1.5000 is spent of 2" in made.error.cause
        assert 0 < server.tokens * 1000 / 1e6 <= 1.5


def request(number: int) -> Request:
    return Request("openai.chat", b"x" * 50, number, 50)


def test_two_processes_share_a_month(tmp_path: Path) -> None:
    """What one has in flight the other counts, and a crash leaves it counted."""

    async def main() -> None:
        books = [Ledger(tmp_path / "l.db"), Ledger(tmp_path / "l.db")]
        one, two = (Bill(Budget(month_usd=250), PRICES, book) for book in books)
        held = await one.reserve(SPEC, request(1))
        await two.reserve(SPEC, request(2))
        with pytest.raises(BudgetReached, match=r"\$200.0000 of \$250"):
            await Bill(Budget(month_usd=250), PRICES, books[1]).reserve(SPEC, request(3))
        one.failed(Fault("transient", "refused"), held)
        again = await one.reserve(SPEC, request(4))
        one.failed(Fault("transient", "cut", billed=True), again)
        with pytest.raises(BudgetReached):
            await one.reserve(SPEC, request(5))
        for book in books:
            await book.close()

    asyncio.run(main())
