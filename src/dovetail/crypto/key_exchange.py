"""A secret that two parties share after seeing each other's public key: X25519.

Source: Langley, Hamburg and Turner (2016), RFC 7748, sections 5 and 6.1.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from dovetail.errors import PrivacyError, RemoteProtocolError

EXCHANGE_BYTES = 32
"""Length of a private key, of a public key and of a shared secret."""

_PRIME = 2**255 - 19
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
"""The points of order 1, 2, 4 and 8 of Curve25519, and of order 1, 2 and 4 of its twist, by their
coordinate ``u``: all that the two curves have."""


class ExchangeKey:
    """One private key for key agreement; shows only its public half.

    Guarantees:
        What :meth:`secret_with` returns is known to the owners of the two keys alone, and is
        never zero: a public key of low order, with which anybody would know the secret, is
        refused. The secret is not uniform: keys come from it through ``crypto.prg.derive_key``,
        whose context must name both parties.
    """

    def __init__(self, private: bytes) -> None:
        """The key of 32 secret bytes.

        Raises:
            PrivacyError: they are not 32.
        """
        if len(private) != EXCHANGE_BYTES:
            raise PrivacyError(f"a key for key agreement has {EXCHANGE_BYTES} bytes")
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()
        """The public key, 32 bytes."""

    def __repr__(self) -> str:
        return f"ExchangeKey(public={self.public.hex()!r})"

    def secret_with(self, public: bytes) -> bytes:
        """The 32 bytes shared with the owner of another public key.

        Raises:
            RemoteProtocolError: it is no public key, or one of low order.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise RemoteProtocolError("a public key cannot be used for key agreement") from None


def check_public(public: bytes) -> None:
    """Do nothing if :meth:`ExchangeKey.secret_with` takes this public key, of any private key.

    A private key counts as eight times a number below the large prime order of either curve. So
    its product with a point is zero for the points of low order and for no other, whatever the
    key is, and they can be found without multiplying.

    Args:
        public: 32 bytes; the topmost bit does not count, and numbers from the prime on are
            reduced, as RFC 7748 has it.

    Raises:
        RemoteProtocolError: it has another length, or is of low order.
    """
    point = int.from_bytes(public, "little") & (2**255 - 1)
    if len(public) != EXCHANGE_BYTES or point % _PRIME in _LOW_ORDER:
        raise RemoteProtocolError("a public key cannot be used for key agreement")
