import json
from datetime import date
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import SchemaError, SettingError
from dovetail.schema import (
    Category,
    Column,
    Date,
    Label,
    Number,
    Schema,
    Transform,
    did_you_mean,
    load_schema,
    parse_schema,
    schema_from_record,
)

TOML = """
name = "mailings"
key = "household"
unit = "household"
max_rows_per_customer = 15

[label]
name = "redeemed"
prior = 0.1

[columns.spend]
type = "number"
low = 0
high = 5000
unit = "EUR"
transform = "log"
nullable = true

[columns.department]
type = "category"
values = ["grocery", "produce"]

[columns.first_visit]
type = "date"
earliest = 2017-01-01
latest = 2017-12-31
"""


def test_toml_reads_as_written() -> None:
    assert parse_schema(TOML, "x") == Schema(
        name="mailings",
        key="household",
        unit="household",
        columns=(
            Number("spend", 0, 5000, "EUR", "log", nullable=True),
            Category("department", ("grocery", "produce")),
            Date("first_visit", date(2017, 1, 1), date(2017, 12, 31)),
        ),
        label=Label("redeemed", 0.1),
        max_rows_per_customer=15,
    )


def test_the_example_is_a_schema() -> None:
    example = Path(__file__).parents[1] / "examples" / "schema.toml"
    schema = load_schema(example)
    assert len(schema.columns) == 4
    assert schema.number_features == (
        "spend",
        "days_since_last_visit",
        "days_since_last_visit is missing",
        "first_visit",
        "first_visit is missing",
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("low = 0", "low = 6000", ["spend", "bounds reversed"]),
        ("low = 0", "low = 5000", ["spend", "bounds reversed"]),
        ("high = 5000", "high = inf", ["spend", "finite"]),
        ("low = 0", "low = nan", ["spend", "finite"]),
        ("low = 0\nhigh = 5000", "low = -1.7e308\nhigh = 1.7e308", ["spend", "too far apart"]),
        ("high = 5000", "high = '5000'", ["spend", "'high'", "a number"]),
        ("high = 5000", "high = true", ["spend", "'high'", "a number"]),
        ("high = 5000", "hgih = 5000", ["spend", "'hgih'", "did you mean 'high'?"]),
        ("high = 5000", "", ["spend", "'high' is missing"]),
        ('"log"', '"lgo"', ["spend", "did you mean 'log'?"]),
        ('"number"', '"nubmer"', ["spend", "did you mean 'number'?"]),
        ("nullable = true", "nullable = 1", ["spend", "true or false"]),
        ("nullable = true", "name = 'other'", ["spend", "'name'"]),
        ('["grocery", "produce"]', "[]", ["department", "at least one value"]),
        ('["grocery", "produce"]', '["a", "a"]', ["department", "twice"]),
        ('["grocery", "produce"]', '["a", ""]', ["department", "not empty"]),
        ('["grocery", "produce"]', '["a", 1]', ["department", "text"]),
        ("2017-12-31", "2016-12-31", ["first_visit", "bounds reversed"]),
        ("2017-12-31", "'soon'", ["first_visit", "'latest'", "date"]),
        ("2017-12-31", "2017-12-31T10:00:00", ["first_visit", "'latest'", "date"]),
        ("prior = 0.1", "prior = 0", ["redeemed", "prior", "between 0 and 1"]),
        ("prior = 0.1", "prior = 1.0", ["redeemed", "prior", "between 0 and 1"]),
        ("prior = 0.1", "prior = nan", ["redeemed", "prior", "between 0 and 1"]),
        ("prior = 0.1", "piror = 0.1", ["[label]", "did you mean 'prior'?"]),
        ("= 15", "= 0", ["max_rows_per_customer", "at least 1"]),
        ("= 15", "= 1.5", ["max_rows_per_customer", "whole number"]),
        ('key = "household"', 'kye = "household"', ["'kye'", "did you mean 'key'?"]),
        ('key = "household"', 'key = "Spend"', ["Spend", "key", "feature"]),
        ('key = "household"', 'key = "redeemed"', ["redeemed", "key", "label"]),
        ('"redeemed"', '"spend"', ["spend", "label", "feature"]),
        ("[columns.department]", "[columns.SPEND]", ["spend", "declared twice"]),
        ("[columns.department]", '[columns."spend is missing"]', ["spend is missing", "twice"]),
        ("[columns.department]", '[columns."\\u0000"]', ["printable name"]),
        ('name = "mailings"', 'name = "\\u001b[2J"', ["names and units must be printable"]),
        ("[label]", "[label", ["not valid TOML"]),
        ("[label]", "deep = " + "[" * 5000 + "\n[label]", ["not valid TOML"]),
        ("[label]", "[lable]", ["[label] is missing", "'lable'; did you mean 'label'?"]),
        ("[label]", "[outcome]", ["[label] is missing"]),
    ],
)
def test_mistakes_are_named(old: str, new: str, words: list[str]) -> None:
    assert old in TOML
    with pytest.raises(SchemaError) as caught:
        parse_schema(TOML.replace(old, new, 1), "partner.toml")
    assert str(caught.value).startswith("partner.toml: ")
    for word in words:
        assert word in str(caught.value)


