"""``dovetail check``: hold a table against the schema that partners agreed on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dovetail.cli.outcome import Code, print_json

if TYPE_CHECKING:
    from dovetail.data.check import CheckReport

EPILOG = (
    "Example: [bold]dovetail check schema.toml 'exports/*.parquet'[/bold]. Exit code 0: the table "
    "can be used; 1: it cannot; 2: the schema file cannot."
)

_MEMORY_MB = 1000
"""What a table of many thousand columns needs; beyond it, rows are spilled for a while."""


def check(
    schema: Annotated[
        Path,
        typer.Argument(
            show_default=False,
            help="The agreed schema, a TOML file; examples/schema.toml explains every key.",
        ),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            show_default=False,
            help="The table: a Parquet or CSV file, a folder of them, or a quoted glob.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON on stdout.")
    ] = False,
) -> None:
    """Check a table against a schema, before anyone trains on it.

    Says which column breaks which rule and in how many rows, as a range; never a value. Nothing
    is kept and nothing leaves this machine. Keep the findings here: they describe your rows.
    """
    from dovetail.data.check import check as check_table
    from dovetail.data.engine import Limits
    from dovetail.data.source import Source
    from dovetail.errors import SchemaError, SettingError
    from dovetail.schema import load_schema

    try:
        declared = load_schema(schema)
    except SchemaError as error:
        raise SettingError(str(error)) from None
    limits = Limits(memory_mb=_MEMORY_MB, work_folder=Path(tempfile.gettempdir()))
    report = check_table(Source.files(source), declared, limits)
    if as_json:
        print_json(_record(report))
    else:
        _show(report)
    if report.errors:
        raise typer.Exit(Code.BAD)


def _record(report: CheckReport) -> dict[str, object]:
    return {
        "usable": not report.errors,
        "errors": [vars(finding) for finding in report.errors],
        "warnings": [vars(finding) for finding in report.warnings],
    }


def _show(report: CheckReport) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for kind, style, findings in (
        ("error", "bold red", report.errors),
        ("warning", "yellow", report.warnings),
    ):
        for finding in findings:
            console.print(f"{kind}:", style=style, end=" ")
            console.print(str(finding), markup=False)
    if report.errors:
        console.print("The table does not fit the schema: mend the errors and check again.")
    elif count := len(report.warnings):
        console.print(f"The table fits, with {count} warning{'s' if count > 1 else ''}.")
    else:
        console.print("The table fits the schema.")
