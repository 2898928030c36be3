"""Masks: keystreams that hide a vector, and cancel in the sum or are taken out of it.

The mask of a member ``u`` is ``PRG(b_u)``, its self mask, plus ``PRG(s_uv)`` for every member
``v`` behind it in the alphabet and minus ``PRG(s_uv)`` for every member before it: Bonawitz et al.
(2017), figure 4, round 2. All words are added modulo 2³² or 2⁶⁴.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dovetail.crypto.prg import Prg, derive_key

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

_CHUNK_BYTES = 1 << 17
"""Keystream made at once: it, and the part of the vector it is added to, stay in the cache."""


def self_mask(seed: bytes, context: str, number: int, member: str) -> Prg:
    """The stream of a member's self mask in one round."""
    return Prg(derive_key(seed, "secagg self mask", context, number, member))


def commitment(seed: bytes, context: str, number: int, member: str) -> bytes:
    """16 bytes that tell a recovered seed from a wrong one and say nothing else of it."""
    return derive_key(seed, "secagg seed commitment", context, number, member)


def pairwise_mask(secret: bytes, view: str, number: int, one: str, other: str) -> Prg:
    """The stream that two members have in common in one round.

    Args:
        secret: what their round keys agree on.
        view: digest of whom and what each believes the block to consist of. Members whom the
            coordinator told different things derive unrelated streams, which cancel nowhere.
        number: of the round.
        one: either member.
        other: the other; their order does not matter.
    """
    return Prg(derive_key(secret, "secagg pairwise mask", view, number, *sorted((one, other))))


def apply(vector: Words, plus: Iterable[Prg], minus: Iterable[Prg]) -> None:
    """Adds some streams to a vector and subtracts others, in place, modulo 2³² or 2⁶⁴.

    Args:
        vector: contiguous and writable.
        plus: streams to add; used up by it, like those of ``minus``.
        minus: streams to subtract.
    """
    plus, minus = list(plus), list(minus)
    step = _CHUNK_BYTES // vector.itemsize
    stream = np.empty(min(step, vector.size), dtype=f"<u{vector.itemsize}")
    for start in range(0, vector.size, step):
        part = vector[start : start + step]
        words = stream[: part.size]
        for prg in plus:
            prg.fill(words)
            np.add(part, words, out=part)
        for prg in minus:
            prg.fill(words)
            np.subtract(part, words, out=part)
