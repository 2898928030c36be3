"""The noise has the distribution that the accounting assumes.

Keys are fixed, so that a verdict never changes. A test accepts at p >= 1e-6 and, where it is about
scale, must reject the same sample with 0.7 and 1.3 times the noise.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from dovetail.crypto.prg import derive_key
from dovetail.privacy.event import Gaussian, SampledGaussian
from dovetail.privacy.mechanism import (
    add_delayed_noise,
    add_noise,
    grid_of,
    noised_sum,
    to_grid,
)
from dovetail.privacy.sampler import SecureSampler

Sample = npt.NDArray[np.float64]
P_VALUE = 1e-6
SIZE = 1_000_000


def _sampler(name: str) -> SecureSampler:
    return SecureSampler(derive_key(bytes(16), "statistical tests", name))


def _normal(_: str) -> Sample:
    return _sampler("normal").normal(SIZE).astype(np.float64)


def _many_small_draws(_: str) -> Sample:
    sampler = _sampler("small draws")
    return np.concatenate([sampler.normal(n) for n in [1, 7, 64, 65] * 2_000]).astype(np.float64)


def _mechanism(_: str) -> Sample:
    total = np.linspace(-40, 40, SIZE, dtype=np.float32)
    noised = noised_sum(total, Gaussian(1.0, 3.0), _sampler("mechanism"))
    return (noised.astype(np.float64) - total) / 3.0


def _mechanism_in_place(_: str) -> Sample:
    event, sampler = SampledGaussian(0.1, 0.5, 0.31), _sampler("in place")
    parts = [np.zeros(shape, dtype=np.float32) for shape in [(64, 128), (64,), (1, 64), (1,)] * 30]
    for part in parts:
        add_noise(part, event, sampler)
    return np.concatenate([part.ravel() for part in parts]).astype(np.float64) / 0.31


def _rows(_: str) -> Sample:
    steps = np.arange(1, 1_001, dtype=np.int64)
    rows = np.zeros((1_000, 100), dtype=np.float32)
    add_delayed_noise(rows, steps, Gaussian(1.0, 0.8), _sampler("rows"))
    to_grid(rows, Gaussian(1.0, 0.8))
    return (rows.astype(np.float64) / (0.8 * np.sqrt(steps)[:, np.newaxis])).ravel()


SOURCES = [_normal, _many_small_draws, _mechanism, _mechanism_in_place, _rows]


def _p_of_variance(sample: Sample) -> float:
    """Two-sided: the sum of squares of n standard normal numbers is chi-squared."""
    squares = float((sample**2).sum())
    law = stats.chi2(len(sample))
    return float(2 * min(law.cdf(squares), law.sf(squares)))


def _p_of_mean(sample: Sample) -> float:
    return float(2 * stats.norm.sf(abs(sample.mean()) * np.sqrt(len(sample))))


def _p_of_shape(sample: Sample) -> float:
    """Chi-squared over 200 equally likely bins.

    The mechanism's grid does not show: its sums lie evenly between the grid's points.
    """
    edges = stats.norm.ppf(np.linspace(0, 1, 201))
    counts, _ = np.histogram(sample, bins=edges)
    return float(stats.chisquare(counts).pvalue)


def _p_of_distribution(sample: Sample) -> float:
    return float(stats.kstest(sample, "norm").pvalue)


def _p_of_correlation(one: Sample, other: Sample) -> float:
    correlation = float((one * other).mean()) * np.sqrt(len(one))
    return float(2 * stats.norm.sf(abs(correlation)))


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.__name__.strip("_"))
def test_variance_is_the_stated_one_and_30_percent_is_seen(
    source: Callable[[str], Sample],
) -> None:
    sample = source("")
    assert _p_of_variance(sample) > P_VALUE
    assert _p_of_variance(1.3 * sample) < P_VALUE
    assert _p_of_variance(0.7 * sample) < P_VALUE


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.__name__.strip("_"))
def test_mean_is_zero_and_a_shift_is_seen(source: Callable[[str], Sample]) -> None:
    sample = source("")
    assert _p_of_mean(sample) > P_VALUE
    assert _p_of_mean(sample + 0.02) < P_VALUE


@pytest.mark.parametrize("source", [_normal, _many_small_draws, _mechanism])
@pytest.mark.parametrize("p_of", [_p_of_shape, _p_of_distribution])
def test_shape_is_normal_and_30_percent_is_seen(
    p_of: Callable[[Sample], float], source: Callable[[str], Sample]
) -> None:
    sample = source("")
    assert p_of(sample) > P_VALUE
    assert p_of(1.3 * sample) < P_VALUE
    assert p_of(0.7 * sample) < P_VALUE


def test_cells_of_the_grid_have_the_probabilities_of_a_rounded_normal() -> None:
    """For a sum that lies between grid points, where a biased rounding would show."""
    event = Gaussian(1.0, 1.0)
    grid, shift = grid_of(event), 0.37 * grid_of(event)
    total = np.full(SIZE, shift, dtype=np.float32)
    cells = np.rint(noised_sum(total, event, _sampler("cells")) / grid).astype(int)
    inner = np.arange(-48, 49)
    expected = np.diff(stats.norm.cdf((np.append(inner, 49) - 0.5) * grid - shift)) * SIZE
    counts = np.array([(cells == cell).sum() for cell in inner], dtype=np.float64)
    observed = np.append(counts, SIZE - counts.sum())
    wanted = np.append(expected, SIZE - expected.sum())
    assert stats.chisquare(observed, wanted).pvalue > P_VALUE
    unshifted = np.diff(stats.norm.cdf((np.append(inner, 49) - 0.5) * grid)) * SIZE
    wrong = np.append(unshifted, SIZE - unshifted.sum())
    assert stats.chisquare(observed, wrong).pvalue < P_VALUE


def test_tails_are_as_heavy_as_they_should_be() -> None:
    sample = np.abs(SecureSampler(derive_key(bytes(16), "tails")).normal(4 * SIZE))
    for threshold in (3.0, 4.0, 4.75):
        expected = 4 * SIZE * 2 * stats.norm.sf(threshold)
        seen = int((sample > threshold).sum())
        assert 2 * min(stats.poisson.cdf(seen, expected), stats.poisson.sf(seen - 1, expected)) > (
            P_VALUE
        )


@pytest.mark.parametrize("lag", [1, 2, 3, 4096, 16_384, 32_768])
def test_numbers_do_not_depend_on_earlier_ones(lag: int) -> None:
    sample = _normal("")
    assert _p_of_correlation(sample[:-lag], sample[lag:]) > P_VALUE
    squares = (sample**2 - 1) / np.sqrt(2)  # a pair shares a radius: its squares must not show it
    assert _p_of_correlation(squares[:-lag], squares[lag:]) > P_VALUE
    mixed = sample[lag:] + 0.05 * sample[:-lag]
    assert _p_of_correlation(sample[:-lag], mixed) < P_VALUE


def test_the_two_numbers_of_a_pair_are_independent() -> None:
    """Cosine and sine of one draw of 2 m numbers: the first m and the last m."""
    draws = [_sampler(f"pair {i}").normal(2_000).astype(np.float64) for i in range(200)]
    cosines = np.concatenate([draw[:1_000] for draw in draws])
    sines = np.concatenate([draw[1_000:] for draw in draws])
    assert _p_of_correlation(cosines, sines) > P_VALUE
    assert _p_of_correlation((cosines**2 - 1) / np.sqrt(2), (sines**2 - 1) / np.sqrt(2)) > P_VALUE


def test_successive_calls_are_independent() -> None:
    sampler = _sampler("calls")
    one, other = (sampler.normal(SIZE // 4).astype(np.float64) for _ in range(2))
    assert not np.isin(one[:1_000].astype(np.float32), other[:1_000].astype(np.float32)).any()
    assert _p_of_correlation(one, other) > P_VALUE
    assert _p_of_variance((one + other) / np.sqrt(2)) > P_VALUE
    assert _p_of_variance((one + one) / np.sqrt(2)) < P_VALUE


@pytest.mark.parametrize("prob", [0.002, 0.05, 0.5, 0.97])
def test_sample_sizes_are_binomial(prob: float) -> None:
    sampler, runs, customers = _sampler(f"sizes {prob}"), 2_000, 1_500
    sizes = np.array([len(sampler.poisson_sample(customers, prob)) for _ in range(runs)])
    law = stats.binom(customers, prob)
    cuts = np.unique(law.ppf(np.linspace(0.05, 0.95, 13)))
    expected = np.diff(np.concatenate([[0.0], law.cdf(cuts), [1.0]])) * runs
    observed = np.bincount(np.searchsorted(cuts, sizes), minlength=len(expected))
    assert stats.chisquare(observed, expected).pvalue > P_VALUE
    assert _p_of_rate(int(sizes.sum()), runs * customers, prob) > P_VALUE
    assert _p_of_rate(int(sizes.sum()), runs * customers, prob * 0.7) < P_VALUE


def _p_of_rate(hits: int, trials: int, prob: float) -> float:
    return float(stats.binomtest(hits, trials, prob).pvalue)


def test_every_customer_joins_equally_often_and_independently_of_neighbours() -> None:
    sampler, runs, customers, prob = _sampler("inclusion"), 20_000, 50, 0.3
    joined = np.zeros((runs, customers))
    for row in joined:
        row[sampler.poisson_sample(customers, prob)] = 1
    spread = runs * prob * (1 - prob)
    distance = ((joined.sum(axis=0) - runs * prob) ** 2 / spread).sum()
    assert stats.chi2.sf(distance, customers) > P_VALUE
    standard = (joined - prob) / np.sqrt(prob * (1 - prob))
    for gap in (1, 2, 7, 49):
        one, other = standard[:, :-gap].ravel(), standard[:, gap:].ravel()
        assert _p_of_correlation(one, other) > P_VALUE
    assert _p_of_correlation(standard[:-1].ravel(), standard[1:].ravel()) > P_VALUE
    assert _p_of_correlation(standard[:, 0], standard[:, 0]) < P_VALUE


def test_gaps_are_geometric() -> None:
    prob = 0.2
    members = _sampler("gaps").poisson_sample(2_000_000, prob)
    gaps = np.diff(members)
    law = stats.geom(prob)
    observed = np.bincount(np.minimum(gaps, 30), minlength=31)[1:]
    expected = np.append(law.pmf(np.arange(1, 30)), law.sf(29)) * len(gaps)
    assert stats.chisquare(observed, expected).pvalue > P_VALUE
