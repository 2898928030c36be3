"""Turns a permitted round into a contribution; the gate has been paid before this is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovetail.agreement.request import Request
from dovetail.crypto.prg import fresh_key
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Schema
from dovetail.training.batch import Batch, Customers
from dovetail.training.contribution import contribution
from dovetail.training.dp_sgd import train_round
from dovetail.training.round_result import RoundResult

Arrays = Mapping[str, npt.NDArray[np.float32]]
Dice = Callable[[str, int], SecureSampler]
"""Randomness for one (job, round)."""


def fresh_dice(_job: str, _number: int) -> SecureSampler:
    """Randomness that nobody can repeat, from a key of the operating system."""
    return SecureSampler(fresh_key())


@dataclass(frozen=True)
class Runner:
    """Computes contributions from one partner's customers.

    Attributes:
        customers: the partner's rows.
        schema: the columns that ``customers`` holds.
        declared_customers: the public number of customers in the terms, which normalises.
        dice: the randomness of a (job, round). A production node draws a fresh key each time;
            only a simulation repeats itself.
    """

    customers: Customers
    schema: Schema
    declared_customers: int
    dice: Dice

    def contribute(
        self, request: Request, number: int, arrays: Arrays, optimizer_state: Arrays
    ) -> RoundResult:
        """The partner's model and its optimiser's state after the local steps; or a bounded total.

        Args:
            request: an admitted request.
            number: the round, which the gate has begun.
            arrays: the model that the round starts from.
            optimizer_state: what the previous round returned; empty in the first.

        Guarantees: where the node adds all its noise, each of the round's ``local_steps``
        releases ``request.task.event`` and nothing else that depends on a row. Under protection
        ``distributed`` nothing here is a release. The result is ``total`` alone, without noise:
        of one step the sum of clipped gradients, which one customer moves by the clip norm; of
        several the update, clipped as a whole, which one customer moves by up to twice the clip
        norm (:func:`dovetail.training.contribution.contribution`). It is for this node, which adds
        its share of the noise of ``agreement.sharing``'s event, one a round, and masks it.
        """
        task = request.task
        selected = _selected(self.schema, task.features)
        customers, dice = self._columns(selected), self.dice(request.job, number)
        if task.protection == "distributed":
            total = contribution(arrays, customers, selected, task, self.declared_customers, dice)
            return RoundResult({}, {}, total)
        return train_round(
            arrays, customers, selected, task, self.declared_customers, dice, optimizer_state
        )

    def _columns(self, selected: Schema) -> Customers:
        if selected == self.schema:
            return self.customers
        return _Columns(self.customers, self.schema, selected)


@lru_cache(maxsize=64)
def _selected(schema: Schema, features: tuple[str, ...]) -> Schema:
    return schema.select(features)


class _Columns:
    """Some columns of the customers."""

    def __init__(self, customers: Customers, schema: Schema, selected: Schema) -> None:
        self._customers = customers
        self._numbers = [schema.number_features.index(n) for n in selected.number_features]
        self._codes = [schema.categories.index(c) for c in selected.categories]

    def __len__(self) -> int:
        return len(self._customers)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        whole = self._customers.batch(customers)
        return Batch(
            numbers=whole.numbers[..., self._numbers],
            codes=whole.codes[..., self._codes],
            labels=whole.labels,
            mask=whole.mask,
        )
