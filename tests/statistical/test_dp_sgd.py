"""The noise and the sampling of DP-SGD steps: right ones are accepted, ±30 % is rejected.

Keys are fixed, so that nothing flickers; samples are so large that a p-value below ``TINY`` is a
mistake and not bad luck, and 30 % too much or too little gives far smaller ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import stats

from dovetail.agreement.request import ModelSpec, TrainingTask
from dovetail.privacy.accountant import epsilon
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Category, Label, Number, Schema
from dovetail.training.batch import Batch
from dovetail.training.clipped_sum import clipped_sum
from dovetail.training.dp_sgd import train_round
from dovetail.training.lazy_noise import LazyTables, lazy_pays
from dovetail.training.model import build_model, load_arrays

TINY = 1e-6
KEY = bytes(range(32))
DECLARED = 50
COLUMNS = tuple(Number(f"n{i}", -1, 1) for i in range(60))
SCHEMA = Schema("t", "id", "customer", COLUMNS, Label("y", 0.2), 2)
TASK = TrainingTask(
    purpose="test",
    features=("n0",),
    label="y",
    model=ModelSpec("mlp", (100, 50)),
    rounds=1,
    sampling_prob=0.4,
    l2_clip_norm=0.7,
    noise_multiplier=1.3,
    learning_rate=0.2,
)
STEP_STD = 0.2 * 1.3 * 0.7 / (0.4 * DECLARED)
"""What one step's noise does to a parameter: learning rate * σ * C / expected batch size."""


class Table:
    def __init__(self, customers: int, schema: Schema = SCHEMA) -> None:
        dice = np.random.default_rng(1)
        shape = (customers, schema.max_rows_per_customer)
        numbers = dice.uniform(-1, 1, (*shape, len(schema.number_features)))
        codes = [dice.integers(0, c.cardinality, shape) for c in schema.categories]
        self.whole = Batch(
            numbers.astype(np.float32),
            np.stack([*codes, np.zeros(shape, np.int64)], -1)[..., : len(codes)],
            (dice.random(shape) < 0.3).astype(np.float32),
            np.ones(shape, np.float32),
        )
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.whole.mask)

    def batch(self, customers: Any) -> Any:
        self.asked.extend(customers)
        return Batch(*(array[customers] for array in vars(self.whole).values()))


def initial(spec: ModelSpec, schema: Schema = SCHEMA) -> Any:
    dice = np.random.default_rng(2)
    return {
        p.name: dice.uniform(-0.3, 0.3, p.shape).astype(np.float32) for p in spec.parameters(schema)
    }


def moved(before: Any, after: Any, names: Any = None) -> Any:
    return np.concatenate(
        [(after[n].astype(np.float64) - before[n]).ravel() for n in names or before]
    )


def p_values(values: Any, std: Any) -> Any:
    """Two-sided p-values for "normal, mean 0, this deviation": of the variance, mean and shape."""
    n = len(values)
    tail = stats.chi2.cdf(np.square(values / std).sum(), n)
    mean = 2 * stats.norm.sf(abs(values.mean()) * np.sqrt(n) / std)
    return 2 * min(tail, 1 - tail), mean, stats.kstest(values / std, "norm").pvalue


def assert_normal(values: Any, std: Any) -> None:
    assert min(p_values(values, std)) > TINY
    for wrong in (0.7, 1.3):
        variance, _, shape = p_values(values, std * wrong)
        assert variance < TINY
        assert shape < TINY


@pytest.mark.parametrize("steps", [1, 4])
def test_noise_of_steps_without_data(steps: Any) -> None:
    before = initial(TASK.model)
    task = replace(TASK, local_steps=steps)
    after = train_round(before, Table(0), SCHEMA, task, DECLARED, SecureSampler(KEY), {}).arrays
    assert_normal(moved(before, after), STEP_STD * np.sqrt(steps))


def test_noise_around_a_known_sum() -> None:
    before, table = initial(TASK.model), Table(30)
    after = train_round(before, table, SCHEMA, TASK, DECLARED, SecureSampler(KEY), {}).arrays
    model = build_model(TASK.model, SCHEMA)
    load_arrays(model, before)
    total = clipped_sum(model, table.batch(np.array(table.asked)), TASK.l2_clip_norm)
    expected = {n: before[n] - 0.2 * total[n] / (0.4 * DECLARED) for n in before}
    assert_normal(moved(expected, after), STEP_STD)


