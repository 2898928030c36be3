"""Clipped sums at the price of one ordinary backward pass: "book-keeping".

Bu, Wang, Zha and Karypis (2023), "Differentially private optimization on large model at small
cost", ICML, https://arxiv.org/abs/2210.00038: forward hooks keep each layer's input, one backward
pass yields the gradients of each layer's *output*; from both, a layer's contribution to every
customer's squared gradient norm has a closed form, and the weighted sum of gradients is one matrix
product per layer. No per-sample gradient of the model and no gradient of a parameter is computed.

Here one "sample" is a customer with several rows, so every form is written for sums over rows:
for a linear layer with inputs ``a`` and output gradients ``g``,
``|sum_i g_i a_i^T|^2 = sum_ij (a_i . a_j)(g_i . g_j)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from dovetail.training.clipping import Rows, Sums, clip_factors, logit_gradient, rounded_up


class UnsupportedModel(Exception):  # noqa: N818 - a signal inside this room, never released
    """A model turned out, while it ran, to be beyond the closed forms."""


class _Passing(NamedTuple):
    """What a layer read and wrote in the forward pass, and the versions of both tensors then."""

    inputs: Tensor
    output: Tensor
    versions: tuple[int, int]

    @property
    def overwritten(self) -> bool:
        """Whether a later in-place operation changed either: gradients would not be of it."""
        return self.versions != (self.inputs._version, self.output._version)


class _Record(NamedTuple):
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


class BookKeeper:
    """Records one model's passes. Close it to take the hooks off the model again.

    The model must treat rows independently and use its layers by calling them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._passing: dict[nn.Module, _Passing] = {}
        self._hooks = [layer.register_forward_hook(self._keep) for layer in _layers(model)]

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if layer in self._passing or len(inputs) != 1:
            raise UnsupportedModel
        versions = inputs[0]._version, output._version
        self._passing[layer] = _Passing(inputs[0].detach(), output, versions)

    def add_clipped_sum(
        self, rows: Rows, l2_clip_norm: float, positive_weight: float, sums: Sums
    ) -> None:
        """See :class:`dovetail.training.clipping.Clipper`.

        Raises:
            UnsupportedModel: a layer was called twice, or not once per row, or what it read or
                wrote was overwritten in place.
        """
        if len(rows) == 0:
            return
        records = self._records(rows, positive_weight)
        with torch.inference_mode():
            _add_weighted_sums(records, rows, l2_clip_norm, sums)

    def _records(self, rows: Rows, positive_weight: float) -> list[_Record]:
        try:
            logits = self._model(rows.numbers, rows.codes)
            layers, kept = list(self._passing), list(self._passing.values())
        finally:
            self._passing.clear()
        if any(len(p.output) != len(rows) or p.overwritten for p in kept):
            raise UnsupportedModel
        grads = torch.autograd.grad(
            logits,
            [p.output for p in kept],
            logit_gradient(logits, rows.labels, positive_weight),
            allow_unused=True,
        )
        return [
            _RULES[type(layer)].record(layer, passing.inputs, grad)
            for layer, passing, grad in zip(layers, kept, grads, strict=True)
            if grad is not None
        ]


def supports(model: nn.Module) -> bool:
    """Whether the closed forms cover this model, as far as its structure tells.

    Not covered: parameters of layers other than ``Linear``, ``Embedding`` and ``LayerNorm``
    (subclasses included: they may compute anything), a parameter shared by two layers, embeddings
    that rescale (``max_norm``, ``scale_grad_by_freq``), batch normalisation, frozen parameters.
    """
    layers = _layers(model)
    own = [p for layer in layers for p in layer.parameters(recurse=False)]
    return (
        all(type(layer) in _RULES for layer in layers)
        and all(p.requires_grad for p in own)
        and not any(_rescales(layer) for layer in layers if isinstance(layer, nn.Embedding))
        and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        and len({id(p) for p in own}) == len(own)
        and len(own) == len(list(model.named_parameters(remove_duplicate=False)))
    )


def _add_weighted_sums(records: list[_Record], rows: Rows, l2_clip_norm: float, sums: Sums) -> None:
    squared_norms = torch.zeros(rows.customers)
    for record in records:
        squared_norms += _RULES[type(record.layer)].squared_norms(record, rows)
    if not math.isfinite(squared_norms.sum()):
        dropped = ~rows.per_row(squared_norms.isfinite())
        records = [_without(record, dropped) for record in records]
    weights = rows.per_row(clip_factors(squared_norms, l2_clip_norm))
    for record in records:
        _RULES[type(record.layer)].add_weighted_sum(record, weights, sums)


