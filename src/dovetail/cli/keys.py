"""``dovetail keys``: make a party's keys at home, and show their public half."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dovetail.cli.asking import ask
from dovetail.cli.help import command
from dovetail.cli.outcome import print_json
from dovetail.cli.unlock import PASSPHRASE, unlock
from dovetail.errors import SettingError

if TYPE_CHECKING:
    from dovetail.agreement.enrolment import Invitation
    from dovetail.crypto.keyring import Keyring

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make the keys with which a party signs and connects, and show their public half. "
    "Private keys never leave their folder.",
)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


@command(
    app,
    epilog="Example: [bold]dovetail keys new keys --invitation anna.invitation[/bold], then send "
    "[bold]anna.request[/bold] back. It holds public keys only.",
)
def new(
    folder: Annotated[
        Path, typer.Argument(show_default=False, help="Folder to make; only you may enter it.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Whose keys they are, as the agreement is to name them.")
    ] = None,
    invitation: Annotated[
        Path | None,
        typer.Option(
            help="What the coordinator sent: gives the name, and asks for a request in return."
        ),
    ] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help=f"Encrypt the keys; asks, or reads {PASSPHRASE}.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a party's keys: one to sign with, one to connect with, and its certificate.

    A folder that has keys keeps them; they are never replaced. Back the folder up, and remember
    the passphrase: without them a party can neither sign nor connect.
    """
    from dovetail.agreement.files import read_invitation
    from dovetail.agreement.party import require_name
    from dovetail.crypto.keyring import load_keyring, make_keyring

    if (name is None) == (invitation is None):
        raise SettingError("give either --name NAME or --invitation FILE")
    read = read_invitation(invitation) if invitation else None
    require_name(read.name if read else name or "")
    secret = new_passphrase() if passphrase or os.environ.get(PASSPHRASE) else None
    if read is None:
        keyring, request = make_keyring(folder, name or "", _now(), passphrase=secret), None
    else:
        request = keys_for(read, folder, secret)
        keyring = load_keyring(folder, secret)
    if as_json:
        sent = {"request": str(request)} if request else {}
        print_json({"folder": str(folder), **sent, **_record(keyring)})
    else:
        _print(_record(keyring))
        _tell_what_next(folder, request, read)


@command(
    app,
    epilog="Example: [bold]dovetail keys show keys[/bold]. Read the two lines of digits to whoever "
    "drew up the agreement, over the phone or in person, before anyone signs.",
)
def show(
    folder: Annotated[Path, typer.Argument(show_default=False, help="Folder of the keys.")],
    as_json: Json = False,
) -> None:
    """Show whose keys they are, the public key, the certificate's pin and when it expires."""
    record = _record(unlock(folder))
    if as_json:
        print_json(record)
    else:
        _print(record)


def new_passphrase() -> bytes:
    """A passphrase for new keys: from the environment, or typed twice.

    Raises:
        SettingError: nobody is there to type it, or it is empty.
    """
    given = os.environ.get(PASSPHRASE)
    if given is None:
        given = ask(
            "New passphrase",
            f"set {PASSPHRASE}",
            hide_input=True,
            confirmation_prompt="The same again",
        )
    if not given:
        raise SettingError(f"the passphrase is empty: set {PASSPHRASE}, or leave --passphrase out")
    return given.encode()


def keys_for(invitation: Invitation, folder: Path, passphrase: bytes | None) -> Path:
    """Makes the keys of an invited party, and writes its request beside their folder.

    The folder also keeps where the coordinator is reached, for later commands.

    Returns:
        Where the request is: ``NAME.request``.

    Raises:
        SettingError: there are keys already, or something cannot be written.
    """
    from dovetail.agreement.enrolment import access_of, request_enrolment
    from dovetail.agreement.files import ACCESS, REQUEST
    from dovetail.crypto.keyring import make_keyring

    request = folder.parent / f"{invitation.name}{REQUEST}"
    if request.exists():
        raise SettingError(f"{request}: exists already; move it away if it was never sent")
    keyring = make_keyring(folder, invitation.name, _now(), passphrase=passphrase)
    _write(folder / ACCESS, vars(access_of(invitation)))
    _write(request, vars(request_enrolment(invitation, keyring)))
    return request


def _write(path: Path, record: dict[str, Any]) -> None:
    from dovetail.store.whole_file import write_whole

    try:
        write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror})") from None


def _record(keyring: Keyring) -> dict[str, Any]:
    from dovetail.crypto.certificates import valid_until

    return {
        "name": keyring.name,
        "key": keyring.signing.public,
        "certificate": keyring.pin,
        "expires": valid_until(keyring.certificate).date().isoformat(),
    }


def _tell_what_next(folder: Path, request: Path | None, invitation: Invitation | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"The keys are in {folder}; back them up.", markup=False)
    if request and invitation:
        console.print(
            f"Send {request} to {invitation.coordinator}; it holds public keys only.", markup=False
        )


def _print(record: dict[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for label, field in (
        ("name", "name"),
        ("signs with key", "key"),
        ("connects with pin", "certificate"),
        ("certificate until", "expires"),
    ):
        console.print(f"{label:<18} {record[field]}", markup=False)


def _now() -> datetime:
    return datetime.now(UTC)
