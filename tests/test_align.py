"""A teacher's distributions in another tokenizer's tokens, and several teachers' made one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdgen import features
from kdgen.config import load_recipe
from kdgen.errors import UserError
from kdgen.features import Facts, TopK
from kdgen.stages.align import Align, Fuse
from kdgen.stages.perplexity import mean_logprob
from kdgen.teachers.calls import Told
from kdgen.teachers.told import spells

pytest.importorskip("tokenizers")

TEXT = "the cat ça"
FACTS = Facts("t:a", k=3)


def tokenizer(path: Path, merges: Sequence[str] = ()) -> Path:
    """A byte-level BPE whose tokens are bytes and what `merges` make of them; a mark <e> closes a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: place for place, letter in enumerate(letters)}
    pairs = []
    for merge in merges:
        left, right = merge.split("+")
        vocab[left + right] = len(vocab)
        pairs.append((left, right))
    made = Tokenizer(models.BPE(vocab, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<e>"])
    made.save(str(path))
    return path


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    return (
        tokenizer(tmp_path / "teacher.json", ("t+h", "th+e", "c+a", "ca+t", "Ġ+cat", "d+o", "do+g", "Ġ+dog")),
        tokenizer(tmp_path / "student.json", ("t+h", "th+e", "Ġ+c", "Ġ+d")),
    )


def ids(path: Path, *tokens: str) -> list[int]:
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(path))
    found = [inner.token_to_id(token) for token in tokens]
    assert None not in found, tokens
    return found


def source(teacher: Path, text: str = TEXT, mass: float = 0.5) -> dict[str, Any]:
    """What a scripted teacher tells: at each token it is likeliest with half the mass, " dog" with a quarter, "the" an eighth."""
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(teacher))
    given = [*inner.encode(text, add_special_tokens=False).ids, inner.token_to_id("<e>")]
    dog, the = ids(teacher, "Ġdog", "the")
    top = []
    for id in given:
        row = {id: mass, dog: 0.25, the: 0.125}
        row[id] = mass
        top.append([[token, math.log(p)] for token, p in row.items()])
    return {"prompt_ids": [1], "ids": given, "logprobs": [math.log(mass)] * len(given), "top": top}


def align(
    kdgen: Callable[..., Any], tmp_path: Path, told: dict[str, Any], stage: dict[str, Any], text: str = TEXT
) -> dict[str, Any]:
    (tmp_path / "r.jsonl").write_text(json.dumps({"told": told}) + "\n")
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "a", "instruction": "x", "output": text}) + "\n")
    recipe = {
        "name": "align",
        "teachers": {"teacher": {"provider": "scripted", "path": "r.jsonl"}},
        "seeds": {"path": "s.jsonl"},
        "stages": [
            {"stage": "feature", "method": "score", "prompt": "feature/score", "k": 3, "dtype": "float32"},
            {"stage": "feature", "method": "align", "of": "score", "k": 3, "dtype": "float32", **stage},
        ],
    }
    (tmp_path / "align.yaml").write_text(json.dumps(recipe))
    said = kdgen("run", "./align.yaml", "-o", "out", "--ledger", "l.db", "--json")
    return {"code": said.code, "err": said.err, **(json.loads(said.out) if said.code == 0 else {})}


def made(tmp_path: Path, name: str = "aligned") -> TopK:
    ((_, feature),) = features.open(tmp_path / "out").read(name)
    assert isinstance(feature, TopK)
    return feature


def row(feature: TopK, place: int) -> dict[int, float]:
    pairs = zip(feature.topk_ids[place].tolist(), np.exp(feature.topk_logprobs[place]).tolist(), strict=True)
    return {id: round(p, 4) for id, p in pairs if id >= 0}