def _layers(model: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own."""
    return [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]


def _rescales(layer: nn.Embedding) -> bool:
    return layer.max_norm is not None or layer.scale_grad_by_freq


def _without(record: _Record, dropped: Tensor) -> _Record:
    """The record with all that belongs to these rows set to 0."""
    at = dropped.repeat_interleave(record.t).unsqueeze(1)
    inputs = record.inputs
    if inputs.is_floating_point():
        inputs = inputs.masked_fill(at, 0.0)
    return record._replace(inputs=inputs, grads=record.grads.masked_fill(at, 0.0))


# --- Linear ---------------------------------------------------------------------------------


def _linear_record(layer: nn.Module, inputs: Tensor, grads: Tensor) -> _Record:
    linear = cast("nn.Linear", layer)
    flat = grads.reshape(-1, linear.out_features)
    return _Record(layer, inputs.reshape(-1, linear.in_features), flat, len(flat) // len(grads))


def _linear_squared_norms(record: _Record, rows: Rows) -> Tensor:
    bias = 0.0 if cast("nn.Linear", record.layer).bias is None else 1.0
    squares = _squares(record.inputs).add_(bias).mul_(_squares(record.grads))
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


def _add_linear_sum(record: _Record, weights: Tensor, sums: Sums) -> None:
    layer = cast("nn.Linear", record.layer)
    weighted = record.weighted(weights)
    sums[layer.weight].addmm_(weighted.t(), record.inputs)
    if layer.bias is not None:
        sums[layer.bias].add_(weighted.sum(0))


# --- Embedding ------------------------------------------------------------------------------


def _embedding_record(layer: nn.Module, inputs: Tensor, grads: Tensor) -> _Record:
    embedding = cast("nn.Embedding", layer)
    flat = grads.reshape(-1, embedding.embedding_dim)
    indices = inputs.reshape(-1)
    if embedding.padding_idx is not None:
        flat = flat.masked_fill((indices == embedding.padding_idx).unsqueeze(1), 0.0)
    return _Record(layer, indices, flat, len(indices) // len(grads))


def _embedding_squared_norms(record: _Record, rows: Rows) -> Tensor:
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


def _add_embedding_sum(record: _Record, weights: Tensor, sums: Sums) -> None:
    table = sums[cast("nn.Embedding", record.layer).weight]
    table.index_add_(0, record.inputs, record.weighted(weights))


# --- LayerNorm ------------------------------------------------------------------------------


def _norm_record(layer: nn.Module, inputs: Tensor, grads: Tensor) -> _Record:
    norm = cast("nn.LayerNorm", layer)
    shape = (-1, math.prod(norm.normalized_shape))
    standardised = F.layer_norm(inputs, norm.normalized_shape, eps=norm.eps).reshape(shape)
    return _Record(layer, standardised, grads.reshape(shape), len(standardised) // len(grads))


def _norm_squared_norms(record: _Record, rows: Rows) -> Tensor:
    parts = [record.inputs * record.grads]
    if cast("nn.LayerNorm", record.layer).bias is not None:
        parts.append(record.grads)
    by_position = torch.cat(parts, 1)
    squared = _squares(rows.per_customer(record.by_row(by_position).sum(1)))
    return rounded_up(squared, _row_norms(record, _squares(by_position), rows))


def _add_norm_sum(record: _Record, weights: Tensor, sums: Sums) -> None:
    layer = cast("nn.LayerNorm", record.layer)
    weighted = record.weighted(weights)
    sums[layer.weight].add_((weighted * record.inputs).sum(0).view_as(layer.weight))
    if layer.bias is not None:
        sums[layer.bias].add_(weighted.sum(0).view_as(layer.bias))


def _squares(values: Tensor) -> Tensor:
    """Squared norms over the last dimension."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return norms.square_()


def _row_norms(record: _Record, squares: Tensor, rows: Rows) -> Tensor:
    """Sums ``(c,)`` over each customer's positions of the norms whose squares are given."""
    return rows.per_customer(record.by_row(squares.sqrt()).sum(1))


class _Rule(NamedTuple):
    """The closed forms of one type of layer."""

    record: Callable[[nn.Module, Tensor, Tensor], _Record]
    squared_norms: Callable[[_Record, Rows], Tensor]
    add_weighted_sum: Callable[[_Record, Tensor, Sums], None]


_RULES: dict[type[Any], _Rule] = {
    nn.Linear: _Rule(_linear_record, _linear_squared_norms, _add_linear_sum),
    nn.Embedding: _Rule(_embedding_record, _embedding_squared_norms, _add_embedding_sum),
    nn.LayerNorm: _Rule(_norm_record, _norm_squared_norms, _add_norm_sum),
}
