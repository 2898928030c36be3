"""The tables against exact probabilities; ``tests/statistical`` looks at what is drawn."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from dovetail.crypto.prg import derive_key
from dovetail.errors import PrivacyError
from dovetail.privacy import discrete_gaussian
from dovetail.privacy.discrete_gaussian import (
    DISTANCE,
    STDS,
    TAIL,
    DiscreteGaussian,
    DiscreteSampler,
    _Table,
    _tables,
)
from dovetail.privacy.sampler import SecureSampler

Law = dict[int, Fraction]
KEY = bytes(range(16))


def _law_of(table: _Table) -> Law:
    """Probability of every value, read off the table."""
    shift, law = int(table.shift), dict[int, Fraction]()
    columns = len(table.thresholds)
    assert columns == 2 ** (32 - shift)
    for column in range(columns):
        first, (high, low) = int(table.thresholds[column]), map(int, table.lows[column])
        assert first >> shift == column
        threshold = ((first % 2**shift) << 128) | (high << 64) | low
        below = Fraction(threshold, 2 ** (shift + 128)) / columns
        own, other = (int(value) for value in table.values[2 * column : 2 * column + 2])
        law[own] = law.get(own, Fraction()) + below
        law[other] = law.get(other, Fraction()) + Fraction(1, columns) - below
    return law


def _exact(variance: Fraction, largest: int) -> Law:
    """The discrete Gaussian on ``-largest .. largest``, to 75 digits."""
    with decimal.localcontext(decimal.Context(prec=80)):
        double = Decimal(2 * variance.numerator) / Decimal(variance.denominator)
        half = [(-Decimal(x * x) / double).exp() for x in range(largest + 1)]
        total = 2 * sum(half) - 1
        law = {x: Fraction(weight / total) for x, weight in enumerate(half)}
    return {x: law[abs(x)] for x in range(-largest, largest + 1)}


def _distance(one: Law, other: Law) -> Fraction:
    nothing = Fraction()
    return sum((abs(one.get(x, nothing) - other.get(x, nothing)) for x in {*one, *other}), nothing)


def _sum(one: Law, other: Law) -> Law:
    unit, total = 2**400, dict[int, int]()
    right = [(y, int(q * unit)) for y, q in other.items()]
    for x, p in one.items():
        left = int(p * unit)
        for y, weight in right:
            total[x + y] = total.get(x + y, 0) + left * weight
    return {x: Fraction(weight, unit**2) for x, weight in total.items()}


@pytest.mark.parametrize("std", [10.0, 10.1, 37.5, 128.0, 146.0])
def test_a_table_has_the_exact_probabilities(std: float) -> None:
    (table,) = _tables(std)
    law = _law_of(table)
    assert sum(law.values()) == 1
    cut = _exact(Fraction(std) ** 2, table.bound)
    assert _distance(law, cut) / 2 <= Fraction(1, 2**148)
    assert _distance(law, _exact(Fraction(std) ** 2, 2 * table.bound)) / 2 <= Fraction(1, 2**140)
    wrong = _exact(Fraction(std * (1 + 1e-12)) ** 2, table.bound)
    assert _distance(law, wrong) / 2 > Fraction(1, 2**60)


@pytest.mark.parametrize("std", [146.5, 200.3, 333.0])
def test_a_sum_of_tables_has_the_exact_probabilities(std: float) -> None:
    one, other = _tables(std)
    law = _sum(_law_of(one), _law_of(other))
    reference = _exact(Fraction(std) ** 2, one.bound + other.bound)
    assert _distance(law, reference) / 2 <= Fraction(DISTANCE)


@pytest.mark.parametrize("std", [147.0, 5e3, 1e5, 123_456_789.0, 1e9, STDS[1]])
def test_every_sum_is_of_tables_that_the_proof_allows(std: float) -> None:
    variance, tables = 0.0, _tables(std)
    assert len(tables) <= 7
    for at, outer in enumerate(tables[:-1]):
        scale = int(np.gcd.reduce(outer.values))
        largest = outer.bound // scale
        assert largest / TAIL >= 72
        assert sum(inner.bound for inner in tables[at + 1 :]) >= TAIL * 2.5 * scale
    for table in tables:
        law = _law_of(table)
        variance += float(sum(x * x * p for x, p in law.items()))
    assert math.sqrt(variance) == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("std", [10.0, 150.0, 1e4, 1e9, STDS[1]])
def test_no_number_exceeds_the_bound(std: float) -> None:
    law = DiscreteGaussian(std)
    assert TAIL * std <= law.bound <= 15 * std
    assert law.bound == sum(int(np.abs(table.values).max()) for table in _tables(std))
    assert int(np.abs(DiscreteSampler(KEY).draw(law, 10_000)).max()) < law.bound


class _Script:
    """A keystream whose words were written beforehand."""

    def __init__(self, words: list[int], more: list[int]) -> None:
        self._words, self._more = words, more

    def fill(self, buffer: Any) -> None:
        buffer[:] = self._words

    def words64(self, n: int) -> Any:
        assert n == len(self._more)
        return np.array(self._more, dtype=np.uint64)


def test_ties_are_broken_by_the_rest_of_the_threshold() -> None:
    (table,) = _tables(10.0)
    column = next(c for c in range(140, 256) if table.lows[c].all() and table.lows[c, 0] < 2**63)
    first, (high, low) = int(table.thresholds[column]), map(int, table.lows[column])
    own, other = table.values[2 * column : 2 * column + 2].tolist()
    rests = {(high, low - 1): own, (high, low): other, (high - 1, 2**64 - 1): own}
    rests[high + 1, 0] = other
    sampler: Any = DiscreteSampler(KEY)
    sampler._stream = _Script(
        [first - 1, *[first] * 4, first + 1], [half for rest in rests for half in rest]
    )
    found = sampler.draw(DiscreteGaussian(10.0), 6)
    assert found.tolist() == [own, *rests.values(), other]


def test_equal_keys_give_equal_draws_and_others_do_not() -> None:
    law = DiscreteGaussian(1e6)
    draws = [DiscreteSampler(key).draw(law, 1_000) for key in (KEY, KEY, bytes(16))]
    assert np.array_equal(draws[0], draws[1])
    assert np.isin(draws[0], draws[2]).sum() < 5


def test_no_two_draws_and_no_other_sampler_share_keystream(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []

    def derived(key: bytes, *context: str | int) -> bytes:
        keys.append(derive_key(key, *context))
        return keys[-1]

    for module in (discrete_gaussian, __import__("dovetail.privacy.sampler", fromlist=["x"])):
        monkeypatch.setattr(module, "derive_key", derived)
    sampler, _ = DiscreteSampler(KEY), SecureSampler(KEY)
    assert len(set(keys)) == len(keys) == 3
    law = DiscreteGaussian(1e9)
    one, other = sampler.draw(law, 5_000), sampler.draw(law, 5_000)
    assert len({*one.tolist(), *other.tolist()}) > 9_900


def test_a_draw_has_the_length_that_was_asked_for() -> None:
    law = DiscreteGaussian(50.0)
    whole = DiscreteSampler(KEY).draw(law, 40_000)
    assert whole.shape == (40_000,)
    assert whole.dtype == np.int64
    assert DiscreteSampler(KEY).draw(law, 0).size == 0


def test_noise_is_added_to_what_is_there_modulo_the_word() -> None:
    law = DiscreteGaussian(1e4)
    vector = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
    DiscreteSampler(KEY).add_to(vector, law)
    drawn = DiscreteSampler(KEY).draw(law, 24)
    assert np.array_equal(vector.ravel() - np.arange(24), drawn)
    edge = np.full(24, np.iinfo(np.int64).max)
    DiscreteSampler(KEY).add_to(edge, law)
    assert np.array_equal(edge - np.iinfo(np.int64).max, drawn)


@pytest.mark.parametrize("std", [9.99, 0.0, -20.0, math.nan, math.inf, STDS[1] * 1.01])
def test_stds_that_cannot_be_drawn_are_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="std"):
        DiscreteGaussian(std)


def test_arrays_that_cannot_hold_the_noise_are_refused() -> None:
    sampler, law = DiscreteSampler(KEY), DiscreteGaussian(20.0)
    frozen = np.zeros(4, dtype=np.int64)
    frozen.setflags(write=False)
    for array in (np.zeros(4), np.zeros(4, np.int32), np.zeros((4, 4), np.int64)[:, 0], frozen):
        with pytest.raises(PrivacyError, match="int64"):
            sampler.add_to(array, law)  # type: ignore[arg-type]


def test_a_short_key_is_refused() -> None:
    with pytest.raises(PrivacyError):
        DiscreteSampler(bytes(15))
