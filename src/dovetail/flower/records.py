"""Flower's records from plain numpy arrays and numbers, and back."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from dovetail.errors import LocalProtocolError

NamedArrays = Mapping[str, npt.NDArray[np.float32]]
"""A model: its arrays by name."""

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = frozenset(("bool", *_INTEGERS, "float16", "float32", "float64"))
"""What an array's elements may be."""

_NPY = "numpy.ndarray"  # how Flower calls an array in numpy's own file format


class BorrowedArray(Array):
    """Flower's array over elements that lie elsewhere; copied only when Flower asks for its bytes.

    What it was made from must not change while it is in use.
    """

    __qualname__ = "Array"  # Flower writes it into what it sends

    def __init__(self, dtype: str, shape: tuple[int, ...], elements: memoryview) -> None:
        self.dtype, self.shape, self.stype = dtype, shape, _NPY
        self.elements = elements

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array in numpy's file format; made anew each time."""
        return b"".join((_npy_header(self.dtype, self.shape), self.elements))

    def numpy(self) -> npt.NDArray[Any]:
        """A copy that may be written to."""
        return view(self).copy()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and _fields(self) == _fields(other)

    __hash__ = None  # type: ignore[assignment]  # as Flower's

    def __reduce__(self) -> tuple[type[Array], tuple[object, ...]]:
        return Array, _fields(self)


def array_record(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ArrayRecord:
    """Arrays by name as a record; copies each once.

    Raises:
        LocalProtocolError: an array's dtype is not in :data:`DTYPES`.
    """
    record = ArrayRecord()
    for name, borrowed in borrowed_record(arrays).items():
        record[name] = Array(*_fields(borrowed))
    return record


def borrowed_record(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ArrayRecord:
    """Arrays by name as a record that copies none which lies as it travels.

    They must not change while the record is in use.

    Raises:
        LocalProtocolError: an array's dtype is not in :data:`DTYPES`.
    """
    record = ArrayRecord()
    for name, array in arrays.items():
        dtype = _without_byte_order(array.dtype.str)
        if dtype not in DTYPES:
            raise LocalProtocolError(f"array {name!r}: dtype {dtype} cannot be sent")
        elements = np.ascontiguousarray(array, dtype=_on_the_wire(dtype))
        as_bytes = elements.reshape(-1).view(np.uint8).data
        record[name] = array_from_elements(dtype, array.shape, as_bytes)
    return record


def named_arrays(record: ArrayRecord) -> dict[str, npt.NDArray[Any]]:
    """The record's arrays by name: views of its bytes, not writable."""
    return {name: view(array) for name, array in record.items()}


def all_finite(array: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether no element is infinite or not a number; takes no memory."""
    return math.isfinite(array.min(initial=0)) and math.isfinite(array.max(initial=0))


def metric_record(values: Mapping[str, object]) -> MetricRecord:
    """Numbers by name; numpy's scalars become Python's and truth values 0 or 1.

    Raises:
        LocalProtocolError: a value is not a number.
    """
    record = MetricRecord()
    for name, value in values.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, int | float):
            raise LocalProtocolError(f"metric {name!r} is not a number")
        record[name] = int(plain) if isinstance(plain, bool) else plain
    return record


def config_record(values: Mapping[str, bool | int | float | str | bytes]) -> ConfigRecord:
    """Settings by name; numpy's scalars become Python's.

    Raises:
        LocalProtocolError: a value is no bool, number, text or bytes.
    """
    record = ConfigRecord()
    for name, value in values.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, bool | int | float | str | bytes):
            raise LocalProtocolError(f"setting {name!r} cannot be sent")
        record[name] = plain
    return record


def array_from_elements(dtype: str, shape: tuple[int, ...], elements: memoryview) -> BorrowedArray:
    """Flower's array over elements as they travel: little-endian, row-major.

    ``dtype`` is one of :data:`DTYPES`, and ``elements`` has just the bytes that ``shape`` needs.
    """
    return BorrowedArray(dtype, shape, elements.toreadonly())


def elements_of(array: Array) -> memoryview:
    """The elements of Flower's array as they travel; a view wherever they lie so already.

    Raises:
        LocalProtocolError: the array's bytes are not what its dtype and shape say.
    """
    if isinstance(array, BorrowedArray):
        return array.elements
    if array.stype != _NPY or array.dtype.lstrip("<>=|") not in _SPELLINGS:
        raise LocalProtocolError(f"an array of {array.stype} {array.dtype} cannot be sent")
    header = _npy_header(wire_dtype(array), tuple(array.shape))
    if array.data.startswith(header):
        elements = memoryview(array.data)[len(header) :]
    else:
        elements = memoryview(_reordered(array))
    if len(elements) != math.prod(array.shape) * _on_the_wire(wire_dtype(array)).itemsize:
        raise LocalProtocolError("an array does not have the bytes that its shape needs")
    return elements


def wire_dtype(array: Array) -> str:
    """Name of the array's dtype without its byte order, one of :data:`DTYPES`."""
    return _without_byte_order(array.dtype)


def view(array: Array) -> npt.NDArray[Any]:
    """The array's elements where they lie, not writable.

    Raises:
        LocalProtocolError: see :func:`elements_of`.
    """
    dtype = _on_the_wire(wire_dtype(array))
    return np.frombuffer(elements_of(array), dtype=dtype).reshape(array.shape)


def _fields(array: Array) -> tuple[str, tuple[int, ...], str, bytes]:
    return array.dtype, array.shape, array.stype, array.data


_SPELLINGS = DTYPES | {np.dtype(name).str.lstrip("<|") for name in DTYPES}


@lru_cache(maxsize=256)
def _without_byte_order(dtype: str) -> str:
    return np.dtype(dtype).name


@lru_cache(maxsize=256)
def _on_the_wire(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What ``numpy.save`` writes before the elements of a row-major little-endian array."""
    header = io.BytesIO()
    fields = {
        "descr": _on_the_wire(dtype).str,
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _reordered(array: Array) -> bytes:
    """Elements of an array that is column-major, big-endian or has another header."""
    file = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(file)
        shape, by_columns, dtype = _HEADER_READERS[version](file)
        flat = np.frombuffer(array.data, dtype=dtype, offset=file.tell())
        stored = flat.reshape(shape, order="F" if by_columns else "C")
    except (ValueError, KeyError, TypeError):
        raise LocalProtocolError("the bytes of an array cannot be read") from None
    if stored.shape != tuple(array.shape) or stored.dtype.name != wire_dtype(array):
        raise LocalProtocolError("the bytes of an array are not what its dtype and shape say")
    return stored.astype(_on_the_wire(wire_dtype(array))).tobytes()


_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
