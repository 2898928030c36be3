"""How a command ends: its exit code, and one message instead of a traceback."""

from __future__ import annotations

import json
import signal
from enum import IntEnum
from typing import Any

import click
import typer
from rich.console import Console
from typer.core import TyperGroup

from dovetail.errors import AgreementError, DovetailError, SettingError


class Code(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    BAD = 1
    """The command worked, and its answer is no: a bad table, a refusal, a failed job."""
    USAGE = 2
    """An option, argument or file of settings cannot be used."""
    STOPPED = 130
    """Ctrl-C, or a signal to end."""


class Commands(TyperGroup):
    """Commands whose expected errors are told in one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; nothing of Dovetail's own leaves here as a traceback.

        A request to end (``kill``, a closed terminal) is obeyed like Ctrl-C, so that no private
        rows stay behind.
        """
        _end_like_ctrl_c()
        try:
            return super().invoke(ctx)
        except DovetailError as error:
            complain(str(error))
            usage = isinstance(error, SettingError | AgreementError)
            raise typer.Exit(Code.USAGE if usage else Code.BAD) from None
        except KeyboardInterrupt:
            complain("stopped")
            raise typer.Exit(Code.STOPPED) from None


def _end_like_ctrl_c() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores the latter, and means it
            signal.signal(number, signal.default_int_handler)


def complain(message: str) -> None:
    """One message on stderr, as it is: no markup, no wrapping."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False)


def print_json(record: dict[str, Any]) -> None:
    """A record on stdout, for other programs."""
    typer.echo(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))
