"""At a cap, what is complete is published where the user asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from server import Answer, Made, Server, kdgen, make, tasks, write_seeds

from kdgen.errors import BudgetReached, UserError


def label(tmp_path: Path, server: Server, *more: str) -> Made:
    seeds = write_seeds(tmp_path / "seeds.jsonl", tasks(20))
    sets = ("--set", "teachers.teacher.concurrency=4", "--set", "teachers.teacher.max_tokens=50")
    return make("label", seeds, "-t", f"openai:Qwen3-8B@{server.url}", *sets, *more, folder=tmp_path / "out")


def test_what_is_complete_is_published_and_the_next_run_goes_on(tmp_path: Path) -> None:
    cap = ("--set", "budget.publish=true", "--budget-tokens")
    with Server(lambda body, seen: Answer("so it is", usage=(60, 40))) as server:
        made = label(tmp_path, server, *cap, "1500")
        assert isinstance(made.error, BudgetReached) and made.error.exit_code == 4
        paid = len(server.bodies)
        assert 4 <= paid < 15
        assert f"{paid} complete rows are published" in made.error.cause
        manifest = json.loads((tmp_path / "out/manifest.json").read_text())
        assert manifest["stopped"] == "budget"
        assert manifest["counts"]["rejects"] == {"budget_reached": 20 - paid}
        asked = manifest["requests"]
        assert (asked["sent"], asked["from_ledger"]) == (paid, 0)
        assert len((tmp_path / "out/data.jsonl").read_text().splitlines()) == paid

        whole = label(tmp_path, server)
        assert whole.error is None and len(server.bodies) == 20
        assert whole.manifest["counts"]["rows"] == 20 and whole.manifest["requests"]["from_ledger"] == paid


def test_nothing_complete_publishes_nothing(tmp_path: Path) -> None:
    with Server() as server:
        made = label(tmp_path, server, "--set", "budget.publish=true", "--budget-tokens", "1")
    assert isinstance(made.error, BudgetReached) and "published" not in made.error.cause
    assert server.bodies == [] and not (tmp_path / "out/data.jsonl").exists()


def test_it_needs_a_cap(tmp_path: Path) -> None:
    with Server() as server:
        made = label(tmp_path, server, "--set", "budget.publish=true")
    assert isinstance(made.error, UserError) and "no cap" in made.error.cause
    assert server.bodies == []


def test_it_needs_a_folder(tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds.jsonl", tasks(3))
    with Server() as server:
        said = kdgen(
            *["label", "seeds.jsonl", "-t", f"openai:Qwen3-8B@{server.url}", "-o", "-"],
            *["--budget-tokens", "10000", "--publish-at-budget"],
            cwd=tmp_path,
        )
    assert said.returncode == 2 and "-o DIR" in said.stderr
    assert server.bodies == []


@pytest.mark.parametrize("verb", ["label", "run"])
def test_the_option_is_the_recipes(tmp_path: Path, verb: str) -> None:
    write_seeds(tmp_path / "seeds.jsonl", tasks(20))
    subject = ("label", "seeds.jsonl") if verb == "label" else ("run", "label/answer", "--seeds", "seeds.jsonl")
    with Server(lambda body, seen: Answer("so it is", usage=(60, 40))) as server:
        said = kdgen(
            *[*subject, "-t", f"openai:Qwen3-8B@{server.url}", "-o", "out"],
            *["--set", "teachers.teacher.max_tokens=50", "--budget-tokens", "1500", "--publish-at-budget"],
            cwd=tmp_path,
        )
    assert said.returncode == 4 and "complete rows are published" in said.stderr
    assert (tmp_path / "out/data.jsonl").exists()
