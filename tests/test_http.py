"""The wires against a server that fails on purpose, over real HTTP on a loopback port."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import MagicMock

import pytest
from server import (
    ACK,
    Answer,
    Made,
    Script,
    Server,
    echo_answer,
    kdgen,
    last,
    make,
    paid,
    recipe_file,
    tasks,
    write_seeds,
)

from kdgen.errors import BudgetReached, ComeBack, EndpointError, GateFailed, UserError
from kdgen.teachers import AnyTeacher
from kdgen.teachers.base import Call, Fault, Params, Request, TeacherSpec
from kdgen.teachers.forward import ForwardWire
from kdgen.teachers.halt import Halt
from kdgen.teachers.http import checked, error_of, fault, retry_after
from kdgen.teachers.local import Local
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.scripted import Scripted

KEY = "sk-planted-7f3a9c0d51e24b68"
NAMED = "teachers.teacher.api_key_env=OPENAI_API_KEY"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between retries, noted and not waited."""
    noted: list[float] = []

    async def sleep(self: Halt, seconds: float) -> None:
        noted.append(seconds)
        self.check()

    monkeypatch.setattr(Halt, "sleep", sleep)
    return noted


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def label(tmp_path: Path, server: Server, count: int, *sets: str, name: str = "out") -> Made:
    """kdgen label of `count` seeds at the server."""
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(count))
    extra = [part for each in sets for part in ("--set", each)]
    return make("label", seeds, "-t", f"openai:Qwen3-8B@{server.url}", *extra, folder=tmp_path / name)


def one_bad(bad: Answer, times: int | None = None, word: str = "number 3 ") -> Script:
    """A server that fails on one seed, always or `times` times."""

    def script(body: dict[str, Any], seen: int) -> Answer:
        return bad if word in last(body) and (times is None or seen < times) else echo_answer(body, seen)

    return script


