"""What a history of events costs: ε at a given δ, and the noise that a given ε asks for.

Neighbouring tables differ by adding or removing one customer with all of its rows. The answer is
computed from privacy loss distributions (PLD), with Rényi differential privacy (RDP) as an
independent, looser check. Both come from ``dp_accounting``, which is imported here only.

How exact a PLD answer is. A privacy loss distribution is kept on a grid of width ``h``, and
``dp_accounting`` connects the dots (Doroshenko et al. 2022, "Connect the dots: tighter discrete
approximations of privacy loss distributions"), so that the answer is never below the true ε: a
coarse grid costs tightness and never safety. Moving the mass of one step to both ends of its cell
adds at most ``h²/4`` to the variance of the loss and ``h²/8`` to its mean, hence to ε, over ``T``
steps with total variance ``V`` and ``k = sqrt(2 log(1/δ))``, about ``T h²/8 (1 + k/√V)``. ``h`` is
chosen so that this stays below ``max(0.1 % of ε, 5e-4)``; :func:`epsilon` states what was measured.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant

from dovetail.errors import PrivacyError
from dovetail.privacy.event import Gaussian, SampledGaussian, Spending

NEIGHBOURING = NeighboringRelation.ADD_OR_REMOVE_ONE
LARGEST_EXACT_EPSILON = 50.0
"""Above this RDP bound, :func:`epsilon` returns the bound: nobody would spend so much, and an
absurd request must not cost minutes of computing."""
NOISE_MULTIPLIERS = (0.01, 1e6)
"""Noise multipliers for which the accounting is numerically sound; others are refused."""

_RELATIVE_ERROR = 1e-3
_ABSOLUTE_ERROR = 5e-4
_WIDEST_CELL = 2.0**-9
_MOST_CELLS = 2**19  # of one step's distribution: bounds time and memory
_DIGITS = 4
_TOLERANCE = 2e-4  # of the cost's logarithm when calibrating: one to two units of the last digit
_STRIDE = 0.3  # in the multiplier's logarithm: about how far RDP lies from PLD
_SMALL_ORDERS = (1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, *range(5, 33))
_ORDERS = (*_SMALL_ORDERS, *range(34, 65, 3), 80, 96, 128, 192, 256, 384, 512, 1024)
_FEW_ORDERS = (2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 26, 32, 48, 64, 96, 128, 256)  # ten times faster

_Step = tuple[float, float]  # noise multiplier, sampling probability
_History = tuple[tuple[_Step, int], ...]


def epsilon(spending: Spending, delta: float) -> float:
    """The smallest ε that can be stated for a history at ``delta``, from above.

    Args:
        spending: how often each event happened to one partner's customers.
        delta: in (0, 1); well below 1 / number of customers.

    Returns:
        ε >= 0, never below the true one. Against a grid eight times finer the excess was at most
        0.15 % of ε, or 1.4e-4 where ε < 0.1, over 0.5 <= noise multiplier <= 100,
        1e-4 <= sampling_prob <= 0.5 and up to 10,000 steps. Where RDP says more than
        :data:`LARGEST_EXACT_EPSILON`, the RDP bound.

    Raises:
        PrivacyError: ``delta`` lies outside (0, 1), a count is no whole number >= 0, an event is
            unknown, its noise multiplier lies outside :data:`NOISE_MULTIPLIERS`, or no finite ε
            exists.

    Guarantees:
        If every event did what it says (its sensitivity holds, its noise is normal and
        independent, its sample is Poisson and secret), then all results together are
        (ε, δ)-differentially private for adding or removing one customer. What is computed may
        be chosen in view of earlier results; the theorem asks that the events themselves (noise,
        sampling, number) are not, which holds within a job, whose events are agreed beforehand.
    """
    return _epsilon(_history(spending), _checked_delta(delta))


def epsilon_rdp(spending: Spending, delta: float) -> float:
    """As :func:`epsilon`, through Rényi differential privacy: looser, computed another way.

    Source: Mironov, Talwar and Zhang (2019), "Rényi differential privacy of the sampled Gaussian
    mechanism"; conversion of Canonne, Kamath and Steinke (2020), Prop. 12.
    """
    return _rdp_bound(_history(spending), _checked_delta(delta), _ORDERS)


def calibrate_noise_multiplier(
    epsilon: float, delta: float, sampling_prob: float, steps: int
) -> float:
    """The least noise with which ``steps`` steps of DP-SGD stay within a budget.

    Args:
        epsilon: what may be spent, > 0 and finite.
        delta: in (0, 1).
        sampling_prob: probability with which each customer joins a step, in (0, 1].
        steps: number of steps, >= 1.

    Returns:
        A noise multiplier, rounded up to four significant digits; its cost was computed by
        :func:`epsilon` and does not exceed the budget.

    Raises:
        PrivacyError: an argument is out of range, or no noise multiplier in
            :data:`NOISE_MULTIPLIERS` is enough.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise PrivacyError("epsilon must be positive and finite")
    if not 0 < sampling_prob <= 1:
        raise PrivacyError("sampling_prob must lie in (0, 1]")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise PrivacyError("steps must be a whole number of at least 1")
    return _calibrate(epsilon, _checked_delta(delta), sampling_prob, steps)


