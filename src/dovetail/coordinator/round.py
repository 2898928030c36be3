"""One round without I/O: what starts it, what is summed, when it counts.

The sum grows as contributions arrive, so that memory does not grow with the number of partners.
Weights are the partners' *declared* numbers of customers: public, hence not a release.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dovetail.agreement.request import TrainingTask
from dovetail.errors import LocalProtocolError, TooManyDropouts
from dovetail.schema import Schema

Arrays = Mapping[str, npt.NDArray[np.float32]]
_BLOCK = 1 << 16  # elements; stays in the second-level cache


@dataclass(frozen=True)
class Mean:
    """The weighted mean of a round's contributions.

    Attributes:
        arrays: the mean, float32, shaped like the model.
        weight: the sum of the weights.
        nodes: who contributed, ascending.
    """

    arrays: dict[str, npt.NDArray[np.float32]]
    weight: float
    nodes: tuple[int, ...]


class Round:
    """Sums contributions until it is closed."""

    def __init__(self, weights: Mapping[int, float], quorum: int) -> None:
        """Starts an empty round.

        Args:
            weights: the public weight of every node that may contribute, > 0.
            quorum: contributions below which the round does not count, >= 1.
        """
        self._weights = dict(weights)
        self._quorum = quorum
        self._sum: dict[str, npt.NDArray[np.float32]] = {}
        self._nodes: list[int] = []

    def add(self, node: int, arrays: Arrays) -> None:
        """Adds one node's contribution, already checked for shape and finiteness.

        Raises:
            LocalProtocolError: the node is not part of the round, or already contributed.
        """
        if node not in self._weights or node in self._nodes:
            raise LocalProtocolError(f"node {node} cannot contribute to this round (again)")
        weight = np.float32(self._weights[node])
        for name, array in arrays.items():
            if name not in self._sum:
                self._sum[name] = np.zeros(array.shape, np.float32)
            _add_weighted(self._sum[name].reshape(-1), array.reshape(-1), weight)
        self._nodes.append(node)

    def close(self) -> Mean:
        """The mean of what was added; the round accepts nothing afterwards.

        Raises:
            TooManyDropouts: fewer contributions than the quorum.
        """
        if len(self._nodes) < self._quorum:
            raise TooManyDropouts(
                f"{len(self._nodes)} of {len(self._weights)} partners contributed to the round; "
                f"the job needs {self._quorum}"
            )
        weight = math.fsum(self._weights[node] for node in self._nodes)
        for array in self._sum.values():
            array /= np.float32(weight)
        self._weights.clear()
        return Mean(self._sum, weight, tuple(sorted(self._nodes)))


def _add_weighted(
    total: npt.NDArray[np.float32], array: npt.NDArray[np.float32], weight: np.float32
) -> None:
    """Adds ``weight * array`` block by block, so that no third array of that size exists."""
    scratch = np.empty(min(_BLOCK, array.size), np.float32)
    for start in range(0, array.size, _BLOCK):
        part = array[start : start + _BLOCK]
        total[start : start + _BLOCK] += np.multiply(part, weight, out=scratch[: part.size])


def initial_arrays(task: TrainingTask, schema: Schema) -> dict[str, npt.NDArray[np.float32]]:
    """The public model that round 1 starts from.

    The output bias starts at the log-odds of the declared prior (under the loss's weight of
    positive rows), so that imbalance costs no rounds and no look at private counts.

    Args:
        task: the task; its ``seed`` decides the values.
        schema: the columns of the task.
    """
    dice = np.random.default_rng(task.seed)
    arrays = {
        p.name: dice.uniform(-p.init_bound, p.init_bound, p.shape).astype(np.float32)
        for p in task.model.parameters(schema)
    }
    odds = task.positive_weight * schema.label.prior / (1 - schema.label.prior)
    arrays["output.bias"][:] = math.log(odds)
    return arrays


def calibrated(arrays: Arrays, positive_weight: float) -> dict[str, npt.NDArray[np.float32]]:
    """The model with the loss's weight of positive rows taken out of its probabilities.

    A row's weight ``w`` multiplies the odds that the model learns by ``w``; subtracting ``log w``
    from the output's bias divides them by it again and changes no ranking. The other arrays are
    the given ones, not copies.
    """
    bias = arrays["output.bias"] - np.float32(math.log(positive_weight))
    return {**arrays, "output.bias": bias}
