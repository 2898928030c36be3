"""What a node adds to a shared sum: bounded, and answered or refused whatever its rows say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from dovetail.coordinator.round import initial_arrays
from dovetail.errors import RemoteProtocolError
from dovetail.privacy.sampler import SecureSampler
from dovetail.training.batch import Batch
from dovetail.training.contribution import clipped, contribution
from tests.samples import SCHEMA, SHARED_TASK, MemoryCustomers

EVERYBODY = replace(SHARED_TASK, sampling_prob=1.0)
ARRAYS = initial_arrays(EVERYBODY, SCHEMA)


class Without:
    """All customers but one."""

    def __init__(self, customers: MemoryCustomers, gone: int) -> None:
        self._customers = customers
        self._left = np.delete(np.arange(len(customers)), gone)

    def __len__(self) -> int:
        return len(self._left)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        return self._customers.batch(self._left[customers])


def added(customers: MemoryCustomers | Without, **changes: object) -> npt.NDArray[np.float32]:
    task = replace(EVERYBODY, **changes)  # type: ignore[arg-type]
    dice = SecureSampler(bytes(16))
    return contribution(ARRAYS, customers, SCHEMA, task, 300, dice)


@pytest.mark.parametrize(("steps", "times"), [(1, 1.0), (3, 2.0)])
def test_one_customer_moves_it_by_no_more_than_is_claimed(steps: int, times: float) -> None:
    everybody = MemoryCustomers(300)
    whole = added(everybody, local_steps=steps)
    for gone in range(0, 300, 37):
        moved = np.linalg.norm(whole - added(Without(everybody, gone), local_steps=steps))
        assert 0 < moved <= times * EVERYBODY.l2_clip_norm * (1 + 1e-4)


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
