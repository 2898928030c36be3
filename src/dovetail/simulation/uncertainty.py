"""How far a test score would move if other customers had been held out: a clustered bootstrap.

Customers are drawn with replacement within each partner, each with all of its rows (Davison and
Hinkley 1997, "Bootstrap methods and their application", section 3.8), since rows of one customer
resemble each other. The draws are the same for every model, so that differences are paired, and
the same in every run. Models stay as they were trained.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dovetail.simulation.results import Predictions

Floats = npt.NDArray[np.float64]

RESAMPLES = 500
"""Draws of all held-out customers: their spread is known to about 3 % of itself."""

_SEED = 20170101
_AT_ONCE = 1 << 22  # weights in memory at a time


class Resamples:
    """The customers of one model's test set, drawn anew :data:`RESAMPLES` times."""

    def __init__(self, tested: Predictions) -> None:
        """Finds customers and their partners.

        Args:
            tested: a model's scores; two models with the same rows see the same draws.
        """
        self._tested = tested
        _, first, self._customer = np.unique(
            tested.customer, return_index=True, return_inverse=True
        )
        partner = tested.partner[first]
        self._groups = [np.flatnonzero(partner == p) for p in np.unique(partner)]
        self._customers = len(first)

    def auc(self, rows: npt.NDArray[np.bool_]) -> Floats:
        """AUC on the chosen rows, ``(RESAMPLES,)``; NaN where a draw has one class only.

        Args:
            rows: bool ``(rows,)``.
        """
        labels, scores = self._tested.labels[rows] > 0, self._tested.scores[rows]
        customer = self._customer[rows]
        draws = (_weighted_auc(labels, scores, counts[customer]) for counts in self._draws())
        return np.concatenate(list(draws))

    def totals(self, values: Floats) -> Floats:
        """Column sums over the rows drawn.

        Args:
            values: ``(rows, columns)``.

        Returns:
            ``(RESAMPLES, columns)``.
        """
        of_customer = np.zeros((self._customers, values.shape[1]))
        np.add.at(of_customer, self._customer, values)
        return np.concatenate([counts.T @ of_customer for counts in self._draws()])

    def _draws(self) -> Iterator[Floats]:
        """How often each customer was drawn, ``(customers, some of the resamples)``."""
        dice = np.random.default_rng(_SEED)
        width = max(1, min(RESAMPLES, _AT_ONCE // max(len(self._customer), 1)))
        for start in range(0, RESAMPLES, width):
            many = min(width, RESAMPLES - start)
            counts = np.zeros(self._customers * many)
            for group in self._groups:
                drawn = group[dice.integers(len(group), size=(len(group), many))]
                places = drawn * many + np.arange(many)
                counts += np.bincount(places.ravel(), minlength=len(counts))
            yield counts.reshape(self._customers, many)


def spread(drawn: Floats) -> float:
    """Standard deviation of the draws that are defined; NaN if fewer than two are."""
    defined = drawn[np.isfinite(drawn)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else float("nan")


def _weighted_auc(
    labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], weights: Floats
) -> Floats:
    """AUC with every row counted as often as it was drawn; ties count half.

    Args:
        labels: ``(rows,)``.
        scores: ``(rows,)``.
        weights: ``(rows, resamples)``, whole numbers.
    """
    order = np.argsort(scores[~labels])
    zeros, ones = scores[~labels][order], scores[labels]
    below = np.zeros((len(zeros) + 1, weights.shape[1]))
    np.cumsum(weights[~labels][order], axis=0, out=below[1:])
    worse, no_better = (below[np.searchsorted(zeros, ones, side)] for side in ("left", "right"))
    wins = np.einsum("ij,ij->j", weights[labels], worse + no_better) / 2
    pairs = weights[labels].sum(axis=0) * below[-1]
    found: Floats = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return found
