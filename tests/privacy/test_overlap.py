"""A person at several partners, written out, is never dearer than what is charged."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import optimize, stats

from dovetail.errors import PrivacyError
from dovetail.privacy.accountant import epsilon
from dovetail.privacy.event import SharedGaussian
from dovetail.privacy.overlap import joint_parts

DELTA = 1e-4


def _event(prob: float, multiplier: float = 4.0, nodes: int = 3) -> SharedGaussian:
    return SharedGaussian(prob, 1e6, multiplier * 1e6, nodes, 1, size=10)


def _exact_epsilon(event: SharedGaussian, partners: int, most: int | None = None) -> float:
    """Of one sum that the person moves by ``k C``, k binomial, all in one direction: the worst."""
    std, weights = event.noise_multiplier, stats.binom(partners, event.sampling_prob)
    points = np.linspace(-9 * std, 9 * std + partners, 200_001)
    shifts = range((most or partners) + 1)
    with_them = sum(
        (weights.pmf(k) * stats.norm.pdf(points, k, std) for k in shifts), np.zeros_like(points)
    )
    without = stats.norm.pdf(points, 0, std)
    width = points[1] - points[0]

    def excess(eps: float, p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
        return float(np.maximum(p - math.exp(eps) * q, 0).sum() * width) - DELTA

    pairs = [(with_them, without), (without, with_them)]
    return max(
        optimize.brentq(excess, 0.0, 60.0, args=pair) if excess(0.0, *pair) > 0 else 0.0
        for pair in pairs
    )


@pytest.mark.parametrize("prob", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("partners", [2, 3, 6])
def test_parts_do_not_lie_below_the_exact_cost(prob: float, partners: int) -> None:
    event = _event(prob)
    exact = _exact_epsilon(event, partners)
    part, times = joint_parts(event, partners)
    assert epsilon({part: times}, DELTA) >= exact - 1e-9
    assert epsilon({event: 1}, DELTA) < exact


@pytest.mark.parametrize("partners", [2, 5])
def test_without_sampling_parts_are_exact(partners: int) -> None:
    event = _event(1.0)
    part, times = joint_parts(event, partners)
    exact = _exact_epsilon(event, partners)
    assert epsilon({part: times}, DELTA) == pytest.approx(exact, rel=2e-3)


def test_one_partner_is_the_event_itself() -> None:
    event = _event(0.1)
    assert joint_parts(event, 1) == (event, 1)


@pytest.mark.parametrize("partners", [0, -1, True, 2.0])
def test_a_number_of_partners_that_is_none_is_refused(partners: int) -> None:
    with pytest.raises(PrivacyError, match="partners"):
        joint_parts(_event(0.1), partners)
