"""What must hold for any input: parsing never raises, ids follow their ingredients, draws do not depend on order."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdgen import parse
from kdgen.dedupe import RougeIndex
from kdgen.errors import Rejected
from kdgen.record import Message, Record, digest, pick
from kdgen.stages import Draw, Pool
from kdgen.teachers.anthropic import Anthropic
from kdgen.teachers.base import Raw, Request, TeacherSpec
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.roles import mean_logprob
from kdgen.teachers.vllm import Vllm

TEXT = st.text(max_size=200)
WORDS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=12)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
# The words of the dialects, so that what is drawn gets past the first look.
SAID = st.sampled_from(
    "text thinking refusal output_text message reasoning summary_text function_call stop length max_tokens final_answer "
    "failed incomplete completed content_filter bio_policy end_turn token_id:3".split()
)
KEYS = st.sampled_from(
    "choices message content text thinking refusal reasoning reasoning_content finish_reason usage model type phase output "
    "summary status error code reason incomplete_details stop_reason stop_details category explanation prompt_tokens "
    "completion_tokens prompt_tokens_details completion_tokens_details cached_tokens input_tokens output_tokens "
    "input_tokens_details output_tokens_details reasoning_tokens cache_read_input_tokens logprobs token top_logprobs "
    "logprob bytes".split()
)
JSON = st.recursive(
    LEAVES | SAID, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=20
)


def of(*sure: str, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of `parts`, each as it should be or not."""
    made = {name: inner | JSON for name, inner in parts.items()}
    return st.fixed_dictionaries({name: made.pop(name) for name in sure}, optional=made)


COUNTS = of(
    prompt_tokens=LEAVES,
    output_tokens=LEAVES,
    prompt_tokens_details=of(cached_tokens=LEAVES),
    output_tokens_details=of(reasoning_tokens=LEAVES),
    cache_read_input_tokens=LEAVES,
)
PART = of("type", type=SAID, text=TEXT, refusal=TEXT, thinking=st.lists(of("type", type=SAID, text=TEXT), max_size=2))
PARTS = st.lists(PART, max_size=3)
TOKEN = of("logprob", token=SAID, logprob=st.floats(-9, 0), bytes=st.lists(st.integers(0, 255), max_size=3))
ENTRY = of("logprob", token=SAID, logprob=st.floats(-9, 0), top_logprobs=st.lists(TOKEN, max_size=2))
CHOICE = of(
    "message",
    message=of(content=TEXT | PARTS, refusal=TEXT, reasoning=TEXT),
    finish_reason=SAID,
    logprobs=of(content=st.lists(ENTRY, max_size=2)),
)
ITEM = of("type", type=SAID, phase=SAID, content=PARTS, summary=PARTS)
BODY = of(
    choices=st.lists(CHOICE, min_size=1, max_size=2),
    output=st.lists(ITEM, max_size=3),
    content=PARTS,
    usage=COUNTS,
    model=SAID,
    status=SAID,
    error=of(code=SAID, message=TEXT),
    incomplete_details=of(reason=SAID),
    stop_reason=SAID,
    stop_details=of(category=SAID),
)
READERS: list[tuple[TeacherSpec, str]] = [
    (OpenAI(model="m"), "openai.chat"),
    (OpenAI(model="m"), "openai.responses"),
    (Vllm(model="m", base_url="http://h"), "openai.chat"),
    (Anthropic(model="m"), "anthropic.messages"),
]


@pytest.mark.parametrize(("spec", "wire"), READERS, ids=["chat", "responses", "vllm", "anthropic"])
@given(JSON | BODY)
@example({"choices": [{"message": {"content": ["a"]}}]})
@example({"choices": [{"message": {"content": "a"}, "finish_reason": ["stop"]}]})
@example({"output": [], "status": "incomplete", "incomplete_details": "x", "usage": {"input_tokens": "many"}})
@example({"content": [], "stop_reason": {}, "usage": [3]})
def test_a_reply_of_any_shape_is_read_or_rejected(spec: TeacherSpec, wire: str, body: Any) -> None:
    """A reply in the ledger was paid for and is read again by every later run: reading it must not end any of them."""
    try:
        reply = spec.read(Request(wire, b"{}"), Raw(json.dumps(body).encode(), {}))
    except Rejected:
        return
    assert all(type(number) is int and number >= 0 for number in reply.usage)
    assert all(type(text) is str for text in (reply.text, reply.reasoning, reply.model, reply.detail))
    mean_logprob(reply.body)


@given(TEXT)
def test_parsing_is_total(text: str) -> None:
    parse.numbered(text)
    parse.labelled(text, ("input", "answer"))
    parse.split_answer(text)
    parse.split_thinking(text)
    parse.bare(text)
    parse.final_answer(text)
    assert parse.same_answer(text, text)


