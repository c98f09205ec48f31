"""The terms gate of a run: nothing is sent before what the terms ask is acknowledged, and then it is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import ACK, Made, Server, make, tasks, write_seeds

from kdgen.errors import TermsNotAcknowledged, UserError
from kdgen.terms import table

READ = str(table().read)


def label(tmp_path: Path, model: str, *more: str, server: Server) -> Made:
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(2))
    return make("label", seeds, "-t", f"openai:{model}@{server.url}", *more, folder=tmp_path / "out")


@pytest.mark.parametrize("model", ["gpt-6-luna", "claude-opus-5", "nobody-knows-it"])
def test_nothing_is_sent_before_the_terms_are_acknowledged(tmp_path: Path, model: str) -> None:
    with Server() as server:
        made = label(tmp_path, model, server=server)
    assert isinstance(made.error, TermsNotAcknowledged) and made.error.exit_code == 7
    assert "--ack-terms" in made.error.hint and READ in made.error.hint
    assert not server.bodies and not list(tmp_path.glob("*.db"))


def test_what_was_acknowledged_stands_in_manifest_and_card(tmp_path: Path) -> None:
    with Server() as server:
        made = label(tmp_path, "gpt-6-luna", *ACK, "--set", "use=research", "--set", "student=Mine-8B", server=server)
    assert made.error is None
    (ruling,) = made.manifest["terms"]
    assert (ruling["key"], ruling["status"], ruling["role"]) == ("openai.api", "restricted", "teacher")
    assert ruling["ack"] == {"date": READ, "why": "--ack-terms on the command line"}
    assert (made.manifest["use"], made.manifest["student"]) == ("research", "Mine-8B")
    card = made.files["README.md"].decode()
    assert "use `research`, to train Mine-8B" in card and "openai.api, as of" in card
    assert "Not for training models that compete" in card


def test_a_recipe_may_say_why_it_may(tmp_path: Path) -> None:
    why = "our agreement of May allows it"
    with Server() as server:
        acked = json.dumps({"openai.api": {"date": READ, "why": why}})
        made = label(tmp_path, "gpt-6-luna", "--set", f"terms={acked}", server=server)
    assert made.error is None
    assert made.manifest["terms"][0]["ack"]["why"] == why and why in made.files["README.md"].decode()


def test_an_open_licence_needs_no_word(tmp_path: Path) -> None:
    with Server() as server:
        made = label(tmp_path, "Qwen3-8B", server=server)
    assert made.error is None and made.manifest["terms"][0]["status"] == "allowed"


def test_an_acknowledgement_that_nobody_needs_is_an_error(tmp_path: Path) -> None:
    with Server() as server:
        for ack, said in (("opanai.api", "did you mean openai.api"), ("qwen.apache", "what holds here: openai.api")):
            made = label(tmp_path, "gpt-6-luna", "--ack-terms", f"{ack}@{READ}", server=server)
            assert isinstance(made.error, UserError) and said in made.error.hint
        made = label(tmp_path, "gpt-6-luna", "--ack-terms", "openai.api@2020-01-01", server=server)
    assert isinstance(made.error, TermsNotAcknowledged) and "read anew" in str(made.error)
    assert not server.bodies


def test_what_terms_say_changes_no_row_and_no_hash(tmp_path: Path) -> None:
    with Server() as server:
        plain = label(tmp_path, "Qwen3-8B", server=server)
        used = label(tmp_path, "Qwen3-8B", "--set", "use=commercial", server=server)
    assert used.manifest["requests"]["sent"] == 0
    assert plain.manifest["hashes"]["recipe"] == used.manifest["hashes"]["recipe"]


def test_prices_of_ones_own_make_the_bill(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models:\n  Qwen3-8B: {input: 1000000, output: 2000000}\n")
    with Server() as server:
        dear = label(tmp_path, "Qwen3-8B", "--prices", str(tmp_path / "prices.yaml"), server=server)
        again = label(tmp_path, "Qwen3-8B", server=server)
    assert dear.error is None
    tokens = dear.manifest["tokens"]
    assert dear.manifest["cost_usd"] == tokens["input"] + 2 * tokens["output"] > 0
    assert again.manifest["cost_usd"] is None


def test_check_says_what_a_run_would_need(kdgen: Callable[..., Any]) -> None:
    said = kdgen("check", "label/answer", "-t", "openai:nobody-knows-it@http://127.0.0.1:9/v1")
    assert said.code == 0 and f"a run needs --ack-terms openai:nobody-knows-it@127.0.0.1@{READ}" in said.out


@pytest.mark.parametrize("option", [["--no-wait"], ["--max-wait", "9"]], ids=["no-wait", "max-wait"])
def test_waiting_for_no_batch_is_an_error(tmp_path: Path, option: list[str]) -> None:
    with Server() as server:
        made = label(tmp_path, "Qwen3-8B", *option, server=server)
    assert isinstance(made.error, UserError) and str(made.error).startswith(option[0]) and not server.bodies
