"""Small random tables and models for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dovetail.agreement.request import ModelSpec
from dovetail.schema import Category, Label, Number, Schema
from dovetail.training.batch import Batch


class Table:
    """Customers in memory."""

    def __init__(self, whole: Batch) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole.mask)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        w = self.whole
        return Batch(
            w.numbers[customers], w.codes[customers], w.labels[customers], w.mask[customers]
        )


class World:
    """Builders; everything random comes from the seed given."""

    def schema(self, numbers: int, sizes: Sequence[int] = (), rows: int = 1) -> Schema:
        columns = [Number(f"n{i}", -1, 1) for i in range(numbers)]
        categories = [
            Category(f"c{i}", tuple(str(v) for v in range(size))) for i, size in enumerate(sizes)
        ]
        return Schema("t", "id", "customer", (*columns, *categories), Label("y", 0.2), rows)

    def arrays(
        self, spec: ModelSpec, schema: Schema, seed: int = 0, scale: float = 0.5
    ) -> dict[str, npt.NDArray[np.float32]]:
        dice = np.random.default_rng(seed)
        return {
            p.name: (dice.uniform(-scale, scale, p.shape)).astype(np.float32)
            for p in spec.parameters(schema)
        }

    def batch(
        self,
        schema: Schema,
        customers: int,
        seed: int = 0,
        fill: float = 0.7,
        scale: float = 1.0,
    ) -> Batch:
        """Random customers; padding holds rubbish, which nothing may read."""
        dice = np.random.default_rng(seed)
        shape = (customers, schema.max_rows_per_customer)
        mask = (dice.random(shape) < fill).astype(np.float32)
        numbers = dice.uniform(-scale, scale, (*shape, len(schema.number_features)))
        numbers[mask == 0] = np.nan
        codes = np.empty((*shape, len(schema.categories)), np.int64)
        for i, category in enumerate(schema.categories):
            codes[..., i] = dice.integers(0, category.cardinality, shape)
        codes[mask == 0] = -7
        labels = (dice.random(shape) < 0.4).astype(np.float32)
        return Batch(numbers.astype(np.float32), codes, labels, mask)

    def table(self, schema: Schema, customers: int, seed: int = 0, fill: float = 0.7) -> Table:
        return Table(self.batch(schema, customers, seed, fill))


@pytest.fixture(scope="session")
def world() -> World:
    return World()
