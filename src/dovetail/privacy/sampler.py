"""Normal numbers and Poisson samples from a cryptographic generator.

Limits of floating-point noise, and their severity:

- *Gaps in the support* (high, where noise is added naively): the floating-point values that
  ``sum + noise`` can take depend on the sum, so that one output can rule a neighbouring input
  out: Mironov (2012), "On significance of the least significant bits for differential privacy";
  for Box–Muller, Holohan and Braghin (2021), "Secure random sampling in differential privacy".
  ``SecureSampler.normal`` alone does not close this. ``privacy.mechanism`` does, by rounding
  every noised value to a grid that is the same for every input; do not add noise elsewhere.
- *Cut tail* (negligible): no number exceeds 9.35 in magnitude. A true pair of normal numbers
  lies outside with probability 2⁻⁶³, so ``n`` numbers are within total variation distance
  ``n · 2⁻⁶⁴`` of untruncated ones: below 1e-9 for 10¹⁰ of them, to be compared with δ.
- *Granularity* (low): numbers are float32, from an angle of 24 and a radius of 24 significant
  bits. Edges of the distribution function move by about 2⁻²²; on the mechanism's grid of σ/32 or
  coarser this changes the probability of a grid point by a relative 2⁻¹⁷ or so (estimated).
- *Timing* (low): AES is constant-time where the processor has it; numpy's ``log``, ``sin`` and
  ``cos`` are vectorised but not promised to be. A Poisson sample's duration grows with its size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dovetail.crypto.prg import Prg, derive_key
from dovetail.errors import PrivacyError

Floats = npt.NDArray[np.float32]

TAIL = math.sqrt(2 * 63 * math.log(2))
"""No standard normal number that is drawn here exceeds this magnitude (9.345)."""

_PAIRS = 1 << 14  # pairs per chunk: its arrays stay in the second-level cache
_ANGLE = np.float32(math.pi / 2**31)
_HIGH = np.float32(2.0**-31)
_LOW = np.float32(2.0**-62)
_HALF_LOW = np.float32(2.0**-63)
_ONE = np.uint32(1)


class SecureSampler:
    """Draws that nobody without the key can predict or reproduce.

    Guarantees:
        Normal numbers and Poisson samples come from two keystreams derived from the key, each
        used once: no two draws share randomness. Equal keys give equal draws, so a key is made
        fresh (``crypto.prg.fresh_key``) or derived for one job and one purpose, and never leaves
        the process. Not safe to share between threads.
    """

    def __init__(self, key: bytes) -> None:
        """Derive both keystreams.

        Args:
            key: 16 or more secret bytes.

        Raises:
            PrivacyError: the key is shorter.
        """
        self._normal = Prg(derive_key(key, "sampler", "normal"))
        self._uniform = Prg(derive_key(key, "sampler", "poisson"))
        self._words = np.empty(3 * _PAIRS, dtype="<u4")
        self._scratch = np.empty(_PAIRS, dtype=np.float32)
        self._spare = np.empty(2 * _PAIRS, dtype=np.float32)

    def normal(self, n: int) -> Floats:
        """``n`` independent standard normal numbers."""
        out = np.empty(n, dtype=np.float32)
        self.normal_into(out)
        return out

    def normal_into(self, out: Floats) -> None:
        """Overwrite an array with independent standard normal numbers.

        Args:
            out: float32, C-contiguous and writable, of any shape (``tensor.numpy()`` shares its
                memory with torch).

        Raises:
            PrivacyError: the array has another dtype or cannot be written in place.

        Source: Box and Muller (1958).
        """
        if out.dtype != np.float32 or not (out.flags.c_contiguous and out.flags.writeable):
            raise PrivacyError("noise needs a contiguous, writable float32 array")
        flat = out.reshape(-1)
        for start in range(0, flat.size, 2 * _PAIRS):
            part = flat[start : start + 2 * _PAIRS]
            if part.size % 2:
                padded = self._spare[: part.size + 1]
                self._box_muller(padded)
                part[:] = padded[:-1]
            else:
                self._box_muller(part)

    def _box_muller(self, out: Floats) -> None:
        """Fill an array of even size, at most ``2 * _PAIRS``: cosines first, then sines."""
        pairs = out.size // 2
        words = self._words[: 3 * pairs]
        self._normal.fill(words)
        high, low, angle = (words[i * pairs : (i + 1) * pairs] for i in range(3))
        cosines, sines = out[:pairs], out[pairs:]
        radius = self._scratch[:pairs]
        _uniform_into(high, low, radius, cosines)
        np.log(radius, out=radius)
        np.multiply(radius, np.float32(-2), out=radius)
        np.sqrt(radius, out=radius)
        np.multiply(angle.view("<i4"), _ANGLE, out=sines, casting="unsafe", dtype=np.float32)
        np.cos(sines, out=cosines)
        np.sin(sines, out=sines)
        np.multiply(cosines, radius, out=cosines)
        np.multiply(sines, radius, out=sines)

    def poisson_sample(self, n: int, prob: float) -> npt.NDArray[np.int64]:
        """A sample that each of ``n`` customers joins independently with probability ``prob``.

        The gaps between members are geometric, so that the cost grows with ``n * prob``. A gap
        is ``floor(log(u) / log(1 - prob))`` with ``u`` a multiple of 2⁻⁵³ in (0, 1]: its
        distribution function is that of the geometric distribution to within 2⁻⁵⁰, and no gap
        exceeds ``36.8 / prob`` (true probability of a longer one: 2⁻⁵³).

        Args:
            n: number of customers, >= 0.
            prob: in (0, 1]; 1 takes everybody and draws nothing.

        Returns:
            The members' indices in ``[0, n)``, increasing; possibly none.

        Raises:
            PrivacyError: ``prob`` lies outside (0, 1] or ``n`` is negative.

        Guarantees:
            The sample is the one that amplification by Poisson sampling assumes: independent
            members and a size that varies. It is secret: neither it nor its size leaves the node.
        """
        if not 0 < prob <= 1 or n < 0:
            raise PrivacyError("a Poisson sample needs prob in (0, 1] and n >= 0")
        if prob == 1:
            return np.arange(n, dtype=np.int64)
        parts: list[npt.NDArray[np.int64]] = []
        last = -1
        while last < n:
            part = last + self._steps(prob, (n - last) * prob).cumsum()
            last = int(part[-1])
            parts.append(part)
        members = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return members[: int(np.searchsorted(members, n))]

    def _steps(self, prob: float, expected: float) -> npt.NDArray[np.int64]:
        """Distances from one member to the next, about enough to pass ``expected`` of them."""
        count = int(expected + 4 * math.sqrt(expected)) + 8
        uniform = ((self._uniform.words64(count) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        # A gap beyond 2**53 is beyond every table; the cap keeps it and its sum representable.
        with np.errstate(over="ignore"):
            gaps = np.floor(np.log(uniform) / math.log1p(-prob))
        gaps = np.minimum(gaps, 2.0**53 // count)
        steps: npt.NDArray[np.int64] = gaps.astype(np.int64) + 1
        return steps


def _uniform_into(
    high: npt.NDArray[np.uint32], low: npt.NDArray[np.uint32], out: Floats, scratch: Floats
) -> None:
    """Numbers in (0, 1] with a resolution of 2⁻⁶² near 0, where the normal tail comes from.

    Both words are shifted to 31 bits because signed integers convert to float32 faster; they are
    overwritten.
    """
    np.right_shift(high, _ONE, out=high)
    np.right_shift(low, _ONE, out=low)
    np.multiply(high.view("<i4"), _HIGH, out=out, casting="unsafe", dtype=np.float32)
    np.multiply(low.view("<i4"), _LOW, out=scratch, casting="unsafe", dtype=np.float32)
    np.add(scratch, _HALF_LOW, out=scratch)
    np.add(out, scratch, out=out)
