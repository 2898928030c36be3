"""A small schema and task that many tests share."""

from __future__ import annotations

from dovetail.agreement.request import ModelSpec, TrainingTask
from dovetail.schema import Category, Label, Number, Schema

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
