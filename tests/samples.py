"""A small schema, task and three partners that many tests share."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from dovetail.agreement.request import ModelSpec, TrainingTask
from dovetail.agreement.secure_aggregation import SecureAggregation
from dovetail.agreement.terms import Budget, Terms
from dovetail.schema import Category, Label, Number, Schema
from dovetail.simulation import identities
from dovetail.training.batch import Batch

SCHEMA = Schema(
    name="customers",
    key="id",
    unit="customer",
    columns=(
        Number("age", 0, 100, nullable=True),
        Number("spend", 0, 1000, unit="EUR", transform="log"),
        Category("region", ("north", "south")),
    ),
    label=Label("bought", prior=0.2),
    max_rows_per_customer=3,
)

TASK = TrainingTask(
    purpose="propensity",
    features=("age", "spend", "region"),
    label="bought",
    model=ModelSpec("logistic"),
    rounds=3,
    sampling_prob=0.1,
    l2_clip_norm=1.0,
    noise_multiplier=1.0,
    learning_rate=0.1,
)


ONE_COLLUDER = SecureAggregation(dropouts=0, colluders=1)
ONE_EACH = SecureAggregation(dropouts=1, colluders=1)
"""Needs four partners: :func:`tolerant_terms`."""
SHARED_TASK = replace(TASK, protection="distributed")


class MemoryCustomers:
    """Customers in plain arrays: one to three rows each, label decided by age and noise."""

    def __init__(self, n: int, seed: int = 0) -> None:
        dice = np.random.default_rng(seed)
        rows = SCHEMA.max_rows_per_customer
        self.mask = (np.arange(rows) < dice.integers(1, rows + 1, (n, 1))).astype(np.float32)
        width = len(SCHEMA.number_features)
        self.numbers = dice.uniform(-1, 1, (n, rows, width)).astype(np.float32)
        self.numbers *= self.mask[..., None]
        self.codes = dice.integers(0, 4, (n, rows, 1)) * (self.mask[..., None] > 0)
        chance = 1 / (1 + np.exp(1.5 - 3 * self.numbers[..., 0]))
        self.labels = (dice.random((n, rows)) < chance).astype(np.float32) * self.mask

    def __len__(self) -> int:
        return len(self.mask)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        """Rows of these customers."""
        return Batch(
            self.numbers[customers],
            self.codes[customers],
            self.labels[customers],
            self.mask[customers],
        )


def terms(**changes: Any) -> Terms:
    """Terms of three partners of unequal size."""
    period = (date(2024, 1, 1), date(2024, 12, 31))
    standard = Terms(
        name="loyalty",
        version=1,
        previous="",
        valid_from=date(2024, 1, 1),
        valid_until=date(2999, 12, 31),
        schema=SCHEMA,
        coordinator=identities.coordinator(),
        analysts=(),
        partners=(
            identities.partner("retailer", "retailer", 300, *period),
            identities.partner("platform", "ad platform", 200, *period),
            identities.partner("brand", "brand", 100, *period),
        ),
        purposes=("propensity",),
        requests=("training",),
        approval="automatic",
        customers_overlap=False,
        minimum_cohort=50,
        budget=Budget(epsilon=8.0, delta=1e-3),
        model_families=("logistic", "mlp", "embedding_mlp"),
        protections=("local",),
        max_epsilon_per_job=8.0,
        max_concurrent_jobs=100,
        max_parameters=10_000,
        max_rounds=50,
        max_steps=200,
    )
    return replace(standard, **changes)


def customers() -> dict[str, MemoryCustomers]:
    """Each partner's customers, a few more or fewer than declared."""
    sizes = {"retailer": 304, "platform": 197, "brand": 102}
    return {name: MemoryCustomers(n, seed) for seed, (name, n) in enumerate(sizes.items())}


def sharing_terms(**changes: Any) -> Terms:
    """The same terms where the partners may share the noise, and one of them may collude."""
    shared = {"protections": ("distributed", "local"), "secure_aggregation": ONE_COLLUDER}
    return terms(**{**shared, **changes})


def tolerant_terms(**changes: Any) -> Terms:
    """Terms of four partners that share the noise: one may leave, and one may collude."""
    agreed = sharing_terms()
    first = agreed.partners[0]
    fourth = identities.partner("cinema", "cinema", 150, first.first_day, first.last_day)
    partners = (*agreed.partners, fourth)
    return replace(agreed, **{"partners": partners, "secure_aggregation": ONE_EACH, **changes})


def customers_of_four() -> dict[str, MemoryCustomers]:
    """Those of :func:`customers`, and of the fourth partner of :func:`tolerant_terms`."""
    return {**customers(), "cinema": MemoryCustomers(148, 3)}
