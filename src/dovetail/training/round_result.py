"""What a node has after a round; apart from how it is computed, to be held without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SUM = "sum"


@dataclass(frozen=True)
class RoundResult:
    """What a node has after a round.

    Attributes:
        arrays: the parameters after the local steps, float32; made only of noised sums and of
            what came in, so that they may leave. None where the noise is shared.
        optimizer_state: stays with the node for its next round.
        total: where the noise is shared, what the node adds to the sum, float64 ``(parameters,)``:
            bounded, and without noise. It must not leave as it is.
    """

    arrays: dict[str, npt.NDArray[np.float32]]
    optimizer_state: dict[str, npt.NDArray[np.float32]]
    total: npt.NDArray[np.float64] | None = None

    def groups(self) -> list[Mapping[str, npt.NDArray[Any]]]:
        """Everything as groups of named arrays, to be sent from one process to another."""
        shared = [] if self.total is None else [{_SUM: self.total}]
        return [self.arrays, self.optimizer_state, *shared]


def round_result(groups: Sequence[dict[str, npt.NDArray[Any]]]) -> RoundResult:
    """What :meth:`RoundResult.groups` took apart."""
    arrays, optimizer_state, *shared = groups
    return RoundResult(arrays, optimizer_state, shared[0][_SUM] if shared else None)
