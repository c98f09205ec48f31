"""Verifiers: what passes, what does not, what cannot be judged; and that no answer makes one hang."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from test_programs import needs_walls

from kdgen.errors import UserError
from kdgen.sandbox.box import Sandbox
from kdgen.verifiers import VERIFIERS, AnyVerifier, Verdict, bounded, missing_packages, read_verifier
from kdgen.verifiers import base as bases
from kdgen.verifiers.math import Math, result
from kdgen.verifiers.reward import reward
from kdgen.verifiers.wording import sentences


async def in_a_box(program: str, /, *, stdin: str = "", files: Any = None, guess: str = "") -> Any:
    return await Sandbox(wall=10, cpu=2).run(program, stdin, files)


def judge(spec: Any, answer: str, gold: str = "") -> Verdict:
    return asyncio.run(read_verifier(spec).verdict(answer, gold, in_a_box))


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
LETTERS = {"type": "choice", "options": {"A": "Sydney", "B": "Melbourne", "C": "Canberra"}}
QUOTES = {"type": "citations", "documents": ["The sea is blue,\n and 'deep' it is.", "A tree is green."]}
CASES: list[tuple[Any, str, str, bool | None]] = [
    ({"type": "math"}, r"So it is \boxed{\frac{\sqrt{3}}{2}}.", r"\sqrt{3}/2", True),
    ({"type": "math"}, "Let x.\nAnswer: 0.50", "1/2", True),
    ({"type": "math"}, "<think>\\boxed{3}</think>It is \\boxed{4}", "4", True),
    ({"type": "math"}, "Twelve.\n#### 1,234", "1234", True),
    ({"type": "math"}, "Answer: 7 apples", "7", True),
    ({"type": "math"}, "Answer: 84 pens", "84", True),
    ({"type": "math"}, "Answer: 1+__import__('os').getpid()", "1", False),
    ({"type": "math"}, "3 + 4 = 7.\nStep 3: so the final answer is: Answer: 7", "7", True),
    ({"type": "math"}, "Since 2 + 2 = 4, the answer is **4**.", "4", True),
    ({"type": "math"}, "Since 2 + 2 = 4, the answer is 5.", "4", False),
    ({"type": "math"}, "Answer: sqrt(2)*pi", r"\pi\sqrt2", True),
    ({"type": "math"}, r"\boxed{1} and \boxed{-2}", "-2, 1", True),
    ({"type": "math"}, r"First \boxed{1}. So in the end it is \boxed{2}", "2", True),
    ({"type": "math"}, "[0,1)", "(0,1)", False),
    ({"type": "math"}, "-7", "7", False),
    ({"type": "math"}, "I do not know", "7", False),
    ({"type": "math"}, "7", "", None),
    ({"type": "math"}, "", "7", False),
    ({"type": "math", "digits": 2}, "0.333", "1/3", True),
    ({"type": "math", "digits": 5}, "0.333", "1/3", False),
    ({"type": "choice"}, "The answer is (C).", "C", True),
    ({"type": "choice"}, "**Answer:** B) Melbourne", "C", False),
    ({"type": "choice"}, "I think that A is wrong, and the correct option is **C**, for it is far.", "(C)", True),
    ({"type": "choice"}, r"\boxed{\text{C}}", "c", True),
    ({"type": "choice"}, "Answer: A or C", "C", False),
    ({"type": "choice"}, "A nice question! I do not know.", "A", False),
    ({"type": "choice"}, "C", "nothing", None),
    ({"type": "choice"}, "The correct option is C. Option A is too small, and option B has no sign.", "C", True),
    ({"type": "choice"}, "I choose option B", "B", True),
    ({"type": "math"}, "Answer: 3 4", "34", False),
    ({"type": "math"}, "Answer: 11/2", "1 1/2", False),
    ({"type": "math"}, "Answer: 3/2", "1 1/2", True),
    ({"type": "math"}, "Answer: 1 1/2", "1.5", True),
    ({"type": "math"}, "Answer: 12 500", "12500", True),
    (LETTERS, "Answer: canberra", "C", True),
    (LETTERS, "Answer: D", "C", False),
    (LETTERS, "C", "Canberra", True),
    ({"type": "exact"}, "Well.\nAnswer:  New  York ", "new york", True),
    ({"type": "exact", "case": True}, "new york", "New York", False),
    ({"type": "exact", "strip": False}, "New  York", "New York", False),
    ({"type": "exact", "final": False}, "Answer: New York", "New York", False),
    ({"type": "regex", "pattern": r"\d{4}-\d\d"}, "On 2024-05 it was", "", True),
    ({"type": "regex", "pattern": r"\d{4}-\d\d", "whole": True}, "On 2024-05 it was", "", False),
    ({"type": "regex", "pattern": "no", "ignore_case": True}, "NO", "", True),
    ({"type": "regex", "pattern": r"is (\w+)", "group": 1}, "it is red", "red", True),
    ({"type": "regex", "pattern": r"is (\w+)", "group": 1}, "it is red", "", None),
    ({"type": "schema", "json_schema": SCHEMA}, '```json\n{"a": 1}\n```', "", True),
    ({"type": "schema", "json_schema": SCHEMA}, '{"a": "1"}', "", False),
    ({"type": "schema", "json_schema": SCHEMA}, 'Here it is: {"a": 1}', "", False),
    ({"type": "schema", "json_schema": {"type": "number"}}, "NaN", "", False),
    ({"type": "schema", "json_schema": {"type": "nonsense"}}, "1", "", None),
    ({"type": "schema", "json_schema": {"$ref": "http://192.0.2.1/s.json"}}, "1", "", None),
    (QUOTES, 'He says "the sea is blue, and ‘deep’ it is".', "", True),
    (QUOTES, 'He says "the sea is red and deep" and "A tree is green".', "", False),
    (QUOTES, "He says nothing.", "", False),
    ({**QUOTES, "least": 0}, "He says nothing.", "", True),
    (QUOTES, 'He says "the sea is".', "", True),
    ({**QUOTES, "quote_words": 4}, 'He says "the sea is".', "", False),
    ({"type": "citations"}, '"one two three"', "", None),
]


@pytest.mark.parametrize(("spec", "answer", "gold", "passed"), CASES)
def test_verdicts(spec: Any, answer: str, gold: str, passed: bool | None) -> None:
    verdict = judge(spec, answer, gold)
    assert verdict.passed is passed, verdict
    assert (verdict.score is None) == (passed is None) and (passed is not True or verdict.score == 1)


ADD = "```python\ndef add(a, b):\n    return a + b\n```"
ASSERTS = {"type": "tests", "tests": "assert add(1, 2) == 3\nassert add(0, 0) == 0"}
PRINTS = {"type": "tests", "cases": [{"input": "2", "output": "4"}, {"input": "3", "output": "9\n"}]}


@needs_walls
@pytest.mark.parametrize(
    ("spec", "answer", "score", "why"),
    [
        (ASSERTS, f"Here.\n{ADD}\nDone.", 1, ""),
        (ASSERTS, "def add(a, b):\n    return a + b", 1, ""),
        (ASSERTS, ADD.replace("+", "-"), 0, "tests_failed: assert add(1, 2) == 3"),
        (ASSERTS, "It is easy.", 0, "the answer has no program"),
        (ASSERTS, "```python\nimport os\nos._exit(0)\n```", 0, "tests_not_run"),
        (ASSERTS, "```python\nwhile True: pass\n```", 0, "program_timeout"),
        (ASSERTS, "```python\nx = bytearray(10 << 30)\n```", 0, "program_memory"),
        (PRINTS, "```python\nprint(int(input()) ** 2)\n```", 1, ""),
        (PRINTS, "```python\nprint(4)\n```", 0.5, "case 2: it printed '4', not '9', for '3'"),
        (PRINTS, "```python\nx = = 2\n```", 0, "case 1: failed: SyntaxError"),
    ],
)
def test_programs_are_judged_by_their_tests(spec: Any, answer: str, score: float, why: str) -> None:
    verdict = judge(spec, answer)
    assert verdict.score == score and verdict.passed is (score == 1) and verdict.detail.startswith(why)


IFEVAL = {
    "type": "instructions",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 3, "language": None}],
}


def test_every_field_of_every_verifier_is_set_in_a_case() -> None:
    given = {(spec["type"], name) for spec, *_ in CASES for name in spec}
    given |= {(spec["type"], name) for spec in (ASSERTS, PRINTS, {**IFEVAL, "loose": True}) for name in spec}
    (union, *_) = get_args(AnyVerifier)
    known = {(kind.model_fields["type"].default, name) for kind in get_args(union) for name in kind.model_fields}
    assert known <= given, "a field without a case: it may be a silent knob"


def test_instructions_are_scored_by_the_share_that_is_kept() -> None:
    assert judge(IFEVAL, "one two three")[:2] == (True, 1)
    assert judge(IFEVAL, "one, two three") == Verdict(False, 0.5, "not kept: punctuation:no_comma")
    assert judge(IFEVAL, "Sure, here:\none two three")[0] is False
    assert judge({**IFEVAL, "loose": True}, "Sure, here:\none two three")[0] is True
    language = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "de"}]}
    assert judge({"type": "instructions", **language}, "1234") == Verdict(
        None, None, "the language cannot be told: language:response_language"
    )
    assert judge({"type": "instructions", **language}, "Das ist ein Satz, und er ist deutsch.")[0] is True


@pytest.mark.parametrize(
    ("value", "others", "said"),
    [
        ({"type": "maths"}, {}, "does not match any of the expected tags"),
        ("not json", {}, "Invalid JSON"),
        (["punctuation:no_comma"], {}, "1 instructions and 0 kwargs"),
        (["punctuation:no_commas"], {"kwargs": [{}]}, "no instruction is called 'punctuation:no_commas'"),
        (["length_constraints:number_words"], {"kwargs": [{"relation": "at most", "num_words": 3}]}, "relation is neither"),
        (["length_constraints:number_words"], {"kwargs": [{"relation": "at least"}]}, "it has no num_words"),
        (["punctuation:no_comma"], {"kwargs": [{"letter": "a"}]}, "it takes no letter"),
        (["keywords:existence"], {"kwargs": [{"keywords": []}]}, "keywords is no list of texts"),
        ([], {"kwargs": []}, "instruction_id_list is empty"),
        ({"type": "regex", "pattern": "("}, {}, "the pattern is broken"),
        ({"type": "tests"}, {}, "it has either tests or cases"),
        ({"type": "choice", "options": {"AB": "x"}}, {}, "'AB' is no letter"),
        (7, {}, "valid dictionary"),
    ],
)  # fmt: skip
def test_a_bad_spec_says_what_is_wrong(value: Any, others: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        read_verifier(value, others)
    assert said in str(error.value)


def test_each_spec_is_plain_json() -> None:
    seen = set()
    for spec, *_ in [*CASES, (ASSERTS,), (IFEVAL,)]:
        made = read_verifier(spec)
        assert read_verifier(made.model_dump_json()) == made
        seen.add(made.type)
    assert seen == set(VERIFIERS)


HOSTILE = [
    "10^10^10", "9**9**9**9", r"\boxed{2^{2^{2^{2^{2^{2}}}}}}", "1000000000000!", "factorial(factorial(10**6))",
    r"\binom{10000000}{5000000}", "(1+x)^{99999}", r"\sum_{n=1}^{999999999} \frac{1}{n}", "(" * 9000, "\\frac{" * 5000,
    "\\boxed{" * 20000, "{" * 500_000, "$" * 500_000, "9" * 1_900_000, "x+" * 500_000, "1e999999999", "\ud800", "\x00", "Answer: " * 99_999,
    "```python\n" * 50_000, "[" * 1_000_000, '"' * 1_000_000, "a" * 3_000_000, "\\sqrt" * 5000 + "2", "1,2,3," * 20_000,
]  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "math"},
        LETTERS,
        {"type": "exact"},
        {"type": "schema", "json_schema": {"type": "array", "items": {"$ref": "#"}}},
        QUOTES,
        {"type": "regex", "pattern": r"^(\w+\s?)*$"},
        {
            "type": "instructions",
            "instruction_id_list": ["detectable_content:number_placeholders", "length_constraints:number_sentences"],
            "kwargs": [{"num_placeholders": 1}, {"relation": "at least", "num_sentences": 3}],
        },
    ],
    ids=lambda spec: spec["type"],
)
def test_no_answer_makes_a_verifier_hang(spec: Any) -> None:
    """Bounded time and memory, and no pass: the answers are hostile, not right."""
    verifier = read_verifier(spec)

    async def all_of() -> list[Verdict]:
        return await asyncio.gather(*[verifier.verdict(answer, "A", in_a_box) for answer in HOSTILE])

    began = time.monotonic()
    verdicts = asyncio.run(all_of())
    assert time.monotonic() - began < 15 * len(HOSTILE)
    if spec["type"] not in ("regex", "instructions"):
        assert not any(verdict.passed for verdict in verdicts)
    assert all(verdict.detail for verdict in verdicts if not verdict.passed)


def test_a_bomb_is_not_judged_and_those_beside_it_are() -> None:
    """In threads and loops of any kind: no signal is used."""
    found: list[Any] = []

    def work(answer: str) -> None:
        found.append((answer, judge({"type": "math"}, answer, "4").passed))

    threads = [threading.Thread(target=work, args=(answer,)) for answer in ("2^{10^{10}}", "8/2", "5")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [("2^{10^{10}}", None), ("5", False), ("8/2", True)]


def test_a_bug_in_a_library_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = json.dumps({"type": "schema", "json_schema": {"$ref": "#"}})
    verdict = bounded.judged(spec, "1", "")
    assert verdict.passed is None and verdict.detail == "it is nested too deeply to judge"
    assert bounded.judged(spec, "2", "").passed is None, "the worker is there still"


def test_a_package_that_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="math_verify, which is not installed") as error:
        missing_packages((Math,), "here")
    assert "pip install 'kdgen[verify]'" in str(error.value)


def test_the_result_of_an_answer() -> None:
    assert result("a \\boxed{1}, \\boxed{2}") == "\\boxed{1}, \\boxed{2}"
    assert result("a \\boxed{1}. Then \\boxed{2") == "1"
    assert result("#### 5") == "5" and result("x") == "x"
    assert sentences("Dr. A. Smith, e.g. he, came at 3.30 p.m. today... so he did. Yes! \"No?\" (Fine.)") == [
        "Dr. A. Smith, e.g. he, came at 3.30 p.m. today... so he did.", "Yes!", '"No?"', "(Fine.)"
    ]  # fmt: skip


def test_a_dataset_is_a_reward_for_trl() -> None:
    """As GRPOTrainer calls it: columns as lists by name, completions as messages or texts."""
    columns = {
        "verifier": [json.dumps({"type": "math"}), {"type": "exact"}, {"type": "math"}],
        "answer": ["1/2", "red", None],
    }
    told = [[{"role": "assistant", "content": "It is \\boxed{0.5}"}], "blue", "7"]
    assert reward(prompts=["a", "b", "c"], completions=told, **columns) == [1.0, 0.0, None]
    assert Path(bounded.__file__).name == "bounded.py"
