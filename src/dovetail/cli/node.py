"""``dovetail node``: a partner's own program: set up, check, serve, decide, audit, score."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from dovetail.cli import ledger, score
from dovetail.cli.help import command
from dovetail.cli.logs import log_to_stderr
from dovetail.cli.outcome import Code, print_json
from dovetail.cli.unlock import PASSPHRASE, unlock

if TYPE_CHECKING:
    from dovetail.agreement.signing import SignedRequest
    from dovetail.node.settings import NodeSettings
    from dovetail.store.desk import Desk

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Run a partner's node: it reads this company's table, answers what the agreement allows "
    "and its own ledger can pay, and runs only what this company installed. Begin with "
    "[bold]init[/bold], then [bold]check[/bold] and [bold]serve[/bold].",
)
app.add_typer(ledger.app, name="ledger")
command(app, epilog=score.EPILOG)(score.score)

File = Annotated[
    Path, typer.Option("--node", "-n", help="This partner's node.toml.", show_default=True)
]
HERE = Path("node.toml")
Json = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


@command(app, epilog="Example: [bold]dovetail node init retailer.invitation[/bold]")
def init(
    invitation: Annotated[Path, typer.Argument(help="The file that the coordinator sent.")],
    folder: Annotated[
        Path | None,
        typer.Option("--folder", "-f", help="Where the node is to live. Default: its name."),
    ] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help=f"Encrypt the keys; asks, or reads {PASSPHRASE}.")
    ] = False,
) -> None:
    """Make a node's folder: keys, a node.toml to fill in, and a request to send back.

    The private keys stay in the folder. The request holds public keys only.
    """
    from dovetail.agreement.files import read_invitation
    from dovetail.cli.keys import keys_for, new_passphrase
    from dovetail.errors import SettingError
    from dovetail.node.template import write_template

    read = read_invitation(invitation)
    if read.duty != "partner":
        raise SettingError(f"{invitation.name}: invites an analyst; see dovetail keys new --help")
    home = folder or Path(read.name)
    request = keys_for(read, home / "keys", new_passphrase() if passphrase else None)
    write_template(home / "node.toml", read.name)
    typer.echo(f"{home / 'node.toml'}: say there where {read.name}'s table is")
    typer.echo(f"{request}: send this back to {read.coordinator!r}")


@command(
    app,
    epilog="Exit code 0: the node can serve; 1: something stands in the way, and each line says "
    "how to mend it.",
)
def check(node: File = HERE, as_json: Json = False) -> None:
    """Walk through everything a node needs, and explain each problem with its mend.

    Settings, keys, desk, coordinator, clock, agreement, policy, table, cohort, budget. Reads the
    table, changes nothing, and tells nobody else what it found.
    """
    from dovetail.node.checking import check_node

    steps = []
    console = Console(soft_wrap=True, highlight=False)
    for step in check_node(node, unlock):
        steps.append(step)
        if not as_json:
            mark, style = ("ok", "green") if step.good else ("no", "bold red")
            console.print(f"{mark}  ", style=style, end="")
            console.print(f"{step.name:<12} {step.text}", markup=False)
            if step.mend:
                console.print(f"                → {step.mend}", markup=False, style="yellow")
    good = all(step.good for step in steps)
    if as_json:
        print_json({"usable": good, "steps": [vars(step) for step in steps]})
    if not good:
        raise typer.Exit(Code.BAD)


@command(
    app,
    epilog="Stop it with Ctrl-C. A node that is killed may be started again at any moment: what "
    "it had begun stays charged, and is never answered twice.",
)
def serve(
    node: File = HERE,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Read the table again although it was read before.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log as JSON, one object a line.")
    ] = False,
) -> None:
    """Serve until stopped: dial the coordinator, judge what is asked, answer what is permitted."""
    from dovetail.node.attending import attend
    from dovetail.node.settings import load_settings

    log_to_stderr(as_json=log_json)
    settings = load_settings(node)
    attend(settings, unlock(settings.keys), threading.Event(), anew=fresh)


@command(app)
def pause(node: File = HERE) -> None:
    """Refuse everything from now on, rounds of running jobs included, until [bold]resume[/bold]."""
    _desk(node).pause(datetime.now(UTC))
    typer.echo("paused: the node refuses everything")


@command(app)
def resume(node: File = HERE) -> None:
    """Answer again after [bold]pause[/bold]."""
    _desk(node).resume()
    typer.echo("the node answers again")


@command(app)
def waiting(node: File = HERE, as_json: Json = False) -> None:
    """List the jobs that wait for a person here, and what each asks."""
    jobs = _desk(node).waiting()
    if as_json:
        from dovetail.agreement.signing import request_record

        print_json({"waiting": [request_record(signed) for signed in jobs]})
        return
    if not jobs:
        typer.echo("nothing waits for a decision")
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("job", "asked by", "purpose", "model", "columns", "steps", "noise"):
        table.add_column(heading)
    for signed in jobs:
        table.add_row(*_cells(signed))
    Console(highlight=False).print(table)


@command(app, epilog="Example: [bold]dovetail node approve spring-coupons[/bold]")
def approve(
    job: Annotated[str, typer.Argument(help="A job that waits; see the command waiting.")],
    node: File = HERE,
) -> None:
    """Say yes to a job that waits for a person here; exactly as it was asked, and nothing else."""
    _desk(node).decide(job, "approved", datetime.now(UTC))
    typer.echo(f"{job}: approved; the running node tells the coordinator")


@command(app)
def refuse(
    job: Annotated[str, typer.Argument(help="A job that waits; see the command waiting.")],
    node: File = HERE,
) -> None:
    """Say no to a job that waits for a person here."""
    _desk(node).decide(job, "refused", datetime.now(UTC))
    typer.echo(f"{job}: refused; the running node tells the coordinator")


@command(
    app,
    epilog="Example: [bold]dovetail node agreement spring-2.toml[/bold], with the signatures of "
    "all beside it: what [bold]dovetail agreement verify[/bold] takes. A node that serves "
    "meanwhile works under it from the next round on.",
)
def agreement(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="The versions that the node does not hold yet, TOML files."
        ),
    ],
    node: File = HERE,
    as_json: Json = False,
) -> None:
    """Hand the node an agreement that all have signed, without waiting for the coordinator.

    Versions must follow what the node holds, without a gap, and pin the key that it has. From then
    on nothing is answered under an older one, whatever the coordinator shows.
    """
    from dovetail.agreement.files import read_history
    from dovetail.agreement.terms import digest
    from dovetail.errors import AgreementError
    from dovetail.node.opening import kept_terms

    settings = _settings(node)
    kept = kept_terms(settings, unlock(settings.keys))
    new = kept.follow(read_history(files, kept.trusted.chain))
    newest = kept.trusted.newest
    if newest is None:
        raise AgreementError("no version of an agreement was given")
    if as_json:
        record = {"name": newest.name, "version": newest.version, "digest": digest(newest)}
        print_json({"new": new, **record})
        return
    held = "holds now" if new else "held already"
    typer.echo(f"{settings.name} {held}: {newest.name!r}, version {newest.version}")
    typer.echo(f"digest {digest(newest)}")


def _settings(node: Path) -> NodeSettings:
    from dovetail.node.settings import load_settings

    return load_settings(node)


def _desk(node: Path) -> Desk:
    from dovetail.store.desk import Desk

    return Desk(_settings(node).desk)


def _cells(signed: SignedRequest) -> tuple[str, ...]:
    task = signed.request.task
    return (
        signed.request.job,
        signed.asked_by,
        task.purpose,
        task.model.family,
        ", ".join(task.features),
        f"{task.steps:,}",
        f"{task.noise_multiplier:g} × clip norm {task.l2_clip_norm:g}",
    )
