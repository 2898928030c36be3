"""``dovetail coordinator``: set one up, invite and enrol parties, serve."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dovetail.cli.help import command
from dovetail.cli.logs import log_to_stderr
from dovetail.cli.outcome import print_json
from dovetail.cli.unlock import PASSPHRASE, unlock

if TYPE_CHECKING:
    from dovetail.coordinator.parties import Parties
    from dovetail.coordinator.settings import CoordinatorSettings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Run a coordinator: it carries messages between partners and adds up their answers, and "
    "never sees a row. Begin with [bold]init[/bold], then [bold]invite[/bold], "
    "[bold]enrol[/bold], [bold]serve[/bold].",
)

Folder = Annotated[
    Path,
    typer.Option("--folder", "-f", help="The coordinator's folder.", show_default=True),
]
HERE = Path("coordinator")


@command(
    app,
    epilog="Example: [bold]dovetail coordinator init --name coop --address a.example:7433[/bold]",
)
def init(
    name: Annotated[str, typer.Option(help="By which the agreement is to name the coordinator.")],
    address: Annotated[
        str,
        typer.Option(help="Where partners and analysts find it: host:port, as they see it."),
    ] = "localhost:7433",
    listen: Annotated[
        str | None,
        typer.Option(help="Where to listen. Default: the same port, on this machine only."),
    ] = None,
    folder: Folder = HERE,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help=f"Encrypt the keys; asks, or reads {PASSPHRASE}.")
    ] = False,
) -> None:
    """Make a coordinator's folder: settings, and keys that never leave it."""
    from dovetail.cli.keys import new_passphrase
    from dovetail.coordinator.app import utc_now
    from dovetail.coordinator.parties import Parties
    from dovetail.coordinator.settings import host_and_port, load_settings, write_settings
    from dovetail.crypto.keyring import make_keyring

    host, port = host_and_port(address, "--address")
    hosts = sorted({host, "localhost", "127.0.0.1"})
    secret = new_passphrase() if passphrase else None
    write_settings(folder, name, listen or f"127.0.0.1:{port}", address)
    keyring = make_keyring(folder / "keys", name, utc_now(), hosts, secret)
    Parties(load_settings(folder).parties, keyring)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{folder}: coordinator {name!r}, to be found at {address}", markup=False)
    console.print("Next: dovetail coordinator invite PARTNER …", markup=False)


@command(
    app,
    epilog="Example: [bold]dovetail coordinator invite retailer platform brand[/bold], then send "
    "each its file. Whoever holds a file can enrol once under its name: send it to nobody else.",
)
def invite(
    names: Annotated[list[str], typer.Argument(help="The parties, as the agreement names them.")],
    analyst: Annotated[
        bool, typer.Option("--analyst", help="Invite analysts, who may ask for jobs.")
    ] = False,
    folder: Folder = HERE,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for NAME.invitation files.")
    ] = Path(),
) -> None:
    """Write an invitation for each party: one file, used once, without any secret key in it."""
    settings, parties = _opened(folder)
    for name in names:
        invitation = parties.invite(name, "analyst" if analyst else "partner", settings.address)
        path = output / f"{name}.invitation"
        _write_private(path, json.dumps(vars(invitation), indent=2) + "\n")
        command = "keys new keys --invitation" if analyst else "node init"
        typer.echo(f"{path}  →  {name}: dovetail {command} {path.name}")


@command(app, epilog="Example: [bold]dovetail coordinator enrol *.request[/bold]")
def enrol(
    requests: Annotated[
        list[Path], typer.Argument(help="NAME.request files that came back from invited parties.")
    ],
    folder: Folder = HERE,
) -> None:
    """Let invited parties connect: take in the public keys that they sent."""
    from dovetail.agreement.files import read_request

    _, parties = _opened(folder)
    for path in requests:
        party = parties.enrol(read_request(path))
        typer.echo(f"{party.name} may connect, with certificate {party.certificate[:16]}…")


@command(app, epilog="Example: [bold]dovetail coordinator revoke brand[/bold]")
def revoke(
    name: Annotated[str, typer.Argument(help="Whose certificate is to be refused from now on.")],
    folder: Folder = HERE,
) -> None:
    """Refuse a party's certificate; a running coordinator cuts its connection within a second."""
    _, parties = _opened(folder)
    parties.revoke(name)
    typer.echo(f"{name} may not connect any more; invite it to enrol it anew")


@command(app)
def parties(
    folder: Folder = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False,
) -> None:
    """List who may connect."""
    _, book = _opened(folder)
    listed = [{"name": r.name, "duty": r.duty, **vars(r.party)} for r in book.enrolled()]
    if as_json:
        print_json({"enrolled": listed, "revoked": list(book.revoked())})
        return
    for party in listed:
        typer.echo(f"{party['name']:<24} {party['duty']:<10} {party['certificate'][:16]}…")
    for name in book.revoked():
        typer.echo(f"{name:<24} revoked")


@command(
    app,
    epilog="Put the agreement into the folder as [bold]agreement.toml[/bold], with all signatures "
    "beside it: a running coordinator notices. Stop it with Ctrl-C; jobs go on at the next start.",
)
def serve(
    folder: Folder = HERE,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log as JSON, one object a line.")
    ] = False,
) -> None:
    """Serve partners and analysts until stopped, and go on with jobs that were under way."""
    from dovetail.coordinator.app import Coordinator
    from dovetail.coordinator.settings import load_settings

    log_to_stderr(as_json=log_json)
    settings = load_settings(folder)
    with Coordinator(settings, unlock(settings.keys)) as coordinator:
        coordinator.start()
        threading.Event().wait()


def _opened(folder: Path) -> tuple[CoordinatorSettings, Parties]:
    from dovetail.coordinator.parties import Parties
    from dovetail.coordinator.settings import load_settings

    settings = load_settings(folder)
    return settings, Parties(settings.parties, unlock(settings.keys))


def _write_private(path: Path, text: str) -> None:
    from dovetail.errors import SettingError
    from dovetail.store.whole_file import write_whole

    try:
        write_whole(path, text.encode(), mode=0o600)
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror})") from None
