"""The distance between discrete noise and rounded normal noise, by numbers instead of the proof."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

from dovetail.errors import PrivacyError
from dovetail.privacy.discrete_gaussian import DISTANCE
from dovetail.privacy.event import Gaussian, SampledGaussian, SharedGaussian, Spending
from dovetail.privacy.shared_noise import _CHI_SQUARE, distance, distance_of, twin

Reals = npt.NDArray[np.float64]
STDS = [10.0, 11.3, 15.0, 20.0, 33.3, 60.0]


def _event(noise_std: float = 1e4, nodes: int = 2, tolerated: int = 1, size: int = 1):
    return SharedGaussian(0.1, 1_000.0, noise_std, nodes, tolerated, size)


def _laws(std: float, variance: float) -> tuple[Reals, Reals]:
    """The discrete Gaussian, and normal numbers of a variance rounded, on the same numbers.

    Their relative difference, 1e-7 and less, is computed without cancelling: the probability of
    rounding to x is an integral over an interval of length 1, here by Gauss and Legendre.
    """
    numbers = np.arange(-int(9 * std), int(9 * std) + 1, dtype=np.float64)
    discrete = np.exp(-((numbers / std) ** 2) / 2)
    nodes, weights = special.roots_legendre(20)
    points = numbers[:, None] + nodes / 2
    rounded = np.exp(-(points**2) / (2 * variance)) @ (weights / 2)
    return discrete / discrete.sum(), rounded / math.sqrt(2 * math.pi * variance)


@pytest.mark.parametrize("std", STDS)
def test_chi_square_is_below_its_bound_and_near_it(std: float) -> None:
    discrete, rounded = _laws(std, std**2 - 1 / 12)
    assert rounded.sum() == pytest.approx(1, abs=1e-13)
    found = float(((rounded - discrete) ** 2 / discrete).sum())
    bound = _CHI_SQUARE / std**8
    assert bound / 1.3 < found < bound
    assert found == pytest.approx(1 / 345_600 / std**8, rel=0.02)


@pytest.mark.parametrize("std", STDS)
def test_distance_is_below_its_bound(std: float) -> None:
    discrete, rounded = _laws(std, std**2 - 1 / 12)
    divergence = float((rounded * np.log1p((rounded - discrete) / discrete)).sum())
    apart = float(np.abs(rounded - discrete).sum()) / 2
    bound = distance(_event(std))
    assert divergence <= _CHI_SQUARE / std**8
    assert bound / 3 < apart < bound


@pytest.mark.parametrize("std", STDS)
def test_normal_noise_of_the_same_std_is_much_farther_away(std: float) -> None:
    discrete, rounded = _laws(std, std**2)
    apart = float(np.abs(rounded - discrete).sum()) / 2
    assert apart > 10 * distance(_event(std))


def test_many_coordinates_are_no_farther_than_the_bound() -> None:
    """``1 + χ²`` of a product is the product, exactly; total variation lies below its half root."""
    discrete, rounded = _laws(10.0, 10.0**2 - 1 / 12)
    one = float(((rounded - discrete) ** 2 / discrete).sum())
    for size in (1, 100, 10**6, 10**12):
        root = math.sqrt(math.expm1(size * math.log1p(one))) / 2
        assert root <= distance(_event(10.0, size=size))


@pytest.mark.parametrize(("nodes", "size"), [(2, 1), (64, 10**6)])
def test_drawing_counts_once_for_every_number_of_every_node(nodes: int, size: int) -> None:
    found = distance(_event(1e11, nodes, nodes - 1, size))
    assert found == pytest.approx(nodes * size * DISTANCE, rel=1e-3)


def test_what_an_ordinary_job_pays_is_nothing() -> None:
    """A million parameters, 64 nodes, ten thousand steps."""
    assert 1e4 * distance(_event(1e6, 64, 20, 10**6)) < 1e-19


def test_the_twin_has_a_little_less_noise() -> None:
    event = _event(10.0)
    assert twin(event).noise_std == pytest.approx(10 * (1 - 1 / 2400), rel=1e-6)
    assert twin(event) == SampledGaussian(0.1, 1_000.0, math.sqrt(100 - 1 / 12))


def test_distances_of_shared_events_add_up_and_others_have_none() -> None:
    one, other = _event(20.0), _event(30.0, 3, 1, 50)
    spending: Spending = {
        one: 7,
        other: 2,
        Gaussian(1.0, 1.0): 9,
        SampledGaussian(0.1, 1.0, 1.0): 3,
    }
    assert distance_of(spending) == pytest.approx(7 * distance(one) + 2 * distance(other))
    assert distance_of({Gaussian(1.0, 1.0): 9}) == 0


@pytest.mark.parametrize("event", [_event(9.9), _event(1e15), _event(22.0, 9, 3)])
def test_shares_that_cannot_be_drawn_are_refused(event: SharedGaussian) -> None:
    for ask in (twin, distance):
        with pytest.raises(PrivacyError, match="share of the noise"):
            ask(event)