def test_rows_go_where_both_have_a_boundary(kdgen: Callable[..., Any], tmp_path: Path, both: tuple[Path, Path]) -> None:
    teacher, student = both
    stage = {"tokenizer": "student.json", "teacher_tokenizer": "teacher.json"}
    said = align(kdgen, tmp_path, source(teacher), stage)
    assert said["code"] == 0, said["err"]
    feature = made(tmp_path)
    # teacher: the| cat| |ç1|ç2|a|<e>   student: the| c|a|t| |ç1|ç2|a … the pieces of " ca" begin inside " cat"
    the, c, d = ids(student, "the", "Ġc", "Ġd")
    spelled = b"".join(features.align.tokenizer(str(student)).pieces[int(id)] for id in feature.ids)
    assert spelled == TEXT.encode() and len(feature.prompt_ids) == 0
    assert row(feature, 0) == {the: 0.5, d: 0.25}, "' dog' begins with ' d'"
    assert row(feature, 1) == {c: 0.5, d: 0.25, the: 0.125}
    assert feature.logprobs[1] == pytest.approx(math.log(0.5))
    assert row(feature, 2) == row(feature, 3) == {} and math.isnan(feature.logprobs[2])
    assert feature.tail[2] == 0
    (facts,) = features.open(tmp_path / "out").facts("aligned")
    assert facts.tokenizer_sha256 == features.align.tokenizer(str(student)).sha256 and facts.teacher == "scripted:r"


@pytest.mark.parametrize(("others", "first"), [("drop", {}), ("first", {"Ġd": 0.25}), ("mined", None)])
def test_what_becomes_of_a_token_that_the_student_lacks(
    kdgen: Callable[..., Any], tmp_path: Path, both: tuple[Path, Path], others: str, first: dict[str, float] | None
) -> None:
    teacher, student = both
    stage = {"tokenizer": "student.json", "teacher_tokenizer": "teacher.json", "others": others}
    assert align(kdgen, tmp_path, source(teacher), stage)["code"] == 0
    got = row(made(tmp_path), 0)
    (the,) = ids(student, "the")
    assert got.pop(the) == 0.5
    if first is None:
        assert sum(got.values()) == pytest.approx(0.25), "the nearest by edits"
    else:
        assert got == {ids(student, name)[0]: p for name, p in first.items()}


@pytest.mark.parametrize(
    ("stage", "told", "reason"),
    [
        ({"teacher_tokenizer": "teacher.json", "least": 0.9}, {}, "unaligned"),
        ({}, {}, "no_teacher_tokenizer"),
        ({"teacher_tokenizer": "student.json"}, {}, "tokens_differ"),
        ({"of": "other"}, {}, "no_such_feature"),
    ],
)
def test_what_cannot_be_aligned_is_a_reject(
    kdgen: Callable[..., Any],
    tmp_path: Path,
    both: tuple[Path, Path],
    stage: dict[str, Any],
    told: dict[str, Any],
    reason: str,
) -> None:
    said = align(kdgen, tmp_path, source(both[0]), {"tokenizer": "student.json", **stage})
    assert said["code"] == 5 and f"1 {reason}" in said["err"], said["err"]


def test_a_file_that_is_no_tokenizer_is_said(
    kdgen: Callable[..., Any], tmp_path: Path, both: tuple[Path, Path]
) -> None:
    (tmp_path / "no.json").write_text("{}")
    for name in ("no.json", "nowhere.json"):
        said = align(kdgen, tmp_path, source(both[0]), {"tokenizer": name})
        assert said["code"] == 2 and "no tokenizer.json" in said["err"] and name in said["err"]


def test_a_tokenizer_is_found_beside_its_recipe_and_known_by_its_content(
    kdgen: Callable[..., Any], tmp_path: Path, both: tuple[Path, Path]
) -> None:
    stage = {"stage": "feature", "method": "align", "of": "logprobs", "tokenizer": "student.json"}
    recipe = {"name": "r", "teachers": {}, "stages": [stage]}
    (tmp_path / "deep").mkdir()
    for name in ("student.json", "teacher.json"):
        (tmp_path / "deep" / name).write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "student.json").unlink()
    (tmp_path / "deep/r.yaml").write_text(json.dumps(recipe))
    made = load_recipe(str(tmp_path / "deep/r.yaml")).digest
    (tmp_path / "deep/student.json").write_bytes((tmp_path / "teacher.json").read_bytes())
    assert load_recipe(str(tmp_path / "deep/r.yaml")).digest != made
    (tmp_path / "deep/r.yaml").write_text(json.dumps(recipe).replace('"student.json"', "7"))
    with pytest.raises(UserError, match=r"stages\.0\.tokenizer"):
        load_recipe(str(tmp_path / "deep/r.yaml"))


