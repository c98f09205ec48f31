"""Options that many commands share, and a group that needs no verb."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup


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
