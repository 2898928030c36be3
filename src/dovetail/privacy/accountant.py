"""What a history of events costs: ε at a given δ, and the noise that a given ε asks for.

Neighbouring tables differ by adding or removing one customer with all of its rows. The answer is
computed from privacy loss distributions (:mod:`dovetail.privacy.pld`). Rényi differential privacy
(:mod:`dovetail.privacy.rdp`) gives an independent upper bound, mostly 5 to 30 % larger and many
times cheaper: where it already says that something fits, nothing else is asked.

Sums with shared noise (``event.SharedGaussian``) are accounted for as their normal twins, and
their distance D from the twins is paid out of δ: ε is that of the twins at ``δ - (1 + e^b) D``,
where b is the Rényi bound at δ/2, no less than that ε (:mod:`dovetail.privacy.shared_noise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dovetail.errors import PrivacyError
from dovetail.privacy import pld, rdp
from dovetail.privacy.event import SampledGaussian, Spending
from dovetail.privacy.history import NOISE_MULTIPLIERS, History, history_of
from dovetail.privacy.shared_noise import distance_of

LARGEST_EXACT_EPSILON = 50.0
"""Above this RDP bound, :func:`epsilon` returns the bound: nobody would spend so much, and an
absurd request must not cost minutes of computing."""

_DIGITS = 4
_TOLERANCE = 2e-4  # of the cost's logarithm when calibrating: one to two units of the last digit
_STRIDE = 0.3  # in the multiplier's logarithm: about how far RDP lies from PLD
_LARGEST_EXPONENT = 700.0  # e to this is a float, and times any distance more than any δ
_ROUNDING = 1e-6  # of δ: far more than the order of composing changes

_Question = tuple[History, History, float, float]  # what was spent, with more, δ and ε


def epsilon(spending: Spending, delta: float) -> float:
    """The smallest ε that can be stated for a history at ``delta``, from above.

    Args:
        spending: how often each event happened to one partner's customers.
        delta: in (0, 1); well below 1 / number of customers.

    Returns:
        ε >= 0, never below the true one. Against a grid eight times finer the excess was at most
        0.15 % of ε, or 1.4e-4 where ε < 0.1, over 0.5 <= noise multiplier <= 100,
        1e-4 <= sampling_prob <= 0.5 and up to 10,000 steps. The RDP bound where that is smaller,
        and where it is larger than :data:`LARGEST_EXACT_EPSILON`.

    Raises:
        PrivacyError: ``delta`` lies outside (0, 1), a count is no whole number >= 0, an event is
            unknown, its noise multiplier lies outside :data:`NOISE_MULTIPLIERS`, no finite ε
            exists, or shared noise is so coarse or so often added that its distance from normal
            noise would take more than half of ``delta``.

    Guarantees:
        If every event did what it says (its sensitivity holds, its noise is normal and
        independent, its sample is Poisson and secret), then all results together are
        (ε, δ)-differentially private for adding or removing one customer. What is computed may
        be chosen in view of earlier results; the theorem asks that the events themselves (noise,
        sampling, number) are not, which holds within a job, whose events are agreed beforehand.
    """
    return _epsilon(*_asked(spending, delta))


def epsilon_rdp(spending: Spending, delta: float) -> float:
    """As :func:`epsilon`, through Rényi differential privacy: looser, computed another way."""
    return _bound(*_asked(spending, delta))


def fits(spending: Spending, delta: float, epsilon: float) -> bool:
    """Whether a history costs at most ``epsilon`` at ``delta``, by the cheapest way to tell.

    Returns:
        What ``accountant.epsilon(spending, delta) <= epsilon`` says.

    Raises:
        PrivacyError: as :func:`epsilon`.
    """
    history, delta = _asked(spending, delta)
    return _bound(history, delta) <= epsilon or _epsilon(history, delta) <= epsilon


class Accountant:
    """Accounts for a history that grows, and composes only what is new to it.

    Agrees with the functions of this module up to rounding.
    """

    def __init__(self) -> None:
        """Begin with nothing composed."""
        self._compositions = pld.Compositions()
        self._answered: tuple[_Question | None, bool] = (None, False)

    def epsilon(self, spending: Spending, delta: float) -> float:
        """As :func:`dovetail.privacy.accountant.epsilon`."""
        return _stated(*_asked(spending, delta), self._compositions.of)

    def fits(self, spending: Spending, more: Spending, delta: float, epsilon: float) -> bool:
        """Whether ``spending`` and ``more`` together cost at most ``epsilon`` at ``delta``.

        As :func:`dovetail.privacy.accountant.fits`. The distribution of ``spending`` is kept, so
        that the next question costs one composition and not one for each kind of event, and the
        same question again (a job is judged and then reserved) costs nothing.
        """
        together = {**spending, **{event: spending.get(event, 0) + more[event] for event in more}}
        history, delta = _asked(together, delta)
        bound = _bound(history, delta)
        if bound <= epsilon or bound > LARGEST_EXACT_EPSILON or not epsilon >= 0:
            return bound <= epsilon
        question = (history_of(spending), history, delta, epsilon)
        answered, answer = self._answered
        if question != answered:
            answer = self._fits_exactly(question)
            self._answered = (question, answer)
        return answer

    def _fits_exactly(self, question: _Question) -> bool:
        before, after, delta, epsilon = question
        cell = pld.cell_for(after, delta)
        if before:
            self._compositions.of(before, cell)
        found = self._compositions.of(after, cell).get_delta_for_epsilon(epsilon)
        if abs(found - delta) > _ROUNDING * delta:
            return bool(found < delta)
        return _epsilon(after, delta) <= epsilon  # so close that the order of composing decides


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


def _checked_delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise PrivacyError("delta must lie between 0 and 1, both excluded")
    return delta


def _asked(spending: Spending, delta: float) -> tuple[History, float]:
    """The twins' history, and the δ that is left for it."""
    history, delta, distance = history_of(spending), _checked_delta(delta), distance_of(spending)
    if not distance:
        return history, delta
    bound = min(rdp.epsilon(history, delta / 2), _LARGEST_EXPONENT)
    left = delta - (1 + math.exp(bound)) * distance
    if left < delta / 2:
        raise PrivacyError("shared noise is too far from normal noise for this delta: add more")
    return history, left


