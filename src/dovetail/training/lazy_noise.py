"""Noise for embedding rows that no batch touched, drawn when it is first seen.

A dense step of DP-SGD adds noise to every row of every embedding table, though a batch reads few.
In plain SGD the ``m`` steps between two readings of a row add up to its gradient at the first of
them and ``m`` independent normal numbers per coordinate, whose sum has the distribution of one
normal number times ``sqrt(m)``. As nobody looks at the row in between, it may be drawn once, at the
next reading. (The idea of LazyDP: Lim et al. 2024, "LazyDP: Co-designing algorithm-software for
scalable training of differentially private recommendation models", ASPLOS.)

When a row is read is private, and nothing of it may show in what leaves: a row's clipped sums and
noise are added up unrounded, its value is always computed afresh from its total, and only at the
end of a round are totals rounded to the mechanism's grid, once and for every row alike.

Exact for plain SGD only: with momentum, Adam, weight decay or a proximal term a row's noise changes
what later steps do to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dovetail.agreement.policy import LARGEST_SAMPLE, MOST_UNDECLARED
from dovetail.agreement.request import TrainingTask
from dovetail.privacy.mechanism import add_delayed_noise, to_grid
from dovetail.privacy.sampler import TAIL, SecureSampler
from dovetail.schema import MISSING_CODE, Schema
from dovetail.training.model import adjacent_rows

_SETTLING = 3
"""Settling all rows one by one costs three to four times what noising them densely does: the
flush and the dense step in ``benchmarks/dp_sgd.py``."""


LARGEST_GROWTH = 2.0**14
"""How far a round may possibly move embeddings that are not looked at within it."""


class LazyTables:
    """Embedding tables of one width, laid end to end, under plain DP-SGD.

    Guarantees:
        Whatever reads rows through :meth:`settle`, and all rows after :meth:`flush`, sees values
        with the joint distribution that dense noise in every step gives (up to the mechanism's
        rounding, which is done once instead of in every step). Before :meth:`flush` the tables
        hold rows with steps outstanding and not on the grid: they must not leave.
    """

    def __init__(
        self,
        table: Tensor,
        sums: Tensor,
        sizes: list[int],
        task: TrainingTask,
        declared_customers: int,
        sampler: SecureSampler,
    ) -> None:
        """Start a round with nothing outstanding.

        Args:
            table: the values, ``(rows, dim)``; changed in place.
            sums: ``(rows, dim)``, all 0: where clipped sums are gathered; a row's total over the
                round, with the noise of the steps that are settled.
            sizes: rows of each table.
            task: plain SGD with noise.
            declared_customers: normalises, as in ``NoisedSumOptimizer``.
            sampler: source of the noise.
        """
        self._table, self._sums = table, sums
        self._start = table.clone()
        self._sizes = torch.tensor(sizes)
        missing = torch.full((1, len(sizes)), MISSING_CODE)
        self._still = adjacent_rows(missing, self._sizes)[0]
        self._step_size = task.learning_rate / (task.sampling_prob * declared_customers)
        self._event, self._sampler = task.event, sampler
        self._steps = 0
        self._settled = torch.zeros(len(table), dtype=torch.int64)

    def settle(self, codes: Tensor) -> None:
        """Bring the rows of these codes, int64 ``(n, tables)``, up to date before they are read.

        Raises:
            SchemaError: a code lies outside its table.
        """
        read = torch.zeros(len(self._table), dtype=torch.bool)
        read.index_fill_(0, adjacent_rows(codes, self._sizes).flatten(), True)
        self._settle(read)

    def step(self) -> None:
        """The step whose sums have been gathered is over."""
        self._steps += 1

    def flush(self) -> None:
        """Bring all rows up to date and put their totals on the grid; now they may leave."""
        self._settle(torch.ones(len(self._table), dtype=torch.bool))
        to_grid(self._sums.numpy(), self._event)
        torch.sub(self._start, self._sums, alpha=self._step_size, out=self._table)

    def _settle(self, wanted: Tensor) -> None:
        wanted[self._still] = False
        wanted &= self._settled < self._steps
        rows = wanted.nonzero().squeeze(1)
        if not len(rows):
            return
        missed = self._steps - self._settled.index_select(0, rows)
        total = self._sums.index_select(0, rows)
        add_delayed_noise(total.numpy(), missed.numpy(), self._event, self._sampler)
        self._sums.index_copy_(0, rows, total)
        values = self._start.index_select(0, rows).sub_(total, alpha=self._step_size)
        self._table.index_copy_(0, rows, values)
        self._settled.index_fill_(0, rows, self._steps)


def lazy_growth(task: TrainingTask, declared_customers: int) -> float:
    """How far an embedding can move within a round, at most; public numbers only."""
    sample = min(LARGEST_SAMPLE, MOST_UNDECLARED * declared_customers)
    sums = task.l2_clip_norm * (sample + TAIL * task.noise_multiplier)
    steps = task.local_steps * task.learning_rate
    return steps * sums / (task.sampling_prob * declared_customers)


def lazy_pays(task: TrainingTask, schema: Schema, declared_customers: int) -> bool:
    """Whether lazy noise is exact for this task and expected to be faster; public numbers only."""
    if lazy_growth(task, declared_customers) > LARGEST_GROWTH:
        return False  # dense steps, before each of which the tables can be looked at
    plain = task.local_optimizer == "sgd" and not (task.momentum or task.proximal_mu)
    if not plain or task.model.family != "embedding_mlp" or not task.noise_multiplier:
        return False
    size = sum(category.cardinality for category in schema.categories)
    batch = task.sampling_prob * declared_customers * schema.max_rows_per_customer
    read = min(size, batch * len(schema.categories))
    return _SETTLING * (read * task.local_steps + size) < size * task.local_steps
