"""Rows of customers as tensors, and how much of each customer's gradient counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dovetail.training.batch import Batch

_STABILISER = 1e-6  # Opacus's: factors are C / (norm + 1e-6), at most 1
_ROUNDING = 2.0**-22  # bounds float32's relative error of an inner product of a few hundred terms


@dataclass(frozen=True)
class Rows:
    """The real rows of a batch: padding is dropped before any model sees it.

    Attributes:
        numbers: float32 ``(n, number features)``.
        codes: int64 ``(n, categories)``.
        labels: float32 ``(n,)``.
        customers: number of customers ``c``, some possibly without a row.
        customer: int64 ``(n,)``, whose row it is, in ``[0, c)``, not decreasing; ``None`` where
            every customer has exactly one row.
        place: int64 ``(n,)``, the row's place in ``(c, most)`` flattened; ``None`` where every
            place is taken.
        most: most rows that a customer may have here, ``r``.
    """

    numbers: Tensor
    codes: Tensor
    labels: Tensor
    customers: int
    customer: Tensor | None
    place: Tensor | None
    most: int

    def __len__(self) -> int:
        return len(self.labels)

    def per_customer(self, values: Tensor) -> Tensor:
        """Sums over each customer's rows: ``(n, ...)`` to ``(c, ...)``."""
        if self.customer is None:
            return values
        sums = values.new_zeros(self.customers, *values.shape[1:])
        return sums.index_add_(0, self.customer, values)

    def per_row(self, values: Tensor) -> Tensor:
        """Each row's customer's value: ``(c, ...)`` to ``(n, ...)``."""
        return values if self.customer is None else values[self.customer]

    def grouped(self, values: Tensor) -> Tensor:
        """Rows by customer, padded with 0: ``(n, ...)`` to ``(c, r, ...)``."""
        shape = (self.customers, self.most, *values.shape[1:])
        if self.place is None:
            return values.reshape(shape)
        padded = values.new_zeros(self.customers * self.most, *values.shape[1:])
        return padded.index_copy_(0, self.place, values).view(shape)


def rows_of(batch: Batch) -> Rows:
    """The rows of a batch whose mask is not 0."""
    customers, most = batch.mask.shape
    numbers = batch.numbers.reshape(customers * most, batch.numbers.shape[-1])
    codes = batch.codes.reshape(customers * most, batch.codes.shape[-1])
    labels = batch.labels.reshape(-1)
    place = None
    if not batch.mask.all():
        kept = np.flatnonzero(batch.mask)
        numbers, codes, labels = numbers[kept], codes[kept], labels[kept]
        place = torch.from_numpy(kept)
    customer = place
    if most > 1:
        places = torch.arange(customers * most) if place is None else place
        customer = places.div(most, rounding_mode="floor")
    return Rows(
        numbers=torch.from_numpy(np.ascontiguousarray(numbers)),
        codes=torch.from_numpy(np.ascontiguousarray(codes)),
        labels=torch.from_numpy(np.ascontiguousarray(labels)),
        customers=customers,
        customer=customer,
        place=place,
        most=most,
    )


def logit_gradient(logits: Tensor, labels: Tensor, positive_weight: float) -> Tensor:
    """Derivative, by the logits, of the summed loss; all three ``(n,)``.

    The loss of a row is binary cross-entropy, times ``positive_weight`` where the label is 1.
    """
    return weighted_errors(torch.sigmoid(logits.detach()), labels, positive_weight)


def weighted_errors(probabilities: Tensor, labels: Tensor, positive_weight: float) -> Tensor:
    """:func:`logit_gradient` from what the logits predict, which is overwritten; all ``(n,)``."""
    gradient = probabilities.sub_(labels)
    if positive_weight == 1:
        return gradient
    return gradient.mul_(labels * (positive_weight - 1) + 1)


def clip_factors(squared_norms: Tensor, l2_clip_norm: float) -> Tensor:
    """What to multiply each customer's gradient with so that its norm is at most the clip norm.

    ``min(1, C / (norm + 1e-6))``, exactly as Opacus; 0 where the norm is not finite.

    Args:
        squared_norms: ``(c,)``; a computed one may be negative by rounding.
        l2_clip_norm: ``C``.
    """
    norms = squared_norms.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp_(min=0).sqrt_()
    return norms.add_(_STABILISER).reciprocal_().mul_(l2_clip_norm).clamp_(max=1.0)


def rounded_up(squared_norms: Tensor, row_norms: Tensor) -> Tensor:
    """Squared norms of sums of rows, raised by what float32 may have lost to cancellation.

    Where large rows cancel, a computed norm can be far too small in relative terms, and so would
    be what is clipped. The error is at most a rounding unit times the squared sum of the rows'
    norms; adding that keeps the bound and moves ordinary factors by less than 1e-6 per row.

    Args:
        squared_norms: ``(c,)``, as computed.
        row_norms: ``(c,)``, sums of the norms of each customer's rows.
    """
    return squared_norms.clamp(min=0) + _ROUNDING * row_norms.square()


Sums = Mapping[Tensor, Tensor]
"""For each parameter, where its part of a sum is gathered: a tensor of its shape."""


class Clipper(Protocol):
    """A way to the sum of customers' clipped gradients."""

    def add_clipped_sum(
        self, rows: Rows, l2_clip_norm: float, positive_weight: float, sums: Sums
    ) -> None:
        """Add the sum over customers of their clipped gradients to ``sums``.

        A customer's gradient is that of the loss summed over all their rows, over all parameters
        together.

        Guarantees:
            Adding or removing one customer moves what is added by at most ``l2_clip_norm`` in
            the Euclidean norm over all parameters, whatever the rows hold and the parameters are,
            up to what is rounded in the sum and in what the others add
            (``agreement.rounding`` bounds both for :mod:`dovetail.training.exact_pass`). A gradient
            that is not finite, or whose norm its type cannot hold, counts as 0.
        """
        ...

    def close(self) -> None:
        """Leave the model as it was."""
        ...
