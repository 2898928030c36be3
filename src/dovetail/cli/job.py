"""``dovetail job``: ask for jobs, watch them, fetch what they release."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.asker import Asker
from dovetail.cli.help import command
from dovetail.cli.job_page import (
    end,
    print_job,
    print_jobs,
    print_parties,
    print_preview,
    watch_job,
)
from dovetail.cli.outcome import Code, print_json

if TYPE_CHECKING:
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
    from dovetail.agreement.job_file import read_job

    asker = Asker(keys)
    signed = asker.signed(read_job(file, asker.in_force()).request, "preview")
    found = asker.client.call("Preview", {"signed": signed})
    refused = [name for name, said in found["partners"].items() if said["refused_by"]]
    if as_json:
        print_json(found)
    else:
        print_preview(found)
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

    asker = Asker(keys)
    asked = read_job(file, asker.in_force())
    record = {
        "signed": asker.signed(asked.request, "request"),
        "quorum": quorum or asked.quorum,
        "deadline": deadline or asked.deadline,
    }
    client = asker.client
    job = client.call("Submit", record)
    if wait:
        watch_job(client, job["job"], quiet=as_json)
        job = client.call("Show", {"job": job["job"]})
    if output is not None and job["state"] == "released":
        _fetch(client, job["job"], output)
    end(job, as_json=as_json)


@command(app)
def watch(name: Name, keys: Keys = KEYS, as_json: Json = False) -> None:
    """Follow a job: rounds, who is awaited, why it ended. Ctrl-C stops watching, not the job."""
    client = Asker(keys).client
    if as_json:
        for event in client.watch({"job": name, "after": 0}):
            typer.echo(json.dumps(event, ensure_ascii=False))
        return
    watch_job(client, name, quiet=False)
    end(client.call("Show", {"job": name}), as_json=False)


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
    client = Asker(keys).client
    found = client.call("List", {"states": state or [], "limit": limit, "before": ""})
    if as_json:
        print_json(found)
    else:
        print_jobs(found["jobs"])


@command(app)
def show(name: Name, keys: Keys = KEYS, as_json: Json = False) -> None:
    """Show a job: what was asked, where it stands, who permitted it, who is awaited."""
    client = Asker(keys).client
    job = client.call("Show", {"job": name})
    if as_json:
        print_json(job)
    else:
        print_job(job)


@command(app)
def permits(name: Name, keys: Keys = KEYS) -> None:
    """Print the partners' signed permits for a job, as JSON, after checking their signatures."""
    from dovetail.agreement.signing import require_permitted, signed_permit_from_record

    asker = Asker(keys)
    found = asker.client.call("Permits", {"job": name})
    terms = asker.terms_of(asker.client.call("Show", {"job": name})["terms_digest"])
    for record in found["permits"]:
        signed = signed_permit_from_record({k: record[k] for k in ("permit", "signature")})
        require_permitted(signed, terms.partner(signed.permit.partner))
    print_json(found)


@command(app)
def approve(name: Name, keys: Keys = Path("coordinator/keys")) -> None:
    """Let a job that waits for the coordinator's operator go to the partners."""
    client = Asker(keys).client
    end(client.call("Approve", {"job": name}), as_json=False)


@command(app)
def cancel(name: Name, keys: Keys = KEYS) -> None:
    """End a job; what it never began is free again at every partner."""
    client = Asker(keys).client
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
    client = Asker(keys).client
    _fetch(client, name, output)


@command(app)
def nodes(keys: Keys = KEYS, as_json: Json = False) -> None:
    """List the parties, and who is connected now."""
    client = Asker(keys).client
    found = client.call("Nodes", {})
    if as_json:
        print_json(found)
    else:
        print_parties(found)


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

    found = Asker(keys).agreement()
    if output is None:
        print_json(found)
        return
    try:
        write_whole(output, json.dumps(found, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise SettingError(f"{output}: cannot be written ({error.strerror})") from None


def _fetch(client: ControlClient, name: str, output: Path) -> None:
    from dovetail.store.model import save_fetched

    pieces: list[bytes] = []
    card = client.fetch({"job": name}, pieces.append)
    save_fetched(output, card, b"".join(pieces))
    typer.echo(f"the model and its card are in {output}", err=True)
