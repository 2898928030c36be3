"""How much privacy an attack shows to be lost: a lower bound on ε, to hold against the claim.

A mechanism is run many times without and with a canary, a customer made to be found. Whoever can
tell the two apart too well disproves the claimed ε: Jagielski, Ullman and Oprea (2020), "Auditing
differentially private machine learning: how private is private SGD?", section 3; with the best
adversary for a Gaussian mechanism, who projects on the canary, Nasr et al. (2021), "Adversary
instantiation: lower bounds for differentially private machine learning".

An audit can only find a fault. That it finds none proves nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from dovetail.errors import PrivacyError

Scores = npt.NDArray[np.floating]
_THRESHOLDS = 200


def projections(outputs: npt.NDArray[np.float32], canary: npt.NDArray[np.float32]) -> Scores:
    """How far each output lies along the canary.

    Args:
        outputs: results of the mechanism, ``(runs, d)``.
        canary: what the canary adds to the sum, ``(d,)``, not zero.

    Returns:
        Scores, ``(runs,)``; the likelihood ratio of a Gaussian mechanism grows with them.
    """
    direction = canary.astype(np.float64) / np.linalg.norm(canary.astype(np.float64))
    scores: Scores = outputs.astype(np.float64) @ direction
    return scores


def epsilon_lower_bound(
    without: Scores, with_canary: Scores, delta: float, confidence: float
) -> float:
    """What ε is at least, if a threshold on the scores is the attack.

    The threshold is chosen on every second run and judged on the others, so that choosing costs
    no confidence. Both error rates are bounded after Clopper and Pearson (1934).

    Args:
        without: scores of independent runs without the canary, ``(n,)``, n >= 4.
        with_canary: scores of runs with it, larger on average, ``(m,)``, m >= 4.
        delta: δ of the claim, in [0, 1).
        confidence: in (0, 1): a private mechanism is overestimated with probability below
            ``1 - confidence``.

    Returns:
        The lower bound, >= 0.

    Raises:
        PrivacyError: too few runs, or ``delta`` or ``confidence`` out of range.
    """
    if min(len(without), len(with_canary)) < 4:
        raise PrivacyError("an audit needs at least four runs of each kind")
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise PrivacyError("an audit needs delta in [0, 1) and confidence in (0, 1)")
    error = (1 - confidence) / 4  # two attacks, two rates each
    above = _directed_bound(without, with_canary, delta, error)
    return max(0.0, above, _directed_bound(-with_canary, -without, delta, error))


def _directed_bound(low: Scores, high: Scores, delta: float, error: float) -> float:
    """The bound from the event that a score exceeds a threshold."""
    candidates = np.quantile(
        np.concatenate([low[::2], high[::2]]), np.linspace(0.0, 1.0, _THRESHOLDS + 2)[1:-1]
    )
    candidates = np.concatenate([candidates, np.sort(low[::2])[-100:], np.sort(low[::2])[:100]])
    best = max(candidates, key=lambda t: _bound_at(t, low[::2], high[::2], delta, error))
    return _bound_at(float(best), low[1::2], high[1::2], delta, error)


def _bound_at(threshold: float, low: Scores, high: Scores, delta: float, error: float) -> float:
    falsely = _rate_above(int((low > threshold).sum()), len(low), error)
    truly = _rate_below(int((high > threshold).sum()), len(high), error)
    return math.log((truly - delta) / falsely) if truly > delta else -math.inf


def _rate_above(hits: int, runs: int, error: float) -> float:
    """A rate that the true one exceeds with probability ``error`` at most."""
    return 1.0 if hits == runs else float(special.betaincinv(hits + 1, runs - hits, 1 - error))


def _rate_below(hits: int, runs: int, error: float) -> float:
    """A rate that the true one falls short of with probability ``error`` at most."""
    return 0.0 if hits == 0 else float(special.betaincinv(hits, runs - hits + 1, error))
