"""How good scores are: the researcher's own view, not private.

Everything here reads raw labels and scores, as only somebody who holds all rows can. None of it
may leave a node; a metric that leaves is noised and charged like any other release.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

Floats = npt.NDArray[np.floating]


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


def _has_both(labels: Floats) -> bool:
    return bool(len(labels)) and bool(labels.min() != labels.max())
