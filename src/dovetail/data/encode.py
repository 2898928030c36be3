"""SQL that turns declared columns into numbers in [-1, 1], codes, and a label of 0 or 1.

Only the schema decides how a value is read and scaled, never the data or the file's own types: a
CSV and a Parquet file with the same values encode the same.

======== ================================ ==========================================
column   value                            becomes
======== ================================ ==========================================
number   below ``low`` / above ``high``   clamped
         linear                           ``2 (x - low) / (high - low) - 1``
         log                              the same over ``log1p(x - low)``
         NULL                             0, and 1 in ``"<name> is missing"`` (else 0)
date     a day (a time of day is cut)     as a linear number of days since ``earliest``
category declared / other / NULL          its code / ``OTHER_CODE`` / ``MISSING_CODE``
label    0, 1, true, false                0 or 1
======== ================================ ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np

from dovetail.data.engine import literal, quote
from dovetail.schema import (
    FIRST_VALUE_CODE,
    MISSING_CODE,
    OTHER_CODE,
    Category,
    Column,
    Date,
    Number,
    Schema,
)

_SQL_TYPES = {
    np.dtype(np.uint8): "UTINYINT",
    np.dtype(np.uint16): "USMALLINT",
    np.dtype(np.uint32): "UINTEGER",
}
_INTEGERS = {f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER")}
_NUMERIC = _INTEGERS | {"BIGINT", "UBIGINT", "HUGEINT", "UHUGEINT", "FLOAT", "DOUBLE", "VARCHAR"}
_DAYS = {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "VARCHAR"}
_NAMES = _NUMERIC | _DAYS | {"BOOLEAN", "UUID"}


def accepts(column: Column, found: str) -> bool:
    """Whether values of the SQL type ``found`` can be read as this column."""
    if isinstance(column, Number):
        return accepts_number(found)
    return found in _DAYS if isinstance(column, Date) else accepts_name(found)


def accepts_number(found: str) -> bool:
    """Whether an SQL type holds numbers, or text that may be numbers."""
    return found in _NUMERIC or found.startswith("DECIMAL(")


def accepts_label(found: str) -> bool:
    """Whether an SQL type can hold a label."""
    return found == "BOOLEAN" or accepts_number(found)


def accepts_name(found: str) -> bool:
    """Whether an SQL type holds plain values that can serve as a key or a category."""
    return found in _NAMES or found.startswith(("DECIMAL(", "ENUM("))


def typed(column: Column) -> str:
    """SQL for the column's value as DOUBLE, DATE or VARCHAR; NULL where it is none."""
    if isinstance(column, Category):
        return f"CAST({quote(column.name)} AS VARCHAR)"
    kind = "DATE" if isinstance(column, Date) else "DOUBLE"
    return f"TRY_CAST({quote(column.name)} AS {kind})"


def label_value(schema: Schema) -> str:
    """SQL for the label as DOUBLE; NULL where it is neither a number nor a truth value."""
    name = quote(schema.label.name)
    truth = f"TRY_CAST(TRY_CAST({name} AS BOOLEAN) AS DOUBLE)"
    return f"coalesce(TRY_CAST({name} AS DOUBLE), {truth})"


def bounds(column: Number | Date) -> tuple[str, str]:
    """SQL literals of a column's lowest and highest value."""
    if isinstance(column, Date):
        return _day(column.earliest), _day(column.latest)
    return _double(column.low), _double(column.high)


def declared_position(category: Category) -> str:
    """SQL for the value's position among the declared ones; NULL where it is not declared."""
    values = ", ".join(literal(value) for value in category.values)
    return f"enum_code(TRY_CAST({typed(category)} AS ENUM({values})))"


def key_text(schema: Schema) -> str:
    """SQL for the customer's key as text."""
    return f"CAST({quote(schema.key)} AS VARCHAR)"


def code_dtype(category: Category) -> np.dtype[Any]:
    """The smallest type that holds the category's codes; sorting narrow rows is cheaper."""
    return np.min_scalar_type(category.cardinality - 1)


def encoded_columns(schema: Schema) -> Mapping[str, str]:
    """Those of :func:`encoded_features`, and ``label``, which is 0 or 1."""
    return {**encoded_features(schema), "label": f"CAST({label_value(schema)} AS UTINYINT)"}


def encoded_features(schema: Schema) -> Mapping[str, str]:
    """Alias and SQL of every encoded feature, in the order of a :class:`Batch`.

    ``n0, n1, …`` are FLOAT in [-1, 1], one per number feature; ``c0, c1, …`` are codes, one per
    category.
    """
    numbers: list[str] = []
    for column in schema.columns:
        if not isinstance(column, Category):
            numbers.append(_scaled(column))
            if column.nullable:
                numbers.append(f"CAST({quote(column.name)} IS NULL AS FLOAT)")
    encoded = {f"n{i}": sql for i, sql in enumerate(numbers)}
    return encoded | {f"c{i}": _code(category) for i, category in enumerate(schema.categories)}


def _scaled(column: Number | Date) -> str:
    value, (low, high) = typed(column), bounds(column)
    clamped = f"greatest(least({value}, {high}), {low})"
    if isinstance(column, Date):
        share = _share(
            f"date_diff('day', {low}, {clamped})", (column.latest - column.earliest).days
        )
    elif column.transform == "log":
        share = _share(_log1p(f"({clamped} - {low})"), math.log1p(column.high - column.low))
    else:
        share = _share(f"({clamped} - {low})", column.high - column.low)
    scaled = f"CAST(greatest(least(2 * {share} - 1, 1), -1) AS FLOAT)"
    missing = "CAST(0 AS FLOAT)" if column.nullable else "NULL"
    return f"CASE WHEN {value} IS NULL THEN {missing} ELSE {scaled} END"


def _share(distance: str, span: float) -> str:
    return f"(({distance}) / {_double(span)})"


def _log1p(distance: str) -> str:
    """SQL for log(1 + distance), exact near 0, where 1 + distance would lose its digits."""
    near = f"2 * atanh({distance} / (2 + {distance}))"
    return f"CASE WHEN {distance} < 0.5 THEN {near} ELSE ln(1 + {distance}) END"


def _code(category: Category) -> str:
    # enum_code has the smallest type for the position, in which the addition could overflow.
    position = f"CAST({declared_position(category)} AS BIGINT)"
    known = f"coalesce({position} + {FIRST_VALUE_CODE}, {OTHER_CODE})"
    code = f"CASE WHEN {quote(category.name)} IS NULL THEN {MISSING_CODE} ELSE {known} END"
    return f"CAST({code} AS {_SQL_TYPES[code_dtype(category)]})"


def _double(value: float) -> str:
    return f"CAST('{float(value)!r}' AS DOUBLE)"


def _day(value: date) -> str:
    return f"DATE '{value.isoformat()}'"
