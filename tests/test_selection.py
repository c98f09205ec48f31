"""Selection: the chosen seeds cover the set, whatever its order, and every other one is accounted for."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdgen.errors import UserError
from kdgen.record import Record, Reject
from kdgen.seeds import Seeds, read, scan
from kdgen.selection import Select

KINDS = {
    "cook": "How long do I roast {} in the oven with garlic, butter and rosemary?",
    "code": "Write a Python function that sorts the list of {} without a library.",
    "law": "May my landlord in Berlin end the lease because of {} on the balcony?",
    "space": "Which planet of the solar system has moons that resemble {}?",
    "money": "Compute the compound interest on a savings account for {} over ten years.",
}
THINGS = "apples pears chairs dogs books lamps stones shoes trees clocks".split()
CLUSTERS = [
    {"id": f"{kind}-{thing}", "instruction": said.format(thing)} for kind, said in KINDS.items() for thing in THINGS
]
BOTH = pytest.mark.parametrize("method", ["k-center", "k-means"])
EITHER = pytest.mark.parametrize("embedder", ["words", "characters"])


def taken(tmp_path: Path, rows: list[dict[str, Any]], **select: Any) -> tuple[list[Record], list[Reject]]:
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = Seeds.model_validate({"path": str(path), "on_bad": "skip", "select": select or None})
    made = list(read(spec, path, scan(spec, path)))
    assert len(made) == len(rows)
    return [row for row in made if isinstance(row, Record)], [row for row in made if isinstance(row, Reject)]


def ids(rows: list[Record]) -> list[str]:
    return [row.id for row in rows]


@BOTH
@EITHER
def test_one_seed_of_each_kind_is_chosen_and_stands_for_its_kind(tmp_path: Path, method: str, embedder: str) -> None:
    kept, out = taken(tmp_path, CLUSTERS, method=method, n=5, embedder=embedder)
    assert {one.split("-")[0] for one in ids(kept)} == set(KINDS)
    assert len(kept) == 5 and len(out) == 45
    for reject in out:
        assert (reject.stage, reject.reason) == ("seeds", "not_selected") and reject.seeds == (reject.id,)
        stands, _, far = reject.detail.partition(" stands for it (distance ")
        assert stands in ids(kept) and stands.split("-")[0] == reject.id.split("-")[0]
        assert 0 < float(far.rstrip(")")) < 1.4


@BOTH
@EITHER
def test_order_does_not_matter_and_the_kept_stay_in_file_order(tmp_path: Path, method: str, embedder: str) -> None:
    kept, out = taken(tmp_path, CLUSTERS, method=method, n=12, embedder=embedder)
    assert ids(kept) == [row["id"] for row in CLUSTERS if row["id"] in set(ids(kept))]
    for turn in range(3):
        mixed = random.Random(turn).sample(CLUSTERS, len(CLUSTERS))
        again, rest = taken(tmp_path, mixed, method=method, n=12, embedder=embedder)
        assert set(ids(again)) == set(ids(kept))
        assert {row.id: row.detail for row in rest} == {row.id: row.detail for row in out}


def test_an_odd_seed_is_chosen_early_by_k_center(tmp_path: Path) -> None:
    odd = {"id": "odd", "instruction": "Zyzzyva quokka fjord"}
    kept, _ = taken(tmp_path, [*CLUSTERS[:20], odd], n=3)
    assert "odd" in ids(kept)


@BOTH
def test_twins_take_no_place_while_another_text_is_left(tmp_path: Path, method: str) -> None:
    twins = [{"id": f"t{n}", "instruction": "Say the very same thing."} for n in range(30)]
    rows = [*twins, CLUSTERS[0], CLUSTERS[10]]
    kept, out = taken(tmp_path, rows, method=method, n=3)
    assert sorted(ids(kept)) == ["code-apples", "cook-apples", "t0"]
    assert {row.detail for row in out} == {"t0 stands for it (distance 0.00)"}
    kept, out = taken(tmp_path, twins, method=method, n=4)
    assert ids(kept) == ["t0", "t1", "t10", "t11"] and len(out) == 26


def test_a_row_twice_or_bad_is_no_candidate(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "One."},
        {"instruction": "One."},
        {"other": 1},
        {"instruction": "Two."},
    ]
    kept, out = taken(tmp_path, rows, n=1)
    assert len(kept) == 1 and sorted(row.reason for row in out) == ["bad_seed", "duplicate_seed", "not_selected"]


@BOTH
@pytest.mark.parametrize("n", [50, 51, 10_000])
def test_as_many_as_there_are_changes_nothing(tmp_path: Path, method: str, n: int) -> None:
    assert taken(tmp_path, CLUSTERS, method=method, n=n) == taken(tmp_path, CLUSTERS)


@BOTH
@EITHER
def test_few_odd_and_empty_texts(tmp_path: Path, method: str, embedder: str) -> None:
    assert ids(taken(tmp_path, CLUSTERS[:1], method=method, n=1, embedder=embedder)[0]) == ["cook-apples"]
    rows = [{"id": str(n), "instruction": text} for n, text in enumerate(["?", "!", "a", "河", "\ud800 é", "x" * 9999])]
    for n in (1, 2, 5):
        assert len(taken(tmp_path, rows, method=method, n=n, embedder=embedder)[0]) == n


def test_characters_find_what_is_written_another_way(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "instruction": "colourful butterflies migrating"},
        {"id": "b", "instruction": "colorful butterfly migration"},
        {"id": "c", "instruction": "stock dividends taxed"},
    ]
    kept, _ = taken(tmp_path, rows, n=2, embedder="characters")
    assert "c" in ids(kept)


def test_chunks_and_limit(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for kind, said in KINDS.items():
        (tmp_path / f"docs/{kind}.md").write_text("\n\n".join(f"# {t}\n\n{said.format(t)}" for t in THINGS))
    docs = {"path": str(tmp_path / "docs"), "chunk": {"size": 32, "least": 0}, "select": {"n": 5}}
    spec = Seeds.model_validate(docs)
    found = scan(spec, tmp_path / "docs")
    assert found.rows - len(found.bad) == 5 and found.rows > 40
    first = Seeds.model_validate({**docs, "limit": 7})
    assert scan(first, tmp_path / "docs").rows == 7


@pytest.mark.parametrize("select", [{}, {"n": 0}, {"n": 1, "method": "random"}, {"n": 1, "embedder": "minilm"}])
def test_a_bad_setting_is_an_error(select: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"select\."):
        Seeds.model_validate({"path": "s.jsonl", "select": select})


def test_a_run_counts_every_seed_and_asks_about_the_chosen_alone(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CLUSTERS))
    common = ("s.jsonl", "-t", script("It is {digest}."), "--set", "seeds.select={method: k-means, n: 5}")
    said = kdgen("label", *common, "--ledger", "l.db", "-o", "out", "--json", "-q")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert made["counts"]["seeds"] == 50 and made["counts"]["rows"] == 5
    assert made["counts"]["rejects"] == {"not_selected": 45}
    covered = made["seeds"]["coverage"]
    assert covered["of"] == 50 and 0 < covered["mean"] < covered["radius"] < 1.5
    assert f"none is farther than {covered['radius']:g}" in (tmp_path / "out/README.md").read_text()
    mixed = random.Random(1).sample(CLUSTERS, len(CLUSTERS))
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    again = json.loads(kdgen("label", *common, "--ledger", "l.db", "-o", "out", "--json", "-q").out)
    assert again["counts"]["rows"] == 5 and again["requests"]["sent"] == 0
    told = kdgen("plan", "label/answer", *common, "--json")
    assert told.code == 0, told.err


@BOTH
def test_twenty_thousand(method: str) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(3000)]
    seeds = [(n, Record(id=f"s{n}", instruction=" ".join(draw.choices(words, k=25)))) for n in range(20_000)]
    out, coverage = Select.model_validate({"method": method, "n": 100}).left_out(lambda: seeds)
    assert len(out) == 19_900 and (coverage.chosen, coverage.of) == (100, 20_000)
    far = [float(why.rpartition(" ")[2][:-1]) for why in out.values()]
    assert coverage.radius == pytest.approx(max(far), abs=0.006)
    assert coverage.mean == pytest.approx(sum(far) / 20_000, abs=0.006)


def test_memory_is_bounded() -> None:
    def seeds() -> Any:
        return ((n, Record(id=f"s{n}", instruction=f"{n}" + "x" * 100_000)) for n in range(300))

    Select(n=1).left_out(lambda: [(1, Record(id="a")), (2, Record(id="b"))])
    tracemalloc.start()
    try:
        Select(n=50).left_out(seeds)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {n}."}) + "\n" for n in range(5)))
    chosen = Select.left_out

    def late(self: Select, seeds: Callable[[], Any]) -> Any:
        path.write_text("{\n" * 5)
        return chosen(self, seeds)

    monkeypatch.setattr(Select, "left_out", late)
    with pytest.raises(UserError, match="the file changed while it was read"):
        scan(Seeds(path=str(path), select=Select(n=2)), path)
