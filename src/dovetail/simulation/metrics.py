"""How good scores are: the researcher's own view, not private.

Everything here reads raw labels and scores, as only somebody who holds all rows can. None of it
may leave a node; a metric that leaves is noised and charged like any other release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

Floats = npt.NDArray[np.floating]
Metric = Callable[[Floats, Floats], float]
"""A number from labels and scores; NaN where it is undefined."""


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose scores are neighbours.

    Attributes:
        rows: how many.
        mean_score: the mean predicted probability.
        positive_share: the share of rows labelled 1.
    """

    rows: int
    mean_score: float
    positive_share: float


@dataclass(frozen=True)
class LiftBin:
    """One slice of the rows in descending order of score.

    Attributes:
        rows: how many.
        lift: share of ones in this slice, over the share in all rows.
        captured: share of all ones that stand in this slice or before it.
    """

    rows: int
    lift: float
    captured: float


def auc(labels: Floats, scores: Floats) -> float:
    """Probability that a random row labelled 1 scores above one labelled 0; ties count half.

    Args:
        labels: ``(rows,)``, 0 or 1.
        scores: ``(rows,)``, any finite numbers.

    Returns:
        In [0, 1]; NaN unless both labels occur.
    """
    if not _has_both(labels):
        return float("nan")
    return float(roc_auc_score(labels, scores))


def log_loss(labels: Floats, scores: Floats) -> float:
    """Mean negative log-likelihood, in nats.

    Args:
        labels: ``(rows,)``, 0 or 1.
        scores: ``(rows,)``, probabilities in [0, 1].

    Returns:
        >= 0; NaN without rows.
    """
    if len(labels) == 0:
        return float("nan")
    return float(sklearn_log_loss(labels, scores.astype(np.float64), labels=[0, 1]))


def calibration(labels: Floats, scores: Floats, bins: int = 10) -> list[CalibrationBin]:
    """Predicted against observed shares, in bins of about equally many rows, ascending.

    Args:
        labels: ``(rows,)``, 0 or 1.
        scores: ``(rows,)``, probabilities.
        bins: how many bins, >= 1; empty ones are left out.
    """
    parts = np.array_split(np.argsort(scores, kind="stable"), bins)
    return [
        CalibrationBin(len(part), float(scores[part].mean()), float(labels[part].mean()))
        for part in parts
        if len(part)
    ]


def lift(labels: Floats, scores: Floats, slices: int = 10) -> list[LiftBin]:
    """How much richer in ones each tenth of the rows is, best scores first.

    Args:
        labels: ``(rows,)``, 0 or 1.
        scores: ``(rows,)``; rows of equal score share their ones evenly, so that the order of the
            rows does not matter.
        slices: how many slices, >= 1; empty ones are left out.

    Returns:
        One bin per slice; empty where no row is labelled 1.
    """
    total = float(labels.sum())
    if total == 0:
        return []
    _, group, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, weights=labels) / sizes)[group]
    parts = [p for p in np.array_split(np.argsort(-scores, kind="stable"), slices) if len(p)]
    ones = np.array([expected[part].sum() for part in parts])
    overall = total / len(labels)
    return [
        LiftBin(len(part), float(found / len(part) / overall), float(captured / total))
        for part, found, captured in zip(parts, ones, np.cumsum(ones), strict=True)
    ]


def bootstrap_error(
    metric: Metric,
    labels: Floats,
    scores: Floats,
    customers: npt.NDArray[np.int64],
    seed: int,
    repeats: int = 200,
) -> float:
    """Standard error of a metric because the test set holds these customers and not others.

    Customers are drawn with replacement, each with all its rows (the clustered bootstrap; Davison
    and Hinkley 1997, section 3.8), since rows of one customer resemble each other.

    Args:
        metric: which.
        labels: ``(rows,)``, 0 or 1.
        scores: ``(rows,)``.
        customers: ``(rows,)``, equal for rows of one customer.
        seed: of the draws.
        repeats: how many, >= 2; draws where the metric is undefined do not count.

    Returns:
        >= 0; NaN if the metric was defined less than twice.
    """
    order = np.argsort(customers, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(customers[order])) + 1)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(repeats):
        picked = random.integers(len(rows_of), size=len(rows_of))
        rows = np.concatenate([rows_of[i] for i in picked])
        drawn.append(metric(labels[rows], scores[rows]))
    defined = [value for value in drawn if np.isfinite(value)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else float("nan")


def paired_bootstrap_error(
    metric: Metric,
    labels: Floats,
    scores: tuple[Floats, Floats],
    customers: npt.NDArray[np.int64],
    seed: int,
    repeats: int = 200,
) -> float:
    """Standard error of the difference between two models' metrics on the same rows.

    Args are those of :func:`bootstrap_error`; ``scores`` holds those of either model. Much smaller
    than the error of either metric, because both see the same draws.
    """
    both = np.arange(len(labels), dtype=np.float64)

    def difference(drawn_labels: Floats, rows: Floats) -> float:
        picked = rows.astype(np.int64)
        first, second = (metric(drawn_labels, model[picked]) for model in scores)
        return first - second

    return bootstrap_error(difference, labels, both, customers, seed, repeats)


def _has_both(labels: Floats) -> bool:
    return bool(len(labels)) and bool(labels.min() != labels.max())
