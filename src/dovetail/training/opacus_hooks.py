"""Clipped sums through Opacus's per-sample gradients, for models beyond the closed forms.

Slow and hungry (every row's gradient is kept), but it knows many more layers: convolutions,
recurrent layers, attention, and through ``functorch`` any module that treats rows independently.
"""

from __future__ import annotations

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from dovetail.errors import SettingError
from dovetail.training.clipping import Rows, Sums, clip_factors, logit_gradient


class OpacusHooks:
    """Opacus's hooks on one model, until :meth:`close`."""

    def __init__(self, model: nn.Module) -> None:
        """Put the hooks on.

        Raises:
            SettingError: Opacus knows that this model mixes rows (batch normalisation, for
                instance), so that no customer has a gradient of their own.
        """
        try:
            self._hooked = GradSampleModule(model, loss_reduction="sum")
        except NotImplementedError:
            raise SettingError("this model has layers without a gradient per row") from None

    def close(self) -> None:
        """Remove the hooks."""
        self._hooked.to_standard_module()

    def add_clipped_sum(
        self, rows: Rows, l2_clip_norm: float, positive_weight: float, sums: Sums
    ) -> None:
        """See :class:`dovetail.training.clipping.Clipper`."""
        if len(rows) == 0:
            return
        gradients = self._per_customer(rows, positive_weight)
        squared = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()])
        factors = clip_factors(squared.sum(0), l2_clip_norm)
        for parameter, gradient in gradients.items():
            counted = gradient.masked_fill(_beside(factors == 0, gradient), 0.0)
            sums[parameter].add_(torch.einsum("i,i...", factors, counted))

    def _per_customer(self, rows: Rows, positive_weight: float) -> dict[nn.Parameter, Tensor]:
        """Gradients ``(c, ...)`` of every parameter that the model used."""
        try:
            logits = self._hooked(rows.numbers, rows.codes)
            logits.backward(logit_gradient(logits, rows.labels, positive_weight))
            self._forget_padding()
            return {
                p: rows.per_customer(p.grad_sample.detach())
                for p in self._hooked.parameters()
                if p.requires_grad and p.grad_sample is not None
            }
        except RuntimeError:
            raise SettingError(
                "Opacus cannot differentiate this model by row; does a layer work in place?"
            ) from None
        finally:
            self._hooked.zero_grad(set_to_none=True)

    def _forget_padding(self) -> None:
        """Opacus 1.6 gives the padding row of an embedding a gradient that it does not have."""
        for layer in self._hooked.modules():
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                sample = getattr(layer.weight, "grad_sample", None)
                if sample is not None:
                    sample[:, layer.padding_idx] = 0


def _beside(values: Tensor, shape: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (shape.dim() - 1))
