import math
import random
import resource
import stat
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.data.customers import CustomerArrays, prepare
from dovetail.data.source import Source
from dovetail.errors import DataError, SchemaError
from dovetail.schema import Category, Label, Number, Schema

Write = Callable[..., Path]
Table = dict[str, list[Any]]
SECRET = bytes(range(16))
SPEND = Schema("spend", "who", "person", (Number("spend", 0, 100),), Label("bought", 0.5), 3)


def prepared(path: Path, schema: Schema, folder: Path, secret: bytes = SECRET) -> CustomerArrays:
    return prepare(Source.files(path), schema, folder, secret)


def contents(arrays: CustomerArrays) -> list[bytes]:
    batch = arrays.batch(np.arange(len(arrays)))
    return [part.tobytes() for part in (batch.numbers, batch.codes, batch.labels, batch.mask)]


def test_rows_stand_by_customer_in_the_order_of_keys(
    write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    arrays = prepared(write("t.parquet", table), schema, tmp_path / "store")
    assert len(arrays) == 3
    assert arrays.schema == schema
    batch = arrays.batch(np.array([2, 0]))
    assert batch.numbers.shape == (2, 2, 5)
    assert batch.mask.tolist() == [[1, 0], [1, 1]]
    (c, padding), rows_of_a = batch.numbers
    log = 2 * math.log1p(10.5) / math.log1p(365) - 1
    day = 2 * (date(2020, 7, 1) - date(2020, 1, 1)).days / 365 - 1
    assert c.tolist() == pytest.approx([-0.5, log, 0, day, 0], abs=1e-6)
    assert padding.tolist() == [0] * 5
    assert sorted(rows_of_a[:, 0].tolist()) == [0, 0.5]
    assert sorted(rows_of_a[:, 4].tolist()) == [0, 1]
    assert batch.codes.tolist() == [[[0], [0]], [[3], [3]]]
    assert batch.labels.tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("max_rows", [1, 3])
def test_parquet_and_csv_give_the_same_arrays(
    write: Write, schema: Schema, table: Table, tmp_path: Path, max_rows: int
) -> None:
    schema = Schema(schema.name, "who", "unit", schema.columns, schema.label, max_rows)
    stores = [
        prepared(write(f"t.{ending}", table), schema, tmp_path / ending)
        for ending in ("parquet", "csv")
    ]
    assert contents(stores[0]) == contents(stores[1])


def test_whole_number_keys_are_the_same_customers_in_both(write: Write, tmp_path: Path) -> None:
    table = {"who": [10, 9, 10], "spend": [1, 2, 3], "bought": [0, 1, 0]}
    stores = [
        prepared(write(f"t.{ending}", table), SPEND, tmp_path / ending)
        for ending in ("parquet", "csv")
    ]
    assert contents(stores[0]) == contents(stores[1])
    assert stores[0].batch(np.array([0])).mask.sum() == 2


def crowded(rows: int, customers: int = 4) -> Table:
    dice = random.Random(1)
    return {
        "who": [f"p{dice.randrange(customers)}" for _ in range(rows)],
        "spend": [float(dice.randrange(50)) for _ in range(rows)],
        "bought": [i % 2 for i in range(rows)],
    }


def shuffled(table: Table, order: list[int]) -> Table:
    return {name: [values[i] for i in order] for name, values in table.items()}


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.permutations(range(40)))
def test_the_order_of_rows_changes_nothing(write: Write, tmp_path: Path, order: list[int]) -> None:
    table = crowded(40)
    stores = []
    for number, part in enumerate((table, shuffled(table, order))):
        arrays = prepared(write(f"{number}.parquet", part), SPEND, tmp_path / "store")
        stores.append(contents(arrays))
        arrays.delete()
    assert stores[0] == stores[1]


def test_no_customer_keeps_more_than_the_limit(write: Write, tmp_path: Path) -> None:
    table = crowded(200, customers=30)
    arrays = prepared(write("t.parquet", table), SPEND, tmp_path / "store")
    rows = arrays.batch(np.arange(len(arrays))).mask.sum(axis=1)
    counts = Counter(table["who"])
    assert sorted(rows) == sorted(min(count, 3) for count in counts.values())


