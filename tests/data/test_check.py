import math
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.data.check import CheckReport, bucket, check, check_scorable
from dovetail.data.engine import Limits
from dovetail.data.source import Source
from dovetail.errors import DataError, DovetailError, SchemaError
from dovetail.schema import Label, Schema

Write = Callable[..., Path]
Table = dict[str, list[Any]]

CANARY = "31415926"


def report_on(path: Path, schema: Schema) -> CheckReport:
    return check(Source.files(path), schema)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_sound_table_has_no_findings(
    write: Write, schema: Schema, table: Table, ending: str
) -> None:
    report = report_on(write(f"t.{ending}", table), schema)
    assert (report.errors, report.warnings) == ((), ())
    report.raise_if_bad()


BAD: dict[str, tuple[str, list[Any], str, str]] = {
    "spend NULL": ("spend", [None, 1.0, 2.0, 3.0, 4.0], "spend", "NULL is not allowed"),
    "spend NaN": ("spend", [math.nan, 1.0, 2.0, 3.0, 4.0], "spend", "NaN or infinite"),
    "spend inf": ("spend", [-math.inf, 1.0, 2.0, 3.0, 4.0], "spend", "NaN or infinite"),
    "gap NaN although nullable": ("gap", [math.nan, 1.0, 2.0, 3.0, 4.0], "gap", "NaN or infinite"),
    "spend is text": ("spend", ["many", "1", "2", "3", "4"], "spend", "decimal point"),
    "decimal comma": ("spend", ["21,86", "1", "2", "3", "4"], "spend", "not a number"),
    "day is text": ("day", ["soon", "2020-01-01", None, None, None], "day", "not a date"),
    "day first": ("day", ["19.04.2024"] + [None] * 4, "day", "write 2024-12-31"),
    "key NULL": ("who", [None, "a", "a", "b", "b"], "who", "the key is NULL"),
    "label NULL": ("bought", [None, 1, 0, 1, 0], "bought", "the label is NULL"),
    "label 2": ("bought", [2, 1, 0, 1, 0], "bought", "0 or 1"),
    "label NaN": ("bought", [math.nan, 1.0, 0.0, 1.0, 0.0], "bought", "0 or 1"),
    "label text": ("bought", ["perhaps", "1", "0", "1", "0"], "bought", "0 or 1"),
    "only zeros": ("bought", [0, 0, 0, 0, 0], "bought", "one class"),
    "only ones": ("bought", [1, 1, 1, 1, 1], "bought", "one class"),
}


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("name", BAD)
def test_errors_name_column_and_rule(
    write: Write, schema: Schema, table: Table, name: str, ending: str
) -> None:
    changed, values, column, words = BAD[name]
    report = report_on(write(f"t.{ending}", {**table, changed: values}), schema)
    assert [finding.column for finding in report.errors] == [column]
    with pytest.raises(SchemaError, match=words) as caught:
        report.raise_if_bad()
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("spend", [[1.0]] * 5),
        ("spend", [date(2020, 1, 1)] * 5),
        ("spend", [True] * 5),
        ("shop", [{"a": 1}] * 5),
        ("who", [b"a"] * 5),
        ("day", [1.5] * 5),
        ("bought", [datetime(2020, 1, 1)] * 5),
    ],
)
def test_types_that_cannot_be_meant_are_refused(
    write: Write, schema: Schema, table: Table, column: str, values: Any
) -> None:
    report = report_on(write("t.parquet", {**table, column: values}), schema)
    with pytest.raises(SchemaError, match=r"its type .* does not fit"):
        report.raise_if_bad()
    assert report.errors[0].column == column


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("spend", [1, 2, 3, 4, 5]),
        ("spend", [Decimal("1.25")] * 5),
        ("spend", ["1", " 2", "3.5", "4e1", "5"]),
        ("who", [1, 2, 3, 4, 5]),
        ("shop", pa.array(["north"] * 5).dictionary_encode()),
        ("day", [datetime(2020, 5, 1, 23, 59)] * 5),
        ("day", ["2020-05-01"] * 5),
        ("bought", [True, False, True, False, True]),
        ("bought", [1.0, 0.0, 1.0, 0.0, 1.0]),
        ("bought", ["1", "false", "0", "true", "1"]),
    ],
)
def test_types_that_can_be_meant_are_read(
    write: Write, schema: Schema, table: Table, column: str, values: Any
) -> None:
    assert report_on(write("t.parquet", {**table, column: values}), schema).errors == ()


def test_a_column_that_is_not_there(write: Write, schema: Schema, table: Table) -> None:
    del table["spend"]
    report = report_on(write("t.parquet", {**table, "spned": [1.0] * 5}), schema)
    with pytest.raises(SchemaError, match=r"column 'spend'.*not in the table") as caught:
        report.raise_if_bad()
    assert "spned" not in str(caught.value)


