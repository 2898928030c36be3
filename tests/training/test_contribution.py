"""What a node adds to a shared sum: bounded, and answered or refused whatever its rows say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from dovetail.agreement.request import ModelSpec
from dovetail.agreement.rounding import rounding_slack
from dovetail.coordinator.round import initial_arrays
from dovetail.errors import RemoteProtocolError
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Label, Number, Schema
from dovetail.training.batch import Batch
from dovetail.training.contribution import clipped, contribution
from tests.samples import SCHEMA, SHARED_TASK, MemoryCustomers

EVERYBODY = replace(SHARED_TASK, sampling_prob=1.0)
ARRAYS = initial_arrays(EVERYBODY, SCHEMA)


class InMemory:
    """A batch of which customers are read."""

    def __init__(self, whole: Batch) -> None:
        self._whole = whole

    def __len__(self) -> int:
        return len(self._whole.mask)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        return Batch(*(array[customers] for array in vars(self._whole).values()))


class Without:
    """All customers but one."""

    def __init__(self, customers: MemoryCustomers, gone: int) -> None:
        self._customers = customers
        self._left = np.delete(np.arange(len(customers)), gone)

    def __len__(self) -> int:
        return len(self._left)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        return self._customers.batch(self._left[customers])


def added(customers: MemoryCustomers | Without, **changes: object) -> npt.NDArray[np.float64]:
    task = replace(EVERYBODY, **changes)  # type: ignore[arg-type]
    dice = SecureSampler(bytes(16))
    return contribution(ARRAYS, customers, SCHEMA, task, 300, dice)


@pytest.mark.parametrize(("steps", "times"), [(1, 1.0), (3, 2.0)])
def test_one_customer_moves_it_by_no_more_than_is_claimed(steps: int, times: float) -> None:
    everybody = MemoryCustomers(300)
    whole = added(everybody, local_steps=steps)
    for gone in range(0, 300, 37):
        moved = np.linalg.norm(whole - added(Without(everybody, gone), local_steps=steps))
        slack = rounding_slack(sum(array.size for array in ARRAYS.values()), 3)
        assert 0 < moved <= times * EVERYBODY.l2_clip_norm * (1 + slack)


@pytest.mark.parametrize("clip", [0.1, 1e-3])
@pytest.mark.parametrize("spec", [ModelSpec("logistic"), ModelSpec("mlp", (16, 8))], ids=str)
def test_canary_among_40000_one_customer_moves_it_by_no_more_either(
    spec: ModelSpec, clip: float
) -> None:
    """All gradients are longer than the clip norm and all point in one direction."""
    features = tuple(f"n{i}" for i in range(60))
    schema = Schema(
        "t", "id", "customer", tuple(Number(n, -1, 1) for n in features), Label("y", 0.2), 1
    )
    task = replace(EVERYBODY, features=features, label="y", model=spec, l2_clip_norm=clip)
    dice = np.random.default_rng(0)
    arrays = {
        p.name: dice.uniform(-1, 1, p.shape).astype(np.float32) for p in spec.parameters(schema)
    }
    one = dice.uniform(-1, 1, (1, 1, 60)).astype(np.float32)

    def total(n: int) -> npt.NDArray[np.float64]:
        ones = np.ones((n, 1), np.float32)
        batch = Batch(np.repeat(one, n, 0), np.zeros((n, 1, 0), np.int64), ones, ones)
        return contribution(arrays, InMemory(batch), schema, task, n, SecureSampler(bytes(16)))

    moved = np.linalg.norm(total(40_000).astype(np.float64) - total(39_999)) / clip
    slack = rounding_slack(sum(array.size for array in arrays.values()), 1)
    assert slack < 1e-6
    assert 0.999 < moved <= 1 + slack


def test_steps_that_grow_unsteady_answer_nothing_and_are_not_refused() -> None:
    """A refusal would depend on rows that no noise hides."""
    everybody = MemoryCustomers(300)
    for gone in (0, 100, 200):
        update = added(Without(everybody, gone), local_steps=3, learning_rate=1e9)
        assert not update.any()
    huge = {name: np.full_like(array, 1e9) for name, array in ARRAYS.items()}
    task = replace(EVERYBODY, local_steps=3)
    with pytest.raises(RemoteProtocolError):
        contribution(huge, everybody, SCHEMA, task, 300, SecureSampler(bytes(16)))


@pytest.mark.parametrize("length", [1e-30, 0.5, 2.0, 1e30, 3e38])
def test_no_vector_is_longer_than_its_clip_norm(length: float) -> None:
    vector = np.full(7, length, np.float32)
    assert np.linalg.norm(clipped(vector, 1.0).astype(np.float64)) <= 1.0


def test_what_is_not_finite_is_nothing() -> None:
    assert not clipped(np.array([1, np.nan], np.float32), 1.0).any()