def test_customers_keep_their_rows_whoever_else_is_there(write: Write, tmp_path: Path) -> None:
    table = crowded(60)
    others = [i for i, who in enumerate(table["who"]) if who != "p3"]
    whole = prepared(write("a.parquet", table), SPEND, tmp_path / "a")
    less = prepared(write("b.parquet", shuffled(table, others)), SPEND, tmp_path / "b")
    assert len(less) == len(whole) - 1
    first = whole.batch(np.arange(3))
    second = less.batch(np.arange(3))
    assert first.numbers.tolist() == second.numbers.tolist()


DRAWS, ROWS, KEPT = 3000, 8, 3
REJECTED = 40.5
"""A chi-square with 7 degrees of freedom exceeds this with probability 1e-6."""


def unevenness(counts: npt.NDArray[Any]) -> float:
    """Chi-square of how often each of ROWS rows was among the KEPT, over DRAWS draws.

    KEPT of ROWS are drawn without replacement, so that each indicator has variance p(1 - p) and
    any two have correlation -1 / (ROWS - 1).
    """
    share = KEPT / ROWS
    squares = ((counts - DRAWS * share) ** 2).sum()
    return float(squares / (DRAWS * share * (1 - share)) * (ROWS - 1) / ROWS)


def kept_counts(write: Write, folder: Path, spends: list[float], limit: int) -> npt.NDArray[Any]:
    """How often each spend is kept, over DRAWS customers that all have the same rows."""
    table = {
        "who": [f"p{customer}" for customer in range(DRAWS) for _ in spends],
        "spend": list(spends) * DRAWS,
        "bought": [0, 1] * (DRAWS * len(spends) // 2),
    }
    schema = Schema("spend", "who", "person", SPEND.columns, SPEND.label, limit)
    arrays = prepared(write("t.parquet", table), schema, folder)
    batch = arrays.batch(np.arange(DRAWS))
    values = np.round((batch.numbers[batch.mask > 0][:, 0] + 1) * 50)
    return np.array([(values == spend).sum() for spend in sorted(set(spends))])


def test_every_row_is_equally_likely_to_be_kept(write: Write, tmp_path: Path) -> None:
    counts = kept_counts(write, tmp_path / "store", [10.0 * i for i in range(ROWS)], KEPT)
    assert counts.sum() == DRAWS * KEPT
    assert unevenness(counts) < REJECTED
    assert unevenness(counts * np.array([1.3, 0.7] * (ROWS // 2))) > REJECTED


def test_equal_rows_count_as_often_as_they_occur(write: Write, tmp_path: Path) -> None:
    twice, once = kept_counts(write, tmp_path / "store", [10.0, 10.0, 20.0, 10.0], 1)
    deviation = math.sqrt(DRAWS * 0.75 * 0.25)
    assert abs(twice - 0.75 * DRAWS) < 5 * deviation
    assert abs(twice - 0.5 * DRAWS) > 5 * deviation
    assert twice + once == DRAWS


def test_another_secret_keeps_other_rows(write: Write, tmp_path: Path) -> None:
    path = write("t.parquet", crowded(200))
    one = prepared(path, SPEND, tmp_path / "one", b"1" * 16)
    same = prepared(path, SPEND, tmp_path / "same", b"1" * 16)
    other = prepared(path, SPEND, tmp_path / "other", b"2" * 16)
    assert contents(one) == contents(same)
    assert contents(one) != contents(other)


def test_only_the_owner_may_look(
    write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    prepared(write("t.parquet", table), schema, tmp_path / "store")
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    for file in (tmp_path / "store").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_store_holds_no_key(write: Write, table: Table, schema: Schema, tmp_path: Path) -> None:
    table["who"] = [f"canary-{who}" for who in table["who"]]
    prepared(write("t.parquet", table), schema, tmp_path / "store")
    stored = b"".join(file.read_bytes() for file in (tmp_path / "store").iterdir())
    assert b"canary" not in stored


def left_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_bad_table_leaves_nothing(
    write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    table["spend"][2] = math.nan
    with pytest.raises(SchemaError, match="NaN"):
        prepared(write("t.parquet", table), schema, home / "store")
    assert left_in(home) == []


def test_a_full_disk_leaves_nothing(write: Write, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = write("t.parquet", crowded(5000, customers=3000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match="no disk space"):
            prepared(path, SPEND, home / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(home) == []
    assert len(prepared(path, SPEND, home / "store")) > 0


def test_what_a_killed_run_left_is_cleared(
    write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    partial = tmp_path / ".store.partial"
    partial.mkdir()
    (partial / "numbers").write_bytes(b"half")
    prepared(write("t.parquet", table), schema, tmp_path / "store")
    assert not partial.exists()


def test_an_existing_folder_is_never_overwritten(
    write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    path = write("t.parquet", table)
    arrays = prepared(path, schema, tmp_path / "store")
    with pytest.raises(DataError, match="'store' exists already"):
        prepared(path, schema, tmp_path / "store")
    (tmp_path / ".store.partial").mkdir()
    (tmp_path / ".store.partial" / "numbers").write_bytes(b"rows that a killed process left")
    arrays.delete()
    assert list(tmp_path.glob("*store*")) == list(tmp_path.glob(".*")) == []
    prepared(path, schema, tmp_path / "store")


def test_a_parent_that_does_not_exist_is_named(
    write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="'store' cannot be written"):
        prepared(write("t.parquet", table), schema, tmp_path / "absent" / "store")


def test_a_short_secret_is_refused(
    write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        prepared(write("t.parquet", table), schema, tmp_path / "store", b"short")


def test_sql_is_a_source_too(write: Write, tmp_path: Path) -> None:
    path = write("t.parquet", {"person": ["a", "a", "b"], "amount": [1.0, 2.0, 5.0]})
    query = (
        "SELECT person AS who, sum(amount) AS spend, max(amount) > 4 AS bought FROM t GROUP BY 1"
    )
    arrays = prepare(Source.sql(query, {"t": path}), SPEND, tmp_path / "store", SECRET)
    batch = arrays.batch(np.arange(2))
    assert batch.numbers[:, 0, 0].tolist() == pytest.approx([-0.94, -0.9])
    assert batch.labels.tolist() == [[0], [1]]


def test_a_source_that_changes_between_reads_is_refused(write: Write, tmp_path: Path) -> None:
    """Each read sees a NULL half of the time: the check first, or else the writer, notices."""
    spend = "CASE WHEN random() < 0.0035 THEN NULL ELSE 1 END AS spend"
    unstable = f"SELECT 'a' || range AS who, range % 2 AS bought, {spend} FROM t, range(200)"
    source = Source.sql(unstable, {"t": write("t.parquet", {"n": [1]})})
    messages: list[str] = []
    while not messages or "column 'spend'" in messages[-1]:
        try:
            prepare(source, SPEND, tmp_path / "store", SECRET).delete()
        except (SchemaError, DataError) as error:
            messages.append(str(error))
    assert "changed while it was read" in messages[-1]
    assert not (tmp_path / "store").exists()


def test_columns_may_be_named_like_our_own(write: Write, tmp_path: Path) -> None:
    names = ("n1", "n0", "copy", "row content", "customer key", 'a"b')
    columns = tuple(Number(name, 0, 10) for name in names)
    schema = Schema("t", "encoded rows", "person", columns, Label("c0", 0.5), 1)
    table: Table = {name: [float(i), float(i)] for i, name in enumerate(names)}
    table |= {"encoded rows": ["p", "p"], "c0": [True, False]}
    batch = prepared(write("t.parquet", table), schema, tmp_path / "store").batch(np.array([0]))
    assert batch.numbers[0, 0].tolist() == pytest.approx([i / 5 - 1 for i in range(6)])


def test_categories_alone_and_numbers_alone(write: Write, tmp_path: Path) -> None:
    only = Schema("t", "who", "person", (Category("spend", ("1", "2")),), Label("bought", 0.5), 2)
    table = {"who": [1, 2], "spend": [1, 2], "bought": [0, 1]}
    batch = prepared(write("t.parquet", table), only, tmp_path / "codes").batch(np.arange(2))
    assert (batch.numbers.shape, batch.codes.tolist()) == ((2, 1, 0), [[[2]], [[3]]])
    batch = prepared(write("t.parquet", table), SPEND, tmp_path / "numbers").batch(np.arange(2))
    assert (batch.numbers.shape, batch.codes.shape) == ((2, 1, 1), (2, 1, 0))


def test_no_error_holds_a_value(write: Write, tmp_path: Path) -> None:
    table = {"who": ["a", "b"], "spend": ["31415926x", "1"], "bought": [0, 1]}
    with pytest.raises(SchemaError) as caught:
        prepared(write("t.parquet", table), SPEND, tmp_path / "store")
    assert "31415926" not in "".join(traceback.format_exception(caught.value))
