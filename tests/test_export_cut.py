"""Splits by seed, shares, subsets and orders: what the rows of an export are, and that no row of a seed leaks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets_made import answers, dataset, lines_of
from hypothesis import given
from hypothesis import strategies as st

from kdgen.bundle.cut import Cut
from kdgen.bundle.groups import Groups
from kdgen.bundle.measure import length_of, packs
from kdgen.export import Messages, Preference
from kdgen.export.examples import PAIR
from kdgen.record import Record

Run = Callable[..., Any]


def tasks(path: Path) -> list[str]:
    return [row["messages"][0]["content"].removeprefix("Task ") for row in lines_of(path)]


@pytest.fixture
def export(kdgen: Run, tmp_path: Path) -> Callable[..., dict[str, list[str]]]:
    """Export with these words; the tasks of each file by its name."""

    def run(*words: str, out: str = "x") -> dict[str, list[str]]:
        said = kdgen("export", *words, "--to", "messages", "-o", out)
        assert said.code == 0, said.err
        return {path.stem: tasks(path) for path in (tmp_path / out).glob("*.jsonl")}

    return run


def test_rows_of_a_seed_are_in_one_split(export: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(600, seeds=200))
    made = export("d", "--split", "train=0.8,dev=0.1,test=0.1")
    assert sorted(task for each in made.values() for task in each) == sorted(str(n) for n in range(600))
    of = {name: {int(task) % 200 for task in made[name]} for name in made}
    assert not of["train"] & of["test"] and not of["train"] & of["dev"] and not of["dev"] & of["test"]
    assert 440 <= len(made["train"]) <= 520 and 30 <= len(made["test"]) <= 90
    manifest = json.loads((tmp_path / "x/manifest.json").read_text())
    assert manifest["groups_of_seeds"] == 200 and manifest["splits"]["dev"]["rows"] == len(made["dev"])
    assert "Split by seed" in (tmp_path / "x/README.md").read_text()


def test_rows_of_several_seeds_hold_their_seeds_together(export: Any, tmp_path: Path) -> None:
    """A chain: each row stands on two seeds, which others share; whoever is reachable is in the same split."""
    rows = [
        Record(
            id=f"r{n}", instruction=f"Task {n}", output="yes", seeds=(f"s{n}", f"s{n + 1}") if n % 10 else (f"s{n}",)
        )
        for n in range(400)
    ]
    dataset(tmp_path / "d", rows)
    made = export("d", "--split", "train=0.7,test=0.3")
    split_of = {task: name for name, tasks in made.items() for task in tasks}
    by_seed = defaultdict(set)
    for number, record in enumerate(rows):
        for seed in record.seeds:
            by_seed[seed].add(split_of[str(number)])
    assert all(len(splits) == 1 for splits in by_seed.values())
    assert set(split_of.values()) == {"train", "test"}


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), max_size=30), st.randoms())
def test_groups_are_connected_components_in_any_order(ties: list[list[int]], random: Any) -> None:
    plain, shuffled = Groups(), Groups()
    for tie in ties:
        plain.tie(tie)
    random.shuffle(ties)
    for tie in ties:
        shuffled.tie(tie)
    near: dict[int, set[int]] = {seed: {seed} for seed in range(31)}
    for _ in range(31):
        for tie in ties:
            joined = set().union(*(near[seed] for seed in tie))
            for seed in joined:
                near[seed] = joined
    for seed in range(31):
        assert plain.root(seed) == shuffled.root(seed) == min(near[seed])


def test_rows_that_all_hang_together_cannot_be_split_and_it_is_said(kdgen: Run, tmp_path: Path) -> None:
    dataset(
        tmp_path / "d",
        [Record(id=f"r{n}", instruction=f"Task {n}", output="y", seeds=("a", f"s{n}")) for n in range(50)],
    )
    said = kdgen("export", "d", "--to", "messages", "--split", "train=0.5,test=0.5", "-o", "x")
    assert said.code == 5 and "the 50 rows are 1 groups, the largest of 50" in said.err
    assert not (tmp_path / "x").exists()


def test_another_seed_moves_no_row(export: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(300))
    dataset(tmp_path / "e", [*answers(150), *answers(3, of="new"), *answers(300)[150:]])
    one, two = export("d", "--split", "train=0.8,test=0.2"), export("e", "--split", "train=0.8,test=0.2", out="y")
    for name in one:
        assert set(one[name]) == {task for task in two[name] if not task.startswith("new")}
    assert export("d", "--split", "train=0.8,test=0.2", "--seed", "1", out="z") != one


def test_rows_of_a_dataset_made_of_another_ones_rows_do_not_leak(export: Any, tmp_path: Path) -> None:
    """Where a later dataset's seeds are an earlier one's rows, as in a loop, a row and what was made of it stay together."""
    first = answers(200)
    later = [Record(id=f"l{n}", instruction=f"Task l{n}", output="y", seeds=(f"r{n}",)) for n in range(200)]
    dataset(tmp_path / "d", first)
    dataset(tmp_path / "e", later)
    made = export("--mix", "d=1", "--mix", "e=1", "--split", "train=0.5,test=0.5")
    for name, other in (("train", "test"), ("test", "train")):
        assert not {task.removeprefix("l") for task in made[name]} & {task.removeprefix("l") for task in made[other]}


def test_rows_hang_together_by_a_row_that_has_no_place_itself(export: Any, tmp_path: Path) -> None:
    """What was made of a document stays with the document's other rows, though the document is none of the format."""
    first = answers(100)
    papers = [Record(id=f"d{n}", text="T", seeds=(f"lone{n}", f"s{n}")) for n in range(100)]
    dataset(tmp_path / "d", [*first, *papers])
    dataset(
        tmp_path / "e", [Record(id=f"l{n}", instruction=f"Task l{n}", output="y", seeds=(f"d{n}",)) for n in range(100)]
    )
    made = export("--mix", "d=1", "--mix", "e=1", "--split", "train=0.5,test=0.5")
    for name, other in (("train", "test"), ("test", "train")):
        assert not {task.removeprefix("l") for task in made[name]} & {task.removeprefix("l") for task in made[other]}


