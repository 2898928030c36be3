"""``dovetail job``: ask for jobs, watch them, fetch what they release."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dovetail.cli.help import command
from dovetail.cli.outcome import Code, print_json
from dovetail.cli.unlock import access

if TYPE_CHECKING:
    from dovetail.agreement.request import Request
    from dovetail.crypto.keyring import Keyring
    from dovetail.wire.control import ControlClient

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Ask the partners for a job, and see what becomes of it. A job is a TOML file; "
    "[bold]preview[/bold] says what it would cost before anything runs.",
)

Keys = Annotated[
    Path,
    typer.Option("--keys", "-k", help="Your folder of keys: an analyst's, or the coordinator's."),
]
KEYS = Path("keys")
JobFile = Annotated[Path, typer.Argument(help="The job, a TOML file; docs/jobs.md.")]
Name = Annotated[str, typer.Argument(help="The job's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]
ENDED = ("released", "refused", "failed", "cancelled")


@command(
    app,
    epilog="Example: [bold]dovetail job preview job.toml --keys keys[/bold]. Exit code 1: at least "
    "one partner would refuse.",
)
def preview(file: JobFile, keys: Keys = KEYS, as_json: Json = False) -> None:
    """Ask every partner what it would say, and what it would cost; nothing runs or is charged.

    Shows ε of the job at each partner and against all of them together, what is left of each
    budget, and who would refuse by which rule.
    """
    keyring, client = _client(keys)
    found = client.call("Preview", {"signed": _signed(client, keyring, _request(file))})
    refused = [name for name, said in found["partners"].items() if said["refused_by"]]
    if as_json:
        print_json(found)
    else:
        _show_preview(found)
    if refused:
        raise typer.Exit(Code.BAD)


@command(
    app,
    epilog="Example: [bold]dovetail job submit job.toml --keys keys[/bold]. Submitting the same "
    "again is harmless: a job takes place once.",
)
def submit(
    file: JobFile,
    keys: Keys = KEYS,
    quorum: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Partners without which a round does not count. Default: the file's, or more "
            "than half.",
            show_default=False,
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a partner has for a round. Default: the file's, or 600.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Watch the job until it has ended.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the released model; with --wait."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Hand in a job, signed with your key, and watch it."""
    from dovetail.agreement.job_file import read_job

    keyring, client = _client(keys)
    asked = read_job(file)
    record = {
        "signed": _signed(client, keyring, asked.request),
        "quorum": quorum or asked.quorum,
        "deadline": deadline or asked.deadline,
    }
    job = client.call("Submit", record)
    if wait:
        _watch(client, job["job"], quiet=as_json)
        job = client.call("Show", {"job": job["job"]})
    if output is not None and job["state"] == "released":
        _fetch(client, job["job"], output)
    _end(job, as_json=as_json)


@command(app)
def watch(name: Name, keys: Keys = KEYS, as_json: Json = False) -> None:
    """Follow a job: rounds, who is awaited, why it ended. Ctrl-C stops watching, not the job."""
    _, client = _client(keys)
    if as_json:
        for event in client.watch({"job": name, "after": 0}):
            typer.echo(json.dumps(event, ensure_ascii=False))
        return
    _watch(client, name, quiet=False)
    _end(client.call("Show", {"job": name}), as_json=False)


@command(app, name="list")
def list_jobs(
    keys: Keys = KEYS,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; repeat it for several.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    _, client = _client(keys)
    found = client.call("List", {"states": state or [], "limit": limit, "before": ""})
    if as_json:
        print_json(found)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("job", "state", "rounds", "lost", "asked by", "created"):
        table.add_column(heading)
    for job in found["jobs"]:
        rounds = f"{job['rounds_done']}/{job['rounds']}"
        cells = (job["job"], job["state"], rounds, str(job["lost_rounds"]), job["asked_by"])
        table.add_row(*cells, job["created"][:19])
    Console(highlight=False).print(table)


@command(app)
def show(name: Name, keys: Keys = KEYS, as_json: Json = False) -> None:
    """Show a job: what was asked, where it stands, who permitted it, who is awaited."""
    _, client = _client(keys)
    job = client.call("Show", {"job": name})
    if as_json:
        print_json(job)
        return
    for key in ("job", "state", "reason", "asked_by", "created", "updated"):
        if job[key]:
            typer.echo(f"{key:<12} {job[key]}")
    typer.echo(f"{'rounds':<12} {job['rounds_done']} of {job['rounds']}, {job['lost_rounds']} lost")
    typer.echo(f"{'permitted':<12} {', '.join(job['permitted']) or '–'}")
    if job["awaited"]:
        typer.echo(f"{'awaited':<12} {', '.join(job['awaited'])}")


@command(app)
def permits(name: Name, keys: Keys = KEYS) -> None:
    """Print the partners' signed permits for a job, as JSON, after checking their signatures."""
    from dovetail.agreement.signing import require_permitted, signed_permit_from_record

    _, client = _client(keys)
    found = client.call("Permits", {"job": name})
    terms = _terms(client, client.call("Show", {"job": name})["terms_digest"])
    for record in found["permits"]:
        signed = signed_permit_from_record({k: record[k] for k in ("permit", "signature")})
        require_permitted(signed, terms.partner(signed.permit.partner))
    print_json(found)


@command(app)
def approve(name: Name, keys: Keys = Path("coordinator/keys")) -> None:
    """Let a job that waits for the coordinator's operator go to the partners."""
    _, client = _client(keys)
    _end(client.call("Approve", {"job": name}), as_json=False)


@command(app)
def cancel(name: Name, keys: Keys = KEYS) -> None:
    """End a job; what it never began is free again at every partner."""
    _, client = _client(keys)
    job = client.call("Cancel", {"job": name})
    with suppress(KeyError):
        typer.echo(f"{name}: {job['state'] if job['state'] in ENDED else 'being cancelled'}")


@command(app, epilog="Example: [bold]dovetail job fetch spring-coupons -o model[/bold]")
def fetch(
    name: Name,
    keys: Keys = KEYS,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")] = Path(
        "model"
    ),
) -> None:
    """Fetch a released model with its card."""
    _, client = _client(keys)
    _fetch(client, name, output)


