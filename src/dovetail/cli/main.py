"""The command ``dovetail``: each command parses, calls one function and prints."""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail import __version__
from dovetail.cli import agreement, check, coordinator, demo, job, keys, node, simulate
from dovetail.cli.help import command
from dovetail.cli.outcome import Commands

app = typer.Typer(
    name="dovetail",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]dovetail demo[/bold]. Exit codes: 0 done, 1 the answer is no, "
    "2 settings or usage, 130 stopped by Ctrl-C or kill.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dovetail {__version__}")
        raise typer.Exit


@app.callback()
def dovetail(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Companies that may not share customer data answer questions and train models together."""


command(app, epilog=simulate.EPILOG)(simulate.simulate)
command(app, epilog=check.EPILOG)(check.check)
command(app, epilog=demo.EPILOG)(demo.demo)
app.add_typer(agreement.app, name="agreement")
app.add_typer(keys.app, name="keys")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(node.app, name="node")
app.add_typer(job.app, name="job")
