"""The runs of a study: each partner alone, all together, one imaginary company, no privacy.

All private runs go through the same :class:`~dovetail.simulation.world.World`: real nodes with
real gates and ledgers under terms drawn up for the run. They differ in who takes part, and in
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dovetail.agreement.calibration import enough_noise
from dovetail.agreement.party import Partner, rounded
from dovetail.agreement.request import Request, TrainingTask
from dovetail.agreement.secure_aggregation import SecureAggregation
from dovetail.agreement.terms import Budget, Terms
from dovetail.coordinator.round import calibrated
from dovetail.schema import Schema
from dovetail.simulation import identities
from dovetail.simulation.ground import Ground, Together
from dovetail.simulation.metrics import auc, log_loss
from dovetail.simulation.results import ALL, Comparison, Measurement, Metric
from dovetail.simulation.study import PURPOSE, Study
from dovetail.simulation.world import World
from dovetail.training.batch import Customers
from dovetail.training.evaluate import scores
from dovetail.training.plain import train_plain

Arrays = Mapping[str, npt.NDArray[np.float32]]
WITH_CURVE: frozenset[Comparison] = frozenset({"joint", "pooled_dp"})
"""Comparisons that are also measured on the way."""


@dataclass(frozen=True)
class Cell:
    """One run of a study, independent of all others.

    Attributes:
        comparison: who trains.
        trained_by: the partner that trains alone, or ``all``.
        epsilon: of the job; ``None`` without privacy.
        noise_multiplier: that this ε asks for where a partner adds its noise alone; 0 without
            privacy.
        seed: of parameters, samples and noise.
    """

    comparison: Comparison
    trained_by: str
    epsilon: float | None
    noise_multiplier: float
    seed: int

    def __str__(self) -> str:
        private = "no privacy" if self.epsilon is None else f"ε = {self.epsilon:g}"
        who = self.trained_by if self.comparison == "alone" else ""
        name = " ".join(filter(None, (self.comparison.replace("_", " "), who)))
        return f"{name}, {private}, seed {self.seed}"


@dataclass(frozen=True)
class CellResult:
    """What one run measured.

    Attributes:
        measurements: its final metrics, and for :data:`WITH_CURVE` those on the way.
        scores: of the final model on all held-out rows, float32 ``(rows,)``.
    """

    measurements: tuple[Measurement, ...]
    scores: npt.NDArray[np.float32]


def cells(study: Study, partners: tuple[str, ...], noise: Mapping[float, float]) -> list[Cell]:
    """Every run of a study: seed by seed, so that early results are complete comparisons.

    Args:
        study: the study.
        partners: the partners' names.
        noise: the noise multiplier for each ε.
    """
    listed = []
    for seed in study.seeds:
        listed.append(Cell("pooled", ALL, None, 0.0, seed))
        for epsilon in study.privacy.epsilons:
            listed.append(Cell("joint", ALL, epsilon, noise[epsilon], seed))
            if study.privacy.protection == "distributed":
                listed.append(Cell("joint_local", ALL, epsilon, noise[epsilon], seed))
            listed.append(Cell("pooled_dp", ALL, epsilon, noise[epsilon], seed))
            listed += [Cell("alone", name, epsilon, noise[epsilon], seed) for name in partners]
    return listed


def run_cell(cell: Cell, study: Study, ground: Ground) -> CellResult:
    """Trains and measures one cell; equal arguments give equal results, bit for bit.

    Raises:
        PolicyError: a node refused.
        DovetailError: the job failed.
    """
    measured: list[Measurement] = []
    every = study.evaluation.every_rounds

    def on_round(number: int, arrays: Arrays) -> None:
        done, rest = divmod(number * study.training.rounds, task.rounds)
        if cell.comparison in WITH_CURVE and not rest and done % every == 0:
            measured.extend(_measure(cell, study, ground, arrays, done, final=False)[0])

    if cell.comparison == "pooled":
        arrays: Arrays = _train_without_privacy(cell, study, ground)
    else:
        partners, customers = _parties(cell, ground)
        assert cell.epsilon is not None  # noqa: S101 - every private cell has one
        task, terms = agreed_task(
            study,
            ground.schema,
            partners,
            cell.epsilon,
            cell.noise_multiplier,
            cell.seed,
            shared=cell.comparison == "joint" and study.privacy.protection == "distributed",
        )
        with World(terms, customers, cell.seed) as world:
            arrays = world.run(Request(_job(cell), task), on_round=on_round).value
    final, predicted = _measure(cell, study, ground, arrays, study.training.rounds, final=True)
    return CellResult((*measured, *final), predicted)


def agreed_task(
    study: Study,
    schema: Schema,
    partners: tuple[Partner, ...],
    epsilon: float,
    noise_multiplier: float,
    seed: int,
    *,
    shared: bool,
) -> tuple[TrainingTask, Terms]:
    """One run's task at an ε, and terms under which these partners may run it.

    Args:
        study: the study.
        schema: the columns.
        partners: who takes part.
        epsilon: of the job.
        noise_multiplier: that it asks for where each partner adds its noise alone.
        seed: of the run.
        shared: whether the partners share the noise.

    Raises:
        SettingError: so few partners cannot, or not as the study says.
    """
    columns, label = tuple(column.name for column in schema.columns), schema.label.name
    if not shared:
        task = study.training.task(columns, label, noise_multiplier=noise_multiplier, seed=seed)
        return task, terms_of(study, schema, partners, epsilon, task)
    task = study.training.shared_task(columns, label, noise_multiplier=noise_multiplier, seed=seed)
    terms = terms_of(study, schema, partners, epsilon, task)
    noise = enough_noise(task, terms, epsilon, study.privacy.delta)
    return replace(task, noise_multiplier=noise), terms


def terms_of(
    study: Study,
    schema: Schema,
    partners: tuple[Partner, ...],
    epsilon: float,
    task: TrainingTask,
) -> Terms:
    """Terms under which these partners may run this task once, and nothing more."""
    sizes = [np.prod(p.shape, dtype=int) for p in task.model.parameters(schema)]
    return Terms(
        name=study.name,
        version=1,
        previous="",
        valid_from=identities.FIRST_DAY,
        valid_until=identities.LAST_DAY,
        schema=schema,
        coordinator=identities.coordinator(),
        analysts=(),
        partners=partners,
        purposes=(PURPOSE,),
        requests=("training",),
        approval="automatic",
        customers_overlap=study.privacy.customers_overlap,
        minimum_cohort=study.privacy.minimum_cohort,
        budget=Budget(epsilon, study.privacy.delta),
        model_families=(task.model.family,),
        protections=(task.protection,),
        max_epsilon_per_job=epsilon,
        max_concurrent_jobs=1,
        max_parameters=int(sum(sizes)),
        max_rounds=task.rounds,
        max_steps=task.steps,
        secure_aggregation=(
            SecureAggregation(study.privacy.dropouts, study.privacy.colluders)
            if task.protection == "distributed"
            else None
        ),
    )


def _parties(cell: Cell, ground: Ground) -> tuple[tuple[Partner, ...], Mapping[str, Customers]]:
    """Who takes part in a private run, and with which customers."""
    partners, customers = ground.partners, ground.training
    if cell.comparison == "alone":
        partners = tuple(p for p in partners if p.name == cell.trained_by)
        customers = {cell.trained_by: customers[cell.trained_by]}
    elif cell.comparison == "pooled_dp":
        together = Together(list(customers.values()))
        partners = (_imaginary_company(partners, len(together)),)
        customers = {ALL: together}
    return partners, customers


def _imaginary_company(partners: tuple[Partner, ...], customers: int) -> Partner:
    first = min(partner.first_day for partner in partners)
    last = max(partner.last_day for partner in partners)
    return identities.partner(
        ALL, "one company that holds all rows", rounded(customers), first, last
    )


def _train_without_privacy(cell: Cell, study: Study, ground: Ground) -> Arrays:
    weight = study.training.positive_weight
    arrays = train_plain(
        Together(list(ground.training.values())),
        ground.schema,
        study.training.model,
        positive_weight=weight,
        seed=cell.seed,
    )
    return calibrated(arrays, weight)


def _measure(
    cell: Cell, study: Study, ground: Ground, arrays: Arrays, number: int, *, final: bool
) -> tuple[list[Measurement], npt.NDArray[np.float32]]:
    """Metrics at every partner's held-out rows and at all of them, and the scores.

    A partner whose held-out rows have one class only has no AUC; it is left out there.
    """
    predicted, labels, customer = scores(
        arrays, study.training.model, ground.schema, ground.held_out
    )
    owner = ground.held_out_partner[customer]
    tested = {ALL: np.ones(len(labels), bool)}
    tested |= {partner.name: owner == i for i, partner in enumerate(ground.partners)}
    found = []
    for name, rows in tested.items():
        for metric, value in _metrics(labels[rows], predicted[rows]).items():
            found.append(
                Measurement(
                    comparison=cell.comparison,
                    trained_by=cell.trained_by,
                    tested_on=name,
                    epsilon=cell.epsilon,
                    delta=None if cell.epsilon is None else study.privacy.delta,
                    seed=cell.seed,
                    round=number,
                    final=final,
                    metric=metric,
                    value=value,
                )
            )
    return found, predicted


def _metrics(
    labels: npt.NDArray[np.float32], predicted: npt.NDArray[np.float32]
) -> dict[Metric, float]:
    if not 0 < labels.sum() < len(labels):
        return {}
    return {"auc": auc(labels, predicted), "log_loss": log_loss(labels, predicted)}


def _job(cell: Cell) -> str:
    """The job's name; the dice depend on it, so that no two runs of a seed share their noise."""
    epsilon = "none" if cell.epsilon is None else repr(cell.epsilon)
    return f"{cell.comparison}-{epsilon}".replace("+", "")
