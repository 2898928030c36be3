"""Discrete Gaussian numbers from a cryptographic generator, some tens of millions a second.

The discrete Gaussian DG(σ) takes the whole number x with a probability proportional to
``exp(-x² / 2σ²)``: Canonne, Kamath and Steinke (2020), "The discrete Gaussian for differential
privacy", Def. 1. σ is its *std* here; its standard deviation is smaller by a relative 10⁻¹⁷⁰⁰ or
less where σ >= 10.

A number is looked up in a table where σ <= 146, and is a weighted sum of 2 to 7 numbers from
tables beyond. That is why it takes neither division nor rejection, and always as long.

**Tables.** Walker (1977) and Vose (1991): a word of 32 random bits names a column by its first
bits, and is compared by the others with the column's threshold; where they are equal, which is
rare, 128 more bits decide. Column and threshold make up 160 bits, so a table of at most 2¹² numbers
has probabilities that are whole multiples of 2⁻¹⁶⁰. Each but that of 0 is rounded down, from
decimals of 60 digits, and 0 takes what is left: the table is within total variation distance
``2¹² · 2⁻¹⁶⁰ = 2⁻¹⁴⁸`` of DG(σ) cut off at :data:`TAIL` σ, and that within
``2 exp(-TAIL² / 2) < 2⁻¹⁴⁰`` of DG(σ), which is subgaussian (Canonne et al.
2020, §2).

**Sums.** Let ``X = s A + B`` with ``A ~ DG(a)`` and ``B ~ DG(5s/2)`` independent, and
``σ² = s² a² + 25 s²/4``. Completing the square, ::

    P(X = x)  ∝  Σ_k exp(-k² / 2a² - (x - s k)² / (25 s²/2))
              =  exp(-x² / 2σ²) Σ_k exp(-(k - c x)² / 2v²),    1/v² = 1/a² + 4/25

with ``c = 4 v² / 25 s``, and the last sum is by Poisson's formula ::

    v √(2π) (1 + 2 Σ_{j>=1} exp(-2π² v² j²) cos(2π j c x))

It depends on x by a relative ``η = 2.1 exp(-2π² v²)`` at most, so that X is within total variation
distance ``2 η`` of DG(σ) (the convolution theorem of Micciancio and Walter 2017, "Gaussian
sampling over the integers: efficient, generic, constant-time", for whole numbers). Here a >= 72,
hence ``2 η < 2⁻¹⁷⁰``. B is a number from a table or another such sum, so that every further table
multiplies the largest σ by 58.

**Together** a number is within :data:`DISTANCE` of DG(σ), for every σ in :data:`STDS`: at most 7
tables and 6 sums, ``7 (2⁻¹⁴⁸ + 2⁻¹⁴⁰) + 6 · 2⁻¹⁷⁰ < 2⁻¹³⁷``. That the keystream is AES and not a
coin is apart from this.

Limits: *timing* (negligible): how often the further 128 bits are drawn, about once in 2²⁰ numbers,
depends on the numbers drawn; where a processor's caches are shared, so does which line of a table
is read.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovetail.crypto.prg import Prg, derive_key
from dovetail.errors import PrivacyError

Whole = npt.NDArray[np.int64]

STDS = (10.0, 2.0**40)
"""Stds that can be drawn."""

TAIL = 14.0
"""No number of a table exceeds this many of its stds."""

DISTANCE = 2.0**-137
"""Total variation distance of one number from a discrete Gaussian one, at most."""

_WORD, _HALF = 32, 64
_BITS = _WORD + 2 * _HALF  # of a word and its tie-break
_MOST_COLUMNS = 12  # as a power of two: thresholds and values stay in the second-level cache
_WIDEST = 146  # std of the widest table: 2 * ceil(TAIL * 146) + 1 <= 2 ** 12
_CHUNK = 1 << 14
_EXACT = decimal.Context(prec=60)


@dataclass(frozen=True)
class DiscreteGaussian:
    """The distribution: what is drawn, and how large it can be.

    Attributes:
        std: the parameter σ, in units; drawn as it is asked for, and not rounded to another.

    Raises:
        PrivacyError: ``std`` lies outside :data:`STDS`.
    """

    std: float

    def __post_init__(self) -> None:
        if not STDS[0] <= self.std <= STDS[1]:
            raise PrivacyError(f"a discrete Gaussian needs a std from {STDS[0]:g} to {STDS[1]:g}")

    @property
    def bound(self) -> int:
        """No number that is drawn exceeds this magnitude, in units: at most ``15 std``.

        For proofs that a sum does not overflow.
        """
        return sum(table.bound for table in _tables(self.std))


class DiscreteSampler:
    """Draws discrete Gaussian numbers that nobody without the key can predict or reproduce.

    Guarantees:
        Every number comes from fresh keystream, which is derived from the key for this use only: a
        ``SecureSampler`` of the same key shares none of it. Equal keys give equal draws, so a key
        is made fresh or derived for one job and one purpose, and never leaves the process. Not
        safe to share between threads.
    """

    def __init__(self, key: bytes) -> None:
        """Derive the keystream.

        Args:
            key: 16 or more secret bytes.

        Raises:
            PrivacyError: the key is shorter.
        """
        self._stream = Prg(derive_key(key, "sampler", "discrete gaussian"))
        self._words = np.empty(_CHUNK, dtype="<u4")
        self._columns = np.empty(_CHUNK, dtype=np.intp)
        self._thresholds = np.empty(_CHUNK, dtype=np.uint32)
        self._second = np.empty(_CHUNK, dtype=np.bool_)
        self._values = np.empty(_CHUNK, dtype=np.int64)

    def draw(self, law: DiscreteGaussian, n: int) -> Whole:
        """``n`` independent numbers, in units.

        Args:
            law: their distribution.
            n: how many, >= 0.
        """
        out = np.zeros(n, dtype=np.int64)
        self.add_to(out, law)
        return out

    def add_to(self, vector: Whole, law: DiscreteGaussian) -> None:
        """Add an independent number to every coordinate, in place, modulo 2⁶⁴.

        Args:
            vector: int64, C-contiguous and writable, of any shape, in units.
            law: distribution of the numbers.

        Raises:
            PrivacyError: the array has another dtype or cannot be written in place.
        """
        if vector.dtype != np.int64 or not (vector.flags.c_contiguous and vector.flags.writeable):
            raise PrivacyError("discrete noise needs a contiguous, writable int64 array")
        flat = vector.reshape(-1)
        tables = _tables(law.std)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            for table in tables:
                np.add(part, self._look_up(table, part.size), out=part)

    def _look_up(self, table: _Table, n: int) -> Whole:
        words, columns, values = self._words[:n], self._columns[:n], self._values[:n]
        thresholds, second = self._thresholds[:n], self._second[:n]
        self._stream.fill(words)
        np.right_shift(words, table.shift, out=thresholds)
        columns[:] = thresholds
        np.take(table.thresholds, columns, out=thresholds, mode="clip")
        np.equal(words, thresholds, out=second)
        tied = np.flatnonzero(second) if second.any() else ()
        np.greater_equal(words, thresholds, out=second)
        if len(tied):
            second[tied] = self._break_ties(table.lows[columns[tied]])
        np.left_shift(columns, 1, out=columns)
        np.bitwise_or(columns, second.view(np.int8), out=columns)
        return np.take(table.values, columns, out=values, mode="clip")

    def _break_ties(self, lows: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether 128 more bits each, high half first, reach the rest of the thresholds."""
        bits = self._stream.words64(lows.size).reshape(lows.shape)
        equal = bits[:, 0] == lows[:, 0]
        reached: npt.NDArray[np.bool_] = np.where(
            equal, bits[:, 1] >= lows[:, 1], bits[:, 0] > lows[:, 0]
        )
        return reached


