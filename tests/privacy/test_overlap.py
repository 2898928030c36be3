"""A person at several partners, written out, is never dearer than what is charged."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import optimize, stats

from dovetail.errors import PrivacyError
from dovetail.privacy.accountant import epsilon
from dovetail.privacy.event import SharedGaussian, Spending
from dovetail.privacy.overlap import joint_event, joint_parts

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
def test_neither_bound_lies_below_the_exact_cost(prob: float, partners: int) -> None:
    event = _event(prob)
    exact = _exact_epsilon(event, partners)
    part, times = joint_parts(event, partners)
    bounds: list[Spending] = [{joint_event(event, partners): 1}, {part: times}]
    for spending in bounds:
        assert epsilon(spending, DELTA) >= exact - 1e-9
    assert epsilon({event: 1}, DELTA) < exact


@pytest.mark.parametrize("partners", [2, 5])
def test_without_sampling_both_bounds_are_exact(partners: int) -> None:
    event = _event(1.0)
    exact = _exact_epsilon(event, partners)
    part, times = joint_parts(event, partners)
    assert epsilon({joint_event(event, partners): 1}, DELTA) == pytest.approx(exact, rel=2e-3)
    assert epsilon({part: times}, DELTA) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("prob", [1e-4, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("multiplier", [3.0, 10.0])
def test_parts_are_the_cheaper_bound(prob: float, multiplier: float) -> None:
    event = _event(prob, multiplier)
    part, times = joint_parts(event, 3)
    for steps in (1, 20):
        at_once = epsilon({joint_event(event, 3): steps}, 1e-5)
        assert epsilon({part: times * steps}, 1e-5) <= at_once * 1.002 + 1e-3


def test_one_partner_is_the_event_itself() -> None:
    event = _event(0.1)
    assert joint_event(event, 1) == event
    assert joint_parts(event, 1) == (event, 1)


def test_the_joint_event_is_the_stated_one() -> None:
    found = joint_event(_event(0.25), 2)
    assert found.sampling_prob == pytest.approx(1 - 0.75**2)
    assert found.l2_sensitivity == 2e6
    assert (found.noise_std, found.nodes, found.tolerated, found.size) == (4e6, 3, 1, 10)
    assert joint_event(_event(1e-12), 4).sampling_prob == pytest.approx(4e-12, rel=1e-9)


@pytest.mark.parametrize("partners", [0, -1, True, 2.0])
def test_a_number_of_partners_that_is_none_is_refused(partners: int) -> None:
    for bound in (joint_event, joint_parts):
        with pytest.raises(PrivacyError, match="partners"):
            bound(_event(0.1), partners)