@lru_cache(maxsize=4096)
def _epsilon(history: History, delta: float) -> float:
    return _stated(history, delta, pld.composed)


def _stated(history: History, delta: float, composed: Callable[[History, float], Any]) -> float:
    bound = _bound(history, delta)
    if not history or bound > LARGEST_EXACT_EPSILON:
        return bound
    distribution = composed(history, pld.cell_for(history, delta))
    return min(max(float(distribution.get_epsilon_for_delta(delta)), 0.0), bound)


def _bound(history: History, delta: float) -> float:
    bound = rdp.epsilon(history, delta)
    if not math.isfinite(bound):
        raise PrivacyError("no finite epsilon can be stated at this delta")
    return bound


@lru_cache(maxsize=1024)
def _calibrate(target: float, delta: float, prob: float, steps: int) -> float:
    def cost(multiplier: float) -> float:
        return epsilon({SampledGaussian(prob, 1.0, multiplier): steps}, delta)

    def excess(logarithm: float) -> float:
        return math.log(max(cost(math.exp(logarithm)), 1e-12) / target)

    candidate = round_up(math.exp(_crossing(excess, *_bracket(target, delta, prob, steps))))
    while cost(candidate) > target:
        candidate = round_up(math.nextafter(candidate, math.inf))
    return candidate


def _bracket(target: float, delta: float, prob: float, steps: int) -> tuple[float, float]:
    """Logarithms of a noise multiplier that is too small and of one that is enough, by RDP."""
    low, high = (math.log(bound) for bound in NOISE_MULTIPLIERS)

    def enough(logarithm: float) -> bool:
        history = (((math.exp(logarithm), prob), steps),)
        return rdp.epsilon(history, delta) <= target

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


def round_up(value: float) -> float:
    """A noise multiplier to four significant digits, never less than it was."""
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return float(f"{math.ceil(value / unit) * unit:.{_DIGITS}g}")
