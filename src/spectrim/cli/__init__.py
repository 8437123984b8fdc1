"""The command line: survey, edges, plan, trim, sweep, demo. Tables and progress on a terminal, else plain lines."""

from __future__ import annotations

from typing import Annotated

import typer

from . import cutting, looking, sweeping
from .console import guarded, out

app = typer.Typer(
    name="spectrim",
    help="Tell signal from noise in the weights of a trained network, and trim the noise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by Ctrl-C.",
)
for command in (
    looking.survey,
    looking.edges,
    cutting.plan,
    cutting.trim,
    cutting.undo,
    cutting.audit,
    cutting.demo,
    sweeping.sweep,
):
    app.command()(guarded(command))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from .. import __version__

        out.print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        out.print(context.get_help())


def main() -> None:
    """Run the command line."""
    app()
