"""What follows from a study's measurements: means over partners, gains, lift, calibration.

Comparisons between training alone and together are made on each partner's *own* held-out customers,
with the same ε and the same seed on both sides. An estimate made here knows its error over seeds
and, by a clustered bootstrap, over held-out customers. Like the measurements, nothing here is
private.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
from dovetail.simulation.uncertainty import Resamples, spread

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


@dataclass(frozen=True)
class Evidence:
    """All that a study measured.

    Attributes:
        measurements: one metric of one model on one test set each.
        predictions: scores of every final model on all held-out rows.
        held_out: by partner, in the study's order, how many customers were held out: the partner's
            weight in means over partners.
    """

    measurements: Sequence[Measurement]
    predictions: Sequence[Predictions]
    held_out: Mapping[str, int]
    _drawn: dict[tuple[int, str], Floats] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def by_seed(
        self, comparison: Comparison, epsilon: float | None, tested_on: str, trained_by: str
    ) -> BySeed:
        """AUC of the final models, measured and resampled."""
        measured = select(
            self.measurements,
            comparison=comparison,
            epsilon=epsilon,
            trained_by=trained_by,
            tested_on=tested_on,
        )
        wanted = (comparison, epsilon, trained_by)
        drawn = {
            model.seed: self._resampled(number, tested_on)
            for number, model in enumerate(self.predictions)
            if (model.comparison, model.epsilon, model.trained_by) == wanted
            and model.seed in measured
        }
        return BySeed(measured, drawn)

    def _resampled(self, number: int, tested_on: str) -> Floats:
        if (number, tested_on) not in self._drawn:
            model = self.predictions[number]
            rows = np.ones(len(model.labels), bool)
            if tested_on != ALL:
                rows = model.partner == list(self.held_out).index(tested_on)
            self._drawn[number, tested_on] = Resamples(model).auc(rows)
        return self._drawn[number, tested_on]


@dataclass(frozen=True)
class BySeed:
    """A number that was measured once per seed.

    Attributes:
        measured: its value by seed.
        drawn: by seed, its values on customers drawn anew; a seed whose model's scores are not
            known is missing.
    """

    measured: Mapping[int, float]
    drawn: Mapping[int, Floats]

    def estimate(self) -> Estimate | None:
        """Its mean with both errors; ``None`` where no seed was measured."""
        if not self.measured:
            return None
        values = [self.measured[seed] for seed in sorted(self.measured)]
        if self.drawn.keys() != self.measured.keys():
            return estimate(values)
        return estimate(values, spread(np.mean(list(self.drawn.values()), axis=0)))


def auc(
    evidence: Evidence,
    comparison: Comparison,
    epsilon: float | None,
    tested_on: str,
    trained_by: str = ALL,
) -> Estimate | None:
    """AUC of one comparison's models on one test set; ``None`` where nothing was measured."""
    return evidence.by_seed(comparison, epsilon, tested_on, trained_by).estimate()


def gain(evidence: Evidence, partner: str, epsilon: float) -> Estimate | None:
    """Joint AUC less alone AUC on the partner's held-out customers.

    Paired: differences are taken seed by seed, and on the same customers drawn. ``None`` where
    nothing was measured.
    """
    joint, alone = (_own_auc(evidence, partner, name, epsilon) for name in _JOINT_AND_ALONE)
    return _combined([joint, alone], [1, -1]).estimate()


def mean_own_auc(
    evidence: Evidence, comparison: Comparison, epsilon: float | None
) -> Estimate | None:
    """Mean over partners of the AUC on each one's own customers; ``alone`` by its own model.

    Partners weigh by their held-out customers; seeds count that were measured at every partner.

    Args:
        evidence: of the study.
        comparison: who trained.
        epsilon: of the job, ``None`` without privacy.

    Returns:
        The estimate, or ``None`` where nothing was measured.
    """
    return _mean_own_auc(evidence, comparison, epsilon).estimate()


def mean_gain(evidence: Evidence, epsilon: float) -> Estimate | None:
    """Joint less alone of :func:`mean_own_auc`, paired as in :func:`gain`."""
    joint, alone = (_mean_own_auc(evidence, name, epsilon) for name in _JOINT_AND_ALONE)
    return _combined([joint, alone], [1, -1]).estimate()


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
    evidence: Evidence, comparison: Comparison, epsilon: float | None
) -> list[Estimate] | None:
    """How many times the average each tenth responds, best-scored tenth first.

    Tenths are taken among each partner's own rows, as a partner would mail them, and then put
    together; the error over customers holds who stands in which tenth fixed.

    Args:
        evidence: of the study.
        comparison: who trained; ``alone`` scores each partner's rows with its own model.
        epsilon: of the models.

    Returns:
        Ten estimates over seeds, or ``None`` where nothing was predicted.
    """
    chosen = [p for p in evidence.predictions if (p.comparison, p.epsilon) == (comparison, epsilon)]
    found, drawn = [], []
    for seed in _seeds(chosen):
        models = [model for model in chosen if model.seed == seed]
        inside = _tenths_at_partners(models, evidence.held_out)
        counts = np.concatenate([inside * models[0].labels[:, None], inside], axis=1)
        found.append(_lift(counts.sum(axis=0, keepdims=True))[0])
        drawn.append(_lift(Resamples(models[0]).totals(counts)))
    if not found:
        return None
    mean = np.mean(drawn, axis=0)
    return [
        estimate([float(values[k]) for values in found], spread(mean[:, k])) for k in range(TENTHS)
    ]


_JOINT_AND_ALONE: tuple[Comparison, Comparison] = ("joint", "alone")


def _own_auc(
    evidence: Evidence, partner: str, comparison: Comparison, epsilon: float | None
) -> BySeed:
    trained_by = partner if comparison == "alone" else ALL
    return evidence.by_seed(comparison, epsilon, partner, trained_by)


def _mean_own_auc(evidence: Evidence, comparison: Comparison, epsilon: float | None) -> BySeed:
    parts = [_own_auc(evidence, name, comparison, epsilon) for name in evidence.held_out]
    total = sum(evidence.held_out.values())
    return _combined(parts, [customers / total for customers in evidence.held_out.values()])


def _combined(parts: Sequence[BySeed], weights: Sequence[float]) -> BySeed:
    """A weighted sum, over the seeds that every part has."""
    pairs = list(zip(weights, parts, strict=True))
    return BySeed(
        {s: sum(w * p.measured[s] for w, p in pairs) for s in _shared([p.measured for p in parts])},
        {
            s: np.sum([w * p.drawn[s] for w, p in pairs], axis=0)
            for s in _shared([p.drawn for p in parts])
        },
    )


def _shared(parts: Sequence[Mapping[int, object]]) -> list[int]:
    return sorted(set.intersection(*map(set, parts))) if parts else []


def _tenths_at_partners(models: Sequence[Predictions], partners: Iterable[str]) -> Floats:
    """Whether each row stands in each tenth of its partner's rows, ``(rows, 10)``, best first."""
    inside = np.zeros((len(models[0].labels), TENTHS))
    for model in models:
        for index, name in enumerate(partners):
            rows = np.flatnonzero(model.partner == index)
            if model.trained_by in (ALL, name):
                inside[rows, _tenths(-model.scores[rows].astype(np.float64))] = 1
    return inside


def _lift(counts: Floats) -> Floats:
    """Response over average response by tenth, from ones and rows by tenth side by side."""
    ones, rows = np.split(counts, 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = ones / rows / (ones.sum(axis=1, keepdims=True) / rows.sum(axis=1, keepdims=True))
    return np.asarray(found, dtype=np.float64)


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
