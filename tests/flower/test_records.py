import io
import pickle
from typing import Any, Literal

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dovetail.errors import LocalProtocolError
from dovetail.flower.records import (
    DTYPES,
    all_finite,
    array_record,
    borrowed_record,
    config_record,
    elements_of,
    metric_record,
    named_arrays,
)


def npy_with_shape(length: int) -> bytes:
    """A file of big-endian float32 that claims a length and holds two elements."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": ">f4", "fortran_order": False, "shape": (length,)}
    )
    return file.getvalue() + bytes(8)


arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(arrays)
def test_a_record_is_the_one_flower_makes(array: np.ndarray) -> None:
    record = array_record({"a": array})
    assert record == ArrayRecord({"a": Array(array)})
    np.testing.assert_array_equal(record["a"].numpy(), array)


@given(arrays, st.sampled_from("CF"), st.sampled_from("<>"))
def test_a_stock_array_is_read_whatever_its_layout(
    array: np.ndarray, order: Literal["C", "F"], endian: Literal["<", ">"]
) -> None:
    stored = np.asarray(array, dtype=array.dtype.newbyteorder(endian), order=order)
    read = named_arrays(ArrayRecord({"a": Array(stored)}))["a"]
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    assert not read.flags.writeable


def test_reading_copies_nothing() -> None:
    record = array_record({"a": np.arange(1000, dtype=np.float32)})
    assert elements_of(record["a"]).obj is record["a"].data


@given(arrays)
def test_a_borrowed_record_is_to_flower_like_any_other(array: np.ndarray) -> None:
    borrowed, stock = borrowed_record({"a": array}), ArrayRecord({"a": Array(array)})
    assert borrowed == stock
    assert stock == borrowed
    assert borrowed.object_id == stock.object_id
    assert ArrayRecord(dict(borrowed)) == stock
    assert pickle.loads(pickle.dumps(borrowed["a"])) == stock["a"]
    parts = {key: part.deflate() for key, part in get_all_nested_objects(borrowed).items()}
    assert inflate_object_from_contents(borrowed.object_id, parts) == stock
    np.testing.assert_array_equal(borrowed["a"].numpy(), array)
    assert borrowed["a"].numpy().flags.writeable


def test_a_borrowed_record_copies_nothing_and_is_read_only() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    record = borrowed_record({"a": array})
    (read,) = named_arrays(record).values()
    assert np.shares_memory(read, array)
    assert not read.flags.writeable
    copied = named_arrays(array_record({"a": array}))["a"]
    assert not np.shares_memory(copied, array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(shape=hnp.array_shapes(min_dims=0, min_side=1, max_side=40), where=st.floats(0, 0.999))
def test_one_element_that_is_not_finite_is_found(
    bad: float, shape: tuple[int, ...], where: float
) -> None:
    array = np.zeros(shape, np.float32)
    assert all_finite(array)
    array.reshape(-1)[int(where * array.size)] = bad
    assert not all_finite(array)


def test_nothing_is_finite() -> None:
    assert all_finite(np.zeros((0, 3), np.float32))


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.array([1j]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
    ],
)
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError):
        array_record({"a": array})


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (3,), "numpy.ndarray", array_record({"a": np.ones(2, "f4")})["a"].data),
        Array("float32", (2,), "numpy.ndarray", array_record({"a": np.ones(2)})["a"].data),
        Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY"),
        Array("float32", (2,), "numpy.ndarray", b""),
        Array("float32", (2**40,), "numpy.ndarray", npy_with_shape(2**40)),
        Array("float32", (2,), "numpy.ndarray", npy_with_shape(2) + b"abc"),
        Array("float32", (1,), "torch", b"abcd"),
        Array("bfloat16", (2,), "numpy.ndarray", b"abcd"),
        Array("object", (2,), "numpy.ndarray", b"abcd"),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(array: Array) -> None:
    with pytest.raises(LocalProtocolError):
        elements_of(array)


def test_metrics_take_numpy_scalars_and_truth_values() -> None:
    values = {"a": np.float32(0.5), "b": np.int64(3), "c": True, "d": np.bool_(False), "e": 2.5}
    record = metric_record(values)
    assert dict(record) == {"a": 0.5, "b": 3, "c": 1, "d": 0, "e": 2.5}
    assert {type(value) for value in record.values()} == {int, float}


@pytest.mark.parametrize("value", ["3", None, [1], b"", np.str_("x"), np.complex64(1)])
def test_a_metric_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(LocalProtocolError, match="'weight'"):
        metric_record({"weight": value})


def test_settings_keep_their_types() -> None:
    values: dict[str, Any] = {"a": True, "b": np.int32(2), "c": "x", "d": b"y", "e": np.float64(1)}
    record = config_record(values)
    assert [(type(value), value) for value in record.values()] == [
        (bool, True),
        (int, 2),
        (str, "x"),
        (bytes, b"y"),
        (float, 1.0),
    ]
    with pytest.raises(LocalProtocolError):
        config_record({"a": None})  # type: ignore[dict-item]
