"""What DP-SGD reads: customers, each with a few rows, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Batch:
    """Rows of ``c`` customers, padded to ``r`` rows each.

    Attributes:
        numbers: float32 ``(c, r, number features)``, scaled to [-1, 1]; padding is 0.
        codes: int64 ``(c, r, categories)``; padding is ``schema.MISSING_CODE``.
        labels: float32 ``(c, r)``, 0 or 1; padding is 0.
        mask: float32 ``(c, r)``, 1 for a row and 0 for padding.
    """

    numbers: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]


class Customers(Protocol):
    """Random access to a partner's customers; how they are stored is its owner's affair."""

    def __len__(self) -> int:
        """Number of customers. Private: it never leaves the node."""
        ...

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        """Rows of these customers (indices in ``[0, len))``, possibly none), in this order."""
        ...
