"""A study's result that was drawn, not trained, and a job that fits it: for charts and reports."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np

from dovetail.agreement import request as requests
from dovetail.agreement.entry import Entry
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.request import ModelSpec, Request
from dovetail.agreement.terms import Budget, Terms
from dovetail.simulation import identities
from dovetail.simulation.report import HeadlineJob
from dovetail.simulation.results import ALL, Comparison, Measurement, Predictions
from dovetail.simulation.study import (
    PURPOSE,
    Partition,
    Study,
    StudyData,
    StudyPrivacy,
    Training,
)
from dovetail.simulation.study_result import StudyPartner, StudyResult
from dovetail.store.card import ModelCard
from tests.samples import SCHEMA

EPSILONS = (1.0, 3.0, 8.0)
NOISE = {1.0: 3.0, 3.0: 1.2, 8.0: 0.7}
DELTA = 1e-3
NAMES = ("retailer", "platform", "brand")
DECLARED = (650, 360, 230)
HELD_OUT = (170, 90, 50)
ROUNDS = 6
SEEDS = (0, 1, 2)
FIRST, LAST = date(2024, 1, 1), date(2024, 12, 31)

BASE: dict[Comparison, float] = {"joint": 0.80, "alone": 0.75, "pooled_dp": 0.81, "pooled": 0.83}


def measurements(names: tuple[str, ...] = NAMES) -> tuple[Measurement, ...]:
    """Every comparison, ε and seed, on each partner and on all; joint also by round."""
    dice = np.random.default_rng(0)
    found = []
    for seed in SEEDS:
        for comparison, base in BASE.items():
            for epsilon in (None,) if comparison == "pooled" else EPSILONS:
                trainers = names if comparison == "alone" else (ALL,)
                for trainer in trainers:
                    for number in range(1, ROUNDS + 1):
                        for tested in (*names, ALL):
                            value = base - 0.02 / (epsilon or 1e9) + dice.normal() * 0.01
                            value -= 0.1 * 0.5**number
                            found.append(
                                Measurement(
                                    comparison=comparison,
                                    trained_by=trainer,
                                    tested_on=tested,
                                    epsilon=epsilon,
                                    delta=None if epsilon is None else DELTA,
                                    seed=seed,
                                    round=number,
                                    final=number == ROUNDS,
                                    metric="auc",
                                    value=float(value),
                                )
                            )
    return tuple(found)


def predictions(names: tuple[str, ...] = NAMES) -> tuple[Predictions, ...]:
    """Scores of joint and alone models at ε = 3; joint ones nearer the truth."""
    dice = np.random.default_rng(1)
    customer = np.repeat(np.arange(310), 3)
    partner = np.repeat(np.arange(3), np.array(HELD_OUT) * 3)
    truth = dice.normal(size=len(customer))
    labels = (dice.random(len(customer)) < 1 / (1 + np.exp(2 - truth))).astype(np.float32)
    found = []
    for seed in SEEDS:
        for comparison, trainer, blur in (
            ("joint", ALL, 0.3),
            *(("alone", name, 1.2) for name in names),
        ):
            guess = truth + blur * dice.normal(size=len(customer)) - 2
            scores = (1 / (1 + np.exp(-guess))).astype(np.float32)
            found.append(
                Predictions(comparison, trainer, 3.0, seed, scores, labels, partner, customer)  # type: ignore[arg-type]
            )
    return tuple(found)


def study() -> Study:
    return Study(
        name="Made-up study",
        data=StudyData("synthetic"),
        partition=Partition("column", column="region"),
        training=Training(
            ModelSpec("logistic"), ROUNDS, sampling_prob=0.2, l2_clip_norm=0.5, learning_rate=0.1
        ),
        privacy=StudyPrivacy(EPSILONS, DELTA),
        seeds=SEEDS,
    )


def result(names: tuple[str, ...] = NAMES) -> StudyResult:
    partners = tuple(
        StudyPartner(name, "a role", declared, declared + 3, held_out, "2024")
        for name, declared, held_out in zip(names, DECLARED, HELD_OUT, strict=True)
    )
    return StudyResult(study(), SCHEMA, partners, NOISE, measurements(names), predictions(names))


def job(names: tuple[str, ...] = NAMES, note: str = "Drawn at random.") -> HeadlineJob:
    features = tuple(column.name for column in SCHEMA.columns)
    task = study().training.task(features, SCHEMA.label.name, noise_multiplier=NOISE[3.0], seed=0)
    partners = tuple(
        identities.partner(name, "a role", declared, FIRST, LAST)
        for name, declared in zip(names, DECLARED, strict=True)
    )
    terms = Terms(
        name="Made-up terms",
        version=1,
        previous="",
        valid_from=identities.FIRST_DAY,
        valid_until=identities.LAST_DAY,
        schema=SCHEMA,
        coordinator=identities.coordinator(),
        analysts=(),
        partners=partners,
        purposes=(PURPOSE,),
        requests=("training",),
        approval="automatic",
        customers_overlap=False,
        minimum_cohort=50,
        budget=Budget(3.0, DELTA),
        model_families=("logistic",),
        protections=("local",),
        max_epsilon_per_job=3.0,
        max_concurrent_jobs=1,
        max_parameters=100,
        max_rounds=ROUNDS,
        max_steps=ROUNDS,
    )
    request = Request("headline", task)
    card = ModelCard(request, terms, dict.fromkeys(names, ROUNDS), LAST, (note,), simulated=True)
    return HeadlineJob(3.0, card, dict.fromkeys(names, entries(request)))


def entries(request: Request, begun: int = ROUNDS) -> tuple[Entry, ...]:
    """What a partner's ledger holds after the job, of which so many rounds took place."""
    ledger, now = Ledger(Budget(3.0, DELTA)), datetime(2024, 12, 31, tzinfo=UTC)
    written = []

    def put(entry: Entry) -> None:
        ledger.apply(entry)
        written.append(entry)

    name, event = request.job, request.task.event
    put(ledger.decide_reserve(name, requests.digest(request), event, ROUNDS, now))
    for number in range(1, begun + 1):
        put(ledger.decide_begin(name, number, 1, now))
        put(ledger.decide_commit(name, number, now))
    put(ledger.decide_cancel(name, now))
    return tuple(written)