def test_a_schema_needs_columns() -> None:
    with pytest.raises(SchemaError, match=r"\[columns.NAME\]"):
        parse_schema(TOML.split("[columns.spend]")[0], "x")
    with pytest.raises(SchemaError, match="no columns"):
        Schema("n", "k", "u", (), Label("y", 0.5), 1)


def test_columns_that_are_misspelt_are_named() -> None:
    with pytest.raises(SchemaError, match=r"no columns, but .* 'colums'; did you mean 'columns'"):
        parse_schema('name = "t"\n[colums.age]\ntype = "number"\n', "schema.toml")


def test_an_unreadable_file_is_a_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"absent\.toml"):
        load_schema(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="UTF-8"):
        load_schema(tmp_path / "binary.toml")


def test_the_column_of_an_error_is_kept() -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(TOML.replace("low = 0", "low = 6000"), "x")
    assert caught.value.column == "spend"


def test_select_keeps_the_order_of_the_schema() -> None:
    schema = parse_schema(TOML, "x")
    chosen = schema.select(["first_visit", "spend"])
    assert [column.name for column in chosen.columns] == ["spend", "first_visit"]
    assert (chosen.key, chosen.label) == (schema.key, schema.label)


def test_select_of_an_unknown_column_hints() -> None:
    with pytest.raises(SchemaError, match=r"'spned'.*did you mean 'spend'") as caught:
        parse_schema(TOML, "x").select(["spned"])
    assert caught.value.column == "spned"
    with pytest.raises(SchemaError, match="no columns"):
        parse_schema(TOML, "x").select([])


def test_did_you_mean_keeps_silent_when_nothing_is_near() -> None:
    assert did_you_mean("fedadm", ["fedavg", "fedadam"]) == "; did you mean 'fedadam'?"
    assert did_you_mean("SPEND", ["spend"]) == "; did you mean 'spend'?"
    assert did_you_mean("zzz", ["fedavg"]) == ""


texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=8)
names = texts.filter(bool)
floats = st.floats(-1e300, 1e300)
pairs = st.tuples(floats, floats).filter(lambda pair: pair[0] < pair[1])
days = st.tuples(st.dates(), st.dates()).filter(lambda pair: pair[0] < pair[1])


@st.composite
def columns(draw: st.DrawFn, name: str) -> Column:
    kind = draw(st.sampled_from(["number", "category", "date"]))
    if kind == "category":
        return Category(name, tuple(draw(st.lists(names, min_size=1, unique=True))))
    if kind == "date":
        return Date(name, *draw(days), nullable=draw(st.booleans()))
    transform: Transform = draw(st.sampled_from(get_args(Transform)))
    return Number(name, *draw(pairs), draw(texts), transform, draw(st.booleans()))


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    key, label, *rest = draw(st.lists(names, min_size=3, max_size=6, unique_by=str.lower))
    return Schema(
        name=draw(texts),
        key=key,
        unit=draw(texts),
        columns=tuple(draw(columns(name)) for name in rest),
        label=Label(label, draw(st.floats(0, 1, exclude_min=True, exclude_max=True))),
        max_rows_per_customer=draw(st.integers(1, 1000)),
    )


@given(schemas())
def test_records_round_trip_through_json(schema: Schema) -> None:
    record = schema.to_record()
    assert schema_from_record(record) == schema
    assert schema_from_record(json.loads(json.dumps(record, sort_keys=True))) == schema