def test_a_mix_has_its_shares_and_as_many_rows_as_they_allow(export: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "a", answers(100, of="a"), name="a")
    dataset(tmp_path / "b", answers(90, of="b"), name="b")
    (made,) = export("--mix", "a=0.7", "--mix", "b=0.3").values()
    assert sum(task[0] == "a" for task in made) == 100 and sum(task[0] == "b" for task in made) == 42
    firsts = [sum(task[0] == "b" for task in made[at : at + 20]) for at in range(0, 140, 20)]
    assert all(5 <= count <= 7 for count in firsts), "laid evenly through each other"
    ordered = [int(task[1:]) for task in made if task[0] == "b"]
    assert ordered == sorted(ordered)
    told = json.loads((tmp_path / "x/manifest.json").read_text())
    assert [each["share"] for each in told["datasets"]] == [0.7, 0.3] and told["counts"]["not_drawn"] == 48
    assert told["datasets"][1]["counts"] == {"records": 90, "rows": 42, "not_drawn": 48}
    (twice,) = export("--mix", "a=7", "--mix", "b=3", out="y").values()
    assert twice == made, "shares are relative"
    (less,) = export("--mix", "a=0.8", "--mix", "b=0.2", out="z").values()
    assert {task for task in less if task[0] == "b"} < {task for task in made if task[0] == "b"}
    assert "Mixed: a 100 rows (share 0.7), b 42 rows" in (tmp_path / "x/README.md").read_text()


