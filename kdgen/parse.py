"""Reading what teachers write: lists, labelled sections, final answers, think tags. Pure, and total: no input raises."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

NUMBERED = re.compile(
    r"^[ \t]*(?:\*\*)?(?:task|instruction|prompt)?[ \t]*#?(\d{1,3})[ \t]*[.):][ \t]*(?:\*\*)?[ \t]*", re.I | re.M
)
HEADING = re.compile(
    r"(?:\n\s*(?:-{3,}|#+[ \t]*(?:task)?[ \t]*\d*|\**task[ \t]*#?\d{1,3}\**|\d{1,3}[.)])[ \t:.]*)+\Z", re.I
)
THINK = re.compile(r"\A\s*<(think|thinking|reasoning)>(.*?)(?:</\1>|\Z)\s*", re.S | re.I)
ANSWER = re.compile(r"^[ \t>*_#]*(?:final[ \t]+)?answer[ \t*_]*(?::|is\b)[ \t*_]*", re.I | re.M)
INLINE = re.compile(r"(?<=[.!?)])[ \t]+\**Answer:[ \t*]*(?=[^\n]+\s*\Z)")  # after a sentence, on the last line
FENCE = re.compile(r"\A```[\w-]*\n(.*?)\n?```\Z", re.S)
BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.S | re.M)
PROSE = frozenset({"", "text", "txt", "plaintext", "markdown", "md", "latex", "tex", "math"})
PYTHON = ("python", "python3", "py", "")
LEAD_IN = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay|ok)\b[^\n]{0,20}\s+)?"
    r"(?:here\b|this is\b|let['’]s (?:re\w+|make|add|write|change|turn)\b)[^\n]{0,80}:[ \t*]*\n\s*",
    re.I,
)
SAME_MARKS = {"'": "['’‘]", "’": "['’‘]", "‘": "['’‘]", '"': '["“”]', "“": '["“”]', "”": '["“”]'}
QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


def numbered(text: str) -> list[str]:
    """The items of a numbered list (`9. …`, `9) …`, `Task 9: …`), each with its continuation lines.

    Numbers must climb by one from item to item; a number that does not is text of the item it stands in
    (a list inside an item). Text before the first number is dropped.
    """
    marks = list(NUMBERED.finditer(text))
    starts: list[re.Match[str]] = []
    for mark in marks:
        if not starts or int(mark.group(1)) == int(starts[-1].group(1)) + 1:
            starts.append(mark)
    ends = [mark.start() for mark in starts[1:]] + [len(text)]
    return [text[mark.end() : end].strip() for mark, end in zip(starts, ends, strict=False)]


def labelled(text: str, names: Sequence[str]) -> list[dict[str, str]]:
    """The parts of each block of a text by the label before them (`Input: …`), in the order of `names`.

    The first of `names` begins a block; a label out of order is text of the part it stands in. A heading between two
    blocks (`### Task 4`, `5.`) belongs to neither, nor does text before the first label.
    """
    head = r"^[ \t>#]*(?:\d{1,3}[.):])?[ \t>#]*([*_]{0,2})"
    label = re.compile(rf"{head}({'|'.join(names)})(?:\1)?[ \t]*:(?:\1)?[ \t]*", re.I | re.M)
    marks: list[tuple[str, re.Match[str]]] = []
    for mark in label.finditer(text):
        name = mark.group(2).lower()
        if name == names[0] or (marks and names.index(name) > names.index(marks[-1][0])):
            marks.append((name, mark))
    blocks: list[dict[str, str]] = []
    ends = [*(mark.start() for _, mark in marks), len(text)][1:]
    for (name, mark), end in zip(marks, ends, strict=False):
        if name == names[0]:
            blocks.append({})
        blocks[-1][name] = HEADING.sub("", text[mark.end() : end].rstrip()).strip()
    return blocks


def split_thinking(text: str) -> tuple[str, str]:
    """(reasoning, rest): a leading think block apart from what follows it; an unclosed one is all reasoning."""
    found = THINK.match(text)
    return (found.group(2).strip(), text[found.end() :].strip()) if found else ("", text.strip())


def split_answer(text: str) -> tuple[str, str]:
    """(rationale, answer): what stands before and after the last `Answer:` line, or such an end of the last line, or before
    and in the last \\boxed{}.

    Without any the answer is empty and the whole text is the rationale. What stands in a block of code marks nothing.
    """
    said = BLOCK.sub(lambda block: block[0] if block[1].lower() in PROSE else " " * len(block[0]), text)
    boxes = list(BOXED.finditer(said))
    marks = [*(ANSWER.finditer(said) if ANSWER.search(said) else INLINE.finditer(said))]
    if marks:
        last = marks[-1]
        answer = re.sub(r"\\[\[\]()]", " ", text[last.end() :]).strip().strip("*_$").strip()
        inside = BOXED.fullmatch(answer)
        return OPENED.sub("", text[: last.start()]).strip(), inside.group(1).strip() if inside else answer
    if boxes:
        last, answer = boxes[-1], boxes[-1].group(1).strip()
        start, rest = text.rfind("\n", 0, last.start()) + 1, CLOSED.match(text, last.end())
        after = rest.group() if rest else ""
        if terms(text[start : last.start()] + after):  # a sentence or formula that ends in the box stays whole
            return f"{text[: last.start()]}{answer}{after}".strip(), answer
        return OPENED.sub("", text[:start]).strip(), answer
    return text.strip(), ""


def first_program(text: str) -> tuple[str, str]:
    """(program, text up to its end): the first fenced block of Python, and what is said until it closes.

    A block without a language is Python. Without a closed block both are empty.
    """
    for found in BLOCK.finditer(text):
        if found.group(1).lower() in PYTHON and found.group(2).strip():
            return found.group(2).strip("\n"), text[: found.end()].strip()
    return "", ""


def bare(text: str) -> str:
    """Text without a code fence or one pair of quotes around all of it."""
    text = text.strip()
    fenced = FENCE.match(text)
    if fenced and "```" not in fenced.group(1):
        text = fenced.group(1).strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def alone(text: str) -> str:
    """A text without the line that announces it ("Here is the new task:") and what `bare` takes away."""
    return bare(LEAD_IN.sub("", bare(text), count=1))


def words(text: str) -> list[str]:
    """Lower-cased runs of ASCII letters and digits, as the rouge-score package counts them."""
    return WORD.findall(text.lower())


def find_quote(quote: str, documents: Sequence[str]) -> tuple[int, int, int] | None:
    """The document in which a quote stands, and where: spacing, case and kinds of quotation marks aside."""
    words = ["".join(SAME_MARKS.get(mark, re.escape(mark)) for mark in word) for word in quote.split()]
    pattern = re.compile(r"\s+".join(words), re.I)
    for number, text in enumerate(documents):
        if words and (found := pattern.search(text)):
            return number, found.start(), found.end()
    return None


def terms(text: str) -> list[str]:
    """Lower-cased runs of letters and digits of any script: what a text says, its spacing and punctuation aside."""
    return TERM.findall(text.lower())


def units(text: str) -> list[str]:
    """The `terms` of a text, with each character of a script that sets no spaces as one."""
    return [unit for term in terms(text) for unit in (UNSPACED.findall(term) if UNSPACED.search(term) else (term,))]


def same_label(left: str, right: str) -> bool:
    """Whether two names of a class are one: case, spacing and punctuation aside, but for what tells -1 from 1 and C from C++."""
    named, said = terms(left), terms(right)
    if not named and not said:
        return "".join(left.split()) == "".join(right.split())
    return named == said and TELLING.findall(left) == TELLING.findall(right)


def without_separators(text: str) -> str:
    """A text whose long numbers are written in one piece: 12,500 and 12 500 as 12500."""
    return SEPARATED.sub("", text)


def gist(text: str) -> set[str]:
    """What a text speaks of: its numbers and longer words, by how these begin; of unspaced scripts the pairs of characters."""
    said = units(text)
    words = {unit[:STEM] for unit in said if len(unit) > 3 or unit.isdecimal()}
    return words | {
        left + right for left, right in pairwise(said) if len(left) == len(right) == 1 and not left.isascii()
    }


def tokens_of(text: str) -> int:
    """About how many tokens a model makes of a text."""
    return sum(
        1 + len(piece) // LONG_WORD if piece.isascii() and piece.isalpha() else 1 for piece in PIECE.findall(text)
    )


# Pieces as the byte-pair vocabularies of large models cut them, about: words, numbers by threes, marks, other scripts.
PIECE = re.compile(r"[A-Za-z]+|\d{1,3}|[^\x00-\x7f]|[^\w\s]+|_+|\n+")
LONG_WORD = 9
STEM = 5
SEPARATED = re.compile(r"(?<=\d)[,\u00a0\u2009\u202f '’](?=\d{3}(?!\d))")
# Thai to Lao, kana, and the characters of Chinese; a run of other letters between them stays whole.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+")
WORD = re.compile(r"[a-z0-9]+")
TERM = re.compile(r"[^\W_]+")
BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
# What is left open by an answer that is taken out of a formula; the rest of a line, and what closes a formula below it.
OPENED = re.compile(r"(?:\s|\\[(\[]|\$\$(?=\s*\Z))+\Z")
CLOSED = re.compile(r"[^\n]*(?:\n\s*(?:\\[\])]|\$\$)[^\n\w]*(?=\n|\Z))?")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
# The left side of an equation of numbers, up to its sign; what follows that; what makes it a calculation.
TERMS = re.compile(r"[\d\s.,$()+*/^-]+\Z")
VALUE = re.compile(r"\s*[-$]?\s?[\d.,]*\d")
OPERATION = re.compile(r"\d\W*[+*/^-]")
TELLING = re.compile(r"[+#<>≤≥]|(?<!\w)[-−](?=\d)")
SHOWN_PATH = 20_000
TOKEN = re.compile(r"[^\W\d_]+|[^\w\s]")
OPERATORS = frozenset("+-*/^<>≤≥≠√!~") | {"π", "not", "half", "twice", "squared", "cubed"}
VARIABLE = re.compile(r"(?<=\d) ?([inxyz])\b")  # that the number is multiplied by, and no unit


def final_answer(text: str) -> str:
    """The short answer in a worked solution: after `####`, in the last \\boxed{}, or all of it where it is short."""
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    boxed = BOXED.findall(text)
    return boxed[-1].strip() if boxed else text.strip()


def same_answer(left: str, right: str) -> bool:
    """Whether two short answers agree: case, articles, outer punctuation, unit signs and number forms aside.

    One may have words or a unit that the other leaves out ("x = 7 apples" and "7"), but nothing that makes it another
    number: no operator ("-x" and "x"), no factor ("2π" and "2"), no "not".
    """
    left, right = (_plain(final_answer(side)) for side in (left, right))
    if left == right:
        return True
    numbers = [NUMBER.findall(side) for side in (left, right)]
    if not all(len(found) == 1 for found in numbers):
        return False
    if VARIABLE.findall(left) != VARIABLE.findall(right):
        return False
    ours, theirs = (Counter(TOKEN.findall(NUMBER.sub(" ", side))) for side in (left, right))
    more, less = ours - theirs, theirs - ours
    told_apart = (more and less) or any(token in OPERATORS for token in (*more, *less))
    return not told_apart and _value(numbers[0][0]) == _value(numbers[1][0])


def calculations(text: str) -> tuple[str, ...]:
    """What a text calculates, in order: its equations of numbers (`12*7=84`), or its words where it has none."""
    plain = text.replace("×", "*").replace("\\times", "*").replace("\\cdot", "*").replace("÷", "/").replace("−", "-")
    parts, found = plain[:SHOWN_PATH].split("="), []
    for left, right in pairwise(parts):
        left_side, value = TERMS.search(left[-200:]), VALUE.match(right[:60])
        if left_side and value and OPERATION.search(left_side[0]):
            found.append(re.sub(r"[\s,$()]+", "", f"{left_side[0].lstrip('.,-')}={value[0]}"))
    return tuple(found) or tuple(words(text))


def _plain(text: str) -> str:
    text = re.sub(r"\\?\bpi\b|(?<=\d)pi\b", "π", text.lower().replace("−", "-"))
    text = re.sub(r"[\s$€£%*_`\\]+", " ", text).strip(" .,;:!?\"'()[]{}")
    return re.sub(r"^(?:the|a|an) ", "", text).strip()


def _value(number: str) -> Fraction | str:
    """The number's exact value; of one too long to be a number, its text."""
    top, _, bottom = number.replace(",", "").partition("/")
    if len(number) > 1000 or (bottom and not int(bottom)):
        return number
    return Fraction(top) / int(bottom or 1)
