"""Scores of a model on rows that stay where they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dovetail.agreement.request import ModelSpec
from dovetail.schema import Schema
from dovetail.training.batch import Customers
from dovetail.training.clipped_sum import physical_batches
from dovetail.training.model import Arrays, build_model, load_arrays

Floats = npt.NDArray[np.float32]


def scores(
    arrays: Arrays, spec: ModelSpec, schema: Schema, customers: Customers
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Every row's predicted probability, for whoever holds the rows.

    Args:
        arrays: the model's parameters.
        spec: the model.
        schema: of ``customers``: exactly the model's features, in order.
        customers: whose rows to score, in bounded memory.

    Returns:
        Probabilities in (0, 1), labels 0 or 1, and the index of each row's customer; all
        ``(rows,)``, by customer and then in a customer's own order, padding left out.

    Raises:
        RemoteProtocolError: the arrays are not finite parameters of this model.

    Guarantees:
        None. Raw scores and metrics made of them are the reader's own view of their own rows;
        they are not private and never leave a node.
    """
    model = build_model(spec, schema)
    load_arrays(model, arrays)
    parts: list[tuple[Floats, Floats, npt.NDArray[np.int64]]] = []
    first = 0
    everyone = np.arange(len(customers), dtype=np.int64)
    with torch.no_grad():
        for rows in physical_batches(customers, everyone, schema.max_rows_per_customer):
            probabilities = torch.sigmoid(model(rows.numbers, rows.codes))
            owners = rows.per_row(torch.arange(first, first + rows.customers))
            parts.append((probabilities.numpy(), rows.labels.numpy(), owners.numpy()))
            first += rows.customers
    if not parts:
        return np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
    predicted, labels, owner = (np.concatenate(column) for column in zip(*parts, strict=True))
    return predicted, labels, owner