def test_rehearsal_is_a_share_of_the_whole(export: Any, kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "new", answers(90, of="n"))
    dataset(tmp_path / "old", answers(50, of="o"))
    (made,) = export("new", "--rehearse", "old=0.1").values()
    assert sum(task[0] == "n" for task in made) == 90 and sum(task[0] == "o" for task in made) == 10
    said = kdgen("export", "new", "--rehearse", "old=0.5", "--to", "messages", "-o", "y")
    assert said.code == 5 and "takes 90 rows, and there are 50" in said.err and "at most 0.357" in said.err
    (both,) = export("--mix", "new=1", "--mix", "old=0.1", "--rehearse", "old=0.2", out="z").values()
    assert len(both) == 99 + round(99 / 4)


def test_subsets_are_each_within_the_next_and_keep_the_shares(export: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "a", answers(900, of="a"))
    dataset(tmp_path / "b", answers(900, of="b"))
    made = export("--mix", "a=0.9", "--mix", "b=0.1", "--subsets", "500,50,10")
    sizes = [set(made[name]) for name in ("train_10", "train_50", "train_500", "train")]
    assert [len(each) for each in sizes] == [10, 50, 500, 1000]
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
    assert sum(task[0] == "b" for task in sizes[2]) == 50 and sum(task[0] == "b" for task in sizes[1]) == 5
    places = [made["train"].index(task) for task in made["train_50"]]
    assert places == sorted(places), "a subset has the whole's order"
    split = export("a", "--split", "train=0.5,test=0.5", "--subsets", "20", out="y")
    assert set(split["train_20"]) < set(split["train"]) and len(split["train_20"]) == 20


@pytest.mark.parametrize("way", ["", ":asc", ":desc"])
def test_a_curriculum_goes_by_a_number_of_the_record(export: Any, tmp_path: Path, way: str) -> None:
    records = answers(100)
    records[5] = records[5].model_copy(update={"meta": {}})
    records[6] = records[6].model_copy(update={"meta": {"score": "high"}})
    dataset(tmp_path / "d", records)
    (made,) = export("d", "--order", f"meta.score{way}").values()
    assert made[-2:] == ["5", "6"], "without a number, last"
    scores = [(int(task) * 7) % 11 for task in made[:-2]]
    assert scores == sorted(scores, reverse=way == ":desc")
    same = [int(task) for task in made[:-2] if (int(task) * 7) % 11 == 4]
    assert same == sorted(same), "equals keep their order"
    told = json.loads((tmp_path / "x/manifest.json").read_text())
    assert told["without_the_orders_number"] == 2 and "come last" in (tmp_path / "x/README.md").read_text()


def test_a_curriculum_of_several_datasets_and_splits(export: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "a", answers(60, of="a"))
    dataset(tmp_path / "b", answers(60, of="b"))
    made = export(
        "--mix", "a=1", "--mix", "b=1", "--order", "length:desc", "--split", "train=0.6,test=0.4", "--subsets", "9"
    )
    for tasks in made.values():
        lengths = [int(task[1:]) % 7 for task in tasks]
        assert lengths == sorted(lengths, reverse=True)
    assert {task[0] for task in made["train"]} == {"a", "b"} and set(made["train_9"]) < set(made["train"])


def test_an_order_that_no_record_has_is_exit_5(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(5))
    said = kdgen("export", "d", "--to", "messages", "--order", "meta.grade", "-o", "x")
    assert said.code == 5 and "no record has a number at 'meta.grade'" in said.err


def test_long_rows_are_left_out_and_counted(export: Any, kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(70))
    said = kdgen("export", "d", "--to", "messages", "--max-tokens", "7", "-o", "x", "--json")
    told = json.loads(said.out)
    assert told["counts"]["too_long"] == 30 and "30 records are too long" in said.err
    assert told["lengths"]["train"] == {"unit": "words", "total": 220, "median": 6, "p95": 7, "longest": 7}
    assert len(lines_of(tmp_path / "x/train.jsonl")) == 40
    said = kdgen("export", "d", "--to", "messages", "--max-tokens", "2", "-o", "y")
    assert said.code == 5 and "(70 are too long)" in said.err


