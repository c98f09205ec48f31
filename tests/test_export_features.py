"""What a teacher told of tokens, as trainers read it: each row at the place where a model is asked for its token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets_made import dataset, lines_of

from kdgen.errors import UserError
from kdgen.export import AxolotlKD, AxolotlLegacy, DistillKit, Uld
from kdgen.export.packing import compress, pack_bits
from kdgen.features import Facts, TextTopK, TopK
from kdgen.features.shards import Writer
from kdgen.record import Record

Run = Callable[..., Any]
V = 12


def teacher(prefix: list[int]) -> np.ndarray:
    """A model: log p(· | prefix) over V tokens, each prefix its own."""
    draw = np.random.default_rng(sum((place + 1) * (token + 3) ** 2 for place, token in enumerate(prefix)))
    logits = draw.normal(0, 3, V)
    return logits - np.log(np.exp(logits).sum())


def feature(prompt: list[int], ids: list[int], k: int = V, facts: Facts | None = None) -> TopK:
    """What the model tells of a text, as the contract has it: row j is p(· | prompt, ids[:j])."""
    told = np.array([teacher(prompt + ids[:place]) for place in range(len(ids))])
    order = np.argsort(-told, axis=1)[:, :k]
    top = np.take_along_axis(told, order, 1)
    own = told[np.arange(len(ids)), ids]
    tail = np.log(np.maximum(1 - np.exp(top).sum(1), 1e-30))
    each = facts or Facts("t", vocab_size=V, k=k, dtype="float32", source="scored")
    return TopK(
        np.int32(prompt), np.int32(ids), own.astype(np.float32), order.astype(np.int32), top.astype(np.float32),
        tail.astype(np.float32), each,
    )  # fmt: skip


def record(number: int, told: Any, name: str = "top") -> Record:
    return Record(id=f"r{number}", instruction=f"Q{number}", output="A", seeds=(f"s{number}",)).featured({name: told})


TEXTS = [([1, 4, 7], [3, 5, 2, 9, 0]), ([2], [6, 6, 8]), ([5, 5, 1, 3], [10])]


def dense(ids: Any, logprobs: Any) -> np.ndarray:
    """Rows of p over the vocabulary."""
    made = np.zeros((len(ids), V))
    for row, (tokens, values) in enumerate(zip(ids, logprobs, strict=True)):
        made[row, tokens] = np.exp(values)
    return made


def divergence(rows: np.ndarray, whole: list[int], start: int) -> float:
    """KL from rows that reach the end of a text to the model's own outputs there, over the places that predict the answer."""
    length, worst = len(whole), 0.0
    for place in range(start - 1, length - 1):  # the output at a place predicts the token after it
        want, own = rows[place - length], teacher(whole[: place + 1])
        worst = max(worst, float((want * (np.log(np.maximum(want, 1e-30)) - own)).sum()))
    return worst


@pytest.mark.parametrize("form", [AxolotlKD(feature="top"), AxolotlLegacy(feature="top")])
def test_axolotl_reads_each_row_where_its_token_is_predicted(form: AxolotlKD) -> None:
    """A model has nothing to learn from itself. Shifted either way by one token, it has."""
    for prompt, ids in TEXTS:
        row = form.row(record(0, feature(prompt, ids)))
        assert row is not None
        form.check(row)
        if isinstance(form, AxolotlLegacy):
            pairs = [
                [(int(each["token"].removeprefix("token_id:")), each["logprob"]) for each in place]
                for place in row["logprobs"]
            ]
            told = (
                [[token for token, _ in place] for place in pairs],
                [[value for _, value in place] for place in pairs],
            )
        else:
            told = row["target_token_ids"], row["logprobs"]
        rows = dense(*told)
        assert rows.shape[0] == len(ids) + 1 and np.allclose(rows.sum(1), 1, atol=1e-5)
        assert divergence(rows, prompt + ids, len(prompt)) < 1e-5
        for wrong in (np.roll(rows, 1, 0), np.roll(rows, -1, 0)):
            assert divergence(wrong, prompt + ids, len(prompt)) > 0.3


