"""Real vectors as whole numbers that can be summed under masks without overflow.

Project each number on ``[-bound, bound]``, multiply by ``scale``, round to the nearest whole
number. ``privacy`` then adds its discrete noise, and :meth:`Encoding.wrap` takes the result modulo
2^bits. Everything between is counted in units of ``1 / scale``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dovetail.errors import LocalProtocolError, PrivacyError, SettingError
from dovetail.secagg.masks import Words

Integers = npt.NDArray[np.int64]

_CHUNK = 1 << 14  # numbers that stay in the second-level cache

LARGEST_UNITS = 2**50
"""What ``bound * scale`` may be: every number is then exact, or nearly so, as a float64."""


@dataclass(frozen=True)
class Encoding:
    """How a vector of numbers becomes one of words, and a sum of words one of numbers.

    Attributes:
        bound: largest magnitude of a number; larger ones are projected on it.
        scale: units per one; a power of two makes the multiplication exact.
        bits: of a word, 32 or 64.
        size: numbers in a vector.

    Guarantees:
        *Neighbours stay neighbours.* Projecting is nonexpansive, because the cube
        ``[-bound, bound]^size`` is convex. Multiplying stretches by ``scale``. Rounding moves two
        numbers apart by at most one unit, two vectors by at most ``sqrt(size)``. What
        :meth:`sensitivity` says therefore bounds how far apart two encoded neighbours can lie.

        *No overflow*, where :meth:`check_room` was asked: the sum that is decoded is the sum
        that was encoded.
    """

    bound: float
    scale: float
    bits: int
    size: int

    def __post_init__(self) -> None:
        """Checks everything.

        Raises:
            SettingError: which of the limits is broken.
        """
        if not (0 < self.bound < math.inf and 0 < self.scale < math.inf):
            raise SettingError("bound and scale must be positive and finite")
        if self.bound * self.scale > LARGEST_UNITS:
            raise SettingError("bound * scale must not exceed 2^50")
        if type(self.bits) is not int or self.bits not in (32, 64):
            raise SettingError("bits must be 32 or 64")
        if type(self.size) is not int or self.size < 1:
            raise SettingError("size must be a whole number from 1")

    @property
    def largest(self) -> int:
        """No encoded number exceeds this magnitude, in units."""
        return math.ceil(self.bound * self.scale) + 1

    def sensitivity(self, l2_clip_norm: float) -> float:
        """How far apart, in units, neighbours are encoded that lay ``l2_clip_norm`` apart.

        ``scale * l2_clip_norm + sqrt(size)``, and what floating point can add to it: a product
        is off by at most 2⁻⁵³ of its magnitude (nothing, where ``scale`` is a power of two).
        """
        product = 2.0**-52 * self.bound * self.scale if math.frexp(self.scale)[0] != 0.5 else 0.0
        units = self.scale * l2_clip_norm + math.sqrt(self.size) * (1 + product)
        return units * (1 + 2.0**-50)

    def check_room(self, nodes: int, noise: float) -> None:
        """Do nothing if the sum of ``nodes`` encoded and noised vectors cannot overflow.

        Args:
            nodes: number of vectors in a sum, at most.
            noise: largest magnitude of one node's noise on one number, in units.

        Raises:
            SettingError: it could; the message names the limit.
        """
        if nodes < 1 or not 0 <= noise < math.inf:
            raise SettingError("a sum has at least one node, and noise of a finite magnitude")
        if nodes * (self.largest + math.ceil(noise)) >= 2 ** (self.bits - 1):
            raise SettingError(
                f"the sum could overflow: nodes * (bound * scale + 1 + noise), each rounded up, "
                f"must stay below 2^{self.bits - 1}; lower scale or bound, or take more bits"
            )

    def encode(self, vector: npt.NDArray[np.floating]) -> Integers:
        """The vector in units, rounded to the nearest (halves to even).

        Raises:
            LocalProtocolError: the vector has another shape or dtype.
            PrivacyError: a number is not finite. The message does not say which.
        """
        if vector.shape != (self.size,) or not np.issubdtype(vector.dtype, np.floating):
            raise LocalProtocolError("only a vector of floats of the encoding's size is encoded")
        if not np.isfinite(vector).all():
            raise PrivacyError("a number that is not finite cannot be encoded")
        units = np.empty(self.size, np.int64)
        for start in range(0, self.size, _CHUNK):
            part = vector[start : start + _CHUNK].astype(np.float64)
            np.clip(part, -self.bound, self.bound, out=part)
            np.multiply(part, self.scale, out=part)
            units[start : start + _CHUNK] = np.rint(part, out=part)
        return units

    def wrap(self, units: Integers) -> Words:
        """Whole numbers modulo 2^bits, ready to be masked."""
        return units.astype(np.uint32) if self.bits == 32 else units.astype(np.uint64)

    def decode(self, total: Words) -> npt.NDArray[np.float64]:
        """The real vector that a sum modulo 2^bits stands for.

        Raises:
            LocalProtocolError: the sum has another shape or dtype.
        """
        if total.shape != (self.size,) or total.dtype != f"u{self.bits // 8}":
            raise LocalProtocolError("only a sum of the encoding's size and bits is decoded")
        return total.view(f"i{self.bits // 8}").astype(np.float64) / self.scale
