"""A pass in which what one customer adds does not depend on who else is in the batch.

A product of matrices rounds each of its numbers by an order of additions that depends on the size
of the batch. So one customer more or less changes what *all* others add, each by a little and,
under a model that somebody chose for it, each in the same direction: clipping does not bound that.
Here no product rounds at all. Both factors are first rounded to so few digits that every product
of two of their numbers, and every sum of such products in whatever order, is a float64 without
error. What a factor is rounded to depends on the model alone, or on one row alone.

What stays rounded is done number by number: IEEE 754 fixes the results of +, -, *, / and roots,
and functions that it does not fix are computed by whole vectors of the processor
(:func:`evenly`), so that a number's result does not depend on its place. Norms are sums over one
customer's numbers, always as many. ``agreement.rounding`` states what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from dovetail.training.clipping import Rows, Sums, weighted_errors
from dovetail.training.tabular_pass import TabularClipper
from dovetail.training.vector import ParameterVector

_SIGNIFICAND = 53
_LANES = 64
"""A multiple of the numbers that any processor's vector, or a few of them in a row, can hold."""


class ExactClipper(TabularClipper):
    """Clipped sums, in float64, of a float64 vector's model.

    Guarantees:
        A customer's clipped gradient is the same number for number whoever else is in the batch,
        given that torch's functions of a number and its norms of a row answer alike wherever
        these stand (``tests/training/test_exact_pass.py`` looks). What sums over customers round
        is bounded by ``agreement.rounding.rounding_slack``.
    """

    def __init__(self, vector: ParameterVector) -> None:
        """Round the weights once: the vector's values must stay as they are."""
        super().__init__(vector)
        self._digits = [digits(max(layer.weight.shape)) for layer in self._linears]
        self._weights = [
            on_grid(layer.weight.detach(), layer.weight.detach().abs().max().view(1, 1), most)
            for layer, most in zip(self._linears, self._digits, strict=True)
        ]

    def add_clipped_sum(
        self, rows: Rows, l2_clip_norm: float, positive_weight: float, sums: Sums
    ) -> None:
        """See :class:`dovetail.training.clipping.Clipper`; ``sums`` are the vector's."""
        exact = replace(rows, numbers=rows.numbers.double(), labels=rows.labels.double())
        super().add_clipped_sum(exact, l2_clip_norm, positive_weight, sums)

    def _weight(self, i: int) -> Tensor:
        return self._weights[i]

    def _factor(self, values: Tensor, i: int) -> Tensor:
        low, high = values.aminmax(dim=1, keepdim=True)
        return on_grid(values, torch.maximum(high, -low), self._digits[i])

    def _outputs(self, inputs: Tensor, i: int) -> Tensor:
        return torch.mm(inputs, self._weights[i].t()).add_(self._linears[i].bias)

    def _tanh(self, values: Tensor) -> Tensor:
        return evenly(torch.tanh, values)

    def _tanh_backward(self, grads: Tensor, outputs: Tensor) -> Tensor:
        return outputs.square().neg_().add_(1.0).mul_(grads)

    def _logit_gradient(self, logits: Tensor, rows: Rows, positive_weight: float) -> Tensor:
        return weighted_errors(evenly(torch.sigmoid, logits), rows.labels, positive_weight)


def digits(terms: int) -> int:
    """Of how many binary digits two factors may be so that sums of their products are exact.

    ``terms`` products of two whole numbers up to ``2^digits`` add up to at most ``2^53``, below
    which every whole number is a float64.
    """
    return (_SIGNIFICAND - (terms - 1).bit_length()) // 2


def on_grid(values: Tensor, largest: Tensor, most: int) -> Tensor:
    """Numbers rounded to ``most`` binary digits after those of the power of two above ``largest``.

    Args:
        values: float64 ``(n, k)``.
        largest: ``(n, 1)`` or ``(1, 1)``, no smaller than the magnitudes that it is for.
        most: at most 51.

    Returns:
        Multiples ``m 2^(e - most)`` with whole ``|m| <= 2^most`` and ``2^e > largest``: adding a
        number whose last digit is that unit, and taking it away again, leaves what is wanted. A
        row that holds a number that is not finite, or is too near it, stays or becomes such.
    """
    with np.errstate(over="ignore"):
        exponents = np.frexp(largest.numpy())[1] + (_SIGNIFICAND - 1 - most)
        shift = torch.from_numpy(np.ldexp(1.5, exponents))
    return (values + shift).sub_(shift)


def evenly(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A function of each number, computed alike for the first and for the last ones."""
    flat = values.reshape(-1)
    if over := -len(flat) % _LANES:
        flat = F.pad(flat, (0, over))
    return function(flat)[: values.numel()].view(values.shape)