def test_a_table_without_its_header_is_told_so(schema: Schema, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("canary,17\nb,18\n")
    (finding,) = report_on(path, schema).errors
    assert finding.column is None
    assert "none of the declared columns" in finding.message


def test_column_names_ignore_case(write: Write, schema: Schema, table: Table) -> None:
    table["SPEND"] = table.pop("spend")
    assert report_on(write("t.parquet", table), schema).errors == ()


def test_an_empty_table(write: Write, schema: Schema, table: Table) -> None:
    path = write("t.parquet", {name: pa.array(v)[:0] for name, v in table.items()})
    with pytest.raises(SchemaError, match="the table is empty"):
        report_on(path, schema).raise_if_bad()


def test_warnings_count_in_buckets(write: Write, schema: Schema, table: Table) -> None:
    many = {name: values * 30 for name, values in table.items()}
    many["spend"][:12] = [-1.0] * 12
    many["shop"][:3] = ["west"] * 3
    many["day"][0] = date(2030, 1, 1)
    report = report_on(write("t.parquet", many), replace(schema, label=Label("bought", 0.5)))
    assert report.errors == ()
    assert [str(finding) for finding in report.warnings] == [
        "column 'spend': outside the declared bounds; they are clamped (in 10-99 rows)",
        "column 'shop': values not declared; they count as 'other' (in 1-9 rows)",
        "column 'day': outside the declared bounds; they are clamped (in 1-9 rows)",
        "column 'who': more than 3 rows; they are sampled down (for 1-9 customers)",
    ]


WHOLE = "(in more than half of all rows: check spelling, case or unit)"


@pytest.mark.parametrize(
    ("column", "values"),
    [("shop", ["NORTH", "SOUTH"]), ("spend", [2186.0, 1545.0]), ("day", [date(1924, 1, 1)] * 2)],
)
def test_a_column_that_is_mistaken_as_a_whole(
    write: Write, schema: Schema, table: Table, column: str, values: list[Any]
) -> None:
    four = {name: found[:4] for name, found in table.items()}
    sound, third = four[column][2:], values[:1]
    half = report_on(write("h.parquet", {**four, column: values + sound}), schema)
    assert all(finding.message.endswith("(in 1-9 rows)") for finding in half.warnings)
    assert len(half.warnings) == 1
    more = report_on(write("m.parquet", {**four, column: values + third + sound[:1]}), schema)
    (finding,) = more.warnings
    assert finding.column == column
    assert finding.message.endswith(WHOLE)
    assert more.errors == ()


@pytest.mark.parametrize(
    ("prior", "ones", "rows", "far"),
    [
        (0.25, 75, 100, True),
        (0.25, 25, 100, False),
        (0.25, 49, 100, False),
        (0.25, 51, 100, True),
        (0.5, 24, 100, True),
        (0.5, 26, 100, False),
        (0.75, 25, 100, True),
        (0.01, 29, 1000, False),
        (0.01, 40, 1000, True),
        (0.01, 3, 50, False),
        (0.2, 3, 5, False),
    ],
)
def test_a_label_far_from_its_prior(
    write: Write, schema: Schema, table: Table, prior: float, ones: int, rows: int, far: bool
) -> None:
    many: Table = {name: (values * rows)[:rows] for name, values in table.items()}
    many["who"] = list(range(rows))
    many["bought"] = [1] * ones + [0] * (rows - ones)
    declared = replace(schema, label=Label("bought", prior))
    report = report_on(write("t.parquet", many), declared)
    message = "the share of ones is far from the declared prior: inverted, or another label?"
    expected = [f"column 'bought': {message}"] if far else []
    assert [str(finding) for finding in report.warnings] == expected
    report.raise_if_bad()


def test_several_errors_are_all_in_the_report(write: Write, schema: Schema, table: Table) -> None:
    table["spend"][0], table["bought"][0] = None, 7
    report = report_on(write("t.parquet", table), schema)
    assert [finding.column for finding in report.errors] == ["bought", "spend"]
    with pytest.raises(SchemaError, match="and other errors"):
        report.raise_if_bad()


@given(st.integers(1, 10**9))
def test_a_bucket_holds_its_count_and_tells_no_more(count: int) -> None:
    text = bucket(count)
    if text == "1,000,000+":
        assert count >= 10**6
        return
    low, high = (int(end.replace(",", "")) for end in text.split("-"))
    assert low <= count <= high
    assert high == 10 * low - 1


LEAKS: list[tuple[str, list[Any]]] = [
    ("spend", [CANARY] * 4 + ["x" + CANARY]),
    ("spend", [float(CANARY), math.inf, 1.0, 2.0, 3.0]),
    ("gap", ["x" + CANARY] * 5),
    ("shop", [CANARY] * 4 + [None]),
    ("shop", [[CANARY]] * 5),
    ("day", [CANARY] * 5),
    ("who", [None] + [CANARY] * 4),
    ("bought", [int(CANARY)] * 5),
    ("bought", [CANARY + "!"] * 5),
]


@pytest.mark.parametrize(("column", "values"), LEAKS)
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_no_finding_holds_a_value(
    write: Write, schema: Schema, table: Table, column: str, values: Any, ending: str
) -> None:
    if ending == "csv" and isinstance(values[0], list):
        return
    report = report_on(write(f"t.{ending}", {**table, column: values}), schema)
    findings = [*report.errors, *report.warnings]
    assert findings
    assert not any(CANARY in str(finding) for finding in findings)


BROKEN_CSV = [
    f"{CANARY},b\nx{CANARY},c\n",
    f"who,spend,gap,shop,day,bought\n{CANARY},1,2\n",
    f"who,spend,gap,shop,day,bought\n{CANARY},1,2,3,4,5,6,7\n",
    f'who,spend,gap,shop,day,bought\n"{CANARY},1,2,3,4,5',
    f"who,spend,gap,shop,day,bought\n{CANARY},\x00,2,3,4,5\n",
]


@pytest.mark.parametrize("text", BROKEN_CSV)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_no_error_about_a_broken_csv_holds_a_value(
    tmp_path: Path, schema: Schema, text: str, encoding: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    with pytest.raises((DataError, SchemaError)) as caught:
        report_on(path, schema).raise_if_bad()
    assert CANARY not in "".join(traceback.format_exception(caught.value))


QUERIES = [
    "SELECT CAST(v AS INT) FROM t",
    "SELECT CAST(v AS DATE) FROM t",
    f"SELECT v, {CANARY}x FROM t",
    "SELECT v + INTERVAL 1 DAY FROM t",
    "SELECT error(v) FROM t",
    "SELECT strptime(v, '%Y') FROM t",
    "SELECT json_extract(v, '$.a') FROM t",
    "SELECT length(v)::UTINYINT * 100::UTINYINT FROM t",
    "SELECT regexp_matches('a', v || '(') FROM t",
    "SELECT * FROM t PIVOT (count(*) FOR v IN (1))",
    "SELECT nosuch FROM t",
]


@pytest.mark.parametrize("query", QUERIES)
def test_no_error_of_a_query_holds_a_value(write: Write, schema: Schema, query: str) -> None:
    path = write("t.parquet", {"v": [CANARY + "x"] * 3, f"nosuc{CANARY}": [1] * 3})
    with pytest.raises(DovetailError) as caught:
        check(Source.sql(query, {"t": path}), schema).raise_if_bad()
    text = "".join(traceback.format_exception(caught.value))
    assert CANARY not in text.replace(query, "")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_report_knows_how_many_would_take_part(
    write: Write, schema: Schema, table: Table, ending: str
) -> None:
    report = report_on(write(f"t.{ending}", table), schema)
    assert (report.rows, report.customers) == (5, 3)
    assert "5" not in repr(report)
    assert "3" not in repr(report)
    table["spend"][0] = None
    report = report_on(write(f"u.{ending}", table), schema)
    assert (report.rows, report.customers) == (5, 0)
    del table["spend"]
    report = report_on(write(f"v.{ending}", table), schema)
    assert (report.rows, report.customers) == (0, 0)


def scorable(path: Path, schema: Schema) -> CheckReport:
    with Source.files(path).open(Limits()) as opened:
        return check_scorable(opened, schema)


def test_scores_need_no_label(write: Write, schema: Schema, table: Table) -> None:
    del table["bought"]
    report = scorable(write("t.parquet", table), schema)
    assert (report.errors, report.warnings) == ((), ())
    assert (report.rows, report.customers) == (5, 3)


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        ([None, 1, 0, None, 0], False),
        ([0, 0, 0, 0, 0], False),
        ([None] * 5, False),
        ([2, 1, 0, 1, 0], True),
        (["perhaps"] * 5, True),
        ([[1]] * 5, False),
    ],
)
def test_odd_labels_are_no_error_for_scores(
    write: Write, schema: Schema, table: Table, labels: list[Any], warned: bool
) -> None:
    report = scorable(write("t.parquet", {**table, "bought": labels}), schema)
    assert report.errors == ()
    assert [finding.column for finding in report.warnings] == ["bought"] * warned


def test_rows_beyond_the_limit_count_for_scores(write: Write, schema: Schema, table: Table) -> None:
    one = replace(schema, max_rows_per_customer=1)
    assert scorable(write("t.parquet", table), one).warnings == ()


@pytest.mark.parametrize("name", ["spend NULL", "spend NaN", "day is text", "key NULL"])
def test_what_else_is_wrong_is_wrong_for_scores_too(
    write: Write, schema: Schema, table: Table, name: str
) -> None:
    changed, values, column, words = BAD[name]
    report = scorable(write("t.parquet", {**table, changed: values}), schema)
    (finding,) = report.errors
    assert finding.column == column
    assert words in finding.message
    del table[changed]
    (finding,) = scorable(write("u.parquet", table), schema).errors
    assert "not in the table" in finding.message
