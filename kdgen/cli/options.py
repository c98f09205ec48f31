"""Options that many commands share, and a group that needs no verb."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Method = Annotated[str, typer.Option("--method", "-m", metavar="NAME", help="The method; `kdgen recipes` lists them.")]
Out = Annotated[
    str,
    typer.Option("--out", "-o", metavar="DIR", help="The dataset folder [out/<recipe name>]; - writes rows to stdout."),
]
TeacherOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        "-t",
        metavar="[ROLE=]SPEC",
        help="local, local:PATH.gguf, openai:MODEL, openai:MODEL@BASE_URL (any compatible server), anthropic:MODEL, "
        "vllm:MODEL[@BASE_URL], scripted:FILE.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one value of the recipe: --set stages.0.rounds=3"),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N seeds.")]
Target = Annotated[int | None, typer.Option("--target", min=1, help="Go on until N rows are accepted.")]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FIELD=COLUMN", help="Where a seed's field is found: --map instruction=task"),
]
OnBad = Annotated[
    str | None, typer.Option("--on-bad-seed", metavar="fail|skip", help="A row that is no seed: stop, or reject it.")
]
Form = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="messages, prompt-completion, alpaca, sharegpt, text, retrieval, preference, kto, ranked, reward, evaluator, stepwise, "
        "critique, edits, prompt, openai, openai-preference, openai-rft, bedrock, axolotl-chat, axolotl-preference or axolotl-kto; "
        "`kdgen export --list` shows them. A dataset's records can be exported to any of them later.",
    ),
]
LedgerOpt = Annotated[
    str, typer.Option("--ledger", envvar="KDGEN_LEDGER", metavar="PATH", help="The file that keeps every paid reply.")
]
Wait = Annotated[
    bool,
    typer.Option("--wait/--no-wait", help="Wait for batches (mode: batch), or exit with 75 and go on when run again."),
]
MaxWait = Annotated[
    float | None,
    typer.Option(
        "--max-wait", metavar="SECONDS", min=0, help="Cancel a batch that takes longer; its stragglers go online."
    ),
]
BudgetUsd = Annotated[float | None, typer.Option("--budget-usd", min=0, help="The most this run may cost.")]
BudgetTokens = Annotated[int | None, typer.Option("--budget-tokens", min=1, help="The most tokens this run may use.")]
MonthUsd = Annotated[
    float | None,
    typer.Option("--budget-usd-month", min=0, help="The most all runs of this ledger may cost in a month."),
]
MonthTokens = Annotated[
    int | None,
    typer.Option("--budget-tokens-month", min=1, help="The most tokens they may use in a calendar month (UTC)."),
]
PublishAtBudget = Annotated[
    bool,
    typer.Option("--publish-at-budget", help="At a cap, publish the rows that are complete; the exit code stays 4."),
]
AckTerms = Annotated[
    list[str] | None,
    typer.Option(
        "--ack-terms",
        metavar="KEY@DATE",
        help="You read these terms of a teacher, as of that date, and may use its output so; `kdgen teachers` shows them.",
    ),
]
PricesFile = Annotated[
    str | None,
    typer.Option("--prices", envvar="KDGEN_PRICES", metavar="FILE", help="Your own prices, over the table that ships."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the manifest to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")]


def _env_file(path: str | None) -> str | None:
    if path is not None:
        from pathlib import Path

        from kdgen.teachers.keys import load_env_file

        load_env_file(Path(path))
    return path


EnvFile = Annotated[
    str | None,
    typer.Option(
        "--env-file",
        metavar="PATH",
        callback=_env_file,
        is_eager=True,
        help="Read keys (NAME=VALUE lines) that the environment lacks from this file.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Listing(TyperGroup):
    """A group that lists where none of its commands is named, so that `kdgen teachers SPEC` needs no verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the listing's name before arguments that begin with no command's."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
