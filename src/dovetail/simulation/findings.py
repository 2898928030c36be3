"""What follows from a study's measurements: means over partners, gains, lift, calibration.

Comparisons between training alone and together are made on each partner's *own* held-out customers,
with the same ε and the same seed on both sides. Like the measurements, nothing here is private.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dovetail.simulation.results import (
    ALL,
    Comparison,
    Estimate,
    Measurement,
    Predictions,
    estimate,
    select,
)

Floats = npt.NDArray[np.float64]

TENTHS = 10


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed, in tenths of the scored rows, lowest scores first.

    Attributes:
        predicted: mean predicted probability, ``(10,)``.
        observed: share of ones, ``(10,)``.
        errors: standard error of ``observed``, with customers as the unit, ``(10,)``.
        overall: mean prediction and share of ones over all rows.
    """

    predicted: Floats
    observed: Floats
    errors: Floats
    overall: tuple[float, float]


def own_auc(
    measurements: Iterable[Measurement], partner: str, comparison: Comparison, epsilon: float | None
) -> dict[int, float]:
    """AUC by seed on this partner's held-out customers; ``alone`` means by its own model."""
    trained_by = partner if comparison == "alone" else ALL
    return select(
        measurements,
        comparison=comparison,
        epsilon=epsilon,
        trained_by=trained_by,
        tested_on=partner,
    )


def mean_own_auc(
    measurements: Iterable[Measurement],
    test_customers: Mapping[str, int],
    comparison: Comparison,
    epsilon: float | None,
) -> Estimate | None:
    """Mean over partners of :func:`own_auc`, over the seeds measured at every partner.

    Args:
        measurements: of the study.
        test_customers: of each partner: its weight in the mean.
        comparison: who trained.
        epsilon: of the job, ``None`` without privacy.

    Returns:
        The estimate, or ``None`` where nothing was measured.
    """
    by_seed = _mean_own_auc(list(measurements), test_customers, comparison, epsilon)
    return estimate(list(by_seed.values())) if by_seed else None


def mean_gain(
    measurements: Iterable[Measurement], test_customers: Mapping[str, int], epsilon: float
) -> Estimate | None:
    """Joint less alone of :func:`mean_own_auc`, paired by seed; ``None`` without measurements."""
    found = list(measurements)
    joint = _mean_own_auc(found, test_customers, "joint", epsilon)
    alone = _mean_own_auc(found, test_customers, "alone", epsilon)
    return _paired(joint, alone)


def gain(measurements: Iterable[Measurement], partner: str, epsilon: float) -> Estimate | None:
    """Joint AUC less alone AUC on the partner's held-out customers, paired by seed.

    The standard error is that of the paired differences; ``None`` where nothing was measured.
    """
    found = list(measurements)
    joint = own_auc(found, partner, "joint", epsilon)
    alone = own_auc(found, partner, "alone", epsilon)
    return _paired(joint, alone)


def by_round(
    measurements: Iterable[Measurement], comparison: Comparison, epsilon: float | None
) -> dict[int, Estimate]:
    """AUC on all held-out customers after each round of the model that all trained."""
    wanted = (comparison, epsilon, ALL, ALL, "auc")
    seeds: dict[int, dict[int, float]] = {}
    for m in measurements:
        if (m.comparison, m.epsilon, m.trained_by, m.tested_on, m.metric) == wanted:
            seeds.setdefault(m.round, {})[m.seed] = m.value
    return {r: estimate(list(values.values())) for r, values in sorted(seeds.items())}


def calibration(predictions: Iterable[Predictions], epsilon: float) -> Calibration | None:
    """Of the joint models at ``epsilon``, all seeds together; ``None`` where there are none."""
    chosen = [p for p in predictions if (p.comparison, p.epsilon) == ("joint", epsilon)]
    if not chosen:
        return None
    scores = np.concatenate([p.scores for p in chosen]).astype(np.float64)
    labels = np.concatenate([p.labels for p in chosen]).astype(np.float64)
    customers = np.concatenate([p.customer for p in chosen])
    tenth = _tenths(scores)
    rows = [tenth == k for k in range(TENTHS) if np.any(tenth == k)]
    return Calibration(
        predicted=np.array([scores[r].mean() for r in rows]),
        observed=np.array([labels[r].mean() for r in rows]),
        errors=np.array([_share_error(labels[r], customers[r]) for r in rows]),
        overall=(float(scores.mean()), float(labels.mean())),
    )


def lift(
    predictions: Iterable[Predictions],
    partners: Sequence[str],
    comparison: Comparison,
    epsilon: float | None,
) -> list[Estimate] | None:
    """How many times the average each tenth responds, best-scored tenth first.

    Tenths are taken among each partner's own rows, as a partner would mail them, and then put
    together.

    Args:
        predictions: of the study.
        partners: their names in the study's order.
        comparison: who trained; ``alone`` scores each partner's rows with its own model.
        epsilon: of the models.

    Returns:
        Ten estimates over seeds, or ``None`` where nothing was predicted.
    """
    chosen = [p for p in predictions if (p.comparison, p.epsilon) == (comparison, epsilon)]
    by_seed = [_lift([p for p in chosen if p.seed == s], partners) for s in _seeds(chosen)]
    if not by_seed:
        return None
    return [estimate([float(values[k]) for values in by_seed]) for k in range(TENTHS)]


def _mean_own_auc(
    measurements: Sequence[Measurement],
    test_customers: Mapping[str, int],
    comparison: Comparison,
    epsilon: float | None,
) -> dict[int, float]:
    by_partner = [own_auc(measurements, name, comparison, epsilon) for name in test_customers]
    seeds = sorted(set.intersection(*map(set, by_partner))) if by_partner else []
    weights = list(test_customers.values())
    return {
        s: float(np.average([found[s] for found in by_partner], weights=weights)) for s in seeds
    }


def _paired(joint: Mapping[int, float], alone: Mapping[int, float]) -> Estimate | None:
    differences = [joint[seed] - alone[seed] for seed in sorted(joint.keys() & alone.keys())]
    return estimate(differences) if differences else None


def _lift(models: Sequence[Predictions], partners: Sequence[str]) -> Floats:
    tenths, labels = [], []
    for model in models:
        for index, name in enumerate(partners):
            rows = model.partner == index
            if model.trained_by in (ALL, name) and np.any(rows):
                tenths.append(_tenths(-model.scores[rows].astype(np.float64)))
                labels.append(model.labels[rows].astype(np.float64))
    tenth, label = np.concatenate(tenths), np.concatenate(labels)
    average = label.mean()
    rates = [label[tenth == k].mean() if np.any(tenth == k) else np.nan for k in range(TENTHS)]
    return np.array(rates) / average if average else np.full(TENTHS, np.nan)


def _seeds(predictions: Iterable[Predictions]) -> list[int]:
    return sorted({p.seed for p in predictions})


def _tenths(scores: Floats) -> npt.NDArray[np.int64]:
    """For each score the tenth it falls into, 0 the lowest; ties broken by place."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return ranks * TENTHS // max(len(scores), 1)


def _share_error(labels: Floats, customers: npt.NDArray[np.int64]) -> float:
    """Standard error of a share whose rows come in clusters of one customer.

    The linearised ratio estimator of Cochran (1977), "Sampling Techniques", section 9A.
    """
    share = labels.mean()
    _, cluster = np.unique(customers, return_inverse=True)
    residuals = np.bincount(cluster, weights=labels - share)
    return float(np.sqrt(np.sum(residuals**2)) / len(labels))