@dataclass(frozen=True)
class _Table:
    """A cut-off discrete Gaussian, times a whole number, to be looked up.

    Attributes:
        shift: bits of a word below those that name the column.
        thresholds: by column, its own number in the first bits, then the first bits of the
            threshold.
        lows: by column, the other 128 bits of the threshold, in two halves, high half first.
        values: at ``2 c`` what column c yields below its threshold, at ``2 c + 1`` what from there.
        bound: largest magnitude of a value.
    """

    shift: np.uint32
    thresholds: npt.NDArray[np.uint32]
    lows: npt.NDArray[np.uint64]
    values: Whole
    bound: int


@lru_cache(maxsize=32)
def _tables(std: float) -> tuple[_Table, ...]:
    """The tables whose numbers add up to one of DG(``std``): ``A``, then those of ``B``."""
    scale = math.ceil(std / _WIDEST)
    if scale == 1:
        return (_table(_EXACT.power(Decimal(std), 2), 1),)
    ratio = _EXACT.divide(Decimal(std), Decimal(scale))
    variance = _EXACT.subtract(_EXACT.power(ratio, 2), Decimal("6.25"))
    return (_table(variance, scale), *_tables(2.5 * scale))


def _table(variance: Decimal, scale: int) -> _Table:
    weights = _weights(variance)
    largest = len(weights) // 2
    digits = (len(weights) - 1).bit_length()
    own, alias, thresholds = _columns(weights, digits)
    shift = _WORD - digits
    firsts = [(c << shift) | (t >> 2 * _HALF) for c, t in enumerate(thresholds)]
    lows = [((t >> _HALF) % 2**_HALF, t % 2**_HALF) for t in thresholds]
    values = np.array([own, alias], dtype=np.int64).T.reshape(-1) - largest
    return _Table(
        shift=np.uint32(shift),
        thresholds=np.array(firsts, dtype=np.uint32),
        lows=np.array(lows, dtype=np.uint64),
        values=values * scale,
        bound=scale * largest,
    )


