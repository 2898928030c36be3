"""The sum of customers' clipped gradients, by the fastest exact way that a model allows."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dovetail.agreement.rounding import PHYSICAL_ROWS
from dovetail.training.batch import Batch, Customers
from dovetail.training.book_keeping import BookKeeper, UnsupportedModel, supports
from dovetail.training.clipping import Clipper, Rows, Sums, rows_of
from dovetail.training.model import TabularModel
from dovetail.training.opacus_hooks import OpacusHooks
from dovetail.training.tabular_pass import TabularClipper
from dovetail.training.vector import ParameterVector


class ClippedSums:
    """Adds clipped sums of one model: by book-keeping, or by Opacus's hooks where that must be."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._clipper: Clipper = BookKeeper(model) if supports(model) else OpacusHooks(model)

    def __enter__(self) -> ClippedSums:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clipper.close()

    def add(self, rows: Rows, l2_clip_norm: float, positive_weight: float, sums: Sums) -> None:
        """Add what :meth:`Clipper.add_clipped_sum` promises."""
        try:
            self._clipper.add_clipped_sum(rows, l2_clip_norm, positive_weight, sums)
        except UnsupportedModel:
            self._clipper.close()
            self._clipper = OpacusHooks(self._model)
            self._clipper.add_clipped_sum(rows, l2_clip_norm, positive_weight, sums)


def clipped_sum(
    model: nn.Module, batch: Batch, l2_clip_norm: float, positive_weight: float = 1.0
) -> dict[str, npt.NDArray[np.float32]]:
    """The sum over a batch's customers of their clipped gradients, without noise.

    Args:
        model: maps numbers ``(n, f)`` and codes ``(n, k)`` to logits ``(n,)``; rows must not
            mix.
        batch: the customers.
        l2_clip_norm: bound on one customer's gradient over all parameters together.
        positive_weight: weight of a positive row in the loss.

    Returns:
        One float32 array for each of the model's trainable parameters; zeros for no customers.

    Raises:
        SettingError: the model has layers that mix rows.

    Guarantees:
        One customer adds at most ``l2_clip_norm``, up to float32 rounding, which also changes
        what the others add (``privacy.mechanism`` says how much was seen). The result itself is
        *not* private: it may leave a node only with noise, and charged for.
    """
    if isinstance(model, TabularModel):
        vector = ParameterVector(model)
        vector.model.load_state_dict(model.state_dict())
        TabularClipper(vector).add_clipped_sum(
            rows_of(batch), l2_clip_norm, positive_weight, vector.sums_of
        )
        return {n: vector.sums_of[p].numpy() for n, p in vector.model.named_parameters()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums: dict[Tensor, Tensor] = {
        p: torch.zeros_like(p, requires_grad=False) for p in trained.values()
    }
    with ClippedSums(model) as clipped:
        clipped.add(rows_of(batch), l2_clip_norm, positive_weight, sums)
    return {name: sums[p].numpy() for name, p in trained.items()}


def physical_batches(
    customers: Customers, chosen: npt.NDArray[np.int64], rows_per_customer: int
) -> Iterator[Rows]:
    """The rows of the chosen customers, at most ``PHYSICAL_ROWS`` at once where possible."""
    size = max(1, PHYSICAL_ROWS // rows_per_customer)
    for start in range(0, len(chosen), size):
        yield rows_of(customers.batch(chosen[start : start + size]))
