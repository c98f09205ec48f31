"""What the models of OpenAI and Anthropic take, by the start of their names; a name that no row fits is left alone.

Read on 2026-11-24 in the type lists and docstrings of openai 3.54.0 and anthropic 2.12.0, and in the request rules of
inspect-ai 0.3.285 (`model/_openai.py`, `model/_providers/anthropic.py`). A row says what an API is known to refuse;
what is not known to be refused is sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

SAMPLING = frozenset({"temperature", "top_p", "logprobs"})
ALWAYS_REASONS = frozenset({"none", "max"})


class Gpt(NamedTuple):
    """A family of OpenAI's models.

    `sampling` is when temperature, top_p and logprobs are taken: always; unless it reasons, which these models do not
    before they are told to (asked) or do until they are told not to (told); or never.
    """

    prefix: str
    sampling: Literal["always", "asked", "told", "never"] = "always"
    lacks: frozenset[str] = frozenset()
    not_effort: frozenset[str] = frozenset()


GPT = (
    *(Gpt(name, lacks=frozenset({"effort"})) for name in ("gpt-3.5", "gpt-4", "chatgpt-4o")),
    Gpt("o1", "never", not_effort=ALWAYS_REASONS),
    *(Gpt(name, "never", frozenset({"stop"}), ALWAYS_REASONS) for name in ("o3", "o4-mini")),
    Gpt("gpt-5", "never", not_effort=ALWAYS_REASONS),
    *(Gpt(f"gpt-5.{minor}", "asked", not_effort=frozenset({"max"})) for minor in (1, 2, 3, 4)),
    Gpt("gpt-5.5", "told", not_effort=frozenset({"minimal", "max"})),
    *(Gpt(name, "told", not_effort=frozenset({"minimal"})) for name in ("gpt-5.6", "gpt-6")),
    *(Gpt(name, "never", not_effort=frozenset({"none", "minimal"})) for name in ("gpt-6-astra", "gpt-6.1-sol")),
)
# In the SDK these are models of the Responses API and not of chat completions.
RESPONSES_ONLY = re.compile(
    r"^(?:o\d|gpt)[\w.-]*(?:-pro\b|-codex\b|-deep-research\b|-cyber\b|-astra-law\b)"
    r"|^(?:computer-use-preview|codex-|gpt-daybreak-|gpt-rosalind|gpt-6-rosalind)"
)


class Claude(NamedTuple):
    """A family of Anthropic's models: the kinds of thinking it takes, and whether the highest efforts need thinking."""

    prefix: str
    thinking: frozenset[str]
    not_effort: frozenset[str] = frozenset()
    top_needs_thinking: bool = False


ADAPTIVE, OFF, ALL = (
    frozenset({"adaptive"}),
    frozenset({"adaptive", "disabled"}),
    frozenset({"adaptive", "disabled", "budget"}),
)
CLAUDE = (
    *(
        Claude(f"claude-{tier}-4-5", frozenset({"disabled", "budget"}), frozenset({"xhigh", "max"}))
        for tier in ("opus", "sonnet", "haiku")
    ),
    *(Claude(f"claude-{tier}-4-6", ALL, frozenset({"xhigh"})) for tier in ("opus", "sonnet")),
    *(Claude(name, OFF) for name in ("claude-opus-4-7", "claude-opus-4-8", "claude-sonnet-5")),
    *(Claude(name, OFF, top_needs_thinking=True) for name in ("claude-opus-5", "claude-haiku-5-5")),
    Claude("claude-sonnet-5-5", frozenset({"adaptive", "between_tools"}), top_needs_thinking=True),
    *(Claude(name, ADAPTIVE) for name in ("claude-opus-5-5", "claude-fable-5", "claude-mythos-5")),
)

Row = TypeVar("Row", Gpt, Claude)


def _row(table: Sequence[Row], model: str) -> Row | None:
    found = [row for row in table if model.startswith(row.prefix)]
    return max(found, key=lambda row: len(row.prefix), default=None)


def gpt(model: str) -> Gpt:
    """The row of one of OpenAI's models; a fine-tuned one is known by what it was made from."""
    return _row(GPT, model.removeprefix("ft:")) or Gpt("")


def claude(model: str) -> Claude | None:
    """The row of one of Anthropic's models."""
    return _row(CLAUDE, model)


def refused(model: str, effort: str | None) -> dict[str, str]:
    """The parameters that one of OpenAI's models does not take at this effort, each with why."""
    row = gpt(model)
    made = dict.fromkeys(row.lacks, "it does not reason" if "effort" in row.lacks else "reasoning models have none")
    if row.sampling == "never":
        made |= dict.fromkeys(SAMPLING, "it always reasons, and then has no sampling to set")
    elif row.sampling != "always" and effort != "none" and not (row.sampling == "asked" and effort is None):
        made |= dict.fromkeys(SAMPLING, "it has that only without reasoning: effort: none")
    return made
