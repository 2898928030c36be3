"""Questions to whoever sits at the terminal, and what happens where nobody does."""

from __future__ import annotations

from typing import Any

import click
import typer

from dovetail.errors import SettingError


def ask(question: str, instead: str, **how: Any) -> Any:
    """What somebody types.

    Args:
        question: the question, without its colon.
        instead: how to say it without being asked, for the error: "give --name".
        how: of ``typer.prompt``, such as ``default`` or ``type``.

    Raises:
        SettingError: nobody is there to answer.
        KeyboardInterrupt: they would rather stop.
    """
    try:
        return typer.prompt(question, err=True, **how)
    except click.Abort as end:
        raise _why(end, question, instead) from None


def confirmed(question: str, instead: str, *, default: bool = False) -> bool:
    """Whether somebody says yes.

    Raises:
        SettingError: nobody is there to answer.
        KeyboardInterrupt: they would rather stop.
    """
    try:
        return typer.confirm(question, default=default, err=True)
    except click.Abort as end:
        raise _why(end, question, instead) from None


def _why(end: click.Abort, question: str, instead: str) -> BaseException:
    """Click ends a question in one way, whether its reader left or was never there."""
    if isinstance(end.__context__, EOFError):
        return SettingError(f"nobody is there to answer “{question}”: {instead}")
    return KeyboardInterrupt()
