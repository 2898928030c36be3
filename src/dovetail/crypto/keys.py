"""Signing keys: who said what, by Ed25519 over canonical bytes.

Every signature names its purpose, so that what was signed for one can never pass for another.
Source: Josefsson and Liusvaara (2017), RFC 8032.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dovetail.crypto.canonical import canonical_bytes
from dovetail.errors import RemoteProtocolError, SettingError

SEED_BYTES = 32
Private = Ed25519PrivateKey | ec.EllipticCurvePrivateKey


class SigningKey:
    """One party's private signing key; shows only its public half."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Wraps a key; use :func:`new_signing_key`, :func:`signing_key_of` or a loaded file."""
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()
        """The public key, 64 lower-case hexadecimal digits."""

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public!r})"

    def sign(self, purpose: str, value: Any) -> str:
        """The signature over a JSON value for one purpose, 128 hexadecimal digits.

        Raises:
            LocalProtocolError: the value has no canonical form.
        """
        return self._key.sign(_signed_bytes(purpose, value)).hex()

    def save(self, path: Path, passphrase: bytes | None) -> None:
        """Writes the key as :func:`save_private_key` does."""
        save_private_key(path, self._key, passphrase)


def new_signing_key() -> SigningKey:
    """A key from the operating system's generator."""
    return SigningKey(Ed25519PrivateKey.generate())


def signing_key_of(seed: bytes) -> SigningKey:
    """The key of 32 secret bytes; for simulations, whose parties repeat themselves."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))


def load_signing_key(path: Path, passphrase: bytes | None) -> SigningKey:
    """The key that :meth:`SigningKey.save` wrote.

    Raises:
        SettingError: as :func:`load_private_key`; or the file holds another kind of key.
    """
    key = load_private_key(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError(f"{path.name}: is not a signing key")
    return SigningKey(key)


def verify(public: str, signature: str, purpose: str, value: Any) -> None:
    """Do nothing if the owner of ``public`` signed ``value`` for ``purpose``.

    Args:
        public: 64 hexadecimal digits, in lower case.
        signature: 128 of them: one signature is one text.
        purpose: as it was signed.
        value: as it was signed.

    Raises:
        RemoteProtocolError: they did not.
        LocalProtocolError: the value has no canonical form.
    """
    signed = _signed_bytes(purpose, value)
    try:
        Ed25519PublicKey.from_public_bytes(_unhex(public)).verify(_unhex(signature), signed)
    except (InvalidSignature, ValueError):
        raise RemoteProtocolError(f"the signature of the {purpose} does not fit it") from None


def _unhex(digits: str) -> bytes:
    """Bytes of lower-case digits alone; ``fromhex`` itself takes spaces and capitals too."""
    value = bytes.fromhex(digits)
    if value.hex() != digits:
        raise ValueError
    return value


def save_private_key(path: Path, key: Private, passphrase: bytes | None) -> None:
    """Writes a private key to a new file of mode 0600, encrypted where there is a passphrase.

    Raises:
        SettingError: the file exists (a key is never overwritten), or cannot be written.
    """
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise SettingError(f"{path.name}: exists already, and a key is never replaced") from None
    except OSError as error:
        raise SettingError(f"{path.name}: cannot be written ({error.strerror})") from None


def load_private_key(path: Path, passphrase: bytes | None) -> Private:
    """The key in a file that only its owner may read.

    Raises:
        SettingError: the file is missing, others may read it, the passphrase is missing or wrong,
            or it holds no key of ours.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise SettingError(f"others may read the private key {path.name!r}: chmod it to 600")
        pem = path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path.name}: cannot be read ({error.strerror})") from None
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError:
        needed = "needs a passphrase" if not passphrase else "is not encrypted; give no passphrase"
        raise SettingError(f"{path.name}: the private key {needed}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingError(f"{path.name}: is no private key, or the passphrase is wrong") from None
    if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise SettingError(f"{path.name}: holds a private key of another kind")
    return key


def _signed_bytes(purpose: str, value: Any) -> bytes:
    return canonical_bytes({"dovetail signature": purpose, "value": value})