ALIGN = {
    "of": {"of": "other"},
    "tokenizer": {"tokenizer": "teacher.json"},
    "teacher_tokenizer": {"teacher_tokenizer": "student.json"},
    "others": {"others": "drop"},
    "least": {"least": 0.95},
    "k": {"k": 1},
    "name_as": {"name_as": "other"},
    "dtype": {"dtype": "float16"},
    "to": {"to": "nobody"},
    "params": {"params": {"temperature": 1}},
    "banks": {"banks": {"system": "systems"}},
    "lists": {"lists": {"demonstrations": "demonstrations"}},
}


def test_every_field_is_seen(kdgen: Callable[..., Any], tmp_path: Path, both: tuple[Path, Path]) -> None:
    assert set(ALIGN) == set(Align.model_fields) - {"stage", "method"} and "of" in Fuse.model_fields
    plain = {"tokenizer": "student.json", "teacher_tokenizer": "teacher.json"}

    def seen(stage: dict[str, Any]) -> tuple[Any, ...]:
        said = align(kdgen, tmp_path, source(both[0]), stage)
        return (
            said["code"],
            said["err"],
            json.dumps(said.get("features")),
            json.dumps(said.get("hashes", {}).get("files")),
        )

    first = seen(plain)
    assert first[0] == 0
    for field, change in ALIGN.items():
        assert seen({**plain, **change}) != first, field


def test_what_became_one_token_is_added_up() -> None:
    found = features.align.gathered([(1, math.log(0.25)), (1, math.log(0.5)), (None, -1.0), (2, -math.inf)])
    assert found == {1: pytest.approx(math.log(0.75))}


def fuse(kdgen: Callable[..., Any], tmp_path: Path, tolds: list[dict[str, Any]], how: str, folder: str = "one") -> Any:
    for name, told in zip("ab", tolds, strict=True):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.jsonl").write_text(json.dumps({"told": told}) + "\n")
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "a", "instruction": "x", "output": "y"}) + "\n")
    score = {"stage": "feature", "method": "score", "prompt": "feature/score", "k": 2, "dtype": "float32"}
    recipe = {
        "name": "fuse",
        "teachers": {name: {"provider": "scripted", "path": f"{folder}/{name}.jsonl"} for name in "ab"},
        "seeds": {"path": "s.jsonl"},
        "stages": [
            *({**score, "to": name, "name_as": name} for name in "ab"),
            {"stage": "feature", "method": "fuse", "of": ["a", "b"], "how": how},
        ],
    }
    (tmp_path / "fuse.yaml").write_text(json.dumps(recipe))
    return kdgen("run", "./fuse.yaml", "-o", "out", "--ledger", f"{folder}.db")


def told(p: float, q: float, other: int, given: Sequence[int] = (5, 6)) -> dict[str, Any]:
    rows = [[[5, math.log(p)], [other, math.log(q)]], [[6, math.log(p)], [other, math.log(q)]]]
    return {"prompt_ids": [1], "ids": given, "logprobs": [math.log(p)] * 2, "top": rows}


