"""Closed forms of book-keeping: squared gradient norms and weighted sums, layer by layer.

From a layer's inputs ``a_i`` and the gradients ``g_i`` of its outputs at positions ``i`` follow the
norm of each customer's summed gradient and, once that is clipped, the weighted sum over customers;
no customer's gradient of the whole model is ever formed. (Bu et al. 2023, "Differentially private
optimization on large model at small cost", ICML, section 3; here for sums over several rows.)

- Linear: ``|sum_i g_i a_i^T|^2 = sum_ij (a_i . a_j)(g_i . g_j)``, or from the customer's gradient
  of this layer where that is smaller than its inputs and outputs.
- Embedding: gradients that meet in one table row are added first, so that duplicates are exact.
- LayerNorm: the gradient is as small as one output; it is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from dovetail.training.clipping import Rows, Sums, clip_factors, rounded_up

_LARGEST_INPUT = 2.0**64
"""Squared norm of an input beyond which a linear layer's gradient counts as not finite.

A form that is a product, ``|a|^2 |g|^2``, is lost where one factor underflows and the other is
huge, though the gradient itself is not small. With this bound what can be lost is a norm of 1e-10
(``g`` of 65,536 elements below 2^-74.5), far below the stabiliser of the clip factors.
"""


class Record(NamedTuple):
    """One layer of one pass over ``n`` rows of ``t`` positions (1 in a plain tabular model).

    ``inputs`` and ``grads`` are ``(n * t, ...)``: what the layer read at a position, and the
    gradient of what it wrote there.
    """

    layer: nn.Module
    inputs: Tensor
    grads: Tensor
    t: int

    def by_row(self, values: Tensor) -> Tensor:
        """``(n * t, ...)`` to ``(n, t, ...)``."""
        return values.view(-1, self.t, *values.shape[1:])

    def weighted(self, weights: Tensor) -> Tensor:
        """``grads``, each times the weight ``(n,)`` of its row."""
        each = weights if self.t == 1 else weights.repeat_interleave(self.t)
        return self.grads * each.unsqueeze(1)


def add_weighted_sums(records: list[Record], rows: Rows, l2_clip_norm: float, sums: Sums) -> None:
    """Clip each customer's gradient over all layers together, and add the sum to ``sums``."""
    squared_norms = records[0].grads.new_zeros(rows.customers)
    for record in records:
        squared_norms += RULES[type(record.layer)].squared_norms(record, rows)
    if not math.isfinite(squared_norms.sum()):
        dropped = ~rows.per_row(squared_norms.isfinite())
        records = [_without(record, dropped) for record in records]
    weights = rows.per_row(clip_factors(squared_norms, l2_clip_norm))
    for record in records:
        RULES[type(record.layer)].add_weighted_sum(record, weights, sums)


def _without(record: Record, dropped: Tensor) -> Record:
    """The record with all that belongs to these rows set to 0."""
    at = dropped.repeat_interleave(record.t).unsqueeze(1)
    inputs = record.inputs
    if inputs.is_floating_point():
        inputs = inputs.masked_fill(at, 0.0)
    return record._replace(inputs=inputs, grads=record.grads.masked_fill(at, 0.0))


# --- Linear ---------------------------------------------------------------------------------