@given(st.lists(st.text("abc xyz", min_size=1, max_size=20).map(str.strip).filter(bool), min_size=1, max_size=9))
def test_a_numbered_list_reads_back(items: list[str]) -> None:
    for first in (1, 9):
        text = "Sure:\n" + "\n".join(f"{first + place}. {item}" for place, item in enumerate(items))
        assert parse.numbered(text) == items


@given(TEXT, st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True))
def test_the_last_answer_line_is_the_answer(rationale: str, answer: str) -> None:
    assert parse.split_answer(f"{rationale}\nAnswer: {answer}")[1] == answer


@given(st.dictionaries(st.text(max_size=5), st.integers(-(2**53), 2**53), min_size=2))
def test_ids_do_not_depend_on_the_order_of_keys(made_of: dict[str, int]) -> None:
    assert digest(made_of) == digest(dict(reversed(made_of.items())))


def test_a_changed_ingredient_changes_the_id() -> None:
    seed, other = Record(id="a", instruction="x"), Record(id="b", instruction="x")
    base = {"stage": "label", "method": "answer", "calls": ("k",)}
    made = seed.child(**base, output="y")  # type: ignore[arg-type]
    assert made.id == seed.child(**base, output="y").id  # type: ignore[arg-type]
    variants = [
        other.child(**base, output="y"),  # type: ignore[arg-type]
        seed.child(**base, output="z"),  # type: ignore[arg-type]
        seed.child(**{**base, "calls": ("l",)}, output="y"),  # type: ignore[arg-type]
        seed.child(**{**base, "method": "rationale"}, output="y"),  # type: ignore[arg-type]
        seed.child(**base, meta={"round": 1}, output="y"),  # type: ignore[arg-type]
    ]
    assert len({made.id, *(each.id for each in variants)}) == 6


def test_a_child_may_have_another_history() -> None:
    said = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))
    made = [Record(id="a").child(stage="s", method="m", history=history) for history in ((), said[:1], said)]
    assert len({child.id for child in made}) == 3 and made[2].history == said
    assert made[2].id == Record(id="a").child(stage="s", method="m", history=said).id


def test_draws_are_stable_under_insertion_and_order() -> None:
    records = [Record(id=f"r{number}") for number in range(175)]
    draw, more = Draw(0, "expand/x"), Record(id="new")
    shuffled = random.Random(1).sample(records, len(records))
    changed = 0
    for job in range(400):
        before = draw.top(Pool(records), 6, job)
        assert len({record.id for record in before}) == 6
        assert before == draw.top(Pool(shuffled), 6, job)
        after = draw.top(Pool([more, *records]), 6, job)
        changed += before != after
        assert [each for each in after if each is not more] == before[: 6 - (more in after)]
    # 6 / 176 of 400 jobs are 14 on average.
    assert 3 <= changed <= 30


def test_a_new_member_of_a_pool_takes_over_and_moves_nobody_else() -> None:
    before = [pick({"a": 3, "b": 1}, job) for job in range(2000)]
    after = [pick({"a": 3, "b": 1, "c": 1}, job) for job in range(2000)]
    assert all(new in (old, "c") for old, new in zip(before, after, strict=True))
    assert 1400 < before.count("a") < 1600 and 300 < after.count("c") < 500


def lcs(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for token in left:
        previous = 0
        for place, other in enumerate(right, 1):
            previous, row[place] = row[place], previous + 1 if token == other else max(row[place], row[place - 1])
    return row[-1]


@given(st.lists(WORDS, min_size=2, max_size=12), st.sampled_from([0.5, 0.7, 0.8]))
def test_novelty_decides_as_rouge_score_does(tasks: list[list[str]], threshold: float) -> None:
    """rouge-score: F1 = 2PR / (P + R) in doubles, over the LCS; a task over the threshold is dropped, first come first kept."""
    index = RougeIndex(threshold)
    kept: list[list[str]] = []
    for number, task in enumerate(tasks):
        values = []
        for other in kept:
            common = lcs(task, other)
            precision, recall = common / len(task), common / len(other)
            values.append(2 * precision * recall / (precision + recall) if common else 0.0)
        expected = all(value <= threshold for value in values)
        assert (index.seen(Record(id=str(number), instruction=" ".join(task))) is None) == expected
        if expected:
            kept.append(task)


def test_same_answer() -> None:
    same = [("42", "42."), ("$1,200.00", "1200"), ("3/4", "0.75"), ("The dog", "dog"), ("#### 7", "7"), ("**5**", "5 ")]
    different = [("42", "43"), ("yes", "no"), ("7.5", "75"), ("a cat", "a dog"), ("-3", "3")]
    assert [pair for pair in same if not parse.same_answer(*pair)] == []
    assert [pair for pair in different if parse.same_answer(*pair)] == []
