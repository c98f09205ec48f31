"""Verifiers against cases from outside: math equality on published pairs, IFEval's checks beside a published implementation.

verify/math_pairs.jsonl: (gold, answer, equal) of the tests of math-verify 0.9.0 (its sdist; those that set a precision or another
mode of their own left out), ToRA, Qwen2.5-Math, hendrycks/math, lm-evaluation-harness and prm800k's ports, each with its source.
verify/ifeval.jsonl: the first rows of IFEval (google-research, input_data.jsonl, Apache-2.0), by their keys, without the prompts' texts.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdgen.verifiers import read_verifier
from kdgen.verifiers.instructions import CHECKS

FOLDER = Path(__file__).parent / "verify"


def test_math_equality_on_published_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """Each pair that is judged otherwise than published is named here."""
    pytest.importorskip("math_verify")
    pairs = [json.loads(line) for line in (FOLDER / "math_pairs.jsonl").read_text().splitlines()]
    verifier = read_verifier({"type": "math"})

    async def all_of() -> list[Any]:
        return await asyncio.gather(*[verifier.verdict(pair["answer"], pair["gold"], nothing) for pair in pairs])

    verdicts = asyncio.run(all_of())
    found: dict[str, list[str]] = {"accepted": [], "rejected": [], "unjudged": []}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if verdict.passed is None:
            found["unjudged"].append(pair["answer"])
        elif verdict.passed != pair["equal"]:
            found["accepted" if verdict.passed else "rejected"].append(pair["answer"])
    with capsys.disabled():
        print(f"\nmath: {len(pairs)} pairs, {sum(pair['equal'] for pair in pairs)} of them equal:"
              f" {len(found['accepted'])} false accepts, {len(found['rejected'])} false rejects,"
              f" {len(found['unjudged'])} not judged")  # fmt: skip
    assert len(pairs) >= 200
    # The result is right; the library's test is about a formula in the line that does not end in it.
    assert found["accepted"] == ["Answer $ \n 9 \n $"]
    assert found["rejected"] == [
        "1000,99", "1.22",  # decimal commas
        "the number is not 10 which is 1,000.99€", "so the number is 10 which is 1,000.99m²",
        "not it's not 10 it's 1,000.99m²",  # two numbers, and nothing says which is the result
        "W(x)=1orW(x)=-1",  # for a box that does not close
        "$1 + \\frac{1}{\\mathrm{e}}$",  # published as equal to 1 - 1/e, which it is not
        "10 - 10*i**2", "1500", "2.0000001",  # i as the imaginary unit; 1.5e3; whole numbers agree exactly
    ]  # fmt: skip
    assert found["unjudged"] == ["2^{10^{10}}"], "what cannot be computed is never a pass"


async def nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("no program runs")


PLAIN = (
    "The hammock hangs between two old trees. We slept there, after lunch, for an hour. It was warm and quiet. "
    "Dr. Smith came by at 3.30 p.m. with a story about the war! Did you ever hear of peace? He said: take it slow. "
)
TALES = {
    "kn": "ಹ್ಯಾಂಬರ್ಗರ್ ಒಂದು ರೀತಿಯ ಸ್ಯಾಂಡ್‌ವಿಚ್ ಎಂದು ಅನೇಕರು ಹೇಳುತ್ತಾರೆ ಆದರೆ ಎಲ್ಲರೂ ಒಪ್ಪುವುದಿಲ್ಲ",
    "pa": "ਇੱਕ ਸਾਫਟਵੇਅਰ ਇੰਜੀਨੀਅਰ ਦੀ ਤਕਨੀਕੀ ਯੋਗਤਾ ਦਾ ਮੁਲਾਂਕਣ ਕਰਨ ਲਈ ਇਹ ਮਾਪਦੰਡ ਵਰਤੇ ਜਾਂਦੇ ਹਨ",
    "de": "Die Hängematte hängt zwischen zwei alten Bäumen, und wir haben dort nach dem Essen geschlafen.",
    "fr": "Il est important de bien manger pour rester en bonne santé et guérir plus vite.",
    "hi": "यह कहानी एक छोटे गाँव की है जहाँ लोग बहुत मेहनत करते थे",
}


def answers(row: dict[str, Any]) -> Iterator[str]:
    """Answers to a row: each way to keep its instructions, to break them, and both together."""
    text = PLAIN
    yield from (
        text,
        text.upper(),
        text.lower(),
        text.replace(",", ""),
        text * 4,
        text * 9,
        text.replace(" ", "\n\n", 9),
    )
    yield from TALES.values()
    yield from ('{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n[1, 2]\n```", '{"a": 1', "42", "null", "{'a': 1}")
    yield from ("* one\n* two\n* three", "- one\n * two\n** three\n- four", "*a*\n**b** and *c d*, **", "* a\n\n-b\n-c")
    yield from (f"<<A title>>\n{text}", "<<>> none", "<< >>", "a <<b>> <<c\n>>")
    yield from (
        "A\n******\nB",
        "A******A",
        "******A******B******",
        "A\n******\n\n******\nB",
        "one\n***\ntwo",
        "***a***b***",
    )
    yield from ("a\n***\nb\n***\nc", "one ***  two", "a\n\n***\n\n***\n\nb")
    yield from ('"All of it is quoted."', '"not all', '"', f'"{text}"', ' "a b" \n')
    yield from ("[a] [b c] and [d]", "[x] " * 12, "[" * 20 + "]", "[a\nb] [c]")
    yield from (f"{text}P.S. More.", f"{text}\np. s. more", f"{text}P.P.S Yes", f"{text}p.p. s. no", "PS: no")
    yield from (
        "Section 1\nfirst\nSection 2 second\nSection 3\nSection 4\nend",
        "SECTION 1 a SECTION2 b SECTION  3 c SECTION 4",
    )
    yield from (
        "PARAGRAPH 1\nALL OF THIS IS LOUD.\nPARAGRAPH 2\nAND THIS TOO",
        "Sections 1 and 2",
        "My answer is yes.",
        "Maybe.",
    )
    yield from (
        "I'M HERE. IT'S U.S. LAW-MAKING, NASA'S; 3D DON'T A.B.",
        'NASA and ESA (both) said "NO"... OK?',
        "Well--STOP!",
    )
    yield from (
        "rock",
        "Rock-solid",
        "rocket rockers",
        "a fielded issue",
        "field, thanks",
        "mom mother",
        "Mommy",
        "#" * 4,
        "!" * 6,
        "t T o",
    )
    yield from (
        "experiencing correlated things " * 9,
        "war peace " * 10,
        "story Story storyteller",
        "sneaker " * 10,
        "skyscraper " * 7,
    )
    yield from (
        "One. Two! Three? Four... five. Six",
        'He paid $3.50. She didn\'t. "Why?" he asked. (It was late.) Fine',
        "No end",
    )
    yield from (
        "Hello there.\n\nSecond one, here.\n\nThird",
        "a\n\n\n\nb\n\nc",
        "'Quoted' first\n\n\"Second\" is next.",
    )
    for given in row["kwargs"]:
        for name in ("prompt_to_repeat", "end_phrase"):
            if name in given:
                yield from (
                    f"{given[name]}\n{text}",
                    f"{text}{given[name]}",
                    f'{text}{given[name].upper()}"',
                    f"{text}{given[name]} Bye.",
                )
        if "first_word" in given:
            first, count = given["first_word"], given["num_paragraphs"]
            for number in range(count):
                parts = [f"{first.title() if at == number else 'other'}, some words." for at in range(count)]
                yield "\n\n".join(parts)
        for word in (*given.get("keywords", []), *given.get("forbidden_words", []), given.get("keyword", "")):
            yield from (f"{text}{word}.", f"{text} un{word}ed {word.upper()}", f"{word} " * 9)
        if "letter" in given:
            yield from (given["letter"] * 30, f"{given['letter'].upper()} x")
        if "num_sentences" in given:
            yield from ("It is so. " * given["num_sentences"], "It is so. " * (given["num_sentences"] - 1) + "Is it")
        if "num_words" in given:
            yield from (
                "word " * given["num_words"],
                "word " * (given["num_words"] - 1),
                "it's-2 " * (given["num_words"] // 3),
            )


def rows(registry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """IFEval's own rows, and what the implementation draws for each of its instructions, ten times."""
    yield from (json.loads(line) for line in (FOLDER / "ifeval.jsonl").read_text().splitlines())
    random.seed(0)
    for name, kind in registry.items():
        for _ in range(10):
            checker = kind(name)
            given = {"prompt_to_repeat": "Say what you see, please."} if name.endswith("repeat_prompt") else {}
            checker.build_description(**given)
            yield {"key": "drawn", "instruction_id_list": [name], "kwargs": [checker.get_instruction_args() or {}]}


