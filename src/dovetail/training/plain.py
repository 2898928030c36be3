"""Training without privacy: the ceiling that a researcher compares with; no node runs this."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from dovetail.agreement.request import ModelSpec
from dovetail.schema import Schema
from dovetail.training.batch import Customers
from dovetail.training.clipped_sum import physical_batches
from dovetail.training.clipping import Rows
from dovetail.training.model import TabularModel, arrays_of, build_model, load_arrays

_LBFGS_ITERATIONS = 200
_ADAM_BATCH = 256


def train_plain(
    customers: Customers,
    schema: Schema,
    spec: ModelSpec,
    *,
    l2: float = 1e-4,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    positive_weight: float = 1.0,
    seed: int = 0,
) -> dict[str, npt.NDArray[np.float32]]:
    """Fit a model to rows as they are; fixed effort, nothing held out.

    A logistic model is convex and fitted by full-batch L-BFGS; the others by Adam over shuffled
    batches of 256 rows. All rows are in memory at once.

    Args:
        customers: the rows; a customer with more rows counts more.
        schema: of ``customers``.
        spec: the model.
        l2: weight of half the squared norm of all weights (not biases), beside the mean loss.
        epochs: passes over the rows, for Adam.
        learning_rate: of Adam.
        positive_weight: weight of a positive row in the loss.
        seed: of initial parameters and shuffling.

    Returns:
        The parameters, as ``spec.parameters(schema)`` names them.

    Guarantees:
        None: the result is *not* private and is for simulations on data one may see.
    """
    rows = _all_rows(customers, schema)
    model = build_model(spec, schema)
    load_arrays(model, _initial(spec, schema, seed))
    if len(rows) and spec.family == "logistic":
        _fit_lbfgs(model, rows, l2, positive_weight)
    elif len(rows):
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        for _ in range(epochs):
            _adam_epoch(model, rows, optimizer, order, l2, positive_weight)
    return arrays_of(model)


def _all_rows(customers: Customers, schema: Schema) -> Rows:
    everyone = np.arange(len(customers), dtype=np.int64)
    parts = list(physical_batches(customers, everyone, schema.max_rows_per_customer))
    if not parts:
        return Rows(torch.empty(0, 0), torch.empty(0, 0), torch.empty(0), 0, None, None, 1)
    numbers, codes, labels = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("numbers", "codes", "labels")
    )
    return Rows(numbers, codes, labels, len(labels), None, None, 1)


def _initial(spec: ModelSpec, schema: Schema, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    dice = np.random.default_rng(seed)
    return {
        p.name: dice.uniform(-p.init_bound, p.init_bound, p.shape).astype(np.float32)
        for p in spec.parameters(schema)
    }


def _objective(
    model: TabularModel, rows: Rows, l2: float, positive_weight: float, at: Tensor | slice
) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(
        model(rows.numbers[at], rows.codes[at]),
        rows.labels[at],
        pos_weight=torch.tensor(positive_weight),
    )
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    return loss + l2 / 2 * torch.stack([w.square().sum() for w in weights]).sum()


def _fit_lbfgs(model: TabularModel, rows: Rows, l2: float, positive_weight: float) -> None:
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=_LBFGS_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _objective(model, rows, l2, positive_weight, slice(None))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _adam_epoch(
    model: TabularModel,
    rows: Rows,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    l2: float,
    positive_weight: float,
) -> None:
    for part in torch.split(torch.randperm(len(rows), generator=order), _ADAM_BATCH):
        optimizer.zero_grad()
        _objective(model, rows, l2, positive_weight, part).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
