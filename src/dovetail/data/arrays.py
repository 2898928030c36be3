"""A partner's customers on disk: encoded rows in flat arrays, grouped by customer.

A folder holds five files. The arrays are raw, in C order and the machine's byte order.

============= =================== ====================================================
file          shape               content
============= =================== ====================================================
``numbers``   (rows, features)    float32 in [-1, 1]
``codes``     (rows, categories)  the smallest of uint8, uint16, uint32 that fits
``labels``    (rows,)             uint8, 0 or 1
``offsets``   (customers + 1,)    int64, first row of each customer and the end
``meta.json``                     the schema, and the number of rows and of customers
============= =================== ====================================================

The raw key is not stored, and neither is anything from a column that the schema does not name.
All the same the folder is as private as the table: only its owner may enter (mode 0700, files
0600), it lives where the partner says, and :meth:`CustomerArrays.delete` removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dovetail.errors import DataError, SchemaError
from dovetail.schema import Schema, schema_from_record
from dovetail.training.batch import Batch, Customers

META = "meta.json"
FORMAT = 1
RESIDENT_BYTES = 256 * 2**20
"""A larger array is read row by row instead of mapped: slower, and never resident."""


@dataclass(frozen=True)
class Layout:
    """Shapes and types of the arrays of one table."""

    schema: Schema
    rows: int
    customers: int

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of each array, by file name."""
        codes = [category.cardinality - 1 for category in self.schema.categories]
        return {
            "numbers": ((self.rows, len(self.schema.number_features)), np.dtype(np.float32)),
            "codes": ((self.rows, len(codes)), np.min_scalar_type(max(codes, default=0))),
            "labels": ((self.rows,), np.dtype(np.uint8)),
            "offsets": ((self.customers + 1,), np.dtype(np.int64)),
        }

    def to_json(self) -> str:
        """The content of ``meta.json``."""
        counts = {"rows": self.rows, "customers": self.customers}
        return json.dumps({"format": FORMAT, **counts, "schema": self.schema.to_record()})

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The layout that :meth:`to_json` wrote."""
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError("format")
        schema = schema_from_record(record["schema"])
        return cls(schema, int(record["rows"]), int(record["customers"]))


class CustomerArrays:
    """Random access to the customers in a folder that ``prepare`` wrote.

    Customers stand in ascending order of their key as text. Their rows are bounded by the
    schema's ``max_rows_per_customer``.

    Attributes:
        schema: what the rows were encoded by; compare it with the one you mean to train on.
    """

    def __init__(self, folder: Path, layout: Layout, resident_bytes: int) -> None:
        """Open the arrays; use :meth:`open`, which checks them first."""
        self.schema = layout.schema
        self._folder = folder
        self._customers = layout.customers
        mapped = {
            name: _rows_in(folder / name, shape, dtype, resident_bytes)
            for name, (shape, dtype) in layout.arrays.items()
        }
        self._numbers, self._codes = mapped["numbers"], mapped["codes"]
        self._labels, self._offsets = mapped["labels"], mapped["offsets"]

    @classmethod
    def open(cls, folder: Path, resident_bytes: int = RESIDENT_BYTES) -> CustomerArrays:
        """The customers in a folder.

        Args:
            folder: where ``prepare`` wrote them.
            resident_bytes: arrays up to this size are mapped, larger ones read.

        Raises:
            DataError: the folder is missing, incomplete or damaged.
        """
        try:
            layout = Layout.from_json((folder / META).read_text(encoding="utf-8"))
            for name, (shape, dtype) in layout.arrays.items():
                if (folder / name).stat().st_size != int(np.prod(shape)) * dtype.itemsize:
                    raise ValueError(name)
            return cls(folder, layout, resident_bytes)
        except (OSError, ValueError, KeyError, TypeError, SchemaError):
            message = f"{folder.name!r} does not hold prepared customers; prepare them again"
            raise DataError(message) from None

    def __len__(self) -> int:
        """Number of customers. Private: it never leaves the node."""
        return self._customers

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        """Rows of these customers, in this order, padded to the longest of them.

        Args:
            customers: indices in ``[0, len)``, ``(c,)``, possibly none; ascending is fastest.

        Returns:
            A batch of ``r`` rows each, ``1 <= r <= max_rows_per_customer``.

        Raises:
            IndexError: an index is out of range.
        """
        if customers.size and not 0 <= customers.min() <= customers.max() < self._customers:
            raise IndexError("customer indices must lie in [0, len)")
        starts = self._offsets.take(customers)
        counts = self._offsets.take(customers + 1) - starts
        places = np.arange(counts.max(initial=1))
        filled = places < counts[:, None]
        rows = (starts[:, None] + places)[filled]
        return Batch(
            numbers=_padded(self._numbers.take(rows), filled, np.float32),
            codes=_padded(self._codes.take(rows), filled, np.int64),
            labels=_padded(self._labels.take(rows), filled, np.float32),
            mask=filled.astype(np.float32),
        )

    def delete(self) -> None:
        """Remove the folder and all that is in it; this object is of no use afterwards.

        What a killed ``prepare`` of the same folder left behind goes with it.
        """
        (self._folder / META).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(partial_folder(self._folder), ignore_errors=True)


def partial_folder(folder: Path) -> Path:
    """Where ``prepare`` writes until ``folder`` is complete; a killed one leaves private rows."""
    return folder.with_name(f".{folder.name}.partial")


class CustomerSubset:
    """Some of the customers, under indices of their own: a part of a split."""

    def __init__(self, customers: Customers, members: npt.NDArray[np.int64]) -> None:
        """Take the customers at the indices ``members``, in this order."""
        self._customers = customers
        self._members = members

    def __len__(self) -> int:
        """Number of customers in the subset."""
        return len(self._members)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        """Rows of these customers, as the whole would give them."""
        return self._customers.batch(self._members[customers])


class _Mapped:
    """A read-only array in a file that may become resident as a whole."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._array = np.zeros(shape, dtype)
        if self._array.size:
            self._array = np.memmap(path, dtype, mode="r", shape=shape)

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """A copy of these rows."""
        return np.asarray(self._array[rows])


class _OnDisk:
    """A read-only array in a file too large to become resident.

    It is read and not mapped because mapped pages count as resident, and the kernel maps whole
    large folios: a batch of 4,096 rows made 1.1 GB of a 1.36 GB file resident at once.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._shape, self._dtype = shape[1:], dtype
        self._stride = int(np.prod(self._shape)) * dtype.itemsize
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """A copy of these rows, read in runs of neighbours."""
        firsts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        sizes = np.diff(firsts, append=len(rows)) * self._stride
        places = rows[firsts] * self._stride
        pieces = map(os.pread, repeat(self._descriptor), sizes.tolist(), places.tolist())
        return np.frombuffer(bytearray().join(pieces), self._dtype).reshape(-1, *self._shape)


def _rows_in(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], resident_bytes: int
) -> _Mapped | _OnDisk:
    large = int(np.prod(shape)) * dtype.itemsize > resident_bytes
    return _OnDisk(path, shape, dtype) if large else _Mapped(path, shape, dtype)


def _padded(
    rows: npt.NDArray[Any], filled: npt.NDArray[np.bool_], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Rows laid into the filled places of ``(c, r)``, zeros elsewhere."""
    if filled.all():
        return rows.astype(dtype, copy=False).reshape(*filled.shape, *rows.shape[1:])
    padded = np.zeros((*filled.shape, *rows.shape[1:]), dtype)
    padded[filled] = rows
    return padded
