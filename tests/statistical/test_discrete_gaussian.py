"""Discrete noise has the distribution that the accounting assumes, share by share and in sum.

Keys are fixed, so that a verdict never changes. A test accepts at p >= 1e-6 and must reject the
same sample against 0.7 and 1.3 times the std, and when it is shifted.
"""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from dovetail.crypto.prg import derive_key
from dovetail.privacy.discrete_gaussian import DiscreteGaussian, DiscreteSampler
from dovetail.privacy.event import SharedGaussian
from dovetail.privacy.mechanism import add_noise_share

Whole = npt.NDArray[np.int64]
P_VALUE = 1e-6
SIZE = 400_000
STDS = [10.0, 37.7, 146.0, 146.1, 1_000.0, 12_345.6, 1e6, 1e9]


def _sampler(*name: str | int) -> DiscreteSampler:
    return DiscreteSampler(derive_key(bytes(16), "statistical tests", *name))


def _draw(std: float) -> Whole:
    return _sampler("discrete", int(10 * std)).draw(DiscreteGaussian(std), SIZE)


def _p_of_shape(sample: Whole, std: float) -> float:
    """Chi-squared over some 200 intervals of whole numbers, about equally likely.

    Probabilities of single numbers are added up exactly where there are few, and those of the
    normal distribution are taken where its difference from the discrete one is below 1e-9.
    """
    edges = np.unique(np.rint(stats.norm.ppf(np.linspace(0, 1, 201)[1:-1], scale=std)))
    if std < 1_000:
        numbers = np.arange(-int(15 * std), int(15 * std) + 1)
        weights = np.exp(-((numbers / std) ** 2) / 2)
        below = np.cumsum(weights / weights.sum())[np.searchsorted(numbers, edges)]
    else:
        below = stats.norm.cdf(edges + 0.5, scale=np.sqrt(std**2 - 1 / 12))
    counts = np.bincount(np.searchsorted(edges, sample), minlength=len(edges) + 1)
    expected = np.diff(np.concatenate([[0.0], below, [1.0]])) * len(sample)
    return float(stats.chisquare(counts, expected * (len(sample) / expected.sum())).pvalue)


def _p_of_distribution(sample: Whole, std: float) -> float:
    """Kolmogorov and Smirnov, after spreading each number evenly over its interval."""
    jitter = np.random.default_rng(1).random(len(sample)) - 0.5
    spread = np.sqrt(std**2 + 1 / 12)  # normal to 1e-6, far below what this sample can tell
    return float(stats.kstest((sample + jitter) / spread, "norm").pvalue)


def _p_of_variance(sample: Whole, std: float) -> float:
    """Two-sided: the sum of squares of n standard normal numbers is chi-squared."""
    squares = float(((sample / std) ** 2).sum())
    law = stats.chi2(len(sample))
    return float(2 * min(law.cdf(squares), law.sf(squares)))


def _p_of_mean(sample: Whole, std: float) -> float:
    return float(2 * stats.norm.sf(abs(sample.mean()) / std * np.sqrt(len(sample))))


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("p_of", [_p_of_shape, _p_of_distribution, _p_of_variance])
def test_the_std_is_the_stated_one_and_30_percent_is_seen(p_of, std: float) -> None:
    sample = _draw(std)
    assert p_of(sample, std) > P_VALUE
    assert p_of(sample, 0.7 * std) < P_VALUE
    assert p_of(sample, 1.3 * std) < P_VALUE


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("p_of", [_p_of_shape, _p_of_distribution, _p_of_mean])
def test_the_mean_is_zero_and_a_shift_is_seen(p_of, std: float) -> None:
    sample = _draw(std)
    assert p_of(sample, std) > P_VALUE
    assert p_of(sample + round(0.05 * std) + 1, std) < P_VALUE


@pytest.mark.parametrize("std", STDS)
def test_higher_moments_are_normal(std: float) -> None:
    scaled = _draw(std) / std
    for power, moment, variance in ((3, 0.0, 15.0), (4, 3.0, 96.0), (6, 15.0, 10_170.0)):
        error = np.sqrt(variance / SIZE)
        assert abs((scaled**power).mean() - moment) < 5 * error
        assert abs(((1.3 * scaled + 0.1) ** power).mean() - moment) > 5 * error


