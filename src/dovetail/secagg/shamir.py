"""Secrets in shares: any ``threshold`` of them give the secret back, fewer say nothing of it.

Source: Shamir (1979), "How to share a secret", over the prime field of :data:`PRIME` elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dovetail.errors import LocalProtocolError, RemoteProtocolError

PRIME = 2**256 + 297
"""The smallest prime above every 32-byte secret."""
SECRET_BYTES = 32
SHARE_BYTES = 33

_WIDE_BYTES = 49
"""Random bytes per coefficient: reduced modulo the prime they are within 2⁻¹³⁵ of uniform."""


def split(
    secret: bytes, threshold: int, points: Sequence[int], random: Callable[[int], bytes]
) -> list[int]:
    """One share for each point: the values there of a random polynomial through the secret.

    Args:
        secret: 32 bytes, the polynomial's value at zero.
        threshold: shares that give it back; the polynomial has so many coefficients.
        points: small, distinct and not zero.
        random: secret uniform bytes.

    Returns:
        Numbers below :data:`PRIME`, in the order of the points.

    Raises:
        LocalProtocolError: the secret has another length, a point is zero or there twice, or
            there are fewer points than ``threshold``.

    Guarantees:
        Fewer than ``threshold`` shares are independent of the secret, up to 2⁻¹³⁵ per
        coefficient.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise LocalProtocolError("a secret of 32 bytes is shared among at least threshold points")
    _check_points(points)
    drawn = random(_WIDE_BYTES * (threshold - 1))
    coefficients = [
        int.from_bytes(drawn[start : start + _WIDE_BYTES], "big") % PRIME
        for start in range(0, len(drawn), _WIDE_BYTES)
    ]
    constant = int.from_bytes(secret, "big")
    return [_value(coefficients, constant, point) for point in points]


def _value(coefficients: Sequence[int], constant: int, point: int) -> int:
    """Horner's rule; points are small, so that one reduction at the end is enough."""
    value = 0
    for coefficient in coefficients:
        value = (value + coefficient) * point
    return (value + constant) % PRIME


def lagrange_weights(points: Sequence[int]) -> list[int]:
    """What the share at each point counts for in the value at zero; once per set of points.

    Raises:
        LocalProtocolError: a point is zero or there twice.
    """
    _check_points(points)
    weights = []
    for i, point in enumerate(points):
        above, below = 1, 1
        for j, other in enumerate(points):
            if i != j:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def recover(shares: Iterable[int], weights: Sequence[int]) -> bytes:
    """The secret, from ``threshold`` shares in the order of the weights.

    Wrong shares give a wrong secret: whoever recovers one compares it with what its owner
    advertised.

    Raises:
        RemoteProtocolError: the shares are of no 32-byte secret.
    """
    value = sum(share * weight for share, weight in zip(shares, weights, strict=True)) % PRIME
    if value >> (8 * SECRET_BYTES):
        raise RemoteProtocolError("shares fit no secret")
    return value.to_bytes(SECRET_BYTES, "big")


def _check_points(points: Sequence[int]) -> None:
    if 0 in points or len(set(points)) != len(points):
        raise LocalProtocolError("shares lie on distinct points that are not zero")
