"""One sequence of bytes for one JSON value: what is hashed and signed."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from dovetail.errors import LocalProtocolError


def canonical_bytes(obj: Any) -> bytes:
    """The canonical UTF-8 JSON form of a value.

    Args:
        obj: built of dicts with text keys, lists or tuples, texts, bools, ``None``, finite
            floats, and ints of magnitude below 2⁵³ (JSON has no others that survive a round
            trip through every reader).

    Raises:
        LocalProtocolError: the value holds anything else. The message does not show it.

    Guarantees:
        Equal JSON values have equal bytes, whatever the order of keys; different ones differ.
        ``1`` and ``1.0`` are one JSON value.

    Source: Rundgren et al. (2020), RFC 8785.
    """
    try:
        return rfc8785.dumps(obj)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError):
        raise LocalProtocolError("a value has no canonical JSON form") from None


def digest(obj: Any) -> str:
    """SHA-256 of :func:`canonical_bytes`, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(canonical_bytes(obj)).hexdigest()
