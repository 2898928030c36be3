"""Book-keeping of the three model families with the backward pass written out.

The same function as ``TabularModel.forward`` and the same closed forms as everywhere; only the
chain rule is spelled here, because on batches of a few hundred rows autograd's own bookkeeping
costs about as much as a matrix product. All embedding tables are read and written as one.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from dovetail.schema import MISSING_CODE
from dovetail.training.clipping import Rows, Sums, logit_gradient
from dovetail.training.closed_forms import AdjacentTables, Record, add_weighted_sums
from dovetail.training.model import adjacent_rows
from dovetail.training.vector import ParameterVector


class TabularClipper:
    """Clipped sums of a vector's model; see :class:`dovetail.training.clipping.Clipper`."""

    def __init__(self, vector: ParameterVector) -> None:
        model = vector.model
        self._model = model
        self._linears = cast("list[nn.Linear]", [*model.hidden, model.output])
        self._sizes = torch.tensor([len(table) for table in model.embeddings.parameters()])
        self._tables = AdjacentTables(vector.tables) if len(self._sizes) else None

    def close(self) -> None:
        """Nothing was put on the model."""

    def add_clipped_sum(
        self, rows: Rows, l2_clip_norm: float, positive_weight: float, sums: Sums
    ) -> None:
        """See :class:`dovetail.training.clipping.Clipper`; ``sums`` are the vector's."""
        if len(rows) == 0:
            return
        with torch.inference_mode():
            add_weighted_sums(self._records(rows, positive_weight), rows, l2_clip_norm, sums)

    def _records(self, rows: Rows, positive_weight: float) -> list[Record]:
        last = len(self._linears) - 1
        inputs = [self._factor(self._first_inputs(rows), 0)]
        for i in range(last):
            units = self._tanh(self._outputs(inputs[i], i))
            inputs.append(self._factor(units, i + 1))
        logits = self._outputs(inputs[last], last).squeeze(1)
        grads = self._logit_gradient(logits, rows, positive_weight).unsqueeze(1)
        records = [Record(self._linears[last], inputs[last], grads, 1)]
        for i in range(last - 1, -1, -1):
            above = torch.mm(self._factor(grads, i + 1), self._weight(i + 1))
            grads = self._tanh_backward(above, inputs[i + 1])
            records.append(Record(self._linears[i], inputs[i], grads, 1))
        if self._tables is not None:
            records.append(self._table_record(rows, self._factor(grads, 0)))
        return records

    def _weight(self, i: int) -> Tensor:
        """A layer's weights, ``(outputs, inputs)``, as a factor of a product."""
        return self._linears[i].weight

    def _factor(self, values: Tensor, i: int) -> Tensor:  # noqa: ARG002 - not every pass rounds
        """Rows ``(n, ...)`` that are multiplied with a layer's weights."""
        return values

    def _outputs(self, inputs: Tensor, i: int) -> Tensor:
        """What a layer makes of its inputs."""
        layer = self._linears[i]
        return torch.addmm(layer.bias, inputs, layer.weight.t())

    def _tanh(self, values: Tensor) -> Tensor:
        """May overwrite ``values``."""
        return values.tanh_()

    def _tanh_backward(self, grads: Tensor, outputs: Tensor) -> Tensor:
        return cast("Tensor", torch.ops.aten.tanh_backward(grads, outputs))

    def _logit_gradient(self, logits: Tensor, rows: Rows, positive_weight: float) -> Tensor:
        return logit_gradient(logits, rows.labels, positive_weight)

    def _first_inputs(self, rows: Rows) -> Tensor:
        if self._tables is None:
            return self._model.one_hot(rows.numbers, rows.codes)
        embedded = F.embedding(adjacent_rows(rows.codes, self._sizes), self._tables.weight)
        return torch.cat([rows.numbers, embedded.flatten(1)], dim=1)

    def _table_record(self, rows: Rows, grads: Tensor) -> Record:
        tables = cast("AdjacentTables", self._tables)
        weight = self._weight(0)[:, rows.numbers.shape[1] :]
        each = torch.mm(grads, weight).view(-1, tables.embedding_dim)
        missing = (rows.codes == MISSING_CODE).view(-1, 1)
        indices = adjacent_rows(rows.codes, self._sizes).view(-1)
        return Record(tables, indices, each.masked_fill_(missing, 0.0), rows.codes.shape[1])
