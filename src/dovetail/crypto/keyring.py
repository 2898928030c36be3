"""A party's keys in one folder that only their owner may enter.

=================== ==========================================
``signing.pem``     Ed25519: signs terms, requests and permits
``tls.pem``         P-256: connects
``certificate.pem`` the certificate of ``tls.pem``; public
=================== ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from dovetail.crypto.certificates import (
    certificate_of,
    common_name,
    new_tls_key,
    pin_of,
    pin_of_key,
    private_pem,
)
from dovetail.crypto.keys import (
    SigningKey,
    load_private_key,
    load_signing_key,
    new_signing_key,
    save_private_key,
)
from dovetail.errors import SettingError

SIGNING, TLS, CERTIFICATE = "signing.pem", "tls.pem", "certificate.pem"


@dataclass(frozen=True)
class Keyring:
    """A party's keys, opened.

    Attributes:
        name: the party's, as its certificate says.
        signing: with which it signs.
        certificate: with which it connects, PEM; public.
        tls_key: the certificate's private key, PEM, not encrypted: for memory only.
    """

    name: str
    signing: SigningKey
    certificate: bytes
    tls_key: bytes = field(repr=False)

    @property
    def pin(self) -> str:
        """By which others know the certificate."""
        return pin_of(self.certificate)


def make_keyring(
    folder: Path,
    name: str,
    now: datetime,
    hosts: Sequence[str] = (),
    passphrase: bytes | None = None,
) -> Keyring:
    """Makes a party's keys in a folder that has none yet.

    Args:
        folder: made with mode 0700.
        name: the party's.
        now: from when the certificate is valid.
        hosts: names and addresses of a server; empty for clients.
        passphrase: encrypts both private keys.

    Raises:
        SettingError: there are keys already (they are never replaced), or nothing can be written.
    """
    if any((folder / name).exists() for name in (SIGNING, TLS, CERTIFICATE)):
        raise SettingError(f"{folder.name}: holds keys already, and keys are never replaced")
    signing, tls = new_signing_key(), new_tls_key()
    certificate = certificate_of(tls, name, now, hosts)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        signing.save(folder / SIGNING, passphrase)
        save_private_key(folder / TLS, tls, passphrase)
        (folder / CERTIFICATE).write_bytes(certificate)
    except OSError as error:
        raise SettingError(f"{folder.name}: cannot be written ({error.strerror})") from None
    return Keyring(name, signing, certificate, private_pem(tls))


def load_keyring(folder: Path, passphrase: bytes | None = None) -> Keyring:
    """The keys that :func:`make_keyring` made.

    Raises:
        SettingError: a file is missing, others may read it, the passphrase is wrong, or the
            certificate belongs to another key.
    """
    signing = load_signing_key(folder / SIGNING, passphrase)
    tls = load_private_key(folder / TLS, passphrase)
    try:
        certificate = (folder / CERTIFICATE).read_bytes()
    except OSError as error:
        raise SettingError(f"{CERTIFICATE}: cannot be read ({error.strerror})") from None
    if not isinstance(tls, ec.EllipticCurvePrivateKey):
        raise SettingError(f"{TLS}: is not a TLS key")
    if pin_of(certificate) != pin_of_key(tls.public_key()):
        raise SettingError(f"{CERTIFICATE}: belongs to another key than {TLS}")
    return Keyring(common_name(certificate), signing, certificate, private_pem(tls))


def needs_passphrase(folder: Path) -> bool:
    """Whether the private keys in a folder are encrypted."""
    try:
        return b"ENCRYPTED" in (folder / SIGNING).read_bytes()
    except OSError:
        return False
