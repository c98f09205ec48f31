"""The command line: parse, call, print; no logic. Heavy modules load when a command needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from kdgen.cli import exporting
from kdgen.cli.interrupts import stoppable
from kdgen.cli.options import (
    AckTerms,
    AsJson,
    BudgetTokens,
    BudgetUsd,
    EnvFile,
    Form,
    Json,
    LedgerOpt,
    Limit,
    Listing,
    Map,
    MaxWait,
    Method,
    MonthTokens,
    MonthUsd,
    OnBad,
    Out,
    PricesFile,
    PublishAtBudget,
    Quiet,
    Set,
    Target,
    TeacherOpt,
    Wait,
)

EXITS = """Exit codes: 0 done · 1 a bug · 2 your mistake, nothing was sent · 3 the endpoint or the disk cannot serve this run ·
4 the budget is reached · 5 a quality gate failed · 6 another run holds the dataset · 7 terms not acknowledged · 75 batches are out ·
130 interrupted. After 3, 4, 75 and 130 the same command goes on: what was paid is in the ledger."""

app = typer.Typer(
    name="kdgen",
    help="Make teacher-generated datasets for knowledge distillation of LLMs.\n\n"
    "Seeds flow through stages that ask a teacher, then through filters and dedupe into a dataset folder. "
    "Running a command again costs nothing where nothing changed: every paid reply is kept in a ledger.",
    epilog="Start: kdgen expand general --target 8   (the embedded teacher: no key, no GPU)\n\n" + EXITS,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(
    help="List the recipes that ship, or print one to start your own from.", rich_markup_mode=None
)
teachers_app = typer.Typer(
    cls=Listing,
    help="Say what is known of teachers (kdgen teachers SPEC…), or fetch a model for the embedded one.",
    rich_markup_mode=None,
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(teachers_app, name="teachers")

VERBS = {
    "label": ("Ask the teacher for the answer to each seed.", "answer"),
    "expand": ("Make new tasks from the seeds, and answer them.", "self-instruct"),
    "curate": ("Make data from meta-information: topics, documents, code.", ""),
    "feature": ("Keep what a white-box teacher computes: logprobs, hidden states.", ""),
    "feedback": ("Have answers judged, compared, criticised.", ""),
    "self": ("Let a model teach itself from its own samples.", ""),
}


def _verb(verb: str, about: str, default: str) -> Callable[..., None]:
    def command(
        seeds: Annotated[
            str | None,
            typer.Argument(
                metavar="[SEEDS]",
                help="A seed file (.jsonl, .json, .csv, .parquet), - for stdin, or one that ships: general, code, math, documents, facts.",
            ),
        ] = None,
        method: Method = default,
        out: Out = "",
        teacher: TeacherOpt = None,
        set_: Set = None,
        limit: Limit = None,
        target: Target = None,
        map_: Map = None,
        on_bad_seed: OnBad = None,
        format_: Form = None,
        ledger: LedgerOpt = ".kdgen/ledger.db",
        budget_usd: BudgetUsd = None,
        budget_tokens: BudgetTokens = None,
        budget_usd_month: MonthUsd = None,
        budget_tokens_month: MonthTokens = None,
        publish_at_budget: PublishAtBudget = False,
        wait: Wait = True,
        max_wait: MaxWait = None,
        prices: PricesFile = None,
        ack_terms: AckTerms = None,
        env_file: EnvFile = None,
        json_: AsJson = False,
        quiet: Quiet = False,
    ) -> None:
        from kdgen.cli import work

        name = work.recipe_of(verb, method)
        work.make(
            name, seeds, out=out, teachers=teacher, sets=set_, limit=limit, target=target, columns=map_,
            on_bad=on_bad_seed, form=format_, ledger=ledger, budget_usd=budget_usd, budget_tokens=budget_tokens,
            budget_usd_month=budget_usd_month, budget_tokens_month=budget_tokens_month, publish_at_budget=publish_at_budget,
            wait=wait, max_wait=max_wait, prices=prices, acks=ack_terms, as_json=json_, quiet=quiet,
        )  # fmt: skip

    command.__doc__ = about
    return command


for _name, (_about, _default) in VERBS.items():
    app.command(_name, help=_about)(_verb(_name, _about, _default))


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that ships.")],
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="SEEDS", help="Seeds instead of the recipe's own.")
    ] = None,
    out: Out = "",
    teacher: TeacherOpt = None,
    set_: Set = None,
    limit: Limit = None,
    target: Target = None,
    map_: Map = None,
    on_bad_seed: OnBad = None,
    format_: Form = None,
    ledger: LedgerOpt = ".kdgen/ledger.db",
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    budget_usd_month: MonthUsd = None,
    budget_tokens_month: MonthTokens = None,
    publish_at_budget: PublishAtBudget = False,
    wait: Wait = True,
    max_wait: MaxWait = None,
    prices: PricesFile = None,
    ack_terms: AckTerms = None,
    env_file: EnvFile = None,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the dataset of a recipe file."""
    from kdgen.cli import work

    work.make(
        recipe, seeds, out=out, teachers=teacher, sets=set_, limit=limit, target=target, columns=map_,
        on_bad=on_bad_seed, form=format_, ledger=ledger, budget_usd=budget_usd, budget_tokens=budget_tokens,
            budget_usd_month=budget_usd_month, budget_tokens_month=budget_tokens_month, publish_at_budget=publish_at_budget,
            wait=wait, max_wait=max_wait, prices=prices, acks=ack_terms, as_json=json_, quiet=quiet,
    )  # fmt: skip


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that ships.")],
    seeds: Annotated[str | None, typer.Argument(metavar="[SEEDS]", help="Seeds instead of the recipe's own.")] = None,
    teacher: TeacherOpt = None,
    set_: Set = None,
    limit: Limit = None,
    target: Target = None,
    map_: Map = None,
    ledger: LedgerOpt = ".kdgen/ledger.db",
    prices: PricesFile = None,
    reply_tokens: Annotated[
        int | None,
        typer.Option("--reply-tokens", min=1, metavar="N", help="How long a reply is, where you know better."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a run would ask and cost, online and in batches, beside what the ledger has. Sends nothing.

    kdgen plan label/answer seeds.jsonl -t openai:gpt-6-luna --set teachers.teacher.max_tokens=400
    """
    from kdgen.cli import quote

    quote.quote(
        recipe, seeds, teachers=teacher, sets=set_, limit=limit, target=target, columns=map_, ledger=ledger,
        prices=prices, reply_tokens=reply_tokens, as_json=json_,
    )  # fmt: skip


app.command("export", help=exporting.ABOUT)(exporting.export)


@app.command()
def check(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]…", help="Recipe files or names [all that ship].")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="SEEDS", help="Check these seeds with them.")] = None,
    teacher: TeacherOpt = None,
    set_: Set = None,
    env_file: EnvFile = None,
) -> None:
    """Say everything about recipes, prompts, seeds and teachers that can be known without sending."""
    from kdgen.cli import work

    work.check(recipes, seeds, teachers=teacher, sets=set_)


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the recipes that ship, or print one to start your own from."""
    if context.invoked_subcommand is None:
        from kdgen.cli import work

        work.list_recipes()


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe, to save as a file of your own and change."""
    from kdgen.cli import work

    work.show_recipe(name)


@teachers_app.command("list")
def teachers_list(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SPEC", help="Teachers as --teacher names them, or recipe files [all kinds]."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask the providers too for their list of models; nothing is billed.")
    ] = False,
    prices: PricesFile = None,
    env_file: EnvFile = None,
    json_: Json = False,
) -> None:
    """Say what is installed and reachable, and what each teacher takes, costs and allows (the default).

    A server that a SPEC or recipe names by its address is asked for its list of models. No request is billed.
    """
    from kdgen.cli.teachers import teachers

    teachers(specs or (), ask=probe, prices=prices, as_json=json_)


@teachers_app.command("pull")
def teachers_pull(name: Annotated[str, typer.Argument(metavar="NAME")] = "qwen2.5-coder-0.5b") -> None:
    """Fetch a model for the embedded teacher, check its digest and keep it in the cache."""
    from kdgen.cli import work

    work.pull(name)


@app.command("doctor")
def look(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SPEC", help="Teachers, or recipe files, whose servers are asked for their models."),
    ] = None,
    ledger: LedgerOpt = ".kdgen/ledger.db",
    env_file: EnvFile = None,
    json_: Json = False,
) -> None:
    """Look at the whole set-up, one line a check; exit 2 where one fails. Nothing is billed."""
    from kdgen.cli.doctor import doctor

    if not doctor(specs or (), ledger=ledger, as_json=json_):
        raise typer.Exit(2)


def _version(value: bool) -> None:
    if value:
        from kdgen import __version__

        typer.echo(f"kdgen {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    env_file: EnvFile = None,
) -> None:
    """Options that stand before any command."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. A KdgenError prints its cause and hint and sets the exit code; a bug is a traceback."""
    import atexit
    import gc

    from kdgen.errors import DISK, KdgenError, disk_error

    # Loading makes many objects and no garbage, and a run few cycles; at the default threshold a tenth of the time goes
    # to looking for some, and as much again to a last look at what ends with the process anyway.
    gc.set_threshold(200_000, 50, 50)
    atexit.register(gc.freeze)
    try:
        with stoppable():
            return app(arguments)
    except KdgenError as error:
        from kdgen.teachers.keys import masked

        print(f"error: {masked(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of stdout has gone; say so by the code that shells expect, without a traceback.
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.errno not in DISK:
            raise
        refused = disk_error(error)
        print(f"error: {refused}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            with suppress(OSError):  # or Python would try again at its end, and say so
                sys.stdout.close()
        sys.exit(refused.exit_code)
