"""``dovetail node ledger``: what this partner has spent, proved by its ledger's chain."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from dovetail.cli.help import command
from dovetail.cli.outcome import print_json

if TYPE_CHECKING:
    from dovetail.agreement.ledger import Ledger
    from dovetail.agreement.terms import Budget
    from dovetail.store.ledger import LedgerStore

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Show, verify and export a partner's ledger: append-only, hash-chained, events and never "
    "epsilons. ε is computed now, from the events that it holds.",
)

EPILOG = "Exit code 1: the file is damaged, was tampered with, or is no ledger."

File = Annotated[
    Path,
    typer.Argument(show_default=False, help="The ledger: NAME.ledger beside node.toml."),
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON on stdout.")]
Delta = Annotated[
    float | None,
    typer.Option(
        help="The δ at which to state ε. Default: the agreement's, where it lies beside the "
        "ledger; else 1e-5.",
        show_default=False,
    ),
]


@command(
    app,
    epilog="Example: [bold]dovetail node ledger show retailer/retailer.ledger[/bold]. " + EPILOG,
)
def show(file: File, delta: Delta = None, as_json: Json = False) -> None:
    """Show what was spent: by job, in this period, and in everything that ever left.

    Together, jobs cost less than the sum of what each costs alone.
    """
    budget, limited = _budget(file, delta)
    with _opened(file, budget) as (store, now):
        known = store.refresh()
        record = _record(known, budget, limited, now)
    if as_json:
        print_json(record)
    else:
        _show(record)


@command(app, epilog=EPILOG)
def verify(
    file: File,
    head: Annotated[
        str | None,
        typer.Option(
            help="A digest noted earlier, such as a permit's ledger_head: it must still be in the "
            "chain, or entries were cut off its end.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check every entry, the chain of digests, and that nothing was cut off."""
    from dovetail.agreement.entry import GENESIS
    from dovetail.errors import LedgerError

    with _opened(file, _budget(file, None)[0]) as (store, _now):
        digests = {entry.digest for entry in store.entries()} | {GENESIS}
        length, newest = store.refresh().length, store.refresh().head
    if head is not None and head not in digests:
        raise LedgerError("this chain does not hold that digest: it was cut off, or is another one")
    typer.echo(f"{length:,} entries, the chain is unbroken; the last one is {newest}")


@command(
    app, epilog="Example: [bold]dovetail node ledger export retailer.ledger > audit.json[/bold]"
)
def export(file: File) -> None:
    """Print every entry as JSON, for an auditor: one list, oldest first."""
    from dovetail.agreement import entry as entries

    with _opened(file, _budget(file, None)[0]) as (store, _now):
        listed = [{**entries.to_record(e), "digest": e.digest} for e in store.entries()]
    typer.echo(json.dumps(listed, indent=1, ensure_ascii=False))


@contextmanager
def _opened(file: Path, budget: Budget) -> Iterator[tuple[LedgerStore, datetime]]:
    from dovetail.errors import LedgerError
    from dovetail.store.ledger import LedgerStore

    if not file.is_file():
        raise LedgerError(f"there is no ledger {str(file)!r}")
    now = datetime.now(UTC)
    with LedgerStore(file, budget, lambda: now) as store:
        yield store, now


def _budget(file: Path, delta: float | None) -> tuple[Budget, bool]:
    """The agreement's budget where it is known; else one that nothing is decided under."""
    from dovetail.agreement.signing import chain_from_record
    from dovetail.agreement.terms import Budget
    from dovetail.errors import SettingError

    agreement = file.parent / "agreement.json"
    if delta is None and agreement.is_file():
        try:
            chain = chain_from_record(json.loads(agreement.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            message = f"{agreement.name}: cannot be read as JSON; give --delta instead"
            raise SettingError(message) from None
        if chain:
            return chain[-1].terms.budget, True
    return Budget(sys.float_info.max, delta or 1e-5), False


def _record(known: Ledger, budget: Budget, limited: bool, now: datetime) -> dict[str, Any]:
    record: dict[str, Any] = {
        "entries": known.length,
        "head": known.head,
        "delta": budget.delta,
        "epsilon": known.epsilon(budget.delta),
        "period": budget.period,
        "epsilon_now": known.epsilon(budget.delta, known.period(now)),
    }
    if limited:
        record |= {"budget": budget.epsilon, "epsilon_left": known.remaining(now)}
    jobs = known.spending_by_job().items()
    return {**record, "jobs": [_job(known, name, job, budget.delta) for name, job in jobs]}


def _job(known: Ledger, name: str, job: Any, delta: float) -> dict[str, Any]:
    return {
        "job": name,
        "request_digest": job.request_digest,
        "reserved_at": job.reserved_at,
        "state": "closed" if job.cancelled else "open",
        "rounds_begun": job.rounds_begun,
        "rounds_committed": job.rounds_committed,
        "steps_charged": job.charged,
        "epsilon": known.epsilon_of({job.event: job.charged} if job.charged else {}, delta),
    }


def _show(record: dict[str, Any]) -> None:
    delta = record["delta"]
    title = f"What was spent, at δ = {delta:g}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("job", overflow="fold")
    for heading in ("reserved", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rounds begun", "answered", "steps charged", "ε alone"):
        table.add_column(heading, justify="right")
    for job in record["jobs"]:
        table.add_row(
            job["job"],
            job["reserved_at"][:10],
            job["state"],
            str(job["rounds_begun"]),
            str(job["rounds_committed"]),
            str(job["steps_charged"]),
            f"{job['epsilon']:.3f}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(_together(record))
    console.print(
        f"{record['entries']} entries, the chain is unbroken; the last one is "
        f"{record['head'][:16]}…."
    )


def _together(record: dict[str, Any]) -> str:
    ever = f"Together ε = {record['epsilon']:.3f} for everything that ever left."
    if record["period"] != "never":
        ever = f"{ever} In this {record['period']} ε = {record['epsilon_now']:.3f}."
    if "budget" in record:
        ever = f"{ever} Left: {record['epsilon_left']:.3f} of {record['budget']:g}."
    return ever
