"""Batches as files for `vllm run-batch`, answered here by a small stand-in that writes what vLLM writes."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import Made, Server, chat, invented, ledger_rows, make, tasks, write_seeds

from kdgen.errors import ComeBack, EndpointError, UserError
from kdgen.teachers.base import Call, Params, Raw
from kdgen.teachers.vllm import Vllm

MODEL = "Qwen/Qwen3-8B"
Label = Callable[..., Made]
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def ok(body: dict[str, Any], text: str = "") -> dict[str, Any]:
    """A line's response and error, for an answer; vLLM writes every field of its reply."""
    reply = chat(
        text or f"It is {invented(body['messages'][-1]['content'])}.", message={"reasoning": None, "refusal": None}
    )
    response = {"status_code": 200, "request_id": "vllm-batch-1", "body": {**reply, "prompt_logprobs": None}}
    return {"response": response, "error": None}


def failed(status: int, error: object) -> dict[str, Any]:
    """The same for an error."""
    return {"response": {"status_code": status, "request_id": "vllm-batch-1", "body": None}, "error": error}


def typed(status: int, message: str) -> dict[str, Any]:
    """An error as vLLM's server says it."""
    kind = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return failed(status, {"error": kind})


def run_batch(command: str, answer: Answer = ok, lines: int | None = None) -> argparse.Namespace:
    """Do what the command says, up to so many whole lines and half of the next."""
    words = shlex.split(command)
    assert words[:2] == ["vllm", "run-batch"]
    parser = argparse.ArgumentParser()
    for name in (
        "--model",
        "--served-model-name",
        "--generation-config",
        "--max-logprobs",
        "--max-model-len",
        "--dtype",
    ):
        parser.add_argument(name)
    parser.add_argument("-i", dest="input", required=True)
    parser.add_argument("-o", dest="output", required=True)
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    given = parser.parse_args(words[2:])
    served, made = given.served_model_name or given.model, []
    for number, line in enumerate(Path(given.input).read_text().splitlines()):
        asked = json.loads(line)
        assert (asked["method"], asked["url"]) == ("POST", "/v1/chat/completions")
        known = asked["body"]["model"] == served
        said = answer(asked["body"]) if known else typed(404, f"The model `{asked['body']['model']}` does not exist.")
        made.append(json.dumps({"id": f"vllm-{number}", "custom_id": asked["custom_id"], **said}) + "\n")
    kept = made if lines is None else [*made[:lines], made[lines][: len(made[lines]) // 2]]
    Path(given.output).write_text("".join(kept))
    return given


@pytest.fixture
def label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Label:
    """`kdgen label` through files, coming back each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdgen.cli.job.POLL", 0.01)

    def run(*options: object, seeds: int = 6, model: str = MODEL, wait: bool = False) -> Made:
        path = write_seeds(tmp_path / "seeds.jsonl", tasks(seeds))
        asked = ("label", path, "-t", f"vllm:{model}", "--set", "teachers.teacher.mode=batch")
        return make(
            *asked, *(() if wait else ("--no-wait",)), *options, folder=tmp_path / "out", ledger=tmp_path / "l.db"
        )

    return run


def told(made: Made) -> list[str]:
    """The commands of the hint."""
    assert isinstance(made.error, ComeBack), made.error
    *commands, last = [line.strip() for line in made.error.hint.splitlines()]
    assert last == "then run the same command" and commands
    return commands


def test_files_are_written_answered_and_imported(label: Label, tmp_path: Path) -> None:
    (command,) = told(label())
    (file,) = (tmp_path / ".kdgen" / "batches").iterdir()
    output = file.with_suffix(".out.jsonl")
    options = "--generation-config=vllm --max-logprobs=-1"
    assert command == f"vllm run-batch -i {file} -o {output} --model {MODEL} {options}"
    assert told(label()) == [command], "nothing is written twice"
    assert len(list(file.parent.iterdir())) == 1
    run_batch(command)
    made = label()
    assert made.error is None, made.error
    assert made.manifest["counts"]["rows"] == 6 and made.manifest["cost_usd"] == 0
    assert label().files == made.files
    assert ledger_rows(tmp_path / "l.db", "SELECT count(*) FROM batch_items") == [(0,)]


def test_a_file_that_is_answered_in_part_is_waited_for(label: Label) -> None:
    (command,) = told(label())
    run_batch(command, lines=4)
    assert told(label()) == [command]
    run_batch(command)
    assert label().manifest["counts"]["rows"] == 6


def test_errors_of_a_line_and_of_the_runner(label: Label, tmp_path: Path) -> None:
    """What vLLM refuses is rejected; what its runner stumbles on is written to a file again."""
    first = [True]

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        number = int(body["messages"][-1]["content"].split(" number ")[1].split(" ")[0])
        if number == 1:
            return typed(400, "This model's maximum context length is 10 tokens.")
        if number == 2 and first[0]:
            return failed(400, "EngineCore encountered an issue.")
        return ok(body)

    (command,) = told(label())
    run_batch(command, answer)
    (again,) = told(label())
    assert again != command and len(Path(shlex.split(again)[3]).read_text().splitlines()) == 1
    first[0] = False
    run_batch(again, answer)
    made = label()
    assert made.manifest["counts"]["rejects"] == {"endpoint_refused": 1} and made.manifest["counts"]["rows"] == 5
    assert "maximum context length" in made.rows("rejects.jsonl")[0]["detail"]


def test_a_wrong_model_ends_the_run(label: Label) -> None:
    (command,) = told(label())
    run_batch(command.replace(f"--model {MODEL}", "--model other"))
    made = label()
    assert isinstance(made.error, EndpointError) and "does not exist" in str(made.error)
    run_batch(told(label())[0])
    assert label().manifest["counts"]["rows"] == 6


def test_a_model_of_ones_own_and_the_engines_arguments(label: Label, tmp_path: Path) -> None:
    """A folder is served under the name that the ledger knows it by; what changes an answer is said."""
    folder = tmp_path / "my models" / "Qwen3-8B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    engine = "teachers.teacher.engine={max_model_len: 2048, dtype: bfloat16, enforce_eager: false}"
    (command,) = told(label("--set", engine, model=str(folder)))
    given = run_batch(command)
    assert given.model == str(folder) and given.served_model_name.startswith("Qwen3-8B@")
    assert (given.max_model_len, given.dtype, given.enforce_eager) == ("2048", "bfloat16", False)
    assert label("--set", engine, model=str(folder)).manifest["counts"]["rows"] == 6


def test_thinking_is_split_off_as_the_engine_in_the_process_does_it() -> None:
    spec = Vllm(model=MODEL, mode="batch")
    request = spec.request(Call([{"role": "user", "content": "x"}], Params()))
    body = json.dumps(chat("<think>why\nnot</think>\n\nyes")).encode()
    reply = spec.read(request, Raw(body, {"kdgen-batch": "b"}))
    assert (reply.reasoning, reply.text) == ("why\nnot", "yes")
    assert spec.read(request, Raw(body, {})).reasoning == ""


def test_a_batch_and_the_engine_in_the_process_are_one_request() -> None:
    call = Call([{"role": "user", "content": "x"}], Params(logprobs=3, max_tokens=9))
    assert Vllm(model=MODEL, mode="batch").request(call).key == Vllm(model=MODEL).request(call).key


def test_a_file_that_was_taken_away_is_written_again(label: Label) -> None:
    (command,) = told(label())
    Path(shlex.split(command)[3]).unlink()
    (again,) = told(label())
    assert again != command
    run_batch(again)
    assert label().manifest["counts"]["rows"] == 6


def test_stragglers_go_to_the_server_that_is_named(label: Label, tmp_path: Path) -> None:
    with Server() as server:
        (command,) = told(label(model=f"{MODEL}@{server.url}"))
        run_batch(command, lines=4)
        made = label("--max-wait", "0", model=f"{MODEL}@{server.url}", wait=True)
        assert made.error is None and made.manifest["counts"]["rows"] == 6
        assert len(server.bodies) == 2
    assert not Path(shlex.split(command)[3]).exists(), "so that nobody runs it any more"


def test_a_straggler_needs_vllm_where_no_server_is_named(label: Label, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdgen.teachers.vllm.importlib.util.find_spec", lambda name: None)
    told(label())
    made = label("--max-wait", "0", wait=True)
    assert isinstance(made.error, UserError) and "vllm is not installed" in str(made.error)


def test_a_folder_that_cannot_be_written(label: Label, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = label("--set", "teachers.teacher.batch_dir=file/sub")
    assert isinstance(made.error, UserError) and "a batch cannot be written" in str(made.error)


def test_an_adapter_is_not_for_files(label: Label, tmp_path: Path) -> None:
    made = label("--set", f"teachers.teacher.lora={tmp_path}")
    assert isinstance(made.error, UserError) and "takes no adapter" in str(made.error)