def test_up_to_axolotl_0_18_a_row_stands_at_its_own_token() -> None:
    prompt, ids = TEXTS[0]
    row = AxolotlKD(feature="top", place="own").row(record(0, feature(prompt, ids)))
    assert row is not None
    rows = dense(row["target_token_ids"], row["logprobs"])
    assert len(rows) == len(ids)
    assert all(np.allclose(rows[place], np.exp(teacher(prompt + ids[:place])), atol=1e-5) for place in range(len(ids)))


def unpacked(row: dict[str, Any], config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What DistillKit's compressor reads, written from its description: ids [n, k], logprobs [n, k]."""
    bits = int(np.ceil(np.log2(np.float32(config["d"]))))
    stream = np.unpackbits(np.array(row["bytepacked_indices"], np.uint8), axis=1)[:, : bits * config["k"]]
    ids = (stream.reshape(len(stream), config["k"], bits) * (1 << np.arange(bits)[::-1])).sum(-1)
    raw = np.array(row["compressed_logprobs"], np.uint8)
    width = {"float16": 2, "bfloat16": 2, "float32": 4}[config["exact_dtype"]]
    head = np.ascontiguousarray(raw[:, : config["exact_k"] * width])
    if config["exact_dtype"] == "bfloat16":
        exact = (head.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        exact = head.view("<f2" if width == 2 else "<f4").astype(np.float64)
    rest = config["k"] - config["exact_k"]
    if not rest:
        assert config["polynomial_terms"] is None and raw.shape[1] == head.shape[1]
        return ids, exact
    coefficients = np.ascontiguousarray(raw[:, head.shape[1] :]).view("<f4")
    at = np.linspace(0, 1, rest)
    terms = np.stack([np.sqrt(at) if term == "sqrt" else at**term for term in config["polynomial_terms"]], 1)
    return ids, np.concatenate([exact, coefficients @ terms.T], 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_distillkit_reads_each_row_where_its_token_is_predicted(dtype: Any) -> None:
    form = DistillKit(feature="top", dtype=dtype, vocab=V, k=V)
    config = yaml.safe_load(form.beside("x", {})["compression_config.yaml"])
    near = {"float16": 1e-2, "bfloat16": 1e-1, "float32": 1e-5}[dtype]
    for prompt, ids in TEXTS:
        row = form.row(record(0, feature(prompt, ids)))
        assert row is not None
        form.check(row)
        whole = prompt + ids
        assert row["input_ids"] == whole and row["labels"] == [-100] * len(prompt) + ids
        tokens, logprobs = unpacked(row, config)
        assert len(tokens) == len(whole)
        rows = dense(tokens, logprobs)
        assert divergence(rows, whole, len(prompt)) < near
        for wrong in (np.roll(rows, 1, 0), np.roll(rows, -1, 0)):
            assert divergence(wrong, whole, len(prompt)) > 0.3
        for place in range(len(prompt) - 1):  # of the prompt nothing is known but what stands there
            assert rows[place].argmax() == whole[place + 1] and rows[place].max() > 0.99


def test_a_curve_stands_for_what_is_not_stored_exactly() -> None:
    rng = np.random.default_rng(0)
    logprobs = -1 - rng.uniform(1, 3, (50, 1)) * np.log(np.arange(1, 65)) - np.sort(rng.uniform(0, 0.2, (50, 64)))
    made = compress(logprobs, 16, "float32")
    assert made.shape == (50, 16 * 4 + 6 * 4)
    form = DistillKit(feature="top", k=64, vocab=151_936, exact_k=16, dtype="float32")
    config = yaml.safe_load(form.beside("x", {})["compression_config.yaml"])
    ids = rng.integers(0, 151_936, (50, 64))
    row = {"compressed_logprobs": made, "bytepacked_indices": pack_bits(ids, form.bits)}
    found, back = unpacked(row, config)
    assert (found == ids).all() and np.allclose(back[:, :16], logprobs[:, :16], atol=1e-5)
    assert np.abs(back - logprobs).max() < 0.1
    assert form.bits == 18 and config["exact_k"] == 16 and config["polynomial_terms"] == [0, 1, 2, 3, 4, "sqrt"]


def test_short_and_unknown_rows_are_finite_and_of_a_fixed_k() -> None:
    """As a server leaves them: fewer than k, or nothing of a token that the template wrote."""
    top = np.int32([[3, 5, -1], [-1, -1, -1], [2, 1, 0]])
    held = np.float16([[-0.5, -1.0, -np.inf], [-np.inf] * 3, [-0.25, -2.0, -3.0]])
    told = TopK(
        np.int32([1]),
        np.int32([3, 9, 2]),
        np.float32([-0.5, np.nan, -0.25]),
        top,
        held,
        np.zeros(3, np.float32),
        Facts("t"),
    )
    row = AxolotlKD(feature="top").row(record(0, told))
    assert row is not None
    AxolotlKD().check(row)
    assert [len(place) for place in row["logprobs"]] == [3] * 4 and json.dumps(row, allow_nan=False)
    assert row["target_token_ids"][1][0] == 9 and row["logprobs"][1] == [0.0, -80.0, -80.0]
    assert row["target_token_ids"][0][:2] == [3, 5] and row["logprobs"][0][2] == -80.0
    assert all(len(set(place)) == 3 for place in row["target_token_ids"])
    assert row["target_token_ids"][3][0] == 2 and row["logprobs"][3][0] == 0.0, (
        "what stands at the end, for what comes after it"
    )


def test_uld_has_sorted_logprobs_and_the_tail() -> None:
    prompt, ids = TEXTS[0]
    row = Uld(feature="top", k=4).row(record(0, feature(prompt, ids)))
    assert row is not None and row["teacher_ids"] == ids
    for place, (told, tail) in enumerate(zip(row["logprobs"], row["tail"], strict=True)):
        own = np.sort(teacher(prompt + ids[:place]))[::-1]
        assert np.allclose(told, own[:4], atol=1e-5) and np.isclose(np.exp(tail), np.exp(own[4:]).sum(), atol=1e-5)


@pytest.mark.parametrize("form", [AxolotlKD(feature="top", k=V), Uld(feature="top", k=V)])
def test_tokens_of_a_thought_have_no_place_beside_an_answer_without_it(form: Any) -> None:
    made = feature([1], [2, 3], facts=Facts("t", vocab_size=V, k=V, source="generated"))
    thinking = record(1, made).model_copy(update={"reasoning": "So it is."})
    assert form.row(record(1, made)) and form.row(thinking) is None
    assert form.model_copy(update={"reasoning": "think"}).row(thinking)
    assert form.row(thinking.featured({"top": feature([1], [2, 3])})), "what was scored is what was shown"


def test_an_id_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="the vocabulary is of 8"):
        DistillKit(feature="top", vocab=8, k=V).row(record(0, feature(*TEXTS[0])))
    with pytest.raises(UserError, match="vocabulary's size"):
        DistillKit(feature="top").fitted(["top"], [Facts("t", k=4)], "d")
    assert DistillKit().fitted(["top"], [Facts("t", k=4, vocab_size=9)], "d").vocab == 9


def made(folder: Path, records: list[Record]) -> Path:
    """A dataset whose records have features."""
    dataset(folder, records, name="told")
    writer = Writer(folder / "features")
    for each in records:
        for name, told in each.features.items():
            writer.add(each.id, name, told)
    writer.close()
    return folder


def told_records(count: int = 40, k: int = 6) -> list[Record]:
    """Every third has no feature."""
    plain = [Record(id=f"r{n}", instruction=f"Q{n}", output="A", seeds=(f"s{n}",)) for n in range(count)]
    rng = np.random.default_rng(3)
    return [
        each if n % 3 == 2 else each.featured({"top": feature([n % V, 1], rng.integers(0, V, 1 + n % 5).tolist(), k)})
        for n, each in enumerate(plain)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("container", ["jsonl", "parquet", "hf"])
@pytest.mark.parametrize("name", ["axolotl", "axolotl-legacy", "distillkit", "uld"])
def test_features_of_a_dataset_are_exported(kdgen: Run, tmp_path: Path, name: str, container: str) -> None:
    import datasets

    datasets.disable_progress_bars()
    records = told_records()
    made(tmp_path / "d", records)
    said = kdgen("export", "d", "--to", name, "--as", container, "--split", "train=0.7,test=0.3", "-o", "x", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["counts"]["rows"] == 27 and told["counts"]["no_place"] == 13
    assert told["format"]["feature"] == "top" and told["format"]["k"] == 6
    (facts,) = told["datasets"][0]["features"]
    assert facts["vocab_size"] == V and facts["source"] == "scored" and facts["temperature"] is None
    card = (tmp_path / "x/README.md").read_text()
    assert "| told | t | 6 | not known | not known | not known | scored | 12 | not known | not known |" in card
    opened = datasets.load_dataset(str(tmp_path / "x"), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in opened.values() for row in split]
    assert len(rows) == 27
    length = {f"Q{each.id[1:]}": each.features["top"].size for each in records if each.features}
    if name == "distillkit":
        assert (tmp_path / "x/compression_config.yaml").is_file()
        assert all(len(row["compressed_logprobs"]) == len(row["input_ids"]) for row in rows)
        assert sorted(len(row["input_ids"]) - 2 for row in rows) == sorted(length.values())
    else:
        more = name != "uld"
        assert {row["messages"][0]["content"]: len(row["logprobs"]) - more for row in rows} == length


def test_the_same_feature_in_lines_and_parquet(kdgen: Run, tmp_path: Path) -> None:
    """Subsets, and two datasets through each other, keep each row with its own feature."""
    import pyarrow.parquet as parquet

    made(tmp_path / "d", told_records())
    other = [each.model_copy(update={"id": f"o{each.id}", "seeds": (f"o{each.id}",)}) for each in told_records(20)]
    other = [new.featured(old.features) for new, old in zip(other, told_records(20), strict=True)]
    made(tmp_path / "e", other)
    assert kdgen("export", "d", "--to", "axolotl", "-o", "one.jsonl").code == 0
    assert kdgen("export", "d", "--to", "axolotl", "-o", "one.parquet").code == 0
    rows = lines_of(tmp_path / "one.jsonl")
    assert parquet.read_table(tmp_path / "one.parquet").drop_columns(["tools"]).to_pylist() == rows
    plain = {json.dumps(row["messages"]): row for row in rows}
    words = ("--mix", "d=1", "--mix", "e=0.4", "--subsets", "7")
    assert kdgen("export", *words, "--to", "axolotl", "-o", "x").code == 0
    for file in ("train", "train_7"):
        assert all(plain[json.dumps(row["messages"])] == row for row in lines_of(tmp_path / f"x/{file}.jsonl"))


def test_what_a_dataset_does_not_have_is_said(kdgen: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "plain", told_records())
    said = kdgen("export", "plain", "--to", "axolotl", "-o", "x")
    assert said.code == 2 and "no top-k feature" in said.err and "feature/" in said.err
    folder = made(tmp_path / "d", told_records())
    for words, says in [
        (("--set", "feature=other"), "it has: top"),
        (("--set", "k=7"), "k is 7, and 6 tokens of each place are stored"),
        (("--order", "length"), "in the records' order"),
    ]:
        said = kdgen("export", "d", "--to", "axolotl", *words, "-o", "x")
        assert said.code == 2 and says in said.err, said.err
    index = json.loads((folder / "features/index.json").read_text())
    index["second"] = index["top"]
    (folder / "features/index.json").write_text(json.dumps(index))
    said = kdgen("export", "d", "--to", "axolotl", "-o", "x")
    assert said.code == 2 and "several features" in said.err and "--set feature=top" in said.err
    assert not (tmp_path / "x").exists()


def test_features_of_other_records_are_refused(kdgen: Run, tmp_path: Path) -> None:
    records = told_records()
    made(tmp_path / "d", records)
    dataset(tmp_path / "e", records[5:])
    (tmp_path / "d/features").rename(tmp_path / "e/features")
    said = kdgen("export", "e", "--to", "axolotl", "-o", "x")
    assert said.code == 2 and "there is none with the id r0" in said.err and not (tmp_path / "x").exists()


def test_text_alone_has_no_ids(kdgen: Run, tmp_path: Path) -> None:
    told = TextTopK([b"a"], np.float32([-1.0]), [[b"a"]], [[-1.0]], Facts("t"))
    made(tmp_path / "d", [record(0, told)])
    said = kdgen("export", "d", "--to", "axolotl", "-o", "x")
    assert said.code == 2 and "no top-k feature" in said.err


KNOBS: list[tuple[Any, dict[str, Any]]] = [
    (AxolotlKD, {"k": 3, "place": "own", "reasoning": "apart", "system": "drop", "feature": "none"}),
    (AxolotlLegacy, {"k": 3, "place": "own", "reasoning": "fold", "system": "drop", "feature": "none"}),
    (DistillKit, {"k": 3, "vocab": 999, "exact_k": 2, "dtype": "float32", "feature": "none"}),
    (Uld, {"k": 3, "reasoning": "think", "system": "drop", "feature": "none"}),
]


@pytest.mark.parametrize(("kind", "flips"), KNOBS)
def test_no_setting_of_a_feature_format_is_silent(kind: Any, flips: dict[str, Any]) -> None:
    base = {"feature": "top", "k": V, **({"vocab": V} if kind is DistillKit else {})}
    told = (
        record(0, feature(*TEXTS[0]))
        .model_copy(update={"system": "S", "reasoning": "R"})
        .featured({"top": feature(*TEXTS[0])})
    )
    plain = kind(**base).row(told)
    for field, value in flips.items():
        assert kind(**{**base, field: value}).row(told) != plain, field
    left = set(kind.model_fields) - set(flips) - {"format"}
    assert left == ({"reasoning", "system"} if kind is DistillKit else set())


def test_rows_of_tokens_are_as_long_as_their_tokens(kdgen: Run, tmp_path: Path) -> None:
    made(tmp_path / "d", told_records())
    said = kdgen("export", "d", "--to", "distillkit", "--max-tokens", "4", "--pack", "8", "-o", "x", "--json")
    assert said.code == 0, said.err
    lengths = [len(row["input_ids"]) for row in lines_of(tmp_path / "x/train.jsonl")]
    told = json.loads(said.out)
    assert lengths and max(lengths) == 4 and told["counts"]["too_long"] == 27 - len(lengths)
    assert (told["lengths"]["train"]["unit"], told["lengths"]["train"]["total"]) == ("tokens", sum(lengths))
    said = kdgen("export", "d", "--to", "distillkit", "--tokenizer", "t.json", "-o", "y")
    assert said.code == 2 and "tokens already" in said.err


@pytest.mark.parametrize("index", ["[]", '{"top": 3}', '{"top": {"kind": "topk", "shards": []}}'])
def test_a_damaged_index_is_said(kdgen: Run, tmp_path: Path, index: str) -> None:
    (made(tmp_path / "d", told_records()) / "features/index.json").write_text(index)
    said = kdgen("export", "d", "--to", "axolotl", "-o", "x.jsonl")
    assert said.code == 2 and "none of kdgen's" in said.err and "index.json" in said.err


def test_a_shard_with_fewer_rows_than_the_index_says_loses_none_in_silence(kdgen: Run, tmp_path: Path) -> None:
    shard = "features/top-00000.parquet"
    less = made(tmp_path / "less", told_records(9)) / shard
    (made(tmp_path / "d", told_records(12)) / shard).write_bytes(less.read_bytes())
    said = kdgen("export", "d", "--to", "axolotl", "-o", "x.jsonl")
    assert said.code == 2 and "the shard has 6 rows, and the index says 8" in said.err
    assert not (tmp_path / "x.jsonl").exists()
