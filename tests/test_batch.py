"""Batches: what is submitted, what is made of their results, and what goes wrong with them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from batch_server import BatchServer, Line, chat_line, expired_line, message_line, text_of
from server import Made, Server, invented, ledger_rows, make, paid, recipe_file, start, tasks, write_seeds

from kdgen.errors import ComeBack, EndpointError

BOTH = [pytest.param(False, id="openai"), pytest.param(True, id="anthropic")]
KEY = "sk-planted-0123456789abcdef"
MODE = "teachers.teacher.mode=batch"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at batches without a pause."""
    monkeypatch.setattr("kdgen.cli.job.POLL", 0.01)


Label = Callable[..., Made]


@pytest.fixture
def label(tmp_path: Path) -> Label:
    """`kdgen label` through batches of a server, on one ledger."""

    def run(server: BatchServer, *options: object, seeds: Any = 10, name: str = "out") -> Made:
        rows = tasks(seeds) if isinstance(seeds, int) else seeds
        path = write_seeds(tmp_path / "seeds.jsonl", rows)
        return make("label", path, *server.asked, *options, folder=tmp_path / name, ledger=tmp_path / "l.db")

    return run


def items(folder: Path) -> set[tuple[str, int]]:
    """(state, tries) of what the ledger keeps of batches."""
    return set(ledger_rows(folder / "l.db", "SELECT state, tries FROM batch_items"))


def at(body: dict[str, Any]) -> int:
    """The number of a task."""
    return int(text_of(body).split(" number ")[1].split(" ")[0])


@pytest.mark.parametrize("anthropic", BOTH)
def test_waiting_and_coming_back_make_the_same_rows(label: Label, tmp_path: Path, anthropic: bool) -> None:
    with BatchServer(anthropic=anthropic) as server:
        waited = label(server)
        assert waited.error is None and waited.manifest["counts"]["rows"] == 10
        (batch,) = server.batches.values()
        assert sorted(batch.requests) == sorted(batch.requests, key=lambda pair: pair[0]) and len(batch.requests) == 10
        asked = waited.manifest["requests"]
        assert (asked["sent"], asked["from_ledger"], asked["failed"]) == (10, 0, 0)
        again = label(server, name="again")
        assert again.files == waited.files and len(server.batches) == 1, "what is in the ledger is not asked for"
        (tmp_path / "l.db").unlink()
        server.at_once = False
        assert isinstance(label(server, "--no-wait", name="back").error, ComeBack)
        assert isinstance(label(server, "--no-wait", name="back").error, ComeBack)
        server.finish()
        back = label(server, "--no-wait", name="back")
        assert back.error is None and back.files == waited.files
        assert len(server.batches) == 2
    requests = back.manifest["requests"]
    assert (requests["sent"], requests["from_ledger"], requests["from_batches"]) == (0, 0, 10)
    assert items(tmp_path) == set()


def test_a_reply_says_which_batch_it_is_from(label: Label, tmp_path: Path) -> None:
    with BatchServer() as server:
        label(server, seeds=1)
    ((headers,),) = ledger_rows(tmp_path / "l.db", "SELECT headers FROM calls")
    assert json.loads(headers) == {"x-request-id": "q", "kdgen-batch": "batch-0"}