def _history(spending: Spending) -> _History:
    """The spending as a hashable value: sampled steps by kind, and all unsampled ones as one.

    ``k`` Gaussian mechanisms with noise multipliers ``s_i`` compose exactly to one with
    ``(Σ s_i⁻²)^(-1/2)`` (Dong, Roth and Su 2022, Cor. 3.3), so they cost no grid error.
    """
    counts: defaultdict[_Step, int] = defaultdict(int)
    precision = 0.0
    for event, count in spending.items():
        step = _step(event)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise PrivacyError("an event is counted by a whole number >= 0")
        if step[1] == 1:
            precision += count / step[0] ** 2
        elif count:
            counts[step] += count
    steps = sorted(counts.items())
    return (*steps, *([((precision**-0.5, 1.0), 1)] if precision else []))


def _step(event: object) -> _Step:
    if not isinstance(event, Gaussian | SampledGaussian):
        raise PrivacyError("an event of unknown kind cannot be accounted for")
    low, high = NOISE_MULTIPLIERS
    if not low <= event.noise_multiplier <= high:
        raise PrivacyError(f"noise multipliers from {low:g} to {high:g} can be accounted for")
    prob = event.sampling_prob if isinstance(event, SampledGaussian) else 1.0
    return event.noise_multiplier, prob


def _checked_delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise PrivacyError("delta must lie between 0 and 1, both excluded")
    return delta


@lru_cache(maxsize=4096)
def _epsilon(history: _History, delta: float) -> float:
    if not history:
        return 0.0
    if _rdp_bound(history, delta, _FEW_ORDERS) > LARGEST_EXACT_EPSILON:
        return _rdp_bound(history, delta, _ORDERS)
    cost = float(_composed(history, _cell(history, delta)).get_epsilon_for_delta(delta))
    if not math.isfinite(cost):
        raise PrivacyError("no finite epsilon can be stated at this delta")
    return max(cost, 0.0)


@lru_cache(maxsize=4096)
def _rdp_bound(history: _History, delta: float, orders: tuple[float, ...]) -> float:
    if not history:
        return 0.0
    accountant = RdpAccountant(orders, NEIGHBOURING)
    with _quiet():
        for (multiplier, prob), count in history:
            step = PoissonSampledDpEvent(prob, GaussianDpEvent(multiplier))
            accountant.compose(SelfComposedDpEvent(step, count))
        cost = float(accountant.get_epsilon(delta))
    if not math.isfinite(cost):
        raise PrivacyError("no finite epsilon can be stated at this delta")
    return cost


@lru_cache(maxsize=32)
def _composed(history: _History, cell: float) -> Any:
    parts = (_one_step(step, cell).self_compose(count) for step, count in history)
    total = next(parts)
    for part in parts:
        total = total.compose(part)
    return total


@lru_cache(maxsize=32)
def _one_step(step: _Step, cell: float) -> Any:
    multiplier, prob = step
    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier,
        value_discretization_interval=cell,
        sampling_prob=prob,
        neighboring_relation=NEIGHBOURING,
    )


