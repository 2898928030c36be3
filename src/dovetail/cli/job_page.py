"""How ``dovetail job`` prints jobs, parties, previews, and what happens while one watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dovetail.cli.outcome import Code, print_json

if TYPE_CHECKING:
    from dovetail.wire.control import ControlClient


_COSTS = ("epsilon", "charged", "remaining")


def print_jobs(jobs: list[dict[str, Any]]) -> None:
    """Several jobs, in a table."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("job", "state", "rounds", "lost", "asked by", "created"):
        table.add_column(heading)
    for job in jobs:
        rounds = f"{job['rounds_done']}/{job['rounds']}"
        cells = (job["job"], job["state"], rounds, str(job["lost_rounds"]), job["asked_by"])
        table.add_row(*cells, job["created"][:19])
    Console(highlight=False).print(table)


def print_job(job: dict[str, Any]) -> None:
    """One job, a field a line."""
    for key in ("job", "state", "reason", "asked_by", "created", "updated"):
        if job[key]:
            typer.echo(f"{key:<12} {job[key]}")
    typer.echo(f"{'rounds':<12} {job['rounds_done']} of {job['rounds']}, {job['lost_rounds']} lost")
    typer.echo(f"{'permitted':<12} {', '.join(job['permitted']) or '–'}")
    if job["awaited"]:
        typer.echo(f"{'awaited':<12} {', '.join(job['awaited'])}")


def print_parties(found: dict[str, Any]) -> None:
    """Who may connect, who is connected, and who was revoked."""
    for party in found["parties"]:
        state = "connected" if party["connected"] else "–"
        seen = f"heard {time.time() - party['heard']:.0f} s ago" if party["connected"] else ""
        typer.echo(f"{party['name']:<24} {party['duty']:<10} {state:<10} {seen}".rstrip())
    for name in found["revoked"]:
        typer.echo(f"{name:<24} revoked")


def print_preview(found: dict[str, Any]) -> None:
    """What each partner would say to a job, and what it would cost."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("partner")
    for heading in ("ε of the job", "ε charged", "ε left before it"):
        table.add_column(heading, justify="right")
    table.add_column("would say")
    for name, said in found["partners"].items():
        costs = [f"{said[key]:.3f}" if key in said else "–" for key in _COSTS]
        table.add_row(name, *costs, _verdict(said))
    console.print(table)
    whom = "who is a customer of all of them" if found["customers_overlap"] else "of any of them"
    console.print(
        "The ε of the job is that of a customer of that partner alone. "
        f"Against everybody together: ε = {found['joint_epsilon']:.3f} for a customer {whom}, at "
        f"δ = {found['delta']:g}.",
        markup=False,
    )


def watch_job(client: ControlClient, name: str, *, quiet: bool) -> None:
    """Follows a job until it has ended, with a bar unless ``quiet``."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        for _ in client.watch({"job": name, "after": 0}):
            pass
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    rounds = client.call("Show", {"job": name})["rounds"]
    with bar:
        task = bar.add_task(name, total=rounds)
        for event in client.watch({"job": name, "after": 0}):
            _print_event(event, bar.print, lambda done: bar.update(task, completed=done))


def end(job: dict[str, Any], *, as_json: bool) -> None:
    """How a job stands; ends the command with code 1 where it released nothing."""
    if as_json:
        print_json(job)
    else:
        reason = f": {job['reason']}" if job["reason"] else ""
        typer.echo(f"{job['job']}: {job['state']}{reason}")
    if job["state"] in ("refused", "failed", "cancelled"):
        raise typer.Exit(Code.BAD)


def _print_event(
    event: dict[str, Any], say: Callable[..., None], advance: Callable[[int], None]
) -> None:
    if event["kind"] == "round":
        advance(event["round"])
        return
    who = f"{event['partner']} " if event["partner"] else ""
    say(f"  {event['time'][11:19]}  {who}{event['kind']}  {event['text']}".rstrip(), markup=False)


def _verdict(said: dict[str, Any]) -> str:
    if said["refused_by"]:
        return f"no ({said['refused_by']}): {said['text']}"
    return "yes, once a person there approves" if said["needs_approval"] else "yes"
