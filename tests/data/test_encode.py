from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.data.encode import code_dtype, encoded_columns
from dovetail.data.engine import Limits, quote
from dovetail.data.source import Source
from dovetail.schema import Category, Column, Date, Label, Number, Schema, Transform

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def encoded(folder: Path, column: Column, values: list[Any]) -> dict[str, list[Any]]:
    """Encodes a column's values; its type is inferred."""
    table = pa.table({"who": ["a"] * len(values), column.name: values, "y": [0] * len(values)})
    pa.parquet.write_table(table, folder / "t.parquet")
    columns = encoded_columns(Schema("t", "who", "person", (column,), Label("y", 0.5), 1))
    selected = ", ".join(f"{sql} AS {alias}" for alias, sql in columns.items())
    with Source.files(folder / "t.parquet").open(Limits()) as opened:
        rows = opened.rows(f'SELECT {selected} FROM "dovetail rows"')
    return dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))


bounds = st.tuples(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300)).filter(
    lambda pair: pair[1] - pair[0] > 1e-300
)
finite = st.floats(allow_nan=False, allow_infinity=False)


@quick
@given(bounds, st.sampled_from(["linear", "log"]), st.lists(finite, min_size=1, max_size=20))
def test_scaled_numbers_lie_in_the_unit_range_in_order(
    tmp_path: Path, pair: tuple[float, float], transform: Transform, values: Any
) -> None:
    low, high = pair
    column = Number("x", low, high, transform=transform)
    ordered = sorted([*values, low, high])
    scaled = encoded(tmp_path, column, ordered)["n0"]
    assert all(-1 <= value <= 1 for value in scaled)
    assert scaled == sorted(scaled)
    assert (scaled[0], scaled[-1]) == (-1, 1)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (Number("x", 0, 10), 2.5, -0.5),
        (Number("x", -10, 10), 5, 0.5),
        (Number("x", 0, 10), -3.0, -1),
        (Number("x", 0, 10), 30, 1),
        (Number("x", 0, 99, transform="log"), 9.0, 0),
        (Number("x", 1, 100, transform="log"), 10.0, 0),
        (Number("x", 0, 10, nullable=True), 10.0, 1),
        (Date("x", date(2020, 1, 1), date(2020, 1, 5)), date(2020, 1, 2), -0.5),
        (Date("x", date(2020, 1, 1), date(2020, 1, 5)), date(1900, 1, 1), -1),
        (Date("x", date(2020, 1, 1), date(2020, 1, 5)), date(2099, 1, 1), 1),
    ],
)
def test_known_values(tmp_path: Path, column: Column, value: Any, expected: float) -> None:
    assert encoded(tmp_path, column, [value])["n0"] == [pytest.approx(expected, abs=1e-7)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (Number("x", 0, 10, nullable=True), 10.0),
        (Date("x", date(2020, 1, 1), date(2020, 1, 5), nullable=True), date(2020, 1, 5)),
    ],
)
def test_null_is_the_middle_with_an_indicator(tmp_path: Path, column: Column, value: Any) -> None:
    result = encoded(tmp_path, column, [None, value])
    assert (result["n0"], result["n1"]) == ([0, 1], [1, 0])


@quick
@given(st.dates(date(1, 1, 1), date(9000, 1, 1)), st.integers(1, 10**5), st.integers(0, 10**5))
def test_dates_scale_by_days(tmp_path: Path, earliest: date, span: int, offset: int) -> None:
    latest, value = earliest + timedelta(days=span), earliest + timedelta(days=offset)
    (scaled,) = encoded(tmp_path, Date("x", earliest, latest), [value])["n0"]
    assert scaled == np.float32(2 * min(offset / span, 1) - 1)


def test_codes_of_values_missing_and_other(tmp_path: Path) -> None:
    column = Category("x", ("north", "it's", "NORTH"))
    values = ["it's", None, "elsewhere", "north", "NORTH", "", " north"]
    assert encoded(tmp_path, column, values)["c0"] == [3, 0, 1, 2, 4, 1, 1]


def test_a_category_of_whole_numbers_is_read_as_text(tmp_path: Path) -> None:
    assert encoded(tmp_path, Category("x", ("1", "7")), [7, 1, 3, None])["c0"] == [3, 2, 1, 0]


@pytest.mark.parametrize(("values", "dtype"), [(254, "u1"), (255, "u2"), (70_000, "u4")])
def test_codes_take_the_smallest_type_that_fits(tmp_path: Path, values: int, dtype: str) -> None:
    column = Category("x", tuple(str(i) for i in range(values)))
    assert code_dtype(column) == np.dtype(dtype)
    assert encoded(tmp_path, column, [str(values - 1)])["c0"] == [values + 1]


def test_an_unreadable_number_is_null_and_never_a_bound(tmp_path: Path) -> None:
    assert encoded(tmp_path, Number("x", 0, 10), ["many"])["n0"] == [None]


def test_names_are_quoted(tmp_path: Path) -> None:
    assert quote('a"b') == '"a""b"'
    assert encoded(tmp_path, Number('a"; DROP', 0, 10), [10.0])["n0"] == [1]


def test_log_of_a_narrow_range_is_exact(tmp_path: Path) -> None:
    column = Number("x", 0, 1e-17, transform="log")
    assert encoded(tmp_path, column, [0.0, 5e-18, 1e-17])["n0"] == [-1, 0, 1]
