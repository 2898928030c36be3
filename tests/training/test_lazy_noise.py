from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dovetail.agreement.request import ModelSpec, TrainingTask
from dovetail.privacy.mechanism import grid_of
from dovetail.privacy.sampler import SecureSampler
from dovetail.training import dp_sgd
from dovetail.training.dp_sgd import train_round
from dovetail.training.lazy_noise import LazyTables, lazy_pays

TASK = TrainingTask(
    purpose="test",
    features=("n0",),
    label="y",
    model=ModelSpec("embedding_mlp", (4,), 2),
    rounds=1,
    sampling_prob=0.1,
    l2_clip_norm=0.5,
    noise_multiplier=1.0,
    learning_rate=0.5,
    local_steps=4,
)
KEY = bytes(32)


@pytest.mark.parametrize(
    ("change", "pays"),
    [
        ({}, True),
        ({"local_steps": 1}, False),
        ({"momentum": 0.5}, False),
        ({"local_optimizer": "adam"}, False),
        ({"server_optimizer": "fedprox", "proximal_mu": 0.1}, False),
        ({"protection": "none", "noise_multiplier": 0.0}, False),
        ({"model": ModelSpec("mlp", (4,))}, False),
        ({"sampling_prob": 1.0}, False),
    ],
)
def test_it_is_used_only_where_it_is_exact_and_pays(world: Any, change: Any, pays: bool) -> None:
    schema = world.schema(1, (2000,))
    assert lazy_pays(replace(TASK, **change), schema, 1000) is pays


def test_gradients_are_those_of_dense_steps(world: Any, monkeypatch: Any) -> None:
    """With hardly any noise, lazy and dense rounds over the same samples end in the same place."""
    schema = world.schema(2, (300, 5), 2)
    table = world.table(schema, 60)
    task = replace(TASK, noise_multiplier=1e-5, local_steps=6)
    arrays = world.arrays(task.model, schema)
    assert lazy_pays(task, schema, 60)
    lazy = train_round(arrays, table, schema, task, 60, SecureSampler(KEY), {}).arrays
    monkeypatch.setattr(dp_sgd, "lazy_pays", lambda *_: False)
    dense = train_round(arrays, table, schema, task, 60, SecureSampler(KEY), {}).arrays
    for name, array in dense.items():
        np.testing.assert_allclose(lazy[name], array, atol=1e-4)
        assert np.abs(array - arrays[name]).max() > 1e-2


def test_several_physical_batches_of_one_step_settle_once() -> None:
    table, sums = torch.zeros(4, 1), torch.zeros(4, 1)
    task = replace(TASK, noise_multiplier=1e-9, l2_clip_norm=1.0, learning_rate=1.0)
    lazy = LazyTables(table, sums, [4], task, 10, SecureSampler(KEY))
    lazy.settle(torch.tensor([[1]]))
    sums[1] += 1
    lazy.settle(torch.tensor([[1], [2]]))
    sums[1] += 1
    sums[2] += 1
    assert not table.any()
    lazy.step()
    lazy.settle(torch.tensor([[1]]))
    assert table[:, 0].tolist() == pytest.approx([0, -2, 0, 0], abs=1e-6)
    lazy.step()
    lazy.flush()
    assert table[:, 0].tolist() == pytest.approx([0, -2, -1, 0], abs=1e-6)


def test_flush_leaves_nothing_outstanding_and_missing_values_alone() -> None:
    table, sums = torch.zeros(30, 2), torch.zeros(30, 2)
    lazy = LazyTables(table, sums, [10, 20], TASK, 10, SecureSampler(KEY))
    lazy.settle(torch.tensor([[3, 4]]))
    lazy.step()
    lazy.flush()
    assert (table != 0).any(1).nonzero().flatten().tolist() == [
        i for i in range(30) if i not in (0, 10)
    ]
    settled = table.clone()
    lazy.flush()
    assert torch.equal(table, settled)


def test_what_leaves_does_not_show_how_often_a_row_was_read() -> None:
    """Every row is its start less a whole number of the mechanism's cells, bit for bit."""
    start = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    table = start.clone()
    lazy = LazyTables(table, torch.zeros(30, 4), [30], TASK, 10, SecureSampler(KEY))
    for read in ([1, 2, 3], [1, 2], [1], []):
        lazy.settle(torch.tensor(read, dtype=torch.int64).reshape(-1, 1))
        lazy.step()
    lazy.flush()
    step_size, grid = TASK.learning_rate / (TASK.sampling_prob * 10), grid_of(TASK.event)
    cells = ((start - table).double() / step_size / grid).round()
    assert torch.equal(table, torch.sub(start, (cells * grid).float(), alpha=step_size))