@pytest.mark.filterwarnings("ignore")
def test_ifeval_checks_agree_with_a_published_implementation(capsys: pytest.CaptureFixture[str]) -> None:
    """Every (instruction, answer) on which the two differ is of a kind that is explained here."""
    registry = pytest.importorskip("if_verifiable.ifeval.instructions_registry")
    punkt = pytest.importorskip("punkt")
    import logging

    import langdetect
    from if_verifiable.ifeval import instructions_util
    from nltk.tokenize import NLTKWordTokenizer

    logging.disable(logging.ERROR)
    langdetect.DetectorFactory.seed = 0
    # The implementation fetches NLTK's model of sentences; the same model comes with the package punkt.
    model = punkt.PunktSentenceTokenizer(punkt.load_model("english"))
    treebank = NLTKWordTokenizer()
    patch = pytest.MonkeyPatch()
    patch.setattr(instructions_util, "_get_sentence_tokenizer", lambda: model)
    patch.setattr(
        instructions_util.nltk,
        "word_tokenize",
        lambda text: [token for sentence in model.tokenize(text) for token in treebank.tokenize(sentence)],
    )
    agreed: Counter[str] = Counter()
    differ: Counter[tuple[str, str]] = Counter()
    passes: Counter[tuple[str, bool]] = Counter()
    assert set(registry.INSTRUCTION_DICT) == set(CHECKS)
    for row in list(rows(registry.INSTRUCTION_DICT)):
        for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            spec = read_verifier([name], {"kwargs": [given]})
            for answer in filter(str.strip, answers(row)):
                random.seed(1)
                checker = registry.INSTRUCTION_DICT[name](name)
                checker.build_description(**given)
                theirs = bool(checker.check_following(answer))
                ours = spec.judge(answer, "").passed
                if ours is theirs:
                    agreed[name] += 1
                    passes[name, theirs] += 1
                else:
                    differ[name, why(name, given, answer, ours)] += 1
    patch.undo()
    logging.disable(logging.NOTSET)
    with capsys.disabled():
        print(f"\nIFEval: {agreed.total()} pairs agree, {differ.total()} differ: {dict(differ)}")
    assert agreed.total() > 5000 and all(passes[name, fate] for name in CHECKS for fate in (True, False)), passes
    assert set(differ) <= EXPLAINED, set(differ) - EXPLAINED
    assert differ.total() <= 0.02 * agreed.total()


def why(name: str, given: dict[str, Any], answer: str, ours: bool | None) -> str:
    """The kind of a difference."""
    if ours is None:
        return "no language can be told"
    if name == "keywords:letter_frequency" and not given["letter"].isalpha():
        return "the letter is a sign"
    if given.get("nth_paragraph", 0) > given.get("num_paragraphs", 0):
        return "there is no such paragraph"
    return f"unexplained: {answer[-60:]!r} {given} {ours}"


EXPLAINED = {
    # langdetect finds nothing to go by; the implementation counts that as kept, and here it is not judged.
    ("language:response_language", "no language can be told"),
    ("change_case:english_capital", "no language can be told"),
    ("change_case:english_lowercase", "no language can be told"),
    # For "#" and "!" (rows 1122 and 1129) the implementation draws a letter at random and counts that one.
    ("keywords:letter_frequency", "the letter is a sign"),
    # It draws paragraph 3 of 2 for itself, and another one in its place when it checks.
    ("length_constraints:nth_paragraph_first_word", "there is no such paragraph"),
}