def _weights(variance: Decimal) -> list[int]:
    """Probabilities of ``-m .. m``, in multiples of 2⁻¹⁶⁰: their sum is 1 exactly.

    ``exp(-x² / 2σ²)`` is ``exp(-(x - 1)² / 2σ²)`` times ``exp(-(2x - 1) / 2σ²)``, and that factor
    shrinks by ``exp(-1 / σ²)`` from one x to the next. Rounding errors of 10⁻⁶⁰ grow with x², to
    10⁻⁵³ at most.
    """
    largest = math.ceil(TAIL * math.sqrt(variance))
    with decimal.localcontext(_EXACT):
        factor, shrink = (-1 / (2 * variance)).exp(), (-1 / variance).exp()
        density = [Decimal(1)]
        for _ in range(largest):
            density.append(density[-1] * factor)
            factor *= shrink
        unit = 2**_BITS / (1 + 2 * sum(density[1:]))
        right = [int(each * unit) for each in density[1:]]
    return [*reversed(right), 2**_BITS - 2 * sum(right), *right]


def _columns(weights: list[int], digits: int) -> tuple[list[int], list[int], list[int]]:
    """Divides the weights over ``2 ** digits`` columns of equal weight, two to a column.

    Returns:
        By column: who has the part below the threshold, who has the rest, and the threshold, in
        [0, 2 ** (160 - digits)). Exact.
    """
    count, full = 2**digits, 2 ** (_BITS - digits)
    left = [*weights, *[0] * (count - len(weights))]
    own, alias, thresholds = list(range(count)), list(range(count)), [0] * count
    small = [c for c in range(count) if left[c] < full]
    large = [c for c in range(count) if left[c] >= full]
    while small:  # what is left is `full` on average: as long as one has less, one has more
        column, giver = small.pop(), large[-1]
        thresholds[column], alias[column] = left[column], giver
        own[column] = column if left[column] else giver
        left[giver] -= full - left[column]
        if left[giver] < full:
            small.append(large.pop())
    return own, alias, thresholds