def test_teachers_are_fused(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    both = [told(0.25, 0.5, 7), told(0.5, 0.125, 8)]
    assert fuse(kdgen, tmp_path, both, "min-ce").code == 0
    best = made(tmp_path, "fused")
    assert row(best, 0) == {5: 0.5, 8: 0.125} and best.facts.teacher == "scripted:b"
    first = json.loads((tmp_path / "out/records.jsonl").read_text())
    assert first["meta"]["fused"]["from"] == "b" and first["meta"]["fused"]["cross_entropy"]["a"] == pytest.approx(
        math.log(4)
    )
    assert fuse(kdgen, tmp_path, both, "average").code == 0
    mixed = made(tmp_path, "fused")
    # exp(-ce) is 1/4 and 1/2, so the weights are 1/3 and 2/3.
    assert row(mixed, 0) == {5: pytest.approx(5 / 12, abs=1e-3), 7: pytest.approx(1 / 6, abs=1e-3)}
    assert mixed.logprobs[0] == pytest.approx(math.log(5 / 12)) and mixed.facts.teacher == "scripted:a + scripted:b"
    said = fuse(kdgen, tmp_path, [told(0.25, 0.5, 7), told(0.5, 0.25, 8, (5, 7))], "min-ce", "other")
    assert said.code == 5 and "tokens_differ" in said.err


def test_a_thought_with_the_words_of_the_answer_lends_it_no_row(both: tuple[Path, Path]) -> None:
    student = features.align.tokenizer(str(both[1]))
    said = b"<think>so 4</think>4"
    tokens = [*(bytes([byte]) for byte in said), b"<|im_end|>"]
    rows = [[(token, -float(place))] for place, token in enumerate(tokens)]
    made = features.align.aligned(tokens, rows, "4", student, "first")
    assert made is not None and made[1] == [-19.0]


def test_a_mark_with_the_letters_of_the_answer_is_not_the_answer(both: tuple[Path, Path]) -> None:
    student = features.align.tokenizer(str(both[1]))
    tokens, rows = [b"d", b"<|im_end|>"], [[(b"d", -1.0)], [(b"d", -9.0)]]
    made = features.align.aligned(tokens, rows, "d", student, "first")
    assert made is not None and made[1] == [-1.0]
    told = Told((), (1, 2), (-1.0, -9.0), (), tokens)
    spells(told, "d")
    assert mean_logprob(told, "d") == -1.0


def test_a_teacher_without_weight_mixes_nothing() -> None:
    def of(own: list[float], rows: list[tuple[int, float]]) -> TopK:
        ids, values = np.array(rows).T[..., None]
        nothing = np.zeros(2, np.float32)
        return TopK(np.int32([1]), np.int32([5, 6]), np.float32(own), ids.astype(np.int32), values, nothing, FACTS)

    sure, unknown = of([-1, math.nan], [(5, -1.0), (-1, -math.inf)]), of([math.nan] * 2, [(7, -1.0), (7, -1.0)])
    own, rows = features.align.averaged({"a": sure, "b": unknown}, {"a": 1.0, "b": 0.0})
    assert rows == [[(5, pytest.approx(-1.0))], []] and math.isnan(own[1])


def test_teachers_that_tell_more_and_fewer_tokens_are_fused(kdgen: Callable[..., Any], tmp_path: Path) -> None:
    """Each answer has its own best teacher, and the feature has one width."""
    for name, better in (("a", 0), ("b", 1)):
        rules = [{"contains": f"x{n}", "told": told(0.5 if n == better else 0.25, 0.125, 7)} for n in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    seeds = [json.dumps({"id": f"s{n}", "instruction": f"x{n}", "output": "y"}) + "\n" for n in range(2)]
    (tmp_path / "s.jsonl").write_text("".join(seeds))
    score = {"stage": "feature", "method": "score", "prompt": "feature/score", "dtype": "float32"}
    recipe = {
        "name": "fuse",
        "teachers": {name: {"provider": "scripted", "path": f"{name}.jsonl"} for name in "ab"},
        "seeds": {"path": "s.jsonl"},
        "stages": [
            *({**score, "to": name, "name_as": name, "k": k} for name, k in (("a", 2), ("b", 4))),
            {"stage": "feature", "method": "fuse", "of": ["a", "b"]},
        ],
    }
    (tmp_path / "fuse.yaml").write_text(json.dumps(recipe))
    said = kdgen("run", "./fuse.yaml", "-o", "out", "--ledger", "l.db")
    assert said.code == 0, said.err
    found = [feature for _, feature in features.open(tmp_path / "out").read("fused")]
    assert [feature.facts.teacher for feature in found] == ["scripted:a", "scripted:b"]
    assert all(feature.topk_ids.shape == (2, 4) and row(feature, 0) == {5: 0.5, 7: 0.125} for feature in found)


def test_one_feature_of_two_widths_is_said(tmp_path: Path) -> None:
    from kdgen.errors import EndpointError
    from kdgen.features.shards import Writer

    def of(k: int) -> TopK:
        ids, nothing = np.zeros((1, k), np.int32), np.zeros(1, np.float32)
        return TopK(np.int32([1]), np.int32([0]), nothing, ids, np.zeros((1, k), np.float16), nothing, FACTS)

    writer = Writer(tmp_path / "f")
    writer.add("a", "top", of(2))
    with pytest.raises(EndpointError, match="rows of one k or dtype"):
        writer.add("b", "top", of(3))
    writer.discard()