@command(app)
def nodes(keys: Keys = KEYS, as_json: Json = False) -> None:
    """List the parties, and who is connected now."""
    _, client = _client(keys)
    found = client.call("Nodes", {})
    if as_json:
        print_json(found)
        return
    for party in found["parties"]:
        state = "connected" if party["connected"] else "–"
        seen = f"heard {time.time() - party['heard']:.0f} s ago" if party["connected"] else ""
        typer.echo(f"{party['name']:<24} {party['duty']:<10} {state:<10} {seen}".rstrip())
    for name in found["revoked"]:
        typer.echo(f"{name:<24} revoked")


@command(app)
def agreement(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; by default stdout.")
    ] = None,
    keys: Keys = KEYS,
) -> None:
    """Fetch all versions of the signed agreement, as JSON, after checking every signature."""
    from dovetail.errors import SettingError
    from dovetail.store.whole_file import write_whole

    _, client = _client(keys)
    found = client.call("Agreement", {})
    _trusted(found)
    if output is None:
        print_json(found)
        return
    try:
        write_whole(output, json.dumps(found, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise SettingError(f"{output}: cannot be written ({error.strerror})") from None


def _client(keys: Path) -> tuple[Keyring, ControlClient]:
    from dovetail.wire.control import ControlClient

    keyring, reached = access(keys)
    return keyring, ControlClient(reached)


def _request(file: Path) -> Request:
    from dovetail.agreement.job_file import read_job

    return read_job(file).request


def _signed(client: ControlClient, keyring: Keyring, request: Request) -> dict[str, Any]:
    """The request under the terms in force, signed; the terms' own signatures are checked here."""
    from dovetail.agreement import terms as agreed
    from dovetail.agreement.signing import request_record, sign_request

    newest = _trusted(client.call("Agreement", {})).newest
    assert newest is not None  # noqa: S101 - _trusted raises where there is none
    signed = sign_request(request, agreed.digest(newest), keyring.name, keyring.signing)
    return request_record(signed)


def _trusted(record: dict[str, Any]) -> Any:
    from dovetail.agreement.signing import chain_from_record
    from dovetail.agreement.trusted import TrustedTerms
    from dovetail.errors import AgreementError

    trusted = TrustedTerms()
    trusted.follow(chain_from_record(record))
    if trusted.newest is None:
        raise AgreementError("the coordinator has no agreement that all parties signed yet")
    return trusted


def _terms(client: ControlClient, digest: str) -> Any:
    from dovetail.agreement import terms as agreed
    from dovetail.errors import AgreementError

    for signed in _trusted(client.call("Agreement", {})).chain:
        if agreed.digest(signed.terms) == digest:
            return signed.terms
    raise AgreementError("the coordinator does not show the terms that this job ran under")


def _fetch(client: ControlClient, name: str, output: Path) -> None:
    from dovetail.store.model import save_fetched

    pieces: list[bytes] = []
    card = client.fetch({"job": name}, pieces.append)
    save_fetched(output, card, b"".join(pieces))
    typer.echo(f"the model and its card are in {output}", err=True)


def _watch(client: ControlClient, name: str, *, quiet: bool) -> None:
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
            _show_event(event, bar.print, lambda done: bar.update(task, completed=done))


def _show_event(
    event: dict[str, Any], say: Callable[..., None], advance: Callable[[int], None]
) -> None:
    if event["kind"] == "round":
        advance(event["round"])
        return
    who = f"{event['partner']} " if event["partner"] else ""
    say(f"  {event['time'][11:19]}  {who}{event['kind']}  {event['text']}".rstrip(), markup=False)


def _end(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        reason = f": {job['reason']}" if job["reason"] else ""
        typer.echo(f"{job['job']}: {job['state']}{reason}")
    if job["state"] in ("refused", "failed", "cancelled"):
        raise typer.Exit(Code.BAD)


def _show_preview(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("partner")
    for heading in ("ε of the job", "ε left before it"):
        table.add_column(heading, justify="right")
    table.add_column("would say")
    for name, said in found["partners"].items():
        costs = [f"{said[key]:.3f}" if key in said else "–" for key in ("epsilon", "remaining")]
        table.add_row(name, *costs, _verdict(said))
    console.print(table)
    whom = "who is a customer of all of them" if found["customers_overlap"] else "of any of them"
    console.print(
        f"Against everybody together: ε = {found['joint_epsilon']:.3f} for a customer {whom}, at "
        f"δ = {found['delta']:g}.",
        markup=False,
    )


def _verdict(said: dict[str, Any]) -> str:
    if said["refused_by"]:
        return f"no ({said['refused_by']}): {said['text']}"
    return "yes, once a person there approves" if said["needs_approval"] else "yes"
