"""The options of `kdgen export`; what they do is in `kdgen.cli.shipping`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdgen.cli.options import Quiet

ABOUT = """Write a dataset's records as a trainer reads them. Every row is checked; nothing is asked and nothing is fetched.

kdgen export out/zephyr --to preference --split train=0.9,test=0.1 --as hf -o upload

kdgen export --list shows every format with a row."""


def export(
    dataset: Annotated[
        str | None, typer.Argument(metavar="[DATASET]", help="The folder that a run made, or one of its versions.")
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format; --list shows them.")] = "",
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="A folder [out/NAME.FORMAT], a file (.jsonl, .parquet), or - for stdout.",
        ),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A setting of the format: --set reasoning=think"),
    ] = None,
    container: Annotated[
        str, typer.Option("--as", metavar="jsonl|parquet|hf", help="Files of the folder; hf is as the hub has them.")
    ] = "jsonl",
    split: Annotated[
        str, typer.Option("--split", metavar="NAME=PART,…", help="train=0.9,test=0.1: by seed, so that none is in two.")
    ] = "",
    mix: Annotated[
        list[str] | None,
        typer.Option("--mix", metavar="DATASET=SHARE", help="Several datasets, each with its share of rows."),
    ] = None,
    rehearse: Annotated[
        list[str] | None,
        typer.Option(
            "--rehearse", metavar="DATASET=SHARE", help="Rows of another dataset beside all of these: 0.1 of the whole."
        ),
    ] = None,
    order: Annotated[
        str,
        typer.Option("--order", metavar="BY[:desc]", help="length, or a number such as meta.score; the lowest first."),
    ] = "",
    subsets: Annotated[
        str, typer.Option("--subsets", metavar="N,N,…", help="Smaller sets besides, each within the next: 1000,10000")
    ] = "",
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="N", help="Leave out longer rows (words without --tokenizer)."),
    ] = None,
    pack: Annotated[
        int | None, typer.Option("--pack", min=1, metavar="N", help="Say how many sequences of N the rows fill.")
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option("--tokenizer", metavar="PATH", help="A tokenizer.json, or a folder with one, to count tokens by."),
    ] = "",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Other draws for splits, shares and subsets.")] = 0,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What the export is called [as the dataset].")
    ] = "",
    listing: Annotated[
        bool, typer.Option("--list", help="Show every format: who reads it, its settings, a row.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the export's manifest to stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """What `kdgen export` takes."""
    from kdgen.cli import shipping

    if listing:
        shipping.list_formats(to)
        return
    shipping.ship(
        dataset, to, out=out, sets=set_ or (), container=container, split=split, mix=mix or (), rehearse=rehearse or (),
        order=order, subsets=subsets, max_tokens=max_tokens, pack=pack, tokenizer=tokenizer, seed=seed, name=name,
        as_json=json_, quiet=quiet,
    )  # fmt: skip