def _cell(history: _History, delta: float) -> float:
    """Width of the grid: the module's docstring; a power of two, so that caches are met again."""
    steps = sum(count for _, count in history)
    spread = math.sqrt(sum(count * _loss_variance(step) for step, count in history))
    tail = math.sqrt(2 * math.log(1 / delta))
    estimate = spread * (spread / 2 + tail)
    error = max(_RELATIVE_ERROR * estimate, _ABSOLUTE_ERROR)
    wanted = math.sqrt(8 * error / (steps * (1 + tail / max(spread, 1e-12))))
    affordable = max(_largest_loss(step) for step, _ in history) / _MOST_CELLS
    return float(2.0 ** math.floor(math.log2(min(max(wanted, affordable), _WIDEST_CELL))))


def _loss_variance(step: _Step) -> float:
    """About the variance of one step's privacy loss; without sampling exactly ``1 / s²``."""
    multiplier, prob = step
    whole = multiplier**-2
    return min(prob**2 * math.expm1(min(whole, 100.0)), whole)


def _largest_loss(step: _Step) -> float:
    """Privacy loss ten standard deviations out, where ``dp_accounting`` ends its grid."""
    multiplier, prob = step
    exponent = 10 / multiplier + 0.5 / multiplier**2
    return math.log1p(prob * math.expm1(exponent)) if exponent < 500 else exponent


@lru_cache(maxsize=1024)
def _calibrate(target: float, delta: float, prob: float, steps: int) -> float:
    def cost(multiplier: float) -> float:
        return epsilon({SampledGaussian(prob, 1.0, multiplier): steps}, delta)

    def excess(logarithm: float) -> float:
        return math.log(max(cost(math.exp(logarithm)), 1e-12) / target)

    candidate = _round_up(math.exp(_crossing(excess, *_bracket(target, delta, prob, steps))))
    while cost(candidate) > target:
        candidate = _round_up(math.nextafter(candidate, math.inf))
    return candidate


def _bracket(target: float, delta: float, prob: float, steps: int) -> tuple[float, float]:
    """Logarithms of a noise multiplier that is too small and of one that is enough, by RDP."""
    low, high = (math.log(bound) for bound in NOISE_MULTIPLIERS)

    def enough(logarithm: float) -> bool:
        history = (((math.exp(logarithm), prob), steps),)
        return _rdp_bound(history, delta, _FEW_ORDERS) <= target

    if not enough(high):
        raise PrivacyError("no noise is enough for this epsilon, delta and number of steps")
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return max(low - _STRIDE, math.log(NOISE_MULTIPLIERS[0])), high + 1e-9


def _crossing(excess: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is 0 or less, but not by more than :data:`_TOLERANCE`.

    Regula falsi with the Illinois rule (Dowell and Jarratt 1971), aimed just below 0: a cost is
    dear to compute. ``high`` is good already; ``low`` is moved until it is too low.
    """
    at_low, at_high = excess(low), excess(high)
    while at_low <= 0 and low > math.log(NOISE_MULTIPLIERS[0]):
        high, at_high = low, at_low
        low = max(low - _STRIDE, math.log(NOISE_MULTIPLIERS[0]))
        at_low = excess(low)
    while at_low > 0 and high - low > _TOLERANCE / 2:
        guess = high - (at_high + _TOLERANCE / 2) * (high - low) / (at_high - at_low)
        guess = min(max(guess, low + _TOLERANCE / 4), high - _TOLERANCE / 4)
        at_guess = excess(guess)
        if -_TOLERANCE <= at_guess <= 0:
            return guess
        if at_guess > 0:
            low, at_low, at_high = guess, at_guess, at_high / 2
        else:
            high, at_high, at_low = guess, at_guess, at_low / 2
    return high


def _round_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return float(f"{math.ceil(value / unit) * unit:.{_DIGITS}g}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop dp_accounting's warnings about single Rényi orders that it leaves out by itself."""
    logger = logging.getLogger("absl")

    def drop(record: logging.LogRecord) -> bool:
        return "order" not in record.getMessage() and "Renyi" not in record.getMessage()

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
