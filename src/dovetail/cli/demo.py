"""``dovetail demo``: the main job, from raw transactions to a report, in one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dovetail.cli.outcome import Code, complain, print_json
from dovetail.errors import SettingError

if TYPE_CHECKING:
    from dovetail.coordinator.progress import JobEvent
    from dovetail.simulation.demo import DemoResult, Watch
    from dovetail.simulation.running import Progress as StudyProgress

EPILOG = (
    "Example: [bold]dovetail demo --epsilon 1 --epsilon 3 --seeds 5[/bold]. Needs no network; the "
    "data come with the package."
)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for everything that is written.")
    ] = Path("demo-output"),
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            "--epsilon",
            "-e",
            help="Privacy budget of a whole job; repeat it to compare several. Default: 1, 3, 8.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Runs of everything, for the standard errors.")
    ] = 3,
    processes: Annotated[
        bool,
        typer.Option(
            "--processes",
            help="Run the headline job between four processes over mutual TLS: a coordinator and "
            "three nodes, each with keys and a folder of its own below the output.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """See what three partners gain from training together, and at which ε.

    A retailer, a platform and a brand each hold households of a grocer. They train one model of
    who redeems a campaign's coupons, through real nodes, a real coordinator and one ledger per
    partner. Writes a report, the model with its card, the ledgers and all measurements.
    """
    try:
        from dovetail.simulation.demo import EPSILONS, run_demo
    except ModuleNotFoundError as error:
        raise SettingError(
            f"the demo needs {error.name}: pip install 'dovetail[demo]' brings it"
        ) from None
    epsilons = tuple(epsilon) if epsilon else EPSILONS
    console = Console(stderr=True, highlight=False)
    try:
        with _watching(console) as watch:
            found = run_demo(
                output,
                date.today(),
                epsilons=epsilons,
                seeds=seeds,
                watch=watch,
                processes=processes,
            )
    except KeyboardInterrupt:
        complain("stopped; finished runs are kept: give the same command again to go on")
        raise typer.Exit(Code.STOPPED) from None
    if as_json:
        print_json(_record(found))
    else:
        _show(found)


def _record(found: DemoResult) -> dict[str, Any]:
    places = {what: str(path) for what, path in found.places.items()}
    return {"headline_epsilon": found.job.epsilon, "places": places, **found.result.to_record()}


@contextmanager
def _watching(console: Console) -> Iterator[Watch]:
    from dovetail.simulation.demo import Watch

    bar = Progress(
        TextColumn("  {task.description:<42}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    step = 0

    def begin(sentence: str) -> None:
        nonlocal step
        step += 1
        _clear(bar)
        bar.print(f"[bold]{step}[/bold] {sentence}")

    def count(done: int, total: int, text: str) -> None:
        if not bar.task_ids:
            bar.add_task("", total=total)
        bar.update(bar.task_ids[0], total=total, completed=done, description=text)

    def study(progress: StudyProgress) -> None:
        count(progress.done, progress.total, progress.latest or "starting")

    def job(event: JobEvent) -> None:
        if event.kind == "round":
            count(event.round, event.rounds, "rounds of the job")
        elif event.kind != "submitted":
            bar.print("  " + _happened(event), markup=False)

    with bar:
        yield Watch(
            step=begin, note=lambda text: bar.print("  " + text, markup=False), study=study, job=job
        )


def _clear(bar: Progress) -> None:
    for task in list(bar.task_ids):
        bar.remove_task(task)


def _happened(event: JobEvent) -> str:
    whose = "the model is" if event.kind == "released" else "the job"
    return " ".join(filter(None, (event.partner or whose, event.kind, event.text)))


def _show(found: DemoResult) -> None:
    from dovetail.simulation.report import headline

    console = Console(highlight=False)
    console.print()
    sentence = headline(found.result, found.job.epsilon)
    console.print(sentence, style="bold", markup=False)
    console.print()
    console.print(_gains(found))
    console.print()
    console.print(_by_epsilon(found))
    console.print()
    console.print(_by_company(found))
    console.print()
    covered = f"± is one standard error over {found.result.covered}; a gain is paired."
    console.print(covered, style="dim", markup=False)
    console.print("Test scores are the researcher's view over raw rows: not private.", style="dim")
    console.print()
    for what, path in found.places.items():
        console.print(f"{what:<20} {path}", markup=False, soft_wrap=True)


def _table() -> Table:
    """Narrow enough for 80 columns."""
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        title_style="",
    )


def _gains(found: DemoResult) -> Table:
    from dovetail.simulation.results import ALL
    from dovetail.simulation.study_result import shown

    result = found.result
    table, terms = _table(), f"ε = {found.job.epsilon:g}, δ = {result.study.privacy.delta:g}"
    table.add_column("partner", no_wrap=True)
    for heading in ("declared", "held out", "alone", "joint", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    declared = {partner.name: partner.declared_customers for partner in result.partners}
    held_out = result.held_out_customers
    for row in result.table().rows:
        if row.epsilon == found.job.epsilon:
            table.add_row(
                row.partner,
                f"{declared.get(row.partner, sum(declared.values())):,}",
                f"{held_out.get(row.partner, sum(held_out.values())):,}",
                shown(row.alone),
                shown(row.joint),
                shown(row.gain, "+") if row.partner != ALL else shown(None),
            )
    table.title = f"Test AUC at {terms}, on each partner's own held-out {result.schema.unit}s"
    return table


def _by_epsilon(found: DemoResult) -> Table:
    from dovetail.simulation.study_result import shown

    names = [partner.name for partner in found.result.partners]
    table, rows = _table(), found.result.table().rows
    table.title = "Gain at each ε"
    for heading in ("ε", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    for epsilon in found.result.study.privacy.epsilons:
        gains = {row.partner: shown(row.gain, "+") for row in rows if row.epsilon == epsilon}
        table.add_row(f"{epsilon:g}", *(gains[name] for name in names))
    return table


def _by_company(found: DemoResult) -> Table:
    from dovetail.simulation.results import ALL
    from dovetail.simulation.study_result import shown

    table = _table()
    table.title = "Test AUC, all rows ranked together (“all” above), at each ε"
    for heading in ("ε", "joint", "one company, same ε", "one company, no privacy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.result.table().rows:
        if row.partner == ALL:
            private, ceiling = shown(row.pooled_dp), shown(row.pooled)
            table.add_row(f"{row.epsilon:g}", shown(row.joint), private, ceiling)
    return table
