"""What a node has after a round; apart from how it is computed, to be held without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RoundResult:
    """What a node has after a round.

    Attributes:
        arrays: the parameters after the local steps, float32; made only of noised sums and of
            what came in, so that they may leave.
        optimizer_state: stays with the node for its next round.
    """

    arrays: dict[str, npt.NDArray[np.float32]]
    optimizer_state: dict[str, npt.NDArray[np.float32]]
