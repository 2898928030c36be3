"""A model's parameters as one vector: what leaves a partner is one vector with a stated bound."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dovetail.training.model import TabularModel, with_parameters


class ParameterVector:
    """A model whose parameters, laid end to end, are one vector.

    Attributes:
        model: the model; its parameters view the vector.
        values: the parameters, ``(size,)``, zero at first; changing it changes the model.
        sums: of the same shape, zero at first: where clipped sums are gathered.
        sums_of: each parameter's part of ``sums``, in its shape; and that of ``tables``.
        parts: each parameter's ``slice`` of the vector, by name.
        tables: all embedding tables as one, ``(rows, dim)``: they come first in the vector.
    """

    def __init__(self, structure: TabularModel, dtype: torch.dtype = torch.float32) -> None:
        """Lay out a model of this structure; its own values are neither read nor changed."""
        shapes = {name: p.shape for name, p in structure.named_parameters()}
        sizes = [shape.numel() for shape in shapes.values()]
        ends = list(itertools.accumulate(sizes, initial=0))
        slices = itertools.starmap(slice, itertools.pairwise(ends))
        self.parts = dict(zip(shapes, slices, strict=True))
        flat, self.sums = torch.zeros(ends[-1], dtype=dtype), torch.zeros(ends[-1], dtype=dtype)
        self.values = nn.Parameter(flat)
        views = {name: flat[at].view(shapes[name]) for name, at in self.parts.items()}
        self.model = with_parameters(structure, views)
        self.sums_of: dict[Tensor, Tensor] = {
            p: self.sums[self.parts[name]].view(shapes[name])
            for name, p in self.model.named_parameters()
        }
        rows = sum(p.shape[0] for p in self.model.embeddings.parameters())
        shape = (rows, self.model.embedding_dim)
        end = rows * self.model.embedding_dim
        self.tables = nn.Parameter(flat[:end].view(shape))
        self.sums_of[self.tables] = self.sums[:end].view(shape)
