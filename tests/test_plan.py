"""`kdgen plan`: the quote before a run, next to what the run then was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field
from server import Answer, Server, make, tasks, write_seeds

from kdgen.config import load_recipe
from kdgen.planning import instance, tokens_of
from kdgen.resources import builtins

PRICES = "models:\n  Qwen3-8B: {input: 2, output: 10, batch: 0.5}\n"


@pytest.fixture
def plan(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The plan as JSON."""
    (tmp_path / "prices.yaml").write_text(PRICES)

    def run(*arguments: str) -> dict[str, Any]:
        said = kdgen("plan", *arguments, "--json", "--prices", str(tmp_path / "prices.yaml"))
        assert said.code == 0, said.err
        made: dict[str, Any] = json.loads(said.out)
        return made

    return run


def test_a_plan_and_its_bill(tmp_path: Path, plan: Callable[..., dict[str, Any]]) -> None:
    """Output of known length on a server that counts tokens its own way (four letters each): within a fifth."""

    def count(body: dict[str, Any], seen: int) -> Answer:
        said = sum(len(message["content"]) for message in body["messages"])
        return Answer("word " * 40, usage=(said // 4, 40))

    seeds = write_seeds(tmp_path / "s.jsonl", tasks(30))
    with Server(count) as server:
        asked = ("label/answer", str(seeds), "-t", f"openai:Qwen3-8B@{server.url}")
        kept = ("--ledger", str(tmp_path / "l.db"))
        quoted = plan(*asked, *kept, "--reply-tokens", "40")
        assert not server.bodies and not (tmp_path / "l.db").exists()
        made = make("run", "label/answer", "--seeds", *asked[1:], "--prices", str(tmp_path / "prices.yaml"),
                    folder=tmp_path / "out", ledger=tmp_path / "l.db")  # fmt: skip
        total, bill = quoted["total"], made.manifest["cost_usd"]
        assert (total["requests"], total["to_send"], quoted["rows"]) == (30, 30, 30)
        assert abs(total["usd_online"] - bill) <= 0.2 * bill
        assert total["usd_at_most"] > bill and quoted["terms"][0]["status"] == "allowed"
        assert quoted["lines"][0]["prompts"]["label/answer"][-1]["content"] == tasks(1)[0]["instruction"]

        again = plan(*asked, *kept)["total"]
        assert (again["in_ledger"], again["to_send"], again["usd_online"]) == (30, 0, 0)
        write_seeds(seeds, [*tasks(30)[:-1], {"id": "new", "instruction": "Say what is new."}])
        more = plan(*asked, *kept)["total"]
        # The length of the replies that are there is the measure of the new one.
        assert (more["in_ledger"], more["to_send"], more["output_tokens"]) == (29, 1, 40)
        assert len(server.bodies) == 30


GOLDEN = Path(__file__).parent / "golden"
OTHER_SEEDS = {
    "curate/by-label": "curate/by-label.plan.jsonl",
    "expand/boundary": "expand/boundary.seeds.jsonl",
    "feedback/repair": "feedback/repair.plan.jsonl",
    "expand/paraphrase-labelled": "expand/paraphrase-labelled.plan.jsonl",
    "feature/ifd": "feature/ifd.seeds.jsonl",
    "feature/perplexity": "feature/perplexity.seeds.jsonl",
    "feature/score": "feature/score.seeds.jsonl",
    "self/humpback": "self/humpback.seeds.jsonl",
}


@pytest.mark.parametrize("name", list(builtins("configs")))
def test_every_recipe_plans_to_its_end(plan: Callable[..., dict[str, Any]], name: str) -> None:
    """Invented replies are of the form that each stage asks for."""
    seeds = OTHER_SEEDS.get(name)
    given = (str(GOLDEN / seeds) if seeds else "general", "--limit", "12")
    made = plan(name, *(() if load_recipe(name).seed_free else given), "--ledger", "none.db")
    assert made["rows"] > 0 and {line["to_send"] > 0 for line in made["lines"]} == {True}
    assert set(made["rejects"]) <= {"over_target", "over_keep", "same_path", "nothing_to_score"}
    assert made["total"]["usd_at_most"] == 0  # the embedded teacher costs nothing


def test_a_table_for_people(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    write_seeds(tmp_path / "s.jsonl", tasks(3))
    said = kdgen("plan", "label/answer", "s.jsonl", "-t", "openai:gpt-6-luna", "--set", "teachers.teacher.effort=none")
    assert said.code == 0 and "nothing is sent" in said.out and "--reply-tokens N says better" in said.out
    assert "a run needs --ack-terms openai.api@" in said.out and "[user]\nSay what" in said.out
    unknown = kdgen("plan", "label/answer", "s.jsonl", "-t", "openai:Qwen3-8B@http://127.0.0.1:9/v1")
    assert "no price is known" in unknown.out
    assert kdgen("plan", "label/answer", "none.jsonl").code == 2


def test_tokens_are_guessed_for_any_script() -> None:
    assert 8 <= tokens_of("The quick brown fox jumps over the lazy dog.") <= 12
    assert tokens_of("四川省的省会是什么？") >= 8 and tokens_of("") == 0


class Inner(BaseModel):
    score: int = Field(ge=3)


class Shape(BaseModel):
    kind: str
    inner: list[Inner]
    maybe: float | None
    sure: bool


def test_an_invented_value_fits_its_schema() -> None:
    Shape.model_validate(instance(Shape.model_json_schema()))


def test_at_most_is_the_sum_of_each_request(tmp_path: Path, plan: Callable[..., dict[str, Any]]) -> None:
    """A price that climbs with the length of a request does not climb with their number."""
    rows = "models:\n  Qwen3-8B: {input: 2, output: 10, long: {over: 3000, input: 100, output: 100}}\n"
    (tmp_path / "prices.yaml").write_text(rows)
    seeds = write_seeds(tmp_path / "s.jsonl", tasks(40))
    asked = ("label/answer", str(seeds), "-t", "openai:Qwen3-8B@http://127.0.0.1:9/v1", "--ledger", "none.db")
    one, all_ = (plan(*asked, "--limit", count)["total"]["usd_at_most"] for count in ("1", "40"))
    assert 30 * one < all_ < 50 * one


@pytest.mark.parametrize("name", list(builtins("configs")))
def test_a_recipe_says_what_it_takes_makes_and_costs(name: str) -> None:
    head = "\n".join(line for line in builtins("configs")[name].read_text().splitlines() if line.startswith("# "))
    assert head.startswith("# Takes ") and " makes " in head.replace(", finds those", ", makes")
    recipe = load_recipe(name)
    free, own = recipe.seed_free, any(stage.forced for stage in recipe.stages)  # no model of OpenAI's scores a text
    priced = r"About \$\d+\.\d\d per 1,000 rows" + ("" if free or own else " with gpt-6-luna")
    assert re.search(priced, head) and f"kdgen plan {name}{'' if free else ' SEEDS'}" in head
    assert load_recipe(name).paper
