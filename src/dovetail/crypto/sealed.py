"""Sealed messages: what only the owner of a key can read, and nobody else can have written.

Source: AES-128 in Galois/counter mode, NIST SP 800-38D.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dovetail.crypto.prg import KEY_BYTES
from dovetail.errors import PrivacyError, RemoteProtocolError

SEAL_BYTES = 16
"""By how much a sealed message is longer than the message."""

_NONCE = bytes(12)


def seal(key: bytes, message: bytes, about: bytes) -> bytes:
    """The message, encrypted and authenticated.

    Args:
        key: 16 secret bytes that seal this one message and nothing else: derive one for each
            message, with sender, recipient and occasion in its context. The nonce is constant,
            so a second message under one key would give both away.
        message: what to hide.
        about: what the reader must know already, authenticated and not sent.

    Raises:
        PrivacyError: the key has another length.
    """
    return _cipher(key).encrypt(_NONCE, message, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """What :func:`seal` was given.

    Raises:
        RemoteProtocolError: it was sealed under another key, about something else, or changed.
        PrivacyError: the key has another length.
    """
    try:
        return _cipher(key).decrypt(_NONCE, sealed, about)
    except InvalidTag:
        raise RemoteProtocolError("a sealed message does not open") from None


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise PrivacyError(f"a message is sealed with {KEY_BYTES} bytes")
    return AESGCM(key)
