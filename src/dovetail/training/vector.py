"""A model's parameters as one vector: what leaves a partner is one vector with a stated bound."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dovetail.training.model import TabularModel, replace_parameters


class ParameterVector:
    """Lays a model's parameters end to end; the model's own then view the vector.

    Attributes:
        model: the model.
        values: the parameters, ``(size,)``; changing it changes the model.
        sums: of the same shape, zero at first: where clipped sums are gathered.
        sums_of: each parameter's part of ``sums``, in its shape; and that of ``tables``.
        parts: each parameter's ``slice`` of the vector, by name.
        tables: all embedding tables as one, ``(rows, dim)``: they come first in the vector.
    """

    def __init__(self, model: TabularModel) -> None:
        old = dict(model.named_parameters())
        ends = list(itertools.accumulate((p.numel() for p in old.values()), initial=0))
        self.parts = dict(zip(old, itertools.starmap(slice, itertools.pairwise(ends)), strict=True))
        self.values = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in old.values()]))
        self.sums = torch.zeros(ends[-1])
        flat = self.values.detach()
        views = {name: flat[at].view_as(old[name]) for name, at in self.parts.items()}
        replace_parameters(model, views)
        self.model = model
        self.sums_of: dict[Tensor, Tensor] = {
            p: self.sums[self.parts[name]].view_as(p) for name, p in model.named_parameters()
        }
        rows = sum(p.shape[0] for p in model.embeddings.parameters())
        shape = (rows, model.embedding_dim)
        end = rows * model.embedding_dim
        self.tables = nn.Parameter(flat[:end].view(shape))
        self.sums_of[self.tables] = self.sums[:end].view(shape)