def test_what_a_batch_is_made_of_is_split_by_the_providers_limits(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdgen.teachers.batch_apis.OpenAIBatches.max_requests", 4)
    with BatchServer() as server:
        label(server)
        assert [len(batch.requests) for batch in server.batches.values()] == [4, 4, 2]
        monkeypatch.setattr("kdgen.teachers.batch_apis.OpenAIBatches.max_bytes", 2_000)
        label(server, seeds=tasks(20)[10:], name="bytes")
        sizes = [len(file) for file in server.files.values()]
        assert len(server.batches) > 3 + 3 and max(sizes[3:]) <= 2_000
        assert server.repeats() == 0 and len(server.keys) == 20


def test_one_model_a_batch(tmp_path: Path) -> None:
    """Two teachers of one recipe never share a batch (the server checks each)."""
    seeds = write_seeds(tmp_path / "s.jsonl", tasks(8))
    with BatchServer() as server:
        teacher = {"provider": "openai", "base_url": f"{server.url}/v1", "mode": "batch"}
        recipe = {
            "name": "two",
            "seeds": {"path": str(seeds)},
            "teachers": {
                "teacher": {"provider": "pool", "of": {"one": 1, "two": 1}},
                "one": {**teacher, "model": "Qwen3-8B"},
                "two": {**teacher, "model": "Qwen3-4B"},
            },
            "stages": [{"stage": "label", "method": "answer", "prompt": "label/answer"}],
        }
        made = make("run", recipe_file(tmp_path / "r.yaml", recipe), folder=tmp_path / "out")
        assert made.error is None and made.manifest["counts"]["rows"] == 8
        assert len(server.batches) == 2


@pytest.mark.parametrize("anthropic", BOTH)
def test_parts_that_ended_without_a_reply_are_asked_for_again_or_rejected(
    label: Label, tmp_path: Path, anthropic: bool
) -> None:
    """Of 4 kinds of ends: an answer, a refusal for good, an error that passes, and no time (which is never there)."""
    tries: dict[int, int] = {}

    def result(key: str, body: dict[str, Any]) -> Line | None:
        number = at(body)
        tries[number] = tries.get(number, 0) + 1
        if number % 4 == 1:
            return message_line(key, body, "invalid_request_error") if anthropic else chat_line(key, body, 400)
        if number % 4 == 2 and tries[number] == 1:
            return message_line(key, body, "api_error") if anthropic else chat_line(key, body, 500)
        if number % 4 == 3:
            ends = ("expired", "canceled") if anthropic else ("batch_expired", "batch_cancelled")
            kind = ends[tries[number] % 2]
            return message_line(key, body, kind) if anthropic else expired_line(key, body, kind)
        return message_line(key, body) if anthropic else chat_line(key, body)

    with BatchServer(result, anthropic=anthropic) as server:
        made = label(server, seeds=8)
        assert made.error is None
        assert {number: count for number, count in tries.items() if count > 1} == {2: 2, 6: 2, 3: 3, 7: 3}
        assert [len(batch.requests) for batch in server.batches.values()] == [8, 4, 2]
        assert made.manifest["counts"]["rows"] == 4
        assert made.manifest["counts"]["rejects"] == {"batch_gave_up": 2, "endpoint_refused": 2}
        rejects = {row["reason"]: row["detail"] for row in made.rows("rejects.jsonl")}
        assert "3 batches ended without this reply" in rejects["batch_gave_up"]
        assert "on purpose" in rejects["endpoint_refused"]
        assert items(tmp_path) == {("refused", 0), ("again", 3)}
        again = label(server, seeds=8)
        assert again.files == made.files and len(server.batches) == 3, "what was rejected is not asked for again"


@pytest.mark.parametrize("state", ["expired", "cancelled"])
def test_the_finished_parts_of_a_batch_that_ended_early_are_kept(label: Label, state: str) -> None:
    """An output file and an error file, and requests that are in neither."""
    halves = [True]

    def result(key: str, body: dict[str, Any]) -> Line | None:
        if halves[0] and at(body) % 3:
            return expired_line(key, body) if at(body) % 3 == 1 else None
        return chat_line(key, body)

    with BatchServer(result) as server:
        server.at_once = False
        assert isinstance(label(server, "--no-wait", seeds=9).error, ComeBack)
        server.finish(state)
        halves[0], server.at_once = False, True
        made = label(server, seeds=9)
        assert made.error is None and made.manifest["counts"]["rows"] == 9
        first, second = server.batches.values()
        assert (len(first.requests), len(second.requests)) == (9, 6)


def test_a_batch_that_fails_whole_ends_the_run_and_is_submitted_anew(label: Label, tmp_path: Path) -> None:
    with BatchServer() as server:
        server.at_once = False
        label(server, "--no-wait")
        (batch,) = server.batches.values()
        batch.state, batch.errors = "failed", [{"code": "billing_hard_limit_reached", "message": "no money is left"}]
        made = label(server)
        assert isinstance(made.error, EndpointError) and "no money is left" in str(made.error)
        assert items(tmp_path) == {("again", 0)}
        server.at_once = True
        assert label(server).manifest["counts"]["rows"] == 10


@pytest.mark.parametrize("anthropic", BOTH)
def test_what_no_request_escapes_ends_the_run_and_is_no_try(label: Label, tmp_path: Path, anthropic: bool) -> None:
    """Quota and keys: the lines are asked for again for as long as it takes; what was answered is kept."""
    broke = [True]

    def result(key: str, body: dict[str, Any]) -> Line:
        if not broke[0] or at(body) < 2:
            return message_line(key, body) if anthropic else chat_line(key, body)
        if anthropic:
            return message_line(key, body, "billing_error")
        if at(body) == 2:
            return expired_line(key, body, "insufficient_quota")
        line = chat_line(key, body, 429)
        line["response"]["body"]["error"]["code"] = "insufficient_quota"
        return line

    with BatchServer(result, anthropic=anthropic) as server:
        for _ in range(4):
            made = label(server)
            assert isinstance(made.error, EndpointError) and "account" in made.error.hint, made.error
            assert items(tmp_path) == {("again", 0)}
            assert len(paid(tmp_path / "l.db")) == 2
        broke[0] = False
        assert label(server).manifest["counts"]["rows"] == 10


def test_lines_that_are_not_ours_or_not_whole_are_passed_over(label: Label) -> None:
    with BatchServer() as server:
        server.at_once = False
        label(server, "--no-wait")
        server.finish()
        (batch,) = server.batches.values()
        strange: list[Line] = [chat_line(name, {"messages": [{"content": "x"}]}) for name in ("request-1", "f" * 64)]
        strange += [{"response": {}}, {"custom_id": None, "response": {"body": 1}}, {"response": {}, "custom_id": 7}]
        batch.lines = [*strange, *batch.lines[1:]]
        server.at_once = True
        made = label(server)
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        assert [len(each.requests) for each in server.batches.values()] == [10, 1]


@pytest.mark.parametrize("anthropic", BOTH)
def test_a_key_that_a_provider_repeats_is_written_nowhere(
    label: Label, tmp_path: Path, anthropic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)

    def result(key: str, body: dict[str, Any]) -> Line:
        if anthropic:
            line = message_line(key, body, "succeeded" if at(body) % 2 else "invalid_request_error")
        else:
            line = chat_line(key, body, 200 if at(body) % 2 else 400)
            line = expired_line(key, body) if at(body) == 4 else line
            line["response"] and line["response"].update(request_id=KEY)
        text = json.dumps(line).replace("on purpose", f"for {KEY}").replace("It is", f"It is {KEY}")
        return json.loads(text.replace("not executed", KEY))  # type: ignore[no-any-return]

    named = ("--set", "teachers.teacher.api_key_env=PLANTED_KEY")
    with BatchServer(result, anthropic=anthropic) as server:
        made = label(server, *named)
        assert made.error is None and made.manifest["counts"]["rows"] == 5
        assert {header for name, header in server.keys_sent} == {KEY}
        server.refuse = lambda size: web.json_response({"error": {"message": f"no, {KEY}"}}, status=401)
        refused = label(server, *named, seeds=tasks(20)[10:], name="refused")
        assert isinstance(refused.error, EndpointError) and "no, [key]" in str(refused.error)
    assert b"[key]" in made.files["data.jsonl"] and b"[key]" in made.files["rejects.jsonl"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_two_processes_never_submit_the_same_request(label: Label, tmp_path: Path) -> None:
    """One is held while its batch is on its way; the other wants some of the same, and takes only the rest."""
    rows = tasks(30)
    with BatchServer() as server:
        server.hold, server.at_once = "create", False
        first = write_seeds(tmp_path / "first.jsonl", rows[:20])
        options = ("--no-wait", "-q", "-o", "first", "--ledger", "l.db")
        with start("label", str(first), *server.asked, *options, cwd=tmp_path) as run:
            assert server.wait("create")
            server.hold = ""
            second = label(server, "--no-wait", seeds=rows[10:], name="second")
            assert isinstance(second.error, ComeBack) and "20 wait" in str(second.error)
            assert [len(batch.requests) for batch in server.batches.values()] == [20, 10]
            server.release()
            _, said = run.communicate(timeout=60)
            assert run.returncode == 75, said
        server.finish()
        assert label(server, seeds=rows[10:], name="second").manifest["counts"]["rows"] == 20
        assert label(server, seeds=rows[:20], name="first").manifest["counts"]["rows"] == 20
        assert server.repeats() == 0 and len(server.keys) == 30 and len(server.batches) == 2


@pytest.mark.parametrize("anthropic", BOTH)
def test_a_batch_that_was_taken_in_but_answered_with_an_error_is_found(label: Label, anthropic: bool) -> None:
    with BatchServer(anthropic=anthropic) as server:
        server.lose = 1
        made = label(server)
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        assert len(server.batches) == 1 and server.repeats() == 0


def test_another_s_batch_of_the_same_size_is_not_taken_for_ones_own(label: Label, tmp_path: Path) -> None:
    """Anthropic's batches carry no name. Of those that may be it, one has ended with strange keys, one runs until it has."""
    strange = [(f"their-{n}", {"messages": [{"content": "x"}]}) for n in range(10)]
    with BatchServer(anthropic=True) as server:
        server.lose = 1
        server.add(strange)
        server.at_once = False
        label(server, "--no-wait")
        (mine,) = (batch for batch in server.batches.values() if batch.requests != strange)
        running = server.add(strange, made_at=mine.made_at - 0.5)
        mine.made_at -= 2  # so that theirs looks more like it
        assert isinstance(label(server, "--no-wait").error, ComeBack)
        assert ledger_rows(tmp_path / "l.db", "SELECT remote FROM batches") == [(running.id,)]
        server.finish()
        made = label(server)
        assert made.error is None and made.manifest["counts"]["rows"] == 10
        assert len(server.keys) == 10 and len(server.batches) == 3


@pytest.mark.parametrize("anthropic", BOTH)
@pytest.mark.parametrize("wait", [True, False])
def test_stragglers_go_online_at_online_prices(label: Label, tmp_path: Path, anthropic: bool, wait: bool) -> None:
    """A batch that takes too long is cancelled; its finished half is kept, the other half is asked for at once."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {Qwen3-8B: {input: 100000, output: 100000, batch: 0.5}}")

    def result(key: str, body: dict[str, Any]) -> Line | None:
        if at(body) % 2:
            return None
        return message_line(key, body) if anthropic else chat_line(key, body)

    options = ("--prices", prices, "--max-wait", "0", *(() if wait else ("--no-wait",)))
    with BatchServer(result, anthropic=anthropic) as server:
        server.at_once = False
        made = label(server, *options)
        if not wait:  # submitted, then cancelled, then imported
            assert isinstance(made.error, ComeBack) and not server.online
            made = label(server, *options)
            assert isinstance(made.error, ComeBack) and server.seen["cancel"] == 1
            made = label(server, *options)
        assert made.error is None, made.error
        assert len(server.batches) == 1 and len(server.online) == 5 and server.seen["cancel"] == 1
        assert made.manifest["counts"]["rows"] == 10
        tokens = made.manifest["dataset"]["tokens"]
        assert made.manifest["dataset"]["cost_usd"] == pytest.approx(0.1 * (tokens["input"] + tokens["output"]) * 0.75)
        assert made.manifest["cost_usd"] == made.manifest["dataset"]["cost_usd"]
        assert label(server, "--prices", prices).manifest["dataset"] == made.manifest["dataset"]


@pytest.mark.parametrize("anthropic", BOTH)
def test_stragglers_wait_for_no_other_batch(label: Label, tmp_path: Path, anthropic: bool) -> None:
    """One batch takes too long and is cancelled; another, which is younger, runs for as long as nobody is asked online."""
    with BatchServer(anthropic=anthropic) as server:
        server.at_once = False
        assert isinstance(label(server, "--no-wait", seeds=5).error, ComeBack)
        with closing(sqlite3.connect(tmp_path / "l.db")) as db:
            db.execute("UPDATE batches SET made_at = made_at - 3600")
            db.commit()
        server.result = lambda key, body: None if len(server.online) < 5 else finished(key, body)
        finished = message_line if anthropic else chat_line
        server.more = lambda: len(server.online) >= 5 and server.finish()
        made = label(server, "--max-wait", "1800", seeds=9)
        assert made.error is None and made.manifest["counts"]["rows"] == 9
        assert [len(batch.requests) for batch in server.batches.values()] == [5, 4] and len(server.online) == 5
        assert server.repeats() == 0


def test_without_max_wait_nothing_goes_online(label: Label) -> None:
    once = [True]

    def result(key: str, body: dict[str, Any]) -> Line | None:
        return None if once[0] and at(body) % 2 else chat_line(key, body)

    with BatchServer(result) as server:
        server.at_once = False
        label(server, "--no-wait")
        server.finish("expired")
        once[0], server.at_once = False, True
        assert label(server).error is None
        assert len(server.batches) == 2 and not server.online


def test_a_teacher_elsewhere_does_not_look_for_what_is_out_here(label: Label) -> None:
    with BatchServer() as here, BatchServer() as there:
        here.at_once = False
        label(here, "--no-wait")
        assert label(there).manifest["counts"]["rows"] == 10
        assert len(there.batches) == 1 and here.seen["status"] == 0


def test_an_endpoint_without_batches_says_so(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "s.jsonl", tasks(2))
    with Server() as server:
        made = make("label", seeds, "-t", f"openai:Qwen3-8B@{server.url}", "--set", MODE, folder=tmp_path / "out")
    assert isinstance(made.error, EndpointError) and "the batch was not taken" in str(made.error)


def test_a_batch_that_the_provider_does_not_know_is_given_up_only_when_it_is_old(label: Label, tmp_path: Path) -> None:
    """Another key or address may be at fault, and asking again would be paid again; after a month results are gone."""
    with BatchServer() as server:
        server.at_once = False
        label(server, "--no-wait")
        server.batches.clear()
        made = label(server, "--no-wait")
        assert isinstance(made.error, EndpointError) and "batch batch-0: HTTP 404" in str(made.error)
        with closing(sqlite3.connect(tmp_path / "l.db")) as db:
            db.execute("UPDATE batches SET made_at = made_at - 30 * 86400")
            db.commit()
        server.at_once = True
        assert label(server).manifest["counts"]["rows"] == 10


def test_the_responses_api_in_batches(label: Label) -> None:
    """Its failures come with status 200: those of luck are asked for again, those of policy are the record's end."""
    seen: set[str] = set()

    def result(key: str, body: dict[str, Any]) -> Line:
        first, text = key not in seen, body["input"][-1]["content"]
        seen.add(key)
        number = int(text.split(" number ")[1].split(" ")[0])
        said = {"type": "message", "content": [{"type": "output_text", "text": f"It is {invented(text)}."}]}
        reply: dict[str, Any] = {
            "status": "completed",
            "output": [said],
            "usage": {"input_tokens": 1, "output_tokens": 2},
        }
        if number == 1 and first:
            reply = {"status": "failed", "error": {"code": "server_error", "message": "oh"}, "output": []}
        if number == 2:
            reply = {"status": "failed", "error": {"code": "invalid_prompt", "message": "no"}, "output": []}
        response = {"status_code": 200, "request_id": "q", "body": reply}
        return {"custom_id": key, "response": response, "error": None}

    with BatchServer(result) as server:
        made = label(server, "--set", "teachers.teacher.api=responses", seeds=5)
        assert made.error is None and made.manifest["counts"]["rows"] == 4
        assert made.manifest["counts"]["rejects"] == {"filtered": 1}
        assert [len(batch.requests) for batch in server.batches.values()] == [5, 1]
        assert (server.seen["/v1/responses"], server.seen["/v1/chat/completions"]) == (2, 0)


def test_a_ledger_of_before_batches_had_bounds_is_brought_up(label: Label, tmp_path: Path) -> None:
    with BatchServer() as server:
        label(server)
        with closing(sqlite3.connect(tmp_path / "l.db")) as db:
            for column in ("room", "tokens", "usd", "month"):
                db.execute(f"ALTER TABLE batch_items DROP COLUMN {column}")
            db.commit()
        assert label(server, seeds=12).manifest["counts"]["rows"] == 12
        assert [len(batch.requests) for batch in server.batches.values()] == [10, 2]


def test_a_recipe_of_several_steps_is_done_pass_by_pass(tmp_path: Path) -> None:
    """Evolve, judge, answer: every pass collects what the ledger lacks, until there is nothing more."""

    def result(key: str, body: dict[str, Any]) -> Line:
        text = text_of(body)
        said = (
            json.dumps({"verdict": "different"})
            if "First task:" in text
            else f"Explain {invented(text, 6)} in four steps."
        )
        line = chat_line(key, body)
        line["response"]["body"]["choices"][0]["message"]["content"] = said
        return line

    seeds = write_seeds(tmp_path / "s.jsonl", tasks(6))
    with BatchServer(result) as server:
        asked = ("expand", seeds, "-m", "evol", *server.asked)
        codes = []
        while not codes or codes[-1] == 75:
            made = make(*asked, "--no-wait", folder=tmp_path / "out")
            codes.append(made.error.exit_code if made.error else 0)
            assert len(codes) < 30
        assert codes[-1] == 0 and len(codes) > 3, codes
        assert server.repeats() == 0 and len(server.batches) == len(codes) - 1
        whole = make(*asked, folder=tmp_path / "whole")
        assert made.files == whole.files and made.manifest["counts"]["rows"] > 0


@pytest.fixture(scope="module")
def mock() -> Iterator[Any]:
    """llmock: a server of batches that we did not write."""
    testing = pytest.importorskip("llmock.testing")
    with testing.LLMockServer() as server:
        yield server


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of its own temporary files
@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_against_llmock(mock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wire: str) -> None:
    monkeypatch.setattr("llmock.routers.batch._BATCH_DELAY", 0.0)
    seeds = write_seeds(tmp_path / "s.jsonl", tasks(10))
    spec = f"{wire}:Qwen3-8B@{mock.base_url(wire)}"
    options = ("--set", MODE, "--set", "teachers.teacher.unsupported=drop")
    made = make("label", seeds, "-t", spec, *options, folder=tmp_path / "out")
    assert made.error is None, made.error
    assert made.manifest["counts"]["rows"] == 10 and made.manifest["requests"]["sent"] == 10
