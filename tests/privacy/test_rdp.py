from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from dovetail.privacy import rdp

STEPS = st.tuples(st.floats(0.3, 50.0), st.floats(1e-4, 0.9) | st.just(1.0))


def _their_epsilon(multiplier: float, prob: float, count: int, delta: float) -> float:
    theirs = RdpAccountant(list(rdp.ORDERS))
    step = PoissonSampledDpEvent(prob, GaussianDpEvent(multiplier))
    theirs.compose(SelfComposedDpEvent(step, count))
    return float(theirs.get_epsilon(delta))


@given(STEPS, st.integers(1, 2000), st.sampled_from([1e-4, 1e-5, 1e-8]))
@settings(max_examples=60, deadline=None)
def test_agrees_with_dp_accounting_at_the_same_orders(
    step: tuple[float, float], count: int, delta: float
) -> None:
    theirs = _their_epsilon(*step, count, delta)
    ours = rdp.epsilon(((step, count),), delta)
    assert ours >= theirs * (1 - 1e-9)
    if theirs:  # they state 0 where the total variation lies below δ; we do not try
        assert ours == pytest.approx(theirs, rel=1e-5)


@given(STEPS, st.integers(1, 300))
@settings(max_examples=25, deadline=None)
def test_never_states_less_than_the_least_that_is_possible(
    step: tuple[float, float], count: int
) -> None:
    """dp_accounting's optimistic estimate lies below the true ε."""
    multiplier, prob = step
    ours = rdp.epsilon(((step, count),), 1e-5)
    if ours > 30:
        return
    least = privacy_loss_distribution.from_gaussian_mechanism(
        multiplier,
        pessimistic_estimate=False,
        value_discretization_interval=2e-3,
        sampling_prob=prob,
    )
    assert ours >= least.self_compose(count).get_epsilon_for_delta(1e-5)


@pytest.mark.parametrize(("multiplier", "prob"), [(0.7, 0.3), (1.0, 0.01), (5.0, 0.001)])
@pytest.mark.parametrize("order", [2, 3, 8])
def test_a_divergence_is_the_integral_that_defines_it(
    multiplier: float, prob: float, order: int
) -> None:
    """Both directions: Mironov, Talwar and Zhang (2019) show that ours is the larger one."""

    def ratio(x: float) -> float:
        return 1 - prob + prob * math.exp((2 * x - 1) / (2 * multiplier**2))

    def moment(power: int) -> float:
        def integrand(x: float) -> float:
            return float(stats.norm.pdf(x, scale=multiplier)) * ratio(x) ** power

        limits = -40 * multiplier, 40 * multiplier + order
        points = [0.0, 1.0, float(order)]
        return float(integrate.quad(integrand, *limits, points=points, epsabs=1e-13, limit=500)[0])

    added, removed = math.log(moment(order)), math.log(moment(1 - order))
    ours = rdp.divergences((multiplier, prob))[list(rdp.ORDERS).index(order)] * (order - 1)
    assert ours == pytest.approx(added, rel=1e-6, abs=1e-11)
    assert ours >= removed - 1e-11


@pytest.mark.parametrize("prob", [1e-3, 1e-6, 1e-9])
def test_a_small_sample_cancels_nothing(prob: float) -> None:
    """At order 2, A = 1 + q² (exp(1/σ²) - 1): a float holds 1 + 1e-18 as 1, and we do not."""
    exact = Fraction(prob) ** 2 * Fraction(math.expm1(1 / 4))
    assert rdp.divergences((2.0, prob))[0] == pytest.approx(float(exact), rel=1e-6)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_divergences_grow_with_the_order(step: tuple[float, float]) -> None:
    found = rdp.divergences(step)
    assert np.isfinite(found).all()
    assert found[0] > 0
    assert (np.diff(found) >= -1e-9 * found[1:]).all()


@pytest.mark.parametrize("multiplier", [0.01, 1.0, 1e6])
@pytest.mark.parametrize("prob", [1e-12, 0.5, 1 - 2**-53, 1.0])
def test_the_ends_of_the_arithmetic_give_numbers(multiplier: float, prob: float) -> None:
    assert np.isfinite(rdp.divergences((multiplier, prob))).all()


def test_nothing_costs_nothing() -> None:
    assert rdp.epsilon((), 1e-5) == 0


def test_a_history_that_no_float_holds_is_infinite() -> None:
    assert rdp.epsilon((((0.01, 1.0), 10**308),), 1e-5) == math.inf
