"""Help for the terminal's width: line breaks of a docstring are the source's and not the text's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import typer

_Command = TypeVar("_Command", bound=Callable[..., None])


def command(
    app: typer.Typer, *, name: str | None = None, epilog: str = ""
) -> Callable[[_Command], _Command]:
    """Adds a function to ``app`` as a command, with its docstring as help.

    Args:
        app: where to add it.
        name: of the command; by default the function's.
        epilog: an example, and what its exit codes mean.
    """

    def add(function: _Command) -> _Command:
        app.command(name, help=paragraphs(function), epilog=epilog)(function)
        return function

    return add


def paragraphs(function: Callable[..., None]) -> str:
    """A function's docstring with one line for each paragraph."""
    found = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in found)
