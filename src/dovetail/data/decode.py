"""Encoded columns of a batch as numpy arrays; :mod:`dovetail.data.encode` has made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dovetail.data import encode
from dovetail.errors import DataError
from dovetail.schema import Schema


def features(
    batch: pa.RecordBatch, schema: Schema
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32]]:
    """Number features ``(rows, features)`` in [-1, 1] and codes ``(rows, categories)``.

    Raises:
        DataError: a value is missing or out of range, which a checked table cannot have.
    """
    numbers = np.empty((batch.num_rows, len(schema.number_features)), np.float32)
    codes = np.empty((batch.num_rows, len(schema.categories)), np.uint32)
    for i in range(numbers.shape[1]):
        numbers[:, i] = values(batch.column(f"n{i}"), np.float32)
    for i, category in enumerate(schema.categories):
        codes[:, i] = values(batch.column(f"c{i}"), encode.code_dtype(category))
    if not (np.abs(numbers) <= 1).all():
        raise changed()
    return numbers, codes


def values(column: pa.Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The column without a copy; ``to_numpy`` would load pandas, which this must not pay for.

    Raises:
        DataError: a value is missing.
    """
    if column.null_count:
        raise changed()
    return np.frombuffer(column.buffers()[1], dtype)[column.offset :][: len(column)]


def changed() -> DataError:
    """What is wrong when a row breaks a rule that all rows kept when they were checked."""
    return DataError("the table changed while it was read; try again")