def test_noise_is_independent_between_steps_and_parameters() -> None:
    before = initial(TASK.model)
    sampler = SecureSampler(KEY)
    one, two = (
        moved(before, train_round(before, Table(0), SCHEMA, TASK, 50, sampler, {}).arrays)
        for _ in range(2)
    )
    for a, b in ((one, two), (one[:-1], one[1:]), (one[: len(one) // 2], one[-(len(one) // 2) :])):
        assert stats.pearsonr(a, b).pvalue > TINY


def test_customers_are_poisson_sampled() -> None:
    table = Table(200)
    task = replace(TASK, model=ModelSpec("logistic"), local_steps=200)
    train_round(initial(task.model), table, SCHEMA, task, 200, SecureSampler(KEY), {})
    joined = len(table.asked)
    assert stats.binomtest(joined, 200 * 200, 0.4).pvalue > TINY
    for wrong in (0.7, 1.3):
        assert stats.binomtest(joined, 200 * 200, 0.4 * wrong).pvalue < TINY
    each = np.bincount(table.asked, minlength=200)
    spread = np.square(each - 80).sum() / (200 * 0.4 * 0.6)
    assert TINY < stats.chi2.cdf(spread, 200) < 1 - TINY


def test_our_epsilon_is_opacus_epsilon_on_the_same_steps() -> None:
    for prob, sigma, steps in ((0.01, 1.0, 500), (0.1, 2.0, 100), (0.4, 1.3, 20)):
        task = replace(TASK, sampling_prob=prob, noise_multiplier=sigma, rounds=steps)
        prv, rdp = PRVAccountant(), RDPAccountant()
        for accountant in (prv, rdp):
            accountant.history = [(sigma, prob, steps)]
        ours = epsilon({task.event: task.steps}, 1e-5)
        assert ours == pytest.approx(prv.get_epsilon(1e-5), rel=0.02)
        assert ours <= rdp.get_epsilon(1e-5)


def _lazy(rows: int, dim: int, sampler: SecureSampler) -> Any:
    table, sums = torch.zeros(rows, dim), torch.zeros(rows, dim)
    return table, LazyTables(table, sums, [rows], TASK, DECLARED, sampler)


def test_lazy_noise_has_the_distribution_of_dense_noise_whatever_is_read() -> None:
    table, lazy = _lazy(4000, 8, SecureSampler(KEY))
    dice = np.random.default_rng(0)
    for _ in range(9):
        lazy.settle(torch.from_numpy(dice.integers(1, 4000, (700, 1))))
        lazy.step()
    lazy.flush()
    assert_normal(table[1:].numpy().ravel().astype(np.float64), STEP_STD * 3)


def test_lazy_noise_read_in_between_is_that_of_the_steps_so_far() -> None:
    """Joint, not only marginal: what is read early and what follows are independent parts."""
    table, lazy = _lazy(4000, 8, SecureSampler(KEY))
    everyone = torch.arange(1, 4000).unsqueeze(1)
    for _ in range(4):
        lazy.step()
    lazy.settle(everyone)
    early = table[1:].numpy().ravel().astype(np.float64)
    for _ in range(9):
        lazy.step()
    lazy.flush()
    late = table[1:].numpy().ravel() - early
    assert_normal(early, STEP_STD * 2)
    assert_normal(late, STEP_STD * 3)
    assert stats.pearsonr(early, late).pvalue > TINY


def test_a_lazy_round_leaves_with_all_its_noise() -> None:
    sizes = (1500, 700)
    columns = tuple(Category(f"c{i}", tuple(map(str, range(size)))) for i, size in enumerate(sizes))
    schema = Schema("t", "id", "customer", columns, Label("y", 0.2), 1)
    spec = ModelSpec("embedding_mlp", (4,), 8)
    task = replace(TASK, model=spec, local_steps=9, noise_multiplier=100.0)
    assert lazy_pays(task, schema, DECLARED)
    before, table = initial(spec, schema), Table(40, schema)
    after = train_round(before, table, schema, task, DECLARED, SecureSampler(KEY), {}).arrays
    std = 0.2 * 100 * 0.7 / (0.4 * DECLARED) * 3
    for name in ("embeddings.0.weight", "embeddings.1.weight"):
        rows = {name: before[name][1:]}
        assert_normal(moved(rows, {name: after[name][1:]}), std)