def test_what_a_model_reads_is_counted() -> None:
    record = Record(id="x", instruction="one two", output="three", system="four")
    for form, words in ((Messages(), 4), (Messages(system="drop"), 3)):
        made = form.row(record)
        assert made is not None and length_of(form.shape(), "")(made) == words
    pair = Preference().row(PAIR)
    assert pair is not None and length_of(Preference().shape(), "")(pair) == 7


def test_tokens_of_a_tokenizer_are_counted(kdgen: Run, tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, "[UNK]": 2}
    told = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    dataset(tmp_path / "d", [Record(id="r", instruction="abab", output="abc", seeds=("s",))])
    said = kdgen("export", "d", "--to", "messages", "--tokenizer", ".", "-o", "x", "--json")
    assert json.loads(said.out)["lengths"]["train"] == {
        "unit": "tokens",
        "total": 7,
        "median": 7,
        "p95": 7,
        "longest": 7,
    }
    (tmp_path / "tokenizer.json").write_text("{}")
    assert kdgen("export", "d", "--to", "messages", "--tokenizer", "tokenizer.json").code == 2


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(1, 20))
def test_packing_is_between_the_least_and_first_fit(lengths: list[int], size: int) -> None:
    made, clipped = packs(lengths, size), sorted((min(n, size) for n in lengths), reverse=True)
    rooms: list[int] = []
    for length in clipped:
        fitting = [room for room in rooms if room >= length]
        if fitting:
            best = min(fitting)
            rooms[rooms.index(best)] = best - length
        else:
            rooms.append(size - length)
    assert made == len(rooms) and made * size >= sum(clipped)


def test_packing_is_told(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(70))
    told = json.loads(kdgen("export", "d", "--to", "messages", "--pack", "10", "-o", "x", "--json").out)["lengths"][
        "train"
    ]
    assert told["packed_to"] == 10 and told["total"] / 10 <= told["sequences"] <= 70 and 0 < told["filled"] <= 1
    assert "packed to 10" in (tmp_path / "x/README.md").read_text()


FLIPPED = {
    "split": {"split": {"a": 1, "b": 1}},
    "order": {"order": "length:desc"},
    "subsets": {"subsets": (5,)},
    "max_tokens": {"max_tokens": 6},
    "pack": {"pack": 10},
    "tokenizer": {"tokenizer": "t.json"},
    "seed": {"seed": 1},
}


def test_no_option_of_a_cut_is_silent(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "d", answers(40))
    assert set(FLIPPED) == set(Cut.model_fields)
    plain = kdgen("export", "d", "--to", "messages", "-o", "x", "--json").out
    for field, words in {
        "split": ("--split", "a=1,b=1"), "order": ("--order", "length:desc"), "subsets": ("--subsets", "5"),
        "max_tokens": ("--max-tokens", "6"), "pack": ("--pack", "10"),
    }.items():  # fmt: skip
        said = kdgen("export", "d", "--to", "messages", "-o", f"x-{field}", "--json", *words)
        made, before = json.loads(said.out), json.loads(plain)
        assert said.code == 0 and (made["files"], made.get("lengths")) != (before["files"], before.get("lengths")), (
            field
        )
    assert kdgen("export", "d", "--to", "messages", "--tokenizer", "t.json").code == 2
    drawn = [
        kdgen("export", "d", "--to", "messages", "--subsets", "5", "-o", "s", "--seed", n, "--json").out for n in (0, 1)
    ]
    assert json.loads(drawn[0])["files"] != json.loads(drawn[1])["files"]


def test_a_subset_is_not_called_as_another_split(kdgen: Run, tmp_path: Path) -> None:
    """Their rows would be in one file, those to train on among those held back."""
    dataset(tmp_path / "d", answers(40))
    words = ("--split", "train=0.5,train_4=0.5", "--subsets", "4")
    said = kdgen("export", "d", "--to", "messages", *words, "-o", "x")
    assert said.code == 2 and "train_4 is a split" in said.err and not (tmp_path / "x").exists()