@pytest.mark.parametrize(
    "headers", [{"retry-after": "7"}, {"retry-after-ms": "7000"}, {"retry-after": "date"}], ids=["s", "ms", "date"]
)
def test_a_rate_limit_waits_as_long_as_the_endpoint_asks(
    tmp_path: Path, slept: list[float], headers: dict[str, str]
) -> None:
    if headers.get("retry-after") == "date":
        headers = {"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)}
    with Server(one_bad(Answer(status=429, headers=headers), times=1)) as server:
        made = label(tmp_path, server, 6)
    assert made.manifest["counts"]["rows"] == 6
    assert server.repeats() == 1
    assert len(slept) == 1
    assert 7 <= slept[0] < 61


@pytest.mark.parametrize(
    "bad",
    [
        Answer(status=500),
        Answer(status=503),
        Answer(status=408),
        Answer(raw=b"<html>bad gateway</html>"),
        Answer(raw=b""),
        Answer("half of this never comes", cut=True),
        Answer(status=502, raw=b"\xff\xfe not utf-8"),
        Answer(raw=b"null"),
        Answer(raw=b'{"error": {"code": 503, "message": "no provider is free"}, "user_id": "u"}'),
    ],
    ids=["500", "503", "408", "html", "empty", "truncated", "binary", "null", "hidden"],
)
def test_a_passing_fault_is_retried_and_leaves_no_trace_in_the_rows(
    tmp_path: Path, slept: list[float], bad: Answer
) -> None:
    with Server(one_bad(bad, times=2)) as server:
        made = label(tmp_path, server, 6)
    assert made.error is None
    assert (made.manifest["counts"]["rows"], made.manifest["requests"]["failed"]) == (6, 2)
    assert server.repeats() == 2
    assert len(slept) == 2
    with Server() as healthy:
        plain = label(tmp_path, healthy, 6, name="plain")
    assert {name: made.files[name] for name in ("data.jsonl", "rejects.jsonl")} == {
        name: plain.files[name] for name in ("data.jsonl", "rejects.jsonl")
    }


@pytest.mark.parametrize("own", [True, False], ids=["lean", "sdk"])
@pytest.mark.parametrize(
    "bad",
    [
        Answer("half of this never comes", cut=True),
        Answer("billed, and nothing of it comes", reset=True),
        Answer(raw=b'{"choices": [{"message"'),
        Answer(raw=b""),
        Answer(raw=b"<html>ok</html>"),
    ],
    ids=["cut", "reset", "half-json", "empty", "html"],
)
def test_a_body_that_is_cut_or_no_json_is_retried_and_may_have_been_billed(
    tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch, bad: Answer, own: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    with Server(one_bad(bad, times=2)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(5))
        teacher = (f"openai:Qwen3-8B@{server.url}",) if own else ("openai:Qwen3-8B", *ACK)
        made = make("label", seeds, "-t", *teacher, folder=tmp_path / "out")
    assert made.error is None
    assert made.manifest["counts"]["rows"] == 5
    assert (made.manifest["requests"]["failed"], made.manifest["requests"]["maybe_billed"]) == (2, 2)
    assert made.manifest["maybe_billed"]["tokens"] > 2 * 512
    assert (server.repeats(), server.again, len(server.lost)) == (2, 0, 2)


def test_a_refused_connection_cannot_have_been_billed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    address = f"http://127.0.0.1:{closed_port()}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    for spec in (OpenAI(model="m", base_url=address), OpenAI(model="m")):
        request = spec.request(Call([{"role": "user", "content": "x"}], Params()))

        async def send(spec: OpenAI = spec, request: Request = request) -> Fault:
            wire = spec.connect()
            try:
                with pytest.raises(Fault) as found:
                    await wire.send(request)
            finally:
                await wire.close()
            return found.value

        fault = asyncio.run(send())
        assert (fault.kind, fault.billed) == ("transient", False)
        assert "cannot connect" in fault.message


def test_hours_of_retry_after_are_not_waited_out(tmp_path: Path, slept: list[float]) -> None:
    bad = Answer("come back tomorrow", status=429, headers={"retry-after": "86400"})
    with Server(one_bad(bad)) as server:
        made = label(tmp_path, server, 6)
    assert isinstance(made.error, EndpointError) and made.error.exit_code == 3
    assert "come back tomorrow" in made.error.cause and re.search(
        r"come back at \d{4}-\d\d-\d\d \d\d:\d\d", made.error.hint
    )
    assert slept == []


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_server_that_sends_elsewhere_says_where(tmp_path: Path, slept: list[float], status: int) -> None:
    moved = Answer("", status=status, headers={"location": "http://elsewhere/v1"})
    with Server(lambda body, seen: moved) as server:
        made = label(tmp_path, server, 100)
    assert isinstance(made.error, EndpointError)
    assert "http://elsewhere/v1" in made.error.cause and "base_url" in made.error.hint
    assert len(server.bodies) <= 8


@pytest.mark.parametrize("bad", [Answer(status=500), Answer(raw=b"not JSON")], ids=["500", "not-json"])
def test_a_request_that_always_fails_is_given_up_after_its_attempts_even_when_it_is_the_last(
    tmp_path: Path, slept: list[float], bad: Answer
) -> None:
    with Server(one_bad(bad)) as server:
        made = label(tmp_path, server, 6, "teachers.teacher.attempts=4")
        assert [row["reason"] for row in made.rows("rejects.jsonl")] == ["endpoint_failed"]
        assert made.manifest["counts"]["rows"] == 5
        assert server.repeats() == 3
        # The next run asks for this one alone, so nothing else shows that the endpoint serves; it must end the same.
        again = label(tmp_path, server, 6, "teachers.teacher.attempts=4")
        assert again.error is None
        assert again.files == made.files
        assert server.repeats() == 7


def test_an_endpoint_that_never_sends_a_whole_body_ends_the_run(tmp_path: Path, slept: list[float]) -> None:
    with Server(lambda body, seen: Answer("cut off in the middle", cut=True)) as server:
        made = label(tmp_path, server, 3, "teachers.teacher.patience=0")
    assert isinstance(made.error, EndpointError)
    assert made.error.exit_code == 3
    assert len(server.bodies) < 20


def test_a_refused_request_is_a_reject_and_the_run_goes_on(tmp_path: Path, slept: list[float]) -> None:
    with Server(one_bad(Answer("context too long", status=400))) as server:
        made = label(tmp_path, server, 6)
    [reject] = made.rows("rejects.jsonl")
    assert (reject["reason"], reject["detail"]) == ("endpoint_refused", "HTTP 400: context too long")
    assert made.manifest["counts"]["rows"] == 5
    assert (server.repeats(), slept) == (0, [])


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_an_endpoint_that_will_serve_nobody_stops_the_run_at_once(
    tmp_path: Path, slept: list[float], status: int
) -> None:
    with Server(lambda body, seen: Answer("no", status=status)) as server:
        made = label(tmp_path, server, 100)
    assert isinstance(made.error, EndpointError)
    assert made.error.exit_code == 3
    assert made.error.hint
    assert f"HTTP {status}" in str(made.error)
    assert len(server.bodies) <= 8, "requests went out after the endpoint said no"
    assert (server.repeats(), slept, made.files) == (0, [], {})


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("count", [1, 40])
def test_a_refused_connection_ends_the_run_soon(tmp_path: Path, slept: list[float], count: int) -> None:
    server = Server()
    server.url = f"http://127.0.0.1:{closed_port()}/v1"
    made = label(tmp_path, server, count, "teachers.teacher.patience=0")
    assert isinstance(made.error, EndpointError)
    assert made.error.exit_code == 3
    assert "cannot connect" in str(made.error)
    assert len(slept) <= 30
    assert max(slept) <= 4, "one lone request must not back off to a minute before the run may end"


def test_a_reply_without_a_choice_is_a_reject_and_is_never_paid_twice(tmp_path: Path, slept: list[float]) -> None:
    with Server(one_bad(Answer(raw=b'{"object": "error", "usage": null}'))) as server:
        made = label(tmp_path, server, 6)
        again = label(tmp_path, server, 6)
    assert [row["reason"] for row in made.rows("rejects.jsonl")] == ["malformed_reply"]
    assert len(server.bodies) == 6
    assert again.manifest["requests"]["sent"] == 0
    assert again.files == made.files, "the card of a replay differs"


# What compatible servers answer with status 200, and what becomes of the record: its output, or the reason of its reject.
ODD: list[tuple[Any, str, str]] = [
    ({"content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "so."}]}, "stop", "It is so."),
    ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "So."}]}, "stop", "So."),
    ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", "refused"),
    ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "stop", "malformed_reply"),
    ({"content": {"text": "x"}}, "stop", "malformed_reply"),
    ({"content": 3}, "stop", "malformed_reply"),
    ({"content": "It is so.", "reasoning": {"text": "x"}}, "stop", "malformed_reply"),
    ({"content": "It is so.", "reasoning": []}, "stop", "It is so."),
    (None, "stop", "malformed_reply"),
    ({"content": "It is so."}, "eos_token", "It is so."),
    ({"content": "It is so."}, "STOP", "It is so."),
    ({"content": "It is"}, "length", "cut"),
    ({"content": "It is"}, "max_tokens", "cut"),
    ({"content": "It is"}, "model_length", "cut"),
    ({"content": "It is"}, None, "unknown_finish"),
    ({"content": "It is"}, "error", "unknown_finish"),
    ({"content": "It is"}, ["stop"], "unknown_finish"),
    ({"content": "It is"}, "insufficient_system_resource", "unknown_finish"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "finish", "end"), ODD, ids=[f"{end}-{n}" for n, (_, _, end) in enumerate(ODD)])