def _linear_record(layer: nn.Module, inputs: Tensor, grads: Tensor) -> Record:
    linear = cast("nn.Linear", layer)
    flat = grads.reshape(-1, linear.out_features)
    return Record(layer, inputs.reshape(-1, linear.in_features), flat, len(flat) // len(grads))


def _linear_squared_norms(record: Record, rows: Rows) -> Tensor:
    bias = 0.0 if cast("nn.Linear", record.layer).bias is None else 1.0
    squares = _squares(record.inputs).add_(bias)
    squares.masked_fill_(squares > _LARGEST_INPUT, torch.inf).mul_(_squares(record.grads))
    if record.t == 1 and rows.customer is None:
        return squares
    inputs = rows.grouped(record.by_row(record.inputs)).flatten(1, 2)
    grads = rows.grouped(record.by_row(record.grads)).flatten(1, 2)
    (_, positions, d), p = inputs.shape, grads.shape[2]
    if positions * (d + p) <= d * p:
        products = torch.bmm(inputs, inputs.mT).add_(bias).mul_(torch.bmm(grads, grads.mT))
        squared = products.sum((1, 2))
    else:
        squared = _squares(torch.bmm(grads.mT, inputs).flatten(1))
        squared += bias * _squares(grads.sum(1))
    return rounded_up(squared, _row_norms(record, squares, rows))


def _add_linear_sum(record: Record, weights: Tensor, sums: Sums) -> None:
    layer = cast("nn.Linear", record.layer)
    weighted = record.weighted(weights)
    sums[layer.weight].addmm_(weighted.t(), record.inputs)
    if layer.bias is not None:
        sums[layer.bias].add_(weighted.sum(0))


# --- Embedding ------------------------------------------------------------------------------


def _embedding_record(layer: nn.Module, inputs: Tensor, grads: Tensor) -> Record:
    embedding = cast("nn.Embedding", layer)
    flat = grads.reshape(-1, embedding.embedding_dim)
    indices = inputs.reshape(-1)
    if embedding.padding_idx is not None:
        flat = flat.masked_fill((indices == embedding.padding_idx).unsqueeze(1), 0.0)
    return Record(layer, indices, flat, len(indices) // len(grads))


def _embedding_squared_norms(record: Record, rows: Rows) -> Tensor:
    squares = _squares(record.grads)
    if record.t == 1 and rows.customer is None:
        return squares
    size = cast("nn.Embedding", record.layer).num_embeddings
    customer = torch.arange(len(rows)) if rows.customer is None else rows.customer
    cells, cell = torch.unique(
        customer.repeat_interleave(record.t) * size + record.inputs, return_inverse=True
    )
    sums = record.grads.new_zeros(len(cells), record.grads.shape[1])
    sums.index_add_(0, cell, record.grads)
    squared = sums.new_zeros(rows.customers)
    squared.index_add_(0, cells.div(size, rounding_mode="floor"), _squares(sums))
    return rounded_up(squared, _row_norms(record, squares, rows))


def _add_embedding_sum(record: Record, weights: Tensor, sums: Sums) -> None:
    table = sums[cast("nn.Embedding", record.layer).weight]
    table.index_add_(0, record.inputs, record.weighted(weights))


class AdjacentTables(nn.Embedding):
    """Embedding tables end to end, of which a row of data reads each exactly once."""

    def __init__(self, tables: nn.Parameter) -> None:
        """Wrap ``(rows of all tables, dim)``, sharing it."""
        rows, dim = tables.shape
        super().__init__(rows, dim, device="meta")
        self.weight = tables


def _tables_squared_norms(record: Record, rows: Rows) -> Tensor:
    if rows.customer is None:  # what one row reads is distinct
        return record.by_row(_squares(record.grads)).sum(1)
    return _embedding_squared_norms(record, rows)


# --- LayerNorm ------------------------------------------------------------------------------


def _norm_record(layer: nn.Module, inputs: Tensor, grads: Tensor) -> Record:
    norm = cast("nn.LayerNorm", layer)
    shape = (-1, math.prod(norm.normalized_shape))
    standardised = F.layer_norm(inputs, norm.normalized_shape, eps=norm.eps).reshape(shape)
    return Record(layer, standardised, grads.reshape(shape), len(standardised) // len(grads))


def _norm_squared_norms(record: Record, rows: Rows) -> Tensor:
    parts = [record.inputs * record.grads]
    if cast("nn.LayerNorm", record.layer).bias is not None:
        parts.append(record.grads)
    by_position = torch.cat(parts, 1)
    squared = _squares(rows.per_customer(record.by_row(by_position).sum(1)))
    return rounded_up(squared, _row_norms(record, _squares(by_position), rows))


def _add_norm_sum(record: Record, weights: Tensor, sums: Sums) -> None:
    layer = cast("nn.LayerNorm", record.layer)
    weighted = record.weighted(weights)
    sums[layer.weight].add_((weighted * record.inputs).sum(0).view_as(layer.weight))
    if layer.bias is not None:
        sums[layer.bias].add_(weighted.sum(0).view_as(layer.bias))


def _squares(values: Tensor) -> Tensor:
    """Squared norms over the last dimension."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return norms.square_()


def _row_norms(record: Record, squares: Tensor, rows: Rows) -> Tensor:
    """Sums ``(c,)`` over each customer's positions of the norms whose squares are given."""
    return rows.per_customer(record.by_row(squares.sqrt()).sum(1))


class _Rule(NamedTuple):
    """The closed forms of one type of layer."""

    record: Callable[[nn.Module, Tensor, Tensor], Record]
    squared_norms: Callable[[Record, Rows], Tensor]
    add_weighted_sum: Callable[[Record, Tensor, Sums], None]


RULES: dict[type[Any], _Rule] = {
    nn.Linear: _Rule(_linear_record, _linear_squared_norms, _add_linear_sum),
    nn.Embedding: _Rule(_embedding_record, _embedding_squared_norms, _add_embedding_sum),
    AdjacentTables: _Rule(_embedding_record, _tables_squared_norms, _add_embedding_sum),
    nn.LayerNorm: _Rule(_norm_record, _norm_squared_norms, _add_norm_sum),
}
