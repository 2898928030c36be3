"""``dovetail ledger``: verify a partner's ledger and show what it has spent."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from dovetail.cli.outcome import print_json

if TYPE_CHECKING:
    from dovetail.agreement.ledger import Ledger

EPILOG = (
    "Example: [bold]dovetail ledger demo-output/ledgers/retailer.ledger --delta 1e-4[/bold]. Exit "
    "code 1: the file is damaged, was tampered with, or is no ledger."
)


def ledger(
    file: Annotated[
        Path, typer.Argument(show_default=False, help="The ledger, a file of this partner's node.")
    ],
    delta: Annotated[
        float, typer.Option(help="The δ at which to state ε: the one of the partners' budget.")
    ] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON on stdout.")] = False,
) -> None:
    """Verify a ledger's chain of entries and show what was spent, by job and together.

    ε is computed now, from the events that the ledger holds. Together it is less than the sum
    over jobs.
    """
    from dovetail.agreement.terms import Budget
    from dovetail.errors import LedgerError
    from dovetail.store.ledger import LedgerStore

    if not file.is_file():
        raise LedgerError(f"there is no ledger {str(file)!r}")
    unlimited = Budget(sys.float_info.max, delta)  # nothing is decided here, only read
    with LedgerStore(file, unlimited, lambda: datetime.now(UTC)) as store:
        known = store.refresh()
    if as_json:
        print_json(_record(known, delta))
    else:
        _show(known, delta)


def _record(known: Ledger, delta: float) -> dict[str, object]:
    return {
        "entries": known.length,
        "head": known.head,
        "delta": delta,
        "epsilon": known.epsilon(),
        "jobs": [
            {
                "job": name,
                "request_digest": job.request_digest,
                "state": "closed" if job.cancelled else "open",
                "rounds_begun": job.rounds_begun,
                "rounds_committed": job.rounds_committed,
                "steps_charged": job.charged,
                "epsilon": known.epsilon_of({job.event: job.charged} if job.charged else {}, delta),
            }
            for name, job in known.spending_by_job().items()
        ],
    }


def _show(known: Ledger, delta: float) -> None:
    table = Table(
        title=f"What was spent, at δ = {delta:g}", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("job")
    table.add_column("state")
    for heading in ("rounds begun", "answered", "steps charged", "ε alone"):
        table.add_column(heading, justify="right")
    for name, job in known.spending_by_job().items():
        spent = known.epsilon_of({job.event: job.charged} if job.charged else {}, delta)
        table.add_row(
            name,
            "closed" if job.cancelled else "open",
            str(job.rounds_begun),
            str(job.rounds_committed),
            str(job.charged),
            f"{spent:.3f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"Together ε = {known.epsilon():.3f}. {known.length} entries, the chain is unbroken; "
        f"the last one is {known.head[:16]}….",
        highlight=False,
    )
