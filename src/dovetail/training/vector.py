"""A model's parameters as one vector: what leaves a partner is one vector with a stated bound."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dovetail.training.model import replace_parameters


class ParameterVector:
    """Lays a model's trainable parameters end to end; the model's own then view the vector.

    Attributes:
        values: the parameters, ``(size,)``; changing it changes the model.
        sums: of the same shape, zero at first: where clipped sums are gathered.
        sums_of: each parameter's part of ``sums``, in its shape.
        parts: each parameter's ``slice`` of the vector, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        old = dict(model.named_parameters())
        ends = list(itertools.accumulate((p.numel() for p in old.values()), initial=0))
        self.parts = {name: slice(*ends) for name, *ends in zip(old, ends, ends[1:], strict=False)}
        with torch.no_grad():
            flat = [p.reshape(-1) for p in old.values()]
            self.values = nn.Parameter(torch.cat(flat) if flat else torch.zeros(0))
        self.sums = torch.zeros(ends[-1])
        replace_parameters(
            model,
            {name: self.values.detach()[at].view_as(old[name]) for name, at in self.parts.items()},
        )
        self.sums_of: dict[Tensor, Tensor] = {
            p: self.sums[self.parts[name]].view_as(p) for name, p in model.named_parameters()
        }
