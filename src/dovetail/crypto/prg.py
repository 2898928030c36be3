"""Pseudo-random bytes from AES-128 in counter mode, and keys derived from keys.

Noise, masks and samples that a privacy guarantee rests on come from here: a generator that can
be predicted from its output (Mersenne Twister, PCG) would let a reader subtract the noise.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dovetail.errors import PrivacyError

KEY_BYTES = 16
BLOCK_BYTES = 16
MAX_BYTES = 2**40 * BLOCK_BYTES
"""What one key may yield: 16 TiB. After ``n`` blocks counter mode differs from random bytes by at
most ``n² / 2¹²⁹`` (it never repeats a block where random bytes would): here at most 2⁻⁴⁹."""

_ZEROS = bytes(1 << 17)  # small enough to stay in the second-level cache while it is encrypted


class Prg:
    """The AES-128-CTR keystream of one key, from counter 0, read once from front to back.

    Guarantees:
        Every byte is handed out at most once, whatever the mixture of calls, so two results
        never share keystream. Two objects with one key do yield the same bytes: derive a key per
        purpose with :func:`derive_key`. An object is not safe to share between threads.

    Source: NIST SP 800-38A, section 6.5.
    """

    def __init__(self, key: bytes) -> None:
        """Start the keystream.

        Args:
            key: 16 secret bytes, used for nothing else.

        Raises:
            PrivacyError: the key has another length.
        """
        if len(key) != KEY_BYTES:
            raise PrivacyError(f"a generator key has {KEY_BYTES} bytes")
        self._stream = Cipher(AES(key), CTR(bytes(BLOCK_BYTES))).encryptor()
        self._left = MAX_BYTES

    def fill(self, buffer: npt.NDArray[Any]) -> None:
        """Overwrite an array with the next bytes of the keystream.

        Args:
            buffer: C-contiguous and writable, of a dtype without objects.

        Raises:
            PrivacyError: the key has yielded :data:`MAX_BYTES`, or the array cannot be filled in
                place.
        """
        if not (buffer.flags.c_contiguous and buffer.flags.writeable) or buffer.dtype.hasobject:
            raise PrivacyError("only a contiguous, writable array of plain numbers can be filled")
        if buffer.nbytes > self._left:
            raise PrivacyError("this generator key is used up; derive another")
        self._left -= buffer.nbytes
        target = buffer.reshape(-1).view(np.uint8).data
        for start in range(0, len(target), len(_ZEROS)):
            part = target[start : start + len(_ZEROS)]
            self._stream.update_into(memoryview(_ZEROS)[: len(part)], part)

    def words32(self, n: int) -> npt.NDArray[np.uint32]:
        """The next ``4 n`` bytes as ``n`` little-endian words, uniform in [0, 2³²)."""
        words = np.empty(n, dtype="<u4")
        self.fill(words)
        return words.astype(np.uint32, copy=False)

    def words64(self, n: int) -> npt.NDArray[np.uint64]:
        """The next ``8 n`` bytes as ``n`` little-endian words, uniform in [0, 2⁶⁴)."""
        words = np.empty(n, dtype="<u8")
        self.fill(words)
        return words.astype(np.uint64, copy=False)


def fresh_key() -> bytes:
    """16 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def derive_key(key: bytes, *context: str | int) -> bytes:
    """A 16-byte key for one purpose, from which neither ``key`` nor its siblings can be learnt.

    Args:
        key: at least 16 secret bytes, uniform.
        context: what the key is for, for instance ``("noise", job, round)``. Two contexts that
            differ in any part, in a part's type or in where one part ends give unrelated keys.

    Raises:
        PrivacyError: the key is too short, the context is empty or has a part of another type.

    Source: HKDF with SHA-256, Krawczyk and Eronen (2010), RFC 5869.
    """
    if len(key) < KEY_BYTES:
        raise PrivacyError(f"keys are derived from at least {KEY_BYTES} bytes")
    if not context:
        raise PrivacyError("a derived key needs a context that says what it is for")
    info = b"dovetail/1" + b"".join(_encode_part(part) for part in context)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)


def _encode_part(part: str | int) -> bytes:
    """One part with its type and length ahead, so that concatenated parts can be told apart."""
    if isinstance(part, str):
        tag, body = b"s", part.encode("utf-8", errors="surrogatepass")
    elif isinstance(part, int) and not isinstance(part, bool):
        tag, body = b"i", str(part).encode("ascii")
    else:
        raise PrivacyError("a key's context consists of texts and whole numbers")
    return tag + len(body).to_bytes(8, "big") + body