def test_an_odd_reply_ends_its_record_alone_in_every_run(tmp_path: Path, message: Any, finish: Any, end: str) -> None:
    body = {"choices": [{"message": message, "finish_reason": finish}], "model": 7}
    with Server(one_bad(Answer(raw=json.dumps(body).encode()))) as server:
        made = label(tmp_path, server, 4)
        again = label(tmp_path, server, 4)
    assert made.error is None and again.error is None and again.files == made.files
    assert len(server.bodies) == 4, "what was paid is asked again"
    (odd,) = [row for row in made.rows() if row["id"] != "s" and "number 3 " in row["instruction"]] or made.rows(
        "rejects.jsonl"
    )
    assert odd.get("reason", odd["output"]) == end
    assert odd["calls"] and ("reason" in odd or odd["finish"] == "stop")


def test_tokens_are_counted_whatever_a_server_calls_a_number(tmp_path: Path) -> None:
    usages: list[Any] = [
        None,
        [],
        "9",
        {"prompt_tokens": "7", "completion_tokens": 2.0},
        {"prompt_tokens": -5, "completion_tokens": None},
        {"prompt_tokens": {}, "prompt_tokens_details": 3, "completion_tokens_details": [1]},
        {"prompt_tokens": 1e300},
    ]

    def script(body: dict[str, Any], seen: int) -> Answer:
        reply = json.loads(echo_answer(body, seen).body())
        number = int(last(body).split("number ")[1].split()[0])
        return Answer(raw=json.dumps({**reply, "usage": usages[number]}).encode())

    with Server(script) as server:
        made = label(tmp_path, server, len(usages))
    assert made.manifest["counts"]["rows"] == len(usages)
    assert made.manifest["tokens"] == {"input": 7, "cached_input": 0, "output": 2}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ({"error": {"code": 429, "message": "slow down"}}, "rate", 429),
        ({"error": {"code": "402", "message": "credits"}}, "stop", 402),
        ({"error": {"code": 400, "message": "too long"}, "choices": []}, "never", 400),
        ({"error": {"code": "insufficient_quota", "message": "pay"}}, "stop", 502),
        ({"error": {"code": 200, "message": "upstream"}, "choices": None}, "transient", 502),
        ({"error": {"message": "upstream is away"}}, "transient", 502),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "transient", 502),
        ({"error": "out of memory"}, "transient", 502),
        ([], "transient", 200),
        ([{"error": {"code": 400}}], "transient", 200),
        ("text", "transient", 200),
        (7, "transient", 200),
    ],
)
def test_an_error_that_comes_as_a_success_is_no_reply(body: Any, kind: str, status: int) -> None:
    with pytest.raises(Fault) as found:
        checked(200, {"retry-after": "3"}, json.dumps(body).encode())
    assert (found.value.kind, found.value.status) == (kind, status)
    assert found.value.retry_after == (3 if status in (429, 502) and kind != "stop" else None)


