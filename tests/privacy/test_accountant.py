import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants import RDPAccountant as OpacusRdp
from scipy import optimize, stats

from dovetail.errors import PrivacyError
from dovetail.privacy import accountant, pld
from dovetail.privacy.accountant import (
    Accountant,
    calibrate_noise_multiplier,
    epsilon,
    epsilon_rdp,
    fits,
)
from dovetail.privacy.event import Event, Gaussian, SampledGaussian, SharedGaussian, Spending
from dovetail.privacy.history import history_of
from dovetail.privacy.shared_noise import distance, twin

DELTA = 1e-5
HISTORIES = [(1.0, 0.01, 500), (2.0, 0.1, 300), (0.7, 0.05, 40), (4.0, 0.3, 200)]
MULTIPLIERS = st.floats(0.6, 20.0)
PROBS = st.sampled_from([0.003, 0.02, 0.1, 0.5, 1.0])
STEPS = st.integers(1, 400)


def _steps(multiplier: float, prob: float, count: int) -> Spending:
    return {SampledGaussian(prob, 1.0, multiplier): count}


def _exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of one Gaussian mechanism: Balle and Wang (2018), Theorem 8."""

    def excess(eps: float) -> float:
        tail = math.exp(eps) * stats.norm.cdf(-eps / mu - mu / 2)
        return float(stats.norm.cdf(mu / 2 - eps / mu) - tail - delta)

    return float(optimize.brentq(excess, 0.0, 100.0, xtol=1e-12))


class AccountantContract:
    """What every accountant of ours must do; each test class below is one accountant."""

    @staticmethod
    def cost(spending: Spending, delta: float = DELTA) -> float:
        raise NotImplementedError

    def test_nothing_costs_nothing(self) -> None:
        assert self.cost({}) == 0
        assert self.cost({Gaussian(1.0, 1.0): 0}) == 0

    def test_one_gaussian_costs_no_less_than_its_exact_cost(self) -> None:
        for multiplier in (0.5, 1.0, 3.0, 10.0):
            exact = _exact_gaussian_epsilon(1 / multiplier, DELTA)
            assert exact <= self.cost({Gaussian(1.0, multiplier): 1}) <= exact * 1.25

    def test_sampling_everybody_is_no_sampling(self) -> None:
        sampled = self.cost({SampledGaussian(1.0, 2.0, 6.0): 4})
        assert sampled == pytest.approx(self.cost({Gaussian(1.0, 3.0): 4}), rel=1e-9)

    def test_only_noise_per_sensitivity_counts(self) -> None:
        small = self.cost({SampledGaussian(0.1, 0.5, 1.0): 10})
        assert small == self.cost({SampledGaussian(0.1, 4.0, 8.0): 10})

    def test_equal_events_under_two_names_are_added(self) -> None:
        halves: Spending = {SampledGaussian(0.1, 1.0, 2.0): 5, SampledGaussian(0.1, 2.0, 4.0): 5}
        assert self.cost(halves) == self.cost(_steps(2.0, 0.1, 10))

    def test_order_of_the_history_does_not_matter(self) -> None:
        kinds: list[Event] = [SampledGaussian(0.1, 1.0, 2.0), Gaussian(1.0, 5.0)]
        kinds.append(SampledGaussian(0.02, 1.0, 1.0))
        forwards = {kind: i + 1 for i, kind in enumerate(kinds)}
        assert self.cost(forwards) == self.cost(dict(reversed(forwards.items())))

    def test_a_mixture_costs_more_than_its_parts_and_less_than_their_sum(self) -> None:
        one, other = _steps(1.0, 0.01, 100), _steps(3.0, 0.2, 50)
        both = self.cost({**one, **other})
        assert max(self.cost(one), self.cost(other)) < both < self.cost(one) + self.cost(other)

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan, math.inf])
    def test_delta_outside_its_range_is_refused(self, delta: float) -> None:
        with pytest.raises(PrivacyError, match="delta"):
            self.cost(_steps(1.0, 0.1, 1), delta)

    @pytest.mark.parametrize("count", [-1, 1.5, True, "2"])
    def test_counts_that_are_no_counts_are_refused(self, count: object) -> None:
        with pytest.raises(PrivacyError, match="counted"):
            self.cost({Gaussian(1.0, 1.0): count})  # type: ignore[dict-item]

    def test_unknown_events_are_refused(self) -> None:
        with pytest.raises(PrivacyError, match="unknown"):
            self.cost({"laplace": 1})  # type: ignore[dict-item]

    @pytest.mark.parametrize("multiplier", [1e-3, 1e7])
    def test_noise_beyond_the_arithmetic_is_refused(self, multiplier: float) -> None:
        with pytest.raises(PrivacyError, match="noise multipliers"):
            self.cost(_steps(multiplier, 0.1, 1))

    def test_an_absurd_request_is_answered_and_dear(self) -> None:
        assert 1_000 < self.cost(_steps(0.01, 0.5, 10**6)) < math.inf


class TestPld(AccountantContract):
    @staticmethod
    def cost(spending: Spending, delta: float = DELTA) -> float:
        return epsilon(spending, delta)

    @pytest.mark.parametrize(("multiplier", "prob", "count"), HISTORIES)
    def test_agrees_with_dp_accounting_on_its_default_grid(
        self, multiplier: float, prob: float, count: int
    ) -> None:
        theirs = PLDAccountant()
        step = PoissonSampledDpEvent(prob, GaussianDpEvent(multiplier))
        theirs.compose(SelfComposedDpEvent(step, count))
        ours = self.cost(_steps(multiplier, prob, count))
        assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=1.5e-3)

    @pytest.mark.parametrize(("multiplier", "prob", "count"), HISTORIES)
    def test_agrees_with_opacus_prv(self, multiplier: float, prob: float, count: int) -> None:
        theirs = PRVAccountant()
        theirs.history = [(multiplier, prob, count)]
        cost = theirs.get_epsilon(DELTA, eps_error=0.01)
        assert self.cost(_steps(multiplier, prob, count)) == pytest.approx(cost, abs=0.02)

    @pytest.mark.parametrize("multiplier", [1.0, 5.0, 50.0])
    @pytest.mark.parametrize("prob", [2e-3, 0.02, 0.3])
    @pytest.mark.parametrize("count", [1, 100, 3_000])
    def test_excess_over_a_finer_grid_is_as_stated(
        self, multiplier: float, prob: float, count: int
    ) -> None:
        ours = self.cost(_steps(multiplier, prob, count))
        history = history_of(_steps(multiplier, prob, count))
        if epsilon_rdp(_steps(multiplier, prob, count), DELTA) > accountant.LARGEST_EXACT_EPSILON:
            pytest.skip("RDP bound by intention")
        finer = privacy_loss_distribution.from_gaussian_mechanism(
            multiplier,
            sampling_prob=prob,
            value_discretization_interval=pld.cell_for(history, DELTA) / 4,
        )
        reference = finer.self_compose(count).get_epsilon_for_delta(DELTA)
        assert reference - 1e-9 <= ours <= reference + max(1.5e-3 * reference, 3e-4)

    def test_unsampled_gaussians_cost_exactly_what_their_composition_does(self) -> None:
        spending: Spending = {Gaussian(1.0, 4.0): 7, Gaussian(2.0, 9.0): 3}
        mu = math.sqrt(7 / 16 + 3 / 4.5**2)
        assert self.cost(spending) == pytest.approx(_exact_gaussian_epsilon(mu, DELTA), abs=2e-4)

    @given(MULTIPLIERS, PROBS, STEPS)
    @settings(max_examples=12, deadline=None)
    def test_distributions_alone_are_no_looser_than_rdp(
        self, multiplier: float, prob: float, count: int
    ) -> None:
        spending = _steps(multiplier, prob, count)
        history = history_of(spending)
        found = pld.composed(history, pld.cell_for(history, DELTA)).get_epsilon_for_delta(DELTA)
        bound = epsilon_rdp(spending, DELTA)
        assert found <= bound * 1.002 + 1e-3
        least = found if bound <= accountant.LARGEST_EXACT_EPSILON else bound
        assert self.cost(spending) == min(max(least, 0), bound)


class TestRdp(AccountantContract):
    @staticmethod
    def cost(spending: Spending, delta: float = DELTA) -> float:
        return epsilon_rdp(spending, delta)

    @pytest.mark.parametrize(("multiplier", "prob", "count"), HISTORIES)
    def test_agrees_with_dp_accounting(self, multiplier: float, prob: float, count: int) -> None:
        theirs = RdpAccountant()
        step = PoissonSampledDpEvent(prob, GaussianDpEvent(multiplier))
        theirs.compose(SelfComposedDpEvent(step, count))
        ours = self.cost(_steps(multiplier, prob, count))
        assert theirs.get_epsilon(DELTA) <= ours * 1.0001
        assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=0.02)

    @pytest.mark.parametrize(("multiplier", "prob", "count"), HISTORIES)
    def test_agrees_with_opacus_rdp(self, multiplier: float, prob: float, count: int) -> None:
        theirs = OpacusRdp()
        theirs.history = [(multiplier, prob, count)]
        ours = self.cost(_steps(multiplier, prob, count))
        assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=0.02)


@given(st.sampled_from([epsilon, epsilon_rdp]), MULTIPLIERS, PROBS, STEPS)
@settings(max_examples=15, deadline=None)
def test_more_steps_more_sampling_less_noise_and_less_delta_cost_more(
    cost: Callable[[Spending, float], float], multiplier: float, prob: float, count: int
) -> None:
    base = cost(_steps(multiplier, prob, count), DELTA) * 0.997 - 1e-3  # the grid's tolerance
    assert base <= cost(_steps(multiplier, prob, 2 * count), DELTA)
    assert base <= cost(_steps(multiplier, min(1.0, 2 * prob), count), DELTA)
    assert base <= cost(_steps(multiplier / 1.2, prob, count), DELTA)
    assert base <= cost(_steps(multiplier, prob, count), DELTA / 10)


KINDS: list[Event] = [
    SampledGaussian(0.02, 1.0, 1.5),
    SampledGaussian(0.1, 1.0, 4.0),
    SampledGaussian(0.02, 2.0, 3.0),  # costs what the first does
    SampledGaussian(1.0, 1.0, 40.0),
    Gaussian(1.0, 30.0),
    SharedGaussian(0.02, 1e3, 2e3, 5, 2, 10),
    SharedGaussian(0.02, 1e3, 2e3, 5, 2, 10**9),  # 2e-12 off its twin: seen in the last digits
]
SPENDINGS = st.dictionaries(st.sampled_from(KINDS), st.integers(0, 60), max_size=4)


class TestFits:
    @given(SPENDINGS, st.floats(0.5, 1.5))
    @settings(max_examples=40, deadline=None)
    def test_it_says_what_the_cost_says(self, spending: Spending, share: float) -> None:
        cost = epsilon(spending, DELTA)
        assert fits(spending, DELTA, cost * share) == (cost <= cost * share)

    @given(SPENDINGS, SPENDINGS, st.floats(0.5, 1.5))
    @settings(max_examples=40, deadline=None)
    def test_on_top_of_what_was_spent_as_well(
        self, spending: Spending, more: Spending, share: float
    ) -> None:
        together = {k: spending.get(k, 0) + more.get(k, 0) for k in {**spending, **more}}
        cost = epsilon(together, DELTA)
        for budget in (cost, cost * share):
            assert Accountant().fits(spending, more, DELTA, budget) == (cost <= budget)

    @given(st.lists(SPENDINGS, min_size=2, max_size=6), st.floats(0.3, 3.0))
    @settings(max_examples=25, deadline=None)
    def test_what_one_accountant_lets_through_never_exceeds_a_budget(
        self, asked: list[Spending], budget: float
    ) -> None:
        grown, spent = Accountant(), dict.fromkeys(KINDS, 0)
        for more in asked:
            before = epsilon_rdp(spent, DELTA)
            after = {kind: spent[kind] + more.get(kind, 0) for kind in KINDS}
            let = grown.fits(spent, more, DELTA, budget)
            assert let == fits(after, DELTA, budget)
            assert let or before <= epsilon_rdp(after, DELTA)
            spent = after if let else spent
            assert epsilon(spent, DELTA) <= budget
            assert grown.epsilon(spent, DELTA) == pytest.approx(epsilon(spent, DELTA), rel=1e-9)

    @pytest.mark.parametrize("budget", [math.nan, -1.0, -math.inf])
    def test_a_budget_that_is_none_lets_nothing_through(self, budget: float) -> None:
        assert not fits({}, DELTA, budget)
        assert not Accountant().fits({}, {}, DELTA, budget)
        assert not Accountant().fits(_steps(1.0, 0.1, 1), _steps(1.0, 0.1, 1), DELTA, budget)

    def test_beyond_what_is_computed_exactly_the_bound_decides(self) -> None:
        dear = _steps(0.5, 0.5, 1_000)
        cost = epsilon(dear, DELTA)
        assert cost > accountant.LARGEST_EXACT_EPSILON
        for budget, enough in ((cost, True), (cost * 0.999, False)):
            assert fits(dear, DELTA, budget) == enough
            assert Accountant().fits({}, dear, DELTA, budget) == enough

    @pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
    def test_delta_outside_its_range_is_refused(self, delta: float) -> None:
        with pytest.raises(PrivacyError, match="delta"):
            fits({}, delta, 1.0)
        with pytest.raises(PrivacyError, match="delta"):
            Accountant().fits({}, {}, delta, 1.0)


class TestSharedNoise:
    FINE = SharedGaussian(0.05, 1e6, 2e6, nodes=5, tolerated=2, size=1_000)
    COARSE = SharedGaussian(0.05, 30.0, 60.0, nodes=5, tolerated=2, size=1_000)

    @pytest.mark.parametrize("cost", [epsilon, epsilon_rdp])
    def test_a_negligible_distance_costs_nothing(
        self, cost: Callable[[Spending, float], float]
    ) -> None:
        assert distance(self.FINE) < 1e-22
        theirs = cost({SampledGaussian(0.05, 1e6, 2e6): 200}, DELTA)
        assert cost({self.FINE: 200}, DELTA) == pytest.approx(theirs, rel=1e-9)

    @pytest.mark.parametrize("cost", [epsilon, epsilon_rdp])
    def test_a_distance_is_paid_out_of_delta(
        self, cost: Callable[[Spending, float], float]
    ) -> None:
        bound = epsilon_rdp({twin(self.COARSE): 200}, DELTA / 2)
        left = DELTA - (1 + math.exp(bound)) * 200 * distance(self.COARSE)
        assert DELTA / 2 < left < 0.9 * DELTA
        found = cost({self.COARSE: 200}, DELTA)
        assert found == cost({twin(self.COARSE): 200}, left)
        assert cost({twin(self.COARSE): 200}, DELTA) < found <= bound

    def test_a_distance_that_takes_more_than_half_of_delta_is_refused(self) -> None:
        often: Spending = {self.COARSE: 2_000}
        dear: Spending = {self.COARSE: 200, Gaussian(1.0, 0.5): 1}
        for spending in (often, dear):
            for ask in (epsilon, epsilon_rdp, Accountant().epsilon):
                with pytest.raises(PrivacyError, match="too far from normal"):
                    ask(spending, DELTA)
            with pytest.raises(PrivacyError, match="too far from normal"):
                fits(spending, DELTA, 1e6)
            with pytest.raises(PrivacyError, match="too far from normal"):
                Accountant().fits({}, spending, DELTA, 1e6)

    def test_an_absurd_request_is_refused_at_once(self) -> None:
        absurd = SharedGaussian(1.0, 1e6, 2e4, nodes=2, tolerated=0, size=1)
        with pytest.raises(PrivacyError, match="too far from normal"):
            epsilon({absurd: 10**6}, DELTA)

    @pytest.mark.parametrize("noise_std", [10.0, 14.0, 40.0])
    @pytest.mark.parametrize("prob", [0.05, 0.4, 1.0])
    @pytest.mark.parametrize("steps", [1, 2])
    def test_never_below_the_exact_cost_of_discrete_noise(
        self, noise_std: float, prob: float, steps: int
    ) -> None:
        """One coordinate, to which one customer adds ``shift``, written out; both directions."""
        shift = round(noise_std / 2)
        event = SharedGaussian(prob, float(shift), noise_std, nodes=2, tolerated=1, size=1)
        exact = _exact_epsilon(noise_std, shift, prob, steps)
        stated = epsilon({event: steps}, 1e-3)
        assert exact <= stated <= exact * 1.02 + 2e-3
        assert exact <= epsilon_rdp({event: steps}, 1e-3)
        too_little = SampledGaussian(prob, float(shift), noise_std * 1.05)
        assert epsilon({too_little: steps}, 1e-3) < exact

    def test_shares_are_not_needed_to_know_the_cost(self) -> None:
        other = SharedGaussian(0.05, 1e6, 2e6, nodes=9, tolerated=8, size=1_000)
        assert epsilon({other: 200}, DELTA) == pytest.approx(epsilon({self.FINE: 200}, DELTA))


def _exact_epsilon(std: float, shift: int, prob: float, steps: int) -> float:
    """The least ε at δ = 0.001 of sampled discrete noise: hockey-stick divergences, summed."""
    reach = int(12 * std) + shift
    numbers = np.arange(-reach, reach + shift + 1)
    without = np.exp(-((numbers / std) ** 2) / 2)
    without /= without.sum()
    joined = np.exp(-(((numbers - shift) / std) ** 2) / 2)
    mixed = (1 - prob) * without + prob * joined / joined.sum()
    if steps == 2:
        without, mixed = (np.outer(law, law).ravel() for law in (without, mixed))

    def excess(eps: float, p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
        return float(np.maximum(p - math.exp(eps) * q, 0).sum()) - 1e-3

    pairs = [(mixed, without), (without, mixed)]
    return max(
        optimize.brentq(excess, 0.0, 30.0, args=pair) if excess(0.0, *pair) > 0 else 0.0
        for pair in pairs
    )


class TestCalibration:
    @pytest.mark.parametrize(
        ("target", "delta", "prob", "count"),
        [(1.0, 1e-5, 0.01, 500), (3.0, 1e-4, 0.1, 300), (8.0, 1e-4, 1.0, 5), (0.2, 1e-6, 1.0, 1)],
    )
    def test_the_answer_suffices_and_a_little_less_does_not(
        self, target: float, delta: float, prob: float, count: int
    ) -> None:
        multiplier = calibrate_noise_multiplier(target, delta, prob, count)
        assert epsilon(_steps(multiplier, prob, count), delta) <= target
        assert epsilon(_steps(multiplier * 0.997, prob, count), delta) > target
        assert multiplier == float(f"{multiplier:.4g}")

    @given(st.floats(0.3, 6.0), PROBS, st.integers(20, 200))
    @settings(max_examples=5, deadline=None)
    def test_the_answer_never_exceeds_the_budget(
        self, target: float, prob: float, count: int
    ) -> None:
        multiplier = calibrate_noise_multiplier(target, 1e-4, prob, count)
        assert epsilon(_steps(multiplier, prob, count), 1e-4) <= target

    @pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
    def test_budgets_that_are_none_are_refused(self, target: float) -> None:
        with pytest.raises(PrivacyError, match="epsilon"):
            calibrate_noise_multiplier(target, DELTA, 0.1, 10)

    @pytest.mark.parametrize("prob", [0.0, -0.1, 1.1, math.nan])
    def test_sampling_out_of_range_is_refused(self, prob: float) -> None:
        with pytest.raises(PrivacyError, match="sampling_prob"):
            calibrate_noise_multiplier(1.0, DELTA, prob, 10)

    @pytest.mark.parametrize("steps", [0, -1, 1.5, True])
    def test_steps_that_are_no_count_are_refused(self, steps: int) -> None:
        with pytest.raises(PrivacyError, match="steps"):
            calibrate_noise_multiplier(1.0, DELTA, 0.1, steps)

    def test_a_budget_that_no_noise_keeps_is_refused(self) -> None:
        with pytest.raises(PrivacyError, match="no noise"):
            calibrate_noise_multiplier(1e-9, 1e-12, 1.0, 10**6)
