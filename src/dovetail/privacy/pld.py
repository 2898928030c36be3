"""Privacy loss distributions (PLD) of whole histories: the door to ``dp_accounting``.

How exact they are. A privacy loss distribution is kept on a grid of width ``h``, and
``dp_accounting`` connects the dots (Doroshenko et al. 2022, "Connect the dots: tighter discrete
approximations of privacy loss distributions"), so that the answer is never below the true ε: a
coarse grid costs tightness and never safety. Moving the mass of one step to both ends of its cell
adds at most ``h²/4`` to the variance of the loss and ``h²/8`` to its mean, hence to ε, over ``T``
steps with total variance ``V`` and ``k = sqrt(2 log(1/δ))``, about ``T h²/8 (1 + k/√V)``. ``h`` is
chosen so that this stays below ``max(0.1 % of ε, 5e-4)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dovetail.privacy.history import History, Step

_RELATIVE_ERROR = 1e-3
_ABSOLUTE_ERROR = 5e-4
_WIDEST_CELL = 2.0**-9
_MOST_CELLS = 2**19  # of one step's distribution: bounds time and memory
_MOST_KEPT = 4  # what is charged, what was asked last, and what lay before


@dataclass(frozen=True)
class _Composition:
    cell: float
    counts: dict[Step, int]
    distribution: Any

    def lacks(self, wanted: dict[Step, int]) -> dict[Step, int] | None:
        """What is yet to be composed with it, or ``None`` where it holds more than is wanted."""
        if any(wanted.get(step, 0) < count for step, count in self.counts.items()):
            return None
        more = {step: count - self.counts.get(step, 0) for step, count in wanted.items()}
        return {step: count for step, count in more.items() if count}


class Compositions:
    """Composes histories that grow, each time only what is new.

    The distributions composed of late are kept. A history is composed of the one among them that
    lacks the fewest kinds of steps, and of what that one lacks. Every composition moves up to
    1e-15 of probability to infinite loss, so a long chain of them errs towards more ε: by 1e-9 in
    δ after a million.
    """

    def __init__(self) -> None:
        """Begin with nothing kept."""
        self._kept: tuple[_Composition, ...] = ()  # replaced as a whole: threads may share it

    def of(self, history: History, cell: float) -> Any:
        """The distribution of a history that is not empty, on a grid of width ``cell``."""
        wanted = {step: count for step, count in history if step[1] < 1}
        distribution = self._sampled(wanted, cell) if wanted else None
        for step, count in history[len(wanted) :]:
            distribution = _composed_with(distribution, step, count, cell)
        return distribution

    def _sampled(self, wanted: dict[Step, int], cell: float) -> Any:
        distribution, missing = None, wanted
        for kept in self._kept:
            lacks = kept.lacks(wanted) if kept.cell == cell else None
            if lacks is not None and (distribution is None or len(lacks) < len(missing)):
                distribution, missing = kept.distribution, lacks
        for step, count in missing.items():
            distribution = _composed_with(distribution, step, count, cell)
        others = [k for k in self._kept if (k.cell, k.counts) != (cell, wanted)]
        self._kept = (_Composition(cell, wanted, distribution), *others)[:_MOST_KEPT]
        return distribution


@lru_cache(maxsize=32)
def composed(history: History, cell: float) -> Any:
    """The distribution of a history that is not empty, composed anew."""
    return Compositions().of(history, cell)


def cell_for(history: History, delta: float) -> float:
    """Width of the grid: the module's docstring; a power of two, so that caches are met again."""
    steps = sum(count for _, count in history)
    spread = math.sqrt(sum(count * _loss_variance(step) for step, count in history))
    tail = math.sqrt(2 * math.log(1 / delta))
    estimate = spread * (spread / 2 + tail)
    error = max(_RELATIVE_ERROR * estimate, _ABSOLUTE_ERROR)
    wanted = math.sqrt(8 * error / (steps * (1 + tail / max(spread, 1e-12))))
    affordable = max(_largest_loss(step) for step, _ in history) / _MOST_CELLS
    return float(2.0 ** math.floor(math.log2(min(max(wanted, affordable), _WIDEST_CELL))))


def _composed_with(distribution: Any, step: Step, count: int, cell: float) -> Any:
    more = _repeated(step, count, cell)
    return more if distribution is None else distribution.compose(more)


@lru_cache(maxsize=16)
def _repeated(step: Step, count: int, cell: float) -> Any:
    return _one_step(step, cell).self_compose(count)


@lru_cache(maxsize=32)
def _one_step(step: Step, cell: float) -> Any:
    from dp_accounting import NeighboringRelation  # a second; often the Rényi bound is enough
    from dp_accounting.pld import privacy_loss_distribution

    multiplier, prob = step
    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier,
        value_discretization_interval=cell,
        sampling_prob=prob,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def _loss_variance(step: Step) -> float:
    """About the variance of one step's privacy loss; without sampling exactly ``1 / s²``."""
    multiplier, prob = step
    whole = multiplier**-2
    return min(prob**2 * math.expm1(min(whole, 100.0)), whole)


def _largest_loss(step: Step) -> float:
    """Privacy loss ten standard deviations out, where ``dp_accounting`` ends its grid."""
    multiplier, prob = step
    exponent = 10 / multiplier + 0.5 / multiplier**2
    return math.log1p(prob * math.expm1(exponent)) if exponent < 500 else exponent
