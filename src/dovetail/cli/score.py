"""``dovetail node score``: apply a released model to this partner's own rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dovetail.node.score import ScoreSummary

EPILOG = (
    "Example: [bold]dovetail node score models/spring-coupons --output scores.csv[/bold]. Nothing "
    "leaves this machine."
)


def score(
    model: Annotated[
        Path, typer.Argument(help="Folder of a released model; the node keeps them in models/JOB.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: a .parquet or .csv file.")
    ],
    node: Annotated[
        Path, typer.Option("--node", "-n", help="node.toml, which says where the table is.")
    ] = Path("node.toml"),
    rows: Annotated[
        Path | None,
        typer.Option(help="Other rows to score: a file, a folder or a glob; same columns."),
    ] = None,
) -> None:
    """Score this partner's own customers with a released model, with deciles.

    Writes each customer's key, score and decile (1 is the highest tenth). Where the table holds
    the label, prints the observed rate and lift by decile.
    """
    from dovetail.data.source import Source
    from dovetail.node.score import score as score_rows
    from dovetail.node.settings import load_settings

    source = Source.files(rows) if rows is not None else load_settings(node).source
    _show(score_rows(model, source, output), output)


def _show(summary: ScoreSummary, output: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for warning in summary.warnings:
        console.print(f"warning: {warning}", markup=False, style="yellow")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("decile", "customers", "mean score", "observed rate", "lift"):
        table.add_column(heading, justify="right")
    for row in summary.deciles:
        rate = "–" if row.observed is None else f"{row.observed:.2%}"
        lift = "–" if row.lift is None else f"{row.lift:.2f}"
        table.add_row(str(row.number), f"{row.customers:,}", f"{row.mean_score:.4f}", rate, lift)
    console.print(table)
    console.print(f"{summary.customers:,} customers in {output}", markup=False)
