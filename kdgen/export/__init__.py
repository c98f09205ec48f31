"""The list of what a recipe's `export:` and `kdgen export --to` can be. A format's one verb is `row`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.export.axolotl import AxolotlChat, AxolotlKto, AxolotlPreference
from kdgen.export.base import Format
from kdgen.export.chat import Alpaca, Messages, PromptCompletion, ShareGPT, Text
from kdgen.export.critiques import Critique
from kdgen.export.edits import Edits
from kdgen.export.evaluator import Evaluator
from kdgen.export.folders import Beir, LlamaFactory, Triples
from kdgen.export.hosted import Bedrock, OpenAIChat, OpenAIPreference, OpenAIRft
from kdgen.export.logits import AxolotlKD, AxolotlLegacy, DistillKit, FeatureFormat, Uld
from kdgen.export.preference import Kto, Preference, Ranked, Reward
from kdgen.export.prompt import PromptOnly
from kdgen.export.retrieval import Retrieval
from kdgen.export.stepwise import Stepwise

_Plain = (
    Messages
    | PromptCompletion
    | Alpaca
    | ShareGPT
    | Text
    | Retrieval
    | Critique
    | Edits
    | Evaluator
    | Kto
    | Preference
    | Ranked
    | Reward
    | PromptOnly
    | Stepwise
    | OpenAIChat
    | OpenAIPreference
    | OpenAIRft
    | Bedrock
    | AxolotlChat
    | AxolotlPreference
    | AxolotlKto
)
# What is rows alone a recipe can write too; what needs a folder of its own is for `kdgen export`.
AnyFormat = Annotated[_Plain, Field(discriminator="format")]
AnyExport = Annotated[
    _Plain | LlamaFactory | Beir | Triples | AxolotlKD | AxolotlLegacy | DistillKit | Uld, Field(discriminator="format")
]


def _name(form: type[Format]) -> str:
    return str(form.model_fields["format"].default)


PIECES: tuple[type[Format], ...] = (
    *_Plain.__args__,
    LlamaFactory,
    Beir,
    Triples,
    AxolotlKD,
    AxolotlLegacy,
    DistillKit,
    Uld,
)
FORMATS = tuple(_name(form) for form in _Plain.__args__)
EXPORTS = {_name(form): form for form in PIECES}
ALIASES = {"unsloth": "messages", "trl": "messages", "mistral": "messages"}

__all__ = [
    "ALIASES",
    "EXPORTS",
    "FORMATS",
    "PIECES",
    "Alpaca",
    "AnyExport",
    "AnyFormat",
    "AxolotlChat",
    "AxolotlKD",
    "AxolotlKto",
    "AxolotlLegacy",
    "AxolotlPreference",
    "Bedrock",
    "Beir",
    "Critique",
    "DistillKit",
    "Edits",
    "Evaluator",
    "FeatureFormat",
    "Format",
    "Kto",
    "LlamaFactory",
    "Messages",
    "OpenAIChat",
    "OpenAIPreference",
    "OpenAIRft",
    "Preference",
    "PromptCompletion",
    "PromptOnly",
    "Ranked",
    "Retrieval",
    "Reward",
    "ShareGPT",
    "Stepwise",
    "Text",
    "Triples",
    "Uld",
]
