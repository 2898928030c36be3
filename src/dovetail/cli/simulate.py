"""``dovetail simulate``: run a study on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dovetail.cli.outcome import Code, complain, print_json

if TYPE_CHECKING:
    from dovetail.simulation.running import Progress as StudyProgress
    from dovetail.simulation.study_result import StudyResult

EPILOG = (
    "Example: [bold]dovetail simulate examples/study.toml --output results[/bold]. A run that was "
    "stopped, even by a power cut, goes on where it stopped: give the same command again."
)

WIDTH_IN_FILES = 130
"""Columns of a table where stdout is no terminal."""


def simulate(
    study: Annotated[
        Path,
        typer.Argument(
            show_default=False,
            help="A TOML file that names data, partners, model, ε and seeds; examples/study.toml "
            "explains every key, examples/own-data is a study of own files.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for finished runs and results. Default: the study's name, in the "
            "current folder.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            help="Processes to use. Default: as many as pay off. Results do not depend on it.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on stderr and no table.")
    ] = False,
) -> None:
    """Compare training alone, together and pooled, over ε and seeds.

    Runs real nodes and the real coordinator on this machine, for each partner alone, for all
    together, for one imaginary company that holds all rows, and for that company without privacy.
    Writes results.parquet, results.json and privacy-utility.svg and .png. What it measures is
    your own view of your own rows: it is not private.
    """
    from dovetail.simulation.running import run_study
    from dovetail.simulation.study_file import read_study

    loaded = read_study(study)
    folder = output or loaded.default_output
    try:
        with _progress(quiet) as on_progress:
            result = run_study(loaded, folder, workers=workers, on_progress=on_progress)
    except KeyboardInterrupt:
        complain("stopped; finished runs are kept: give the same command again to go on")
        raise typer.Exit(Code.STOPPED) from None
    if as_json:
        print_json({"output": str(folder), **result.to_record()})
    elif not quiet:
        _show(result, folder)


def _show(result: StudyResult, folder: Path) -> None:
    from dovetail.simulation.study_result import HEADINGS

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH_IN_FILES
    found = result.table()
    table = Table(title=found.caption, title_justify="left", title_style="bold")
    for heading in HEADINGS:
        left = heading == "partner"
        table.add_column(heading, justify="left" if left else "right")
    for row in found.cells():
        table.add_row(*row)
    console.print(table)
    console.print(f"Results and chart are in {folder}", soft_wrap=True, highlight=False)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[StudyProgress], None] | None]:
    if quiet:
        yield None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs  {task.fields[left]}"),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("preparing data", total=None, left="")

        def show(progress: StudyProgress) -> None:
            bar.update(
                task,
                description=progress.latest or "running",
                total=progress.total,
                completed=progress.done,
                left=_left(progress.seconds_left),
            )

        try:
            yield show
        except Exception:
            bar.live.transient = True  # the message stands alone, without a bar that moves no more
            raise


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{time.strftime('%H:%M:%S', time.gmtime(seconds))} left"
