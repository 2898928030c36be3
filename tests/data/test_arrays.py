import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.data.arrays import CustomerArrays, CustomerSubset, Layout
from dovetail.errors import DataError
from dovetail.schema import Category, Label, Number, Schema

SCHEMA = Schema(
    name="t",
    key="who",
    unit="person",
    columns=(Number("x", 0, 1, nullable=True), Category("c", tuple("abcdef"))),
    label=Label("y", 0.5),
    max_rows_per_customer=4,
)
COUNTS = [1, 4, 2, 3, 1, 1]
OFFSETS = np.cumsum([0, *COUNTS])
ROWS = int(OFFSETS[-1])
NUMBERS = np.linspace(-1, 1, 2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
CODES = (np.arange(ROWS) % 8).astype(np.uint8)[:, None]
LABELS = (np.arange(ROWS) % 2).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays: dict[str, Any] = {
        "numbers": NUMBERS,
        "codes": CODES,
        "labels": LABELS,
        "offsets": OFFSETS,
    }
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(array.tobytes())
    (tmp_path / "meta.json").write_text(Layout(SCHEMA, ROWS, len(COUNTS)).to_json())
    return tmp_path


@pytest.mark.parametrize("resident_bytes", [0, 2**20])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.integers(0, len(COUNTS) - 1), max_size=8))
def test_a_batch_holds_each_customers_rows_and_padding(
    folder: Path, resident_bytes: int, wanted: list[int]
) -> None:
    arrays = CustomerArrays.open(folder, resident_bytes)
    batch = arrays.batch(np.array(wanted, dtype=np.int64))
    width = max((COUNTS[i] for i in wanted), default=1)
    assert batch.numbers.shape == (len(wanted), width, 2)
    assert batch.codes.shape == (len(wanted), width, 1)
    assert batch.labels.shape == batch.mask.shape == (len(wanted), width)
    assert batch.numbers.dtype == batch.labels.dtype == batch.mask.dtype == np.float32
    assert batch.codes.dtype == np.int64
    for place, customer in enumerate(wanted):
        rows = slice(OFFSETS[customer], OFFSETS[customer + 1])
        count = COUNTS[customer]
        assert (batch.numbers[place, :count] == NUMBERS[rows]).all()
        assert (batch.codes[place, :count] == CODES[rows]).all()
        assert (batch.labels[place, :count] == LABELS[rows]).all()
        assert batch.mask[place].tolist() == [1] * count + [0] * (width - count)
        for part in (batch.numbers, batch.codes, batch.labels):
            assert not part[place, count:].any()


@pytest.mark.parametrize("resident_bytes", [0, 2**20])
def test_a_batch_is_a_writable_copy(folder: Path, resident_bytes: int) -> None:
    arrays = CustomerArrays.open(folder, resident_bytes)
    for wanted in ([0, 4], [1, 2]):
        batch = arrays.batch(np.array(wanted))
        for part in (batch.numbers, batch.codes, batch.labels, batch.mask):
            part[...] = 7
    assert (arrays.batch(np.array([0])).numbers == NUMBERS[0]).all()


@pytest.mark.parametrize("customer", [-1, len(COUNTS)])
def test_an_index_out_of_range_is_refused(folder: Path, customer: int) -> None:
    with pytest.raises(IndexError, match="customer indices"):
        CustomerArrays.open(folder).batch(np.array([0, customer]))


def test_a_subset_has_indices_of_its_own(folder: Path) -> None:
    arrays = CustomerArrays.open(folder)
    subset = CustomerSubset(arrays, np.array([3, 1]))
    assert len(subset) == 2
    assert (subset.batch(np.array([0])).numbers == arrays.batch(np.array([3])).numbers).all()
    assert len(subset.batch(np.array([], dtype=np.int64)).mask) == 0


@pytest.mark.parametrize("name", ["numbers", "codes", "labels", "offsets", "meta.json"])
def test_a_damaged_store_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(DataError, match="prepare them again"):
        CustomerArrays.open(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match="prepare them again"):
        CustomerArrays.open(folder)


@pytest.mark.parametrize("changes", [{"format": 2}, {"rows": "many"}, {"schema": {}}, {"rows": -1}])
def test_a_store_of_another_make_is_refused(folder: Path, changes: dict[str, object]) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))
    with pytest.raises(DataError, match="prepare them again"):
        CustomerArrays.open(folder)


def test_delete_removes_everything(folder: Path) -> None:
    CustomerArrays.open(folder).delete()
    assert not folder.exists()
