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


def array_record(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ArrayRecord:
    """Arrays by name as a record; copies each once.

    Raises:
        LocalProtocolError: an array's dtype is not in :data:`DTYPES`.
    """
    record = ArrayRecord()
    for name, array in arrays.items():
        dtype = _without_byte_order(array.dtype.str)
        if dtype not in DTYPES:
            raise LocalProtocolError(f"array {name!r}: dtype {dtype} cannot be sent")
        elements = np.ascontiguousarray(array, dtype=_on_the_wire(dtype))
        record[name] = array_from_elements(dtype, array.shape, elements.data)
    return record


def named_arrays(record: ArrayRecord) -> dict[str, npt.NDArray[Any]]:
    """The record's arrays by name: views of its bytes, not writable."""
    return {name: view(array) for name, array in record.items()}


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


def array_from_elements(dtype: str, shape: tuple[int, ...], elements: memoryview) -> Array:
    """Flower's array of elements as they travel: little-endian, row-major.

    ``dtype`` is one of :data:`DTYPES`, and ``elements`` has just the bytes that ``shape`` needs.
    """
    return Array(dtype, shape, _NPY, b"".join((_npy_header(dtype, shape), elements)))


def elements_of(array: Array) -> memoryview:
    """The elements of Flower's array as they travel; a view wherever they lie so already.

    Raises:
        LocalProtocolError: the array's bytes are not what its dtype and shape say.
    """
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
