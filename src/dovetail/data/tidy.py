"""Small tables of results as Parquet, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dovetail.errors import DataError

ColumnType = Literal["text", "whole", "number", "flag"]

_ARROW: dict[ColumnType, pa.DataType] = {
    "text": pa.string(),
    "whole": pa.int64(),
    "number": pa.float64(),
    "flag": pa.bool_(),
}


def write_parquet(
    rows: Sequence[Mapping[str, object]], columns: Mapping[str, ColumnType], destination: Path
) -> None:
    """Write rows to a Parquet file that appears under its name when it is complete.

    Args:
        rows: one mapping per row, with a value or ``None`` for each column.
        columns: names and types, in order.
        destination: the file; its folder exists.

    Raises:
        DataError: it cannot be written: no permission, or the disk is full.
    """
    schema = pa.schema([(name, _ARROW[kind]) for name, kind in columns.items()])
    table = pa.table({name: [row[name] for row in rows] for name in columns}, schema=schema)
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        pq.write_table(table, partial)
        partial.replace(destination)
    except OSError as error:
        reason = error.strerror or "the disk may be full"
        raise DataError(f"{destination.name!r} cannot be written: {reason}") from None
    finally:
        partial.unlink(missing_ok=True)


def read_parquet(source: Path) -> list[dict[str, object]]:
    """The rows that :func:`write_parquet` wrote, one mapping each.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        rows: list[dict[str, object]] = pq.read_table(source).to_pylist()
    except (OSError, pa.ArrowException):
        raise DataError(f"{source.name!r} cannot be read: missing, damaged or no Parquet") from None
    return rows
