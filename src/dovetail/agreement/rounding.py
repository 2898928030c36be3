"""What floating point adds to the sensitivity of a sum of clipped gradients.

Let ``u = 2^-53`` be the rounding unit of float64, in which a step of a shared sum is computed, and
``m`` the customers that it samples. Adding or removing one customer moves the computed sum by

1. what that customer adds. Its norm, of ``size`` numbers, is computed to a relative ``size u``, so
   that it is clipped to ``C (1 + (size + 64) u)``;
2. what the others add differently. Their rows go through the model unchanged, to the last digit,
   whoever is beside them (:mod:`dovetail.training.exact_pass`); their norms, and so the factors
   that clip them, may be added up in another order: ``m C (size + 64) u``;
3. how the sums are rounded. A coordinate is a sum in which every term passes through at most ``k``
   roundings: at most the rows of a physical batch, and one for each batch. Whatever their order, it
   is off by at most ``γ(k) = k u / (1 - k u)`` times the sum of the terms' magnitudes (Higham 2002,
   "Accuracy and Stability of Numerical Algorithms", section 4.2), and so is the Euclidean norm of
   all coordinates, by the triangle inequality: each customer's terms have norm ``C``, or ``2^11 C``
   where rows of one customer may cancel (``training.clipping.rounded_up`` allows no more). Both
   sums are rounded: ``2 m C γ(k)``, or ``2^11`` times that.

Customers who may have several rows make 2. rest on how torch adds up one customer's numbers, which
depends on their shape alone; that is tested and not proved.
"""

from __future__ import annotations

PHYSICAL_ROWS = 4096
"""Rows, padding included, that are in memory at once; a larger Poisson batch comes in parts."""
MOST_SUMMED = 2**18
"""Customers that a step samples at most: ``agreement.policy`` refuses what is expected to sample
more than 100,000, and a Poisson sample is not 2.6 times as large with probability ``1 - e^-90000``.
"""

_UNIT = 2.0**-53
_CANCELLING = 2.0**11
_FEW = 64
"""Roundings beside those that grow with something."""


def rounding_slack(size: int, rows_per_customer: int) -> float:
    """By how much of a clip norm one customer moves a step's sum more than by the clip norm.

    Args:
        size: parameters of the model, >= 1.
        rows_per_customer: most rows that one customer may have, >= 1.

    Returns:
        The three parts above without the clip norm itself, over the clip norm. For one row a
        customer and models below a million parameters that is below 0.0001.
    """
    norms = (size + _FEW) * _UNIT
    magnitudes = MOST_SUMMED * (1.0 if rows_per_customer == 1 else _CANCELLING)
    passed = _roundings(rows_per_customer) * _UNIT
    return (MOST_SUMMED + 1) * norms + 2 * magnitudes * passed / (1 - passed)


def _roundings(rows_per_customer: int) -> int:
    customers = max(1, PHYSICAL_ROWS // rows_per_customer)
    batches = -(-MOST_SUMMED // customers)
    return max(PHYSICAL_ROWS, rows_per_customer) + batches + _FEW