@pytest.mark.parametrize("std", [10.0, 1e6])
@pytest.mark.parametrize("lag", [1, 2, 16_384])
def test_numbers_do_not_depend_on_earlier_ones(lag: int, std: float) -> None:
    sample = _draw(std) / std
    one, other = sample[:-lag], sample[lag:]
    for a, b in ((one, other), ((one**2 - 1) / np.sqrt(2), (other**2 - 1) / np.sqrt(2))):
        assert 2 * stats.norm.sf(abs((a * b).mean()) * np.sqrt(len(a))) > P_VALUE
    mixed = other + 0.05 * one
    assert 2 * stats.norm.sf(abs((one * mixed).mean()) * np.sqrt(len(one))) < P_VALUE


@pytest.mark.parametrize("std", [150.0, 7_000.0])
@pytest.mark.parametrize("modulus", [2, 3, 7])
def test_no_remainder_is_preferred(std: float, modulus: int) -> None:
    """A weighted sum ``s A + B`` with too little B would prefer multiples of s."""
    remainders = _draw(std) % modulus
    counts = np.bincount(remainders, minlength=modulus)
    assert stats.chisquare(counts).pvalue > P_VALUE
    scale = -(-int(std) // 146)
    counts = np.bincount(_draw(std) % scale, minlength=scale)
    assert stats.chisquare(counts).pvalue > P_VALUE
    narrow = _draw(std) // scale * scale + (_draw(std) % scale > scale // 2)
    assert stats.chisquare(np.bincount(narrow % scale, minlength=scale)).pvalue < P_VALUE


class _Rejection:
    """Exact sampling by coins and whole numbers only.

    Source: Canonne, Kamath and Steinke (2020), "The discrete Gaussian for differential privacy",
    Alg. 1 to 3.
    """

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def bernoulli(self, num: int, den: int) -> bool:
        return self._dice.randrange(den) < num

    def bernoulli_exp(self, num: int, den: int) -> bool:
        """With probability ``exp(-num / den)``."""
        while num > den:
            if not self.bernoulli_exp(1, 1):
                return False
            num -= den
        k = 1
        while self.bernoulli(num, den * k):
            k += 1
        return k % 2 == 1

    def laplace(self, scale: int) -> int:
        while True:
            rest = self._dice.randrange(scale)
            if not self.bernoulli_exp(rest, scale):
                continue
            whole = 0
            while self.bernoulli_exp(1, 1):
                whole += 1
            size, negative = rest + scale * whole, self.bernoulli(1, 2)
            if size or not negative:
                return -size if negative else size

    def gaussian(self, std: int) -> int:
        scale = std + 1
        while True:
            drawn = self.laplace(scale)
            excess = abs(drawn) * scale - std * std
            if self.bernoulli_exp(excess**2, 2 * std * std * scale * scale):
                return drawn


@pytest.mark.parametrize("std", [10, 60, 500])
def test_agrees_with_exact_rejection(std: int) -> None:
    rejection = _Rejection(std)
    exact = np.array([rejection.gaussian(std) for _ in range(15_000)])
    sample = _draw(float(std))
    assert stats.ks_2samp(exact, sample).pvalue > P_VALUE
    assert stats.ks_2samp(exact, _draw(1.3 * std)).pvalue < P_VALUE
    assert stats.ks_2samp(exact, sample + std // 5).pvalue < P_VALUE
    assert _p_of_shape(exact, float(std)) > P_VALUE


@pytest.mark.parametrize(("nodes", "tolerated"), [(3, 1), (5, 2), (4, 3)])
def test_the_shares_that_are_left_add_up_whoever_drops_out(nodes: int, tolerated: int) -> None:
    event = SharedGaussian(0.1, 100.0, 250.0, nodes, tolerated, size=200_000)
    shares = np.zeros((nodes, event.size), dtype=np.int64)
    for node, share in enumerate(shares):
        add_noise_share(share, event, _sampler("shares", nodes, node))
    enough = nodes - tolerated
    for left in combinations(range(nodes), enough):
        total = shares[list(left)].sum(axis=0)
        assert _p_of_shape(total, event.noise_std) > P_VALUE
        assert _p_of_variance(total, event.noise_std) > P_VALUE
    for left in combinations(range(nodes), enough - 1):
        total = shares[list(left)].sum(axis=0)
        assert _p_of_variance(total, event.noise_std) < P_VALUE
        assert _p_of_shape(total, event.noise_std) < P_VALUE
    everybody = shares.sum(axis=0)
    assert _p_of_variance(everybody, event.share_std * np.sqrt(nodes)) > P_VALUE