@pytest.mark.parametrize(
    "body",
    [
        {"error": None, "output": [], "status": "completed"},
        {"error": {"code": "server_error", "message": "x"}, "output": [], "status": "failed"},
        {"error": {"code": 502}, "choices": [{"message": {"content": "x"}, "finish_reason": "error"}]},
        {"error": {"message": "x"}, "content": [{"type": "text", "text": "x"}]},
        {"object": "error", "usage": None},
    ],
)
def test_a_reply_that_speaks_of_an_error_is_a_reply(body: Any) -> None:
    raw = json.dumps(body).encode()
    assert checked(200, {"x-request-id": "r"}, raw) == (raw, {"x-request-id": "r"}, {})


def test_a_cascade_says_who_wrote_the_row(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Answer:
        weak = body["model"] == "Qwen3-8B"
        if weak and "number 1 " in last(body):
            return Answer("It is", finish="length")
        if weak and "number 2 " in last(body):
            return Answer(raw=b'{"choices": [{"message": null}]}')
        return Answer("It is so." if not (weak and "number 3 " in last(body)) else "Hm")

    with Server(script) as server:
        models = {"cheap": "Qwen3-8B", "good": "Qwen3-32B"}
        roles = {role: {"provider": "openai", "model": name, "base_url": server.url} for role, name in models.items()}
        escalate = [{"filter": "length", "field": "output", "min_words": 2}]
        team = {"provider": "cascade", "of": ["cheap", "good"], "escalate": escalate}
        stages = [{"stage": "label", "method": "answer", "prompt": "label/answer"}]
        recipe = recipe_file(
            tmp_path / "c.yaml", {"name": "c", "teachers": {**roles, "teacher": team}, "stages": stages}
        )
        made = make("run", recipe, "--seeds", write_seeds(tmp_path / "s.jsonl", tasks(4)), folder=tmp_path / "out")
    assert made.error is None
    cheap, good = "openai:Qwen3-8B", "openai:Qwen3-32B"
    assert [row["writers"] for row in made.rows()] == [{"output": who} for who in (cheap, good, good, good)]


def test_nothing_waits_for_a_reply_beyond_the_timeout(tmp_path: Path, slept: list[float]) -> None:
    with Server(one_bad(Answer("late", delay=30), times=1)) as server:
        made = label(tmp_path, server, 6, "teachers.teacher.timeout=0.3")
    assert made.manifest["counts"]["rows"] == 6
    assert made.manifest["requests"]["maybe_billed"] == 1


def spender(cut_every: int) -> Script:
    """Bills 60 tokens in and all that the request allows out, and cuts some replies, which it bills too."""

    def script(body: dict[str, Any], seen: int) -> Answer:
        cut = cut_every and sum(map(ord, last(body))) % cut_every == 0 and not seen
        return Answer(f"It is {last(body)}", usage=(60, body["max_tokens"]), cut=bool(cut))

    return script


@pytest.mark.parametrize("cut_every", [0, 3], ids=["healthy", "cut-replies-are-billed"])
def test_a_token_budget_is_never_passed(tmp_path: Path, slept: list[float], cut_every: int) -> None:
    sets = ("teachers.teacher.max_tokens=50", "budget.tokens=4000")
    with Server(spender(cut_every), latency=0.002) as server:
        made = label(tmp_path, server, 100, *sets)
        assert isinstance(made.error, BudgetReached)
        assert made.error.exit_code == 4
        assert 1000 < server.tokens <= 4000, "the server billed more than the cap"
        assert made.files == {}
        kept = paid(tmp_path / "out.db")
        before = len(server.bodies)
        done = label(tmp_path, server, 100, "teachers.teacher.max_tokens=50", "budget.tokens=1000000")
        assert done.manifest["counts"]["rows"] == 100
        assert not kept & set(server.bodies[before:]), "what was paid was asked again"


def test_a_budget_without_a_bound_on_replies_sends_nothing(tmp_path: Path) -> None:
    with Server() as server:
        made = label(tmp_path, server, 5, "teachers.teacher.max_tokens=null", "budget.tokens=4000")
    assert made.error is not None
    assert made.error.exit_code == 2
    assert server.bodies == []


def written(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.is_file())


def tattle(body: dict[str, Any], seen: int) -> Answer:
    """A server whose errors repeat the key, as some do."""
    if "number 3 " in last(body):
        return Answer(f"the key {KEY} may not do that", status=400)
    if "number 4 " in last(body) and not seen:
        return Answer(f"retry later, {KEY}", status=500)
    return echo_answer(body, seen)


@pytest.mark.parametrize("stop", [False, True], ids=["done", "stopped"])
@pytest.mark.parametrize("own", [True, False], ids=["base_url", "sdk"])
def test_a_key_is_written_nowhere(tmp_path: Path, stop: bool, own: bool) -> None:
    script: Script = (lambda body, seen: Answer(f"wrong key: {KEY}", status=401)) if stop else tattle
    with Server(script) as server:
        write_seeds(tmp_path / "seeds.jsonl", tasks(8))
        teacher = f"openai:Qwen3-8B@{server.url}" if own else "openai:Qwen3-8B"
        asked = [
            "label",
            "seeds.jsonl",
            "-t",
            teacher,
            "-o",
            "out",
            "--ledger",
            "ledger.db",
            "--json",
            *(("--set", NAMED) if own else ACK),
        ]
        done = kdgen(*asked, cwd=tmp_path, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.url)
    assert done.returncode == (3 if stop else 0), done.stderr
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    assert KEY not in done.stdout + done.stderr
    files = list(written(tmp_path))
    assert any(path.name == "ledger.db" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    if not stop:
        assert b"the key [key] may not" in (tmp_path / "out" / "rejects.jsonl").read_bytes()


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500], ids=str)
def test_the_sdk_wire_reads_faults_as_the_lean_wire_does(
    tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """The same server through both wires: the same counts, rejects and error."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ends = []
    for own in (True, False):
        bad = Answer("on purpose", status=status, headers={"retry-after": "7"} if status == 429 else {})
        with Server(one_bad(bad, times=1)) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(5))
            teacher = f"openai:Qwen3-8B@{server.url}" if own else "openai:Qwen3-8B"
            more = ("--set", NAMED) if own else ACK
            made = make("label", seeds, "-t", teacher, *more, folder=tmp_path / f"own-{own}")
            rejects = [(row["reason"], row["detail"]) for row in made.rows("rejects.jsonl")]
            ends.append((str(made.error), made.manifest.get("counts"), rejects, server.repeats(), server.paths[0]))
    assert ends[0] == ends[1]
    assert any(wait >= 7 for wait in slept) == (status == 429)


def test_the_request_on_the_wire_is_the_request_in_the_ledger(tmp_path: Path) -> None:
    with Server() as server:
        label(tmp_path, server, 5)
    assert set(server.bodies) == paid(tmp_path / "out.db")
    assert {"model", "messages", "max_tokens", "temperature"} == set(json.loads(server.bodies[0]))


def test_when_every_record_fails_nothing_is_published(tmp_path: Path, slept: list[float]) -> None:
    with Server(lambda body, seen: Answer("bad request", status=400)) as server:
        made = label(tmp_path, server, 3)
    assert isinstance(made.error, GateFailed)
    assert made.error.exit_code == 5
    assert "bad request" in str(made.error)
    assert not (tmp_path / "out" / "data.jsonl").exists()


def test_retry_after_in_every_form() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert 80 < (retry_after({"retry-after": soon}) or 0) <= 90
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, b'{"error": {"message": "slow", "code": "rate_limit_exceeded"}}', "rate"),
        (429, b'{"error": {"message": "pay", "code": "insufficient_quota"}}', "stop"),
        (400, b'{"error": {"message": "?", "code": "model_not_found"}}', "stop"),
        (400, b'{"error": {"message": "long", "code": "context_length_exceeded"}}', "never"),
        (422, b'{"detail": "no"}', "never"),
        (413, b"<html>too large</html>", "never"),
        (503, b'{"message": "the queue is full"}', "rate"),
        (529, b'{"error": {"type": "overloaded_error", "message": "busy"}}', "transient"),
        (504, b"", "transient"),
        (500, b"[1, 2]", "transient"),
        (400, b'"text"', "never"),
        (400, b"null", "never"),
    ],
)
def test_faults_are_classed_by_status_and_code(status: int, body: bytes, kind: str) -> None:
    assert fault(status, {}, body).kind == kind
    assert isinstance(error_of(body)[1], str)


def test_no_test_here_asks_a_real_endpoint() -> None:
    assert "OPENAI_API_KEY" not in os.environ


# The knobs of teachers. Each field of each is in one of these tables: what the request says, or a test of its effect.
PARAMS: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.5, "max_tokens": 2048, "seed": 5, "stop": ("x",), "presence_penalty": 1,
    "frequency_penalty": 1, "logprobs": 3, "effort": "low",
}  # fmt: skip
BODY: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("OpenAI", "api"): ({}, "responses"),
    ("OpenAI", "summary"): ({"api": "responses"}, "concise"),
    ("OpenAI", "service_tier"): ({}, "flex"),
    ("OpenAI", "prompt_cache_key"): ({}, "mine"),
    ("OpenAI", "extra"): ({}, {"top_k": 3}),
    ("Anthropic", "cache"): ({}, "1h"),
    ("Anthropic", "thinking"): ({}, "adaptive"),
    ("Anthropic", "display"): ({"thinking": "adaptive"}, "summarized"),
    ("Vllm", "extra"): ({}, {"top_k": 3}),
    ("Vllm", "prompt_logprobs"): ({}, 2),
    ("Transformers", "dtype"): ({}, "bfloat16"),
}
SHARED = {
    "model": "test_a_teachers_field_is_in_its_request",
    "concurrency": "test_concurrency_is_what_the_server_sees",
    "rpm": "test_a_pace_of_ones_own_is_kept",
    "tpm": "test_a_pace_of_ones_own_is_kept",
    "timeout": "test_nothing_waits_for_a_reply_beyond_the_timeout",
    "patience": "test_patience_outlasts_an_outage",
    "attempts": "test_a_request_that_always_fails_is_given_up_after_its_attempts_even_when_it_is_the_last",
    "on_cut": "test_a_cut_reply_is_asked_for_with_twice_the_room",
    "repairs": "test_a_reply_that_does_not_validate_is_asked_for_again",
    "mode": "test_a_server_without_batches_cannot_be_asked_for_one",
    "lacks": "test_what_a_teacher_does_not_take_fails_or_is_dropped",
    "unsupported": "test_what_a_teacher_does_not_take_fails_or_is_dropped",
    "base_url": "test_a_teacher_asks_the_server_at_its_address",
    "api_key_env": "test_the_key_comes_from_the_named_variable",
    "api_key_file": "test_the_key_comes_from_the_named_file",
}
OWN = {
    ("Local", "context"): "test_the_embedded_model_is_loaded_as_the_recipe_says",
    ("Local", "threads"): "test_the_embedded_model_is_loaded_as_the_recipe_says",
    ("Scripted", "path"): "test_the_scripted_teacher_reads_its_file_and_takes_its_time",
    ("Scripted", "delay"): "test_the_scripted_teacher_reads_its_file_and_takes_its_time",
    ("Transformers", "device"): "test_a_model_goes_to_the_device_that_is_named",
    ("Vllm", "batch_dir"): "test_files_for_vllm_are_written_to_the_folder_that_is_named",
}
# tests/vllm/ starts a server, or an engine on a GPU, and checks these there.
# tests/test_magpie.py has what a template does.
ELSEWHERE = {
    ("Vllm", "api"),
    ("Vllm", "base_urls"),
    ("Vllm", "lora"),
    ("Vllm", "engine"),
    ("OpenAI", "template"),
    ("Vllm", "template"),
}
MODELS = {"Local": ("qwen2.5-coder-0.5b", "smollm2-135m")}
TEACHERS = [cls for cls in get_args(get_args(AnyTeacher)[0]) if issubclass(cls, TeacherSpec)]
IN_BODY = [
    (cls, field)
    for cls in TEACHERS
    for field in cls.model_fields
    if field in PARAMS or field == "model" or (cls.__name__, field) in BODY
]


def test_every_field_of_every_teacher_has_its_test() -> None:
    for cls in TEACHERS:
        for field in cls.model_fields:
            key = (cls.__name__, field)
            test = OWN.get(key) or SHARED.get(field)
            known = field == "provider" or field in PARAMS or key in BODY or key in ELSEWHERE
            assert known or (test and test in globals()), f"{cls.__name__}.{field} has no test: it may be a silent knob"


@pytest.mark.parametrize(("cls", "field"), IN_BODY, ids=lambda value: getattr(value, "__name__", value))
def test_a_teachers_field_is_in_its_request(cls: type[TeacherSpec], field: str) -> None:
    base, value = BODY.get((cls.__name__, field), ({}, PARAMS.get(field, "other")))
    first, value = MODELS.get(cls.__name__, ("m", "other")) if field == "model" else ("m", value)
    address = {"base_url": "http://127.0.0.1:9/v1"} if "base_url" in cls.model_fields else {}
    model = {"model": MODELS.get(cls.__name__, (first,))[0]}
    room = {"max_tokens": 1024} if "max_tokens" in cls.takes else {}
    plain = cls(**{**room, **address, **model, **base})
    flipped = plain.model_copy(update={field: value})
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]

    def keyed(spec: TeacherSpec) -> str:
        params, _ = spec.settle(Params(), "here asking teacher")
        return spec.request(Call(messages, params)).key

    if field in PARAMS and field not in cls.takes:
        with pytest.raises(UserError, match=field):
            keyed(flipped)
    else:
        assert keyed(plain) != keyed(flipped)


@pytest.mark.parametrize(
    ("device", "cuda", "went"), [("auto", False, "cpu"), ("auto", True, "cuda"), ("cuda:1", False, "cuda:1")]
)
def test_a_model_goes_to_the_device_that_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, cuda: bool, went: str
) -> None:
    seen: list[str] = []
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=7))
    model = SimpleNamespace(config=config, to=lambda device: seen.append(device) or model, eval=lambda: model)
    loaded = SimpleNamespace(from_pretrained=lambda *_, **__: model)
    tokenizer = SimpleNamespace(from_pretrained=lambda *_: SimpleNamespace(chat_template=None))
    utils = SimpleNamespace(cached_file=lambda *_, **__: None)
    torch = SimpleNamespace(float32=None, cuda=SimpleNamespace(is_available=lambda: cuda))
    library = SimpleNamespace(AutoTokenizer=tokenizer, AutoModelForCausalLM=loaded, utils=utils)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformers", library)
    ForwardWire("m", "m", device, "float32")._load()
    assert seen == [went]


@pytest.mark.parametrize("most", [1, 5])
def test_concurrency_is_what_the_server_sees(tmp_path: Path, most: int) -> None:
    with Server(latency=0.03) as server:
        label(tmp_path, server, 30, f"teachers.teacher.concurrency={most}")
    assert server.peak == most


@pytest.mark.parametrize("knob", ["rpm", "tpm"])
def test_a_pace_of_ones_own_is_kept(tmp_path: Path, slept: list[float], knob: str) -> None:
    with Server() as server:
        label(tmp_path, server, 5, name="free")
        assert slept == []
        rate = 6 if knob == "rpm" else 3000
        label(tmp_path, server, 5, f"teachers.teacher.{knob}={rate}", name="paced")
    assert len([wait for wait in slept if wait > 1]) >= 3
    assert len(server.bodies) == 10


@pytest.mark.parametrize("patience", [0, 60])
def test_patience_outlasts_an_outage(tmp_path: Path, slept: list[float], patience: int) -> None:
    left = iter(range(40))
    with Server(
        lambda body, seen: echo_answer(body, seen) if next(left, None) is None else Answer(status=503)
    ) as server:
        made = label(tmp_path, server, 10, f"teachers.teacher.patience={patience}")
    if patience:
        assert made.manifest["counts"]["rows"] == 10
    else:
        assert isinstance(made.error, EndpointError)
        assert len(server.bodies) < 40


@pytest.mark.parametrize("on_cut", ["reject", "retry"])
def test_a_cut_reply_is_asked_for_with_twice_the_room(tmp_path: Path, on_cut: str) -> None:
    def script(body: dict[str, Any], seen: int) -> Answer:
        return Answer("half", finish="length") if body["max_tokens"] < 200 else Answer("whole")

    with Server(script) as server:
        sets = ("teachers.teacher.max_tokens=100", f"teachers.teacher.on_cut={on_cut}")
        made = label(tmp_path, server, 3, *sets)
    room = sorted(json.loads(body)["max_tokens"] for body in server.bodies)
    if on_cut == "retry":
        assert room == [100] * 3 + [200] * 3
        assert {row["output"] for row in made.rows()} == {"whole"}
    else:
        assert room == [100] * 3
        assert isinstance(made.error, GateFailed)


@pytest.mark.parametrize("repairs", [0, 1])
def test_a_reply_that_does_not_validate_is_asked_for_again(tmp_path: Path, repairs: int) -> None:
    def script(body: dict[str, Any], seen: int) -> Answer:
        repaired = len(body["messages"]) > 2 or "number 1 " in last(body)
        return Answer("So it is.\nAnswer: 4" if repaired else "no answer line")

    with Server(script) as server:
        seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(4))
        asked = ("label", seeds, "-m", "rationale", "-t", f"openai:Qwen3-8B@{server.url}")
        made = make(*asked, "--set", f"teachers.teacher.repairs={repairs}", folder=tmp_path / "out")
    assert made.manifest["counts"]["rows"] == (4 if repairs else 1)
    assert len(server.bodies) == (7 if repairs else 4)
    assert made.manifest["repairs"] == ({"teacher": 3} if repairs else {})
    assert made.manifest["counts"]["rejects"] == ({} if repairs else {"invalid_output": 3})


def test_a_server_without_batches_cannot_be_asked_for_one(tmp_path: Path) -> None:
    rules = write_seeds(tmp_path / "rules.jsonl", [{"reply": "x"}])
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(3))
    asked = ("label", seeds, "-t", f"scripted:{rules}", "--set", "teachers.teacher.mode=batch")
    made = make(*asked, folder=tmp_path / "out")
    assert isinstance(made.error, UserError)
    assert "batch" in str(made.error)


def test_files_for_vllm_are_written_to_the_folder_that_is_named(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(3))
    sets = [f"teachers.teacher.{name}" for name in ("mode=batch", f"batch_dir={tmp_path / 'shards'}")]
    options = [part for each in sets for part in ("--set", each)]
    made = make("label", seeds, "-t", "vllm:Qwen/Qwen3-8B", "--no-wait", *options, folder=tmp_path / "out")
    assert isinstance(made.error, ComeBack)
    assert [len(path.read_text().splitlines()) for path in (tmp_path / "shards").iterdir()] == [3]


def test_what_a_teacher_does_not_take_fails_or_is_dropped() -> None:
    for cls in TEACHERS:
        alien = sorted(set(PARAMS) - cls.takes)
        for field in alien:
            asked = Params(**{field: PARAMS[field]})
            with pytest.raises(UserError, match=field):
                cls(model="m").settle(asked, "stages.0 asking teacher")
            settled, dropped = cls(model="m", unsupported="drop").settle(asked, "stages.0 asking teacher")
            assert (getattr(settled, field), dropped) == (None, [field])
        for field in set(PARAMS) & cls.takes - {"max_tokens"}:
            with pytest.raises(UserError, match=field):
                cls(model="m", lacks=(field,)).settle(Params(**{field: PARAMS[field]}), "stages.0 asking teacher")


def test_a_teacher_asks_the_server_at_its_address(tmp_path: Path) -> None:
    with Server() as one, Server() as two:
        label(tmp_path, one, 3)
        assert (len(one.bodies), len(two.bodies)) == (3, 0)
        again = label(tmp_path, two, 3)
        assert (len(two.bodies), again.manifest["requests"]["from_ledger"]) == (0, 3), (
            "an address is no part of a request"
        )
        label(tmp_path, two, 3, name="fresh")
        assert len(two.bodies) == 3


def test_the_key_comes_from_the_named_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    monkeypatch.setenv("MY_KEY", "two")
    with Server() as server:
        label(tmp_path, server, 1, name="a")
        label(tmp_path, server, 1, NAMED, name="b")
        label(tmp_path, server, 1, "teachers.teacher.api_key_env=MY_KEY", name="c")
        made = label(tmp_path, server, 1, "teachers.teacher.api_key_env=NOT_SET", name="d")
    assert isinstance(made.error, UserError) and "NOT_SET is not set" in str(made.error)
    assert [headers.get("Authorization") for headers in server.headers] == [None, "Bearer one", "Bearer two"], (
        "a server of the user's own is sent a key only where the recipe names its variable"
    )


def test_a_server_that_wants_a_key_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server(lambda body, seen: Answer("no key", status=401)) as server:
        error = label(tmp_path, server, 1, name="a").error
        named = label(tmp_path, server, 1, NAMED, name="b").error
    assert isinstance(error, EndpointError) and "--set teachers.ROLE.api_key_env=NAME" in error.hint
    assert isinstance(named, EndpointError) and "check the API key" in named.hint


def test_the_key_comes_from_the_named_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("three\n")
    with Server() as server:
        label(tmp_path, server, 1, f"teachers.teacher.api_key_file={tmp_path / 'key'}")
    assert server.headers[0]["Authorization"] == "Bearer three"


def test_the_scripted_teacher_reads_its_file_and_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    for name in ("one", "two"):
        write_seeds(tmp_path / name, [{"reply": name}])
    said = []
    for name, delay in (("one", 0.0), ("two", 0.5)):
        spec = Scripted(path=str(tmp_path / name), delay=delay)
        request = spec.request(Call([{"role": "user", "content": "x"}], Params()))
        with monkeypatch.context() as patch:
            patch.setattr("kdgen.teachers.scripted.asyncio.sleep", sleep)
            said.append(spec.read(request, asyncio.run(spec.connect().send(request))).text)
    assert said == ["one", "two"]
    assert waited == [0.5]


def test_the_embedded_model_is_loaded_as_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a runtime that only notes how it is started; test_local.py asks the real one."""
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + bytes(64))
    started: list[Any] = []
    runtime = MagicMock(CommonParams=MagicMock, Server=lambda params: started.append(params) or MagicMock())
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setitem(sys.modules, "xllamacpp", runtime)
    monkeypatch.setattr("kdgen.teachers.local.importlib.util.find_spec", lambda name: runtime)
    for field, value in ((None, None), ("context", 512), ("threads", 64), ("concurrency", 1)):
        spec = Local(
            **{
                "model": str(tmp_path / "tiny.gguf"),
                "concurrency": 2,
                "threads": 8,
                **({field: value} if field else {}),
            }
        )
        wire: Any = spec.connect()
        wire._load()
        asyncio.run(wire.close())
    assert [params.n_ctx for params in started] == [4096, 512, 4096, 4096]
    assert [params.cpuparams.n_threads for params in started] == [4, 4, 32, 8]
