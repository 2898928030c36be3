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

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dovetail.training.clipping import Rows, Sums, logit_gradient
from dovetail.training.closed_forms import RULES, Record, add_weighted_sums


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
            add_weighted_sums(records, rows, l2_clip_norm, sums)

    def _records(self, rows: Rows, positive_weight: float) -> list[Record]:
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
            RULES[type(layer)].record(layer, passing.inputs, grad)
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
        all(type(layer) in RULES for layer in layers)
        and all(p.requires_grad for p in own)
        and not any(_rescales(layer) for layer in layers if isinstance(layer, nn.Embedding))
        and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        and len({id(p) for p in own}) == len(own)
        and len(own) == len(list(model.named_parameters(remove_duplicate=False)))
    )


def _layers(model: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own."""
    return [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]


def _rescales(layer: nn.Embedding) -> bool:
    return layer.max_norm is not None or layer.scale_grad_by_freq
