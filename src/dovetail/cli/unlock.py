"""Opens a party's keys, and asks for their passphrase where they have one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dovetail.cli.asking import ask

if TYPE_CHECKING:
    from dovetail.crypto.keyring import Keyring
    from dovetail.wire.peers import Access

PASSPHRASE = "DOVETAIL_PASSPHRASE"  # noqa: S105 - the name of a variable


def unlock(folder: Path) -> Keyring:
    """The keys in a folder.

    Their passphrase comes from the environment, or is asked for on the terminal.

    Raises:
        SettingError: the keys cannot be read, or the passphrase is wrong or missing.
    """
    from dovetail.crypto.keyring import load_keyring, needs_passphrase

    passphrase = None
    if needs_passphrase(folder):
        passphrase = os.environ.get(PASSPHRASE) or ask(
            f"Passphrase of the keys in {folder}", f"set {PASSPHRASE}", hide_input=True
        )
    return load_keyring(folder, passphrase.encode() if passphrase else None)


def access(folder: Path) -> tuple[Keyring, Access]:
    """The keys in a folder, and how their owner reaches the coordinator.

    The coordinator's own folder of keys reaches the coordinator too: its owner is the operator.

    Raises:
        SettingError: the keys or the coordinator's address cannot be read.
    """
    from dovetail.agreement.files import ACCESS, read_access
    from dovetail.coordinator.settings import FILE, load_settings
    from dovetail.wire.peers import Access

    keyring = unlock(folder)
    if not (folder / ACCESS).exists() and (folder.parent / FILE).exists():
        address, certificate = load_settings(folder.parent).address, keyring.certificate
    else:
        kept = read_access(folder)
        address, certificate = kept.address, kept.certificate.encode()
    return keyring, Access(address, certificate, keyring.certificate, keyring.tls_key)
