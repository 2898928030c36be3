"""An upper bound on ε by Rényi differential privacy (RDP): looser than PLD, and computed at once.

The Rényi divergences of one step at a few fixed orders are computed once and kept; a history is
their sum, each as often as its step was taken, and one conversion to ε.

One Gaussian step of noise multiplier σ has divergence ``α / 2σ²`` at order α. Over a Poisson
sample of probability q it has ``log A / (α - 1)``, where at whole orders ::

    A = Σ_{k=0..α} C(α, k) (1-q)^(α-k) q^k exp(k(k-1) / 2σ²)

(Mironov, Talwar and Zhang 2019, "Rényi differential privacy of the sampled Gaussian mechanism",
§3.3, where A is shown to bound adding as well as removing a customer). The binomial weights add up
to 1, and the terms of k = 0 and 1 are nothing but their weights, so that ::

    A = 1 + Σ_{k=2..α} C(α, k) (1-q)^(α-k) q^k (exp(k(k-1) / 2σ²) - 1)

which is summed here, in logarithms: every term is positive, so nothing cancels however small q is.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from dovetail.privacy.history import History, Step

_HIGH_ORDERS = (72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
ORDERS: NDArray[Any] = np.array([*range(2, 33), *range(34, 65, 2), *_HIGH_ORDERS], dtype=float)
"""The orders; ε is the least that any of them gives, so each alone is enough to be right."""

_K: NDArray[Any] = np.arange(2, int(ORDERS[-1]) + 1, dtype=float)
_OTHERS: NDArray[Any] = np.maximum(ORDERS[:, None] - _K, 0.0)
_LOG_CHOOSE: NDArray[Any] = np.where(
    ORDERS[:, None] >= _K,
    gammaln(ORDERS + 1)[:, None] - gammaln(_K + 1) - gammaln(_OTHERS + 1),
    -np.inf,
)


def epsilon(history: History, delta: float) -> float:
    """ε of a history at ``delta``, from above.

    Args:
        history: steps, and how often each was taken.
        delta: in (0, 1).

    Returns:
        ε >= 0; infinite where it is too large for a float.

    Source of the conversion: Canonne, Kamath and Steinke (2020), "The discrete Gaussian for
    differential privacy", Prop. 12.
    """
    if not history:
        return 0.0
    counts = np.array([count for _, count in history], dtype=float)
    with np.errstate(over="ignore"):
        total = counts @ np.array([divergences(step) for step, _ in history])
    at_orders = total + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(float(at_orders.min()), 0.0)


@lru_cache(maxsize=2**14)
def divergences(step: Step) -> NDArray[Any]:
    """Rényi divergence of one step at each of :data:`ORDERS`."""
    multiplier, prob = step
    if prob == 1:
        return ORDERS / (2 * multiplier**2)
    exponent = _K * (_K - 1) / (2 * multiplier**2)
    weights = _LOG_CHOOSE + _OTHERS * math.log1p(-prob) + _K * math.log(prob)
    terms = weights + exponent + np.log(-np.expm1(-exponent))
    largest = terms.max(axis=1)
    excess = largest + np.log(np.exp(terms - largest[:, None]).sum(axis=1))
    found: NDArray[Any] = np.logaddexp(0.0, excess) / (ORDERS - 1)
    return found
