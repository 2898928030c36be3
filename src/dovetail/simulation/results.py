"""What a study measured, one number per row.

All of it is the researcher's own view: metrics over raw rows of partners that a real coordinator
never sees. None of these numbers is private, and none would leave a node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Comparison = Literal["alone", "joint", "joint_local", "pooled_dp", "pooled"]
"""Who trains: one partner by itself; all partners as nodes; the same with all noise added by each
(``local``) where they otherwise share it (``distributed``); one imaginary company that holds all
rows, under the same ε; the same company without privacy, the ceiling."""

Metric = Literal["auc", "log_loss"]
ALL = "all"
"""Stands for all partners together, as trainer or as test set."""


@dataclass(frozen=True)
class Measurement:
    """One metric of one trained model on one test set.

    Attributes:
        comparison: who trained.
        trained_by: the partner that trained alone, or :data:`ALL`.
        tested_on: the partner whose held-out customers were scored, or :data:`ALL`.
        epsilon: the ε of the whole job, ``None`` without privacy.
        delta: the δ that belongs to it, ``None`` without privacy.
        seed: of the run.
        round: after which round; the job's last one for the final model.
        final: whether this is the job's final model (others draw the learning curve).
        metric: which metric.
        value: its value.
    """

    comparison: Comparison
    trained_by: str
    tested_on: str
    epsilon: float | None
    delta: float | None
    seed: int
    round: int
    final: bool
    metric: Metric
    value: float


@dataclass(frozen=True)
class Predictions:
    """Scores of one final model on all held-out customers' rows, for calibration and lift.

    Attributes:
        comparison, trained_by, epsilon, seed: which model, as in :class:`Measurement`.
        scores: float32 ``(rows,)``, predicted probabilities.
        labels: float32 ``(rows,)``, 0 or 1.
        partner: for each row, the index of its partner in the study's order.
        customer: for each row, a number that is equal for rows of one customer.
    """

    comparison: Comparison
    trained_by: str
    epsilon: float | None
    seed: int
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    partner: npt.NDArray[np.int64]
    customer: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and how uncertain it is.

    Neither error covers that other customers might have been trained on.

    Attributes:
        mean: over the seeds.
        seeds_error: standard error because noise and sampling fell as they did (sample standard
            deviation over √n); NaN for a single seed.
        seeds: how many.
        customers_error: standard error because these customers were held out and not others; NaN
            where it is not known.
    """

    mean: float
    seeds_error: float
    seeds: int
    customers_error: float = float("nan")

    @property
    def standard_error(self) -> float:
        """Both errors in quadrature; one of them where the other is not known, NaN without any.

        Rather too large than too small: where seeds differ more on some customers than on others,
        that difference counts in both.
        """
        known = [e for e in (self.seeds_error, self.customers_error) if not math.isnan(e)]
        return math.hypot(*known) if known else float("nan")

    @property
    def clear(self) -> int:
        """1 or -1 where the mean lies more than two standard errors above or below 0, else 0."""
        if not abs(self.mean) > 2 * self.standard_error:
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: Sequence[float], customers_error: float = float("nan")) -> Estimate:
    """Mean and standard error over seeds of one number per seed.

    Args:
        values: one per seed.
        customers_error: of their mean, see :class:`Estimate`.
    """
    n = len(values)
    error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Estimate(float(np.mean(values)), error, n, customers_error)


def select(
    measurements: Iterable[Measurement],
    *,
    comparison: Comparison,
    epsilon: float | None,
    trained_by: str = ALL,
    tested_on: str = ALL,
    metric: Metric = "auc",
) -> dict[int, float]:
    """The final values by seed."""
    wanted = (comparison, epsilon, trained_by, tested_on, metric)
    return {
        m.seed: m.value
        for m in measurements
        if m.final and (m.comparison, m.epsilon, m.trained_by, m.tested_on, m.metric) == wanted
    }
