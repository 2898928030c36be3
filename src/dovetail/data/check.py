"""Hold a partner's table against the schema, before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dovetail.data import encode
from dovetail.data.engine import ROWS, Limits, Session, quote
from dovetail.data.source import Source
from dovetail.errors import SchemaError
from dovetail.schema import Category, Date, Number, Schema

_FAR_ODDS = 3.0
"""Odds of a one this many times the declared ones, or this part of them, are worth a look."""
_CHANCE = 4.0
"""Standard deviations within which a small table's share of ones may lie by chance alone."""


@dataclass(frozen=True)
class Finding:
    """One rule that one column does not keep.

    Attributes:
        column: the declared column, or ``None`` for the whole table.
        message: the rule, what it means and how to mend it, with a count bucket (or "more than
            half of all rows") and no value.
    """

    column: str | None
    message: str

    def __str__(self) -> str:
        return f"column {self.column!r}: {self.message}" if self.column else self.message


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found. It stays at the node: even its buckets describe private rows.

    Attributes:
        errors: the table cannot be used until these are mended.
        warnings: the table can be used; what is clamped, replaced or sampled down.
    """

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    def raise_if_bad(self) -> None:
        """Do nothing if there are no errors.

        Raises:
            SchemaError: there are; it names the first and says that there are more.
        """
        if not self.errors:
            return
        more = "" if len(self.errors) == 1 else " (and other errors; check the table)"
        first = self.errors[0]
        raise SchemaError(first.message + more, first.column)


@dataclass(frozen=True)
class _Probe:
    """A rule, and SQL that is true for the rows that break it."""

    column: str
    broken: str
    message: str
    fatal: bool


def check(source: Source, schema: Schema, limits: Limits | None = None) -> CheckReport:
    """Compare a table with what was declared.

    Reads every row, in one aggregate query and one that counts each customer's rows. The report
    never leaves the node.

    Args:
        source: the table.
        schema: what was declared.
        limits: memory and threads; a work folder to spill into if there are many customers.

    Raises:
        DataError: the source cannot be read at all.
    """
    with source.open(limits or Limits()) as opened:
        return check_opened(opened, schema)


def check_opened(opened: Session, schema: Schema) -> CheckReport:
    """Like :func:`check`, for a session that is open already."""
    misfits = tuple(_misfits(schema, opened.columns(ROWS)))
    if len(misfits) == len(schema.columns) + 2:
        message = "it has none of the declared columns: is it the right file, with a header?"
        return CheckReport((Finding(None, message),), ())
    if misfits:
        return CheckReport(misfits, ())
    probes = list(_probes(schema))
    label = encode.label_value(schema)
    counted = [f"count_if({probe.broken})" for probe in probes]
    counted += ["count(*)", f"count_if({label} = 1)"]
    (counts,) = opened.rows(f"SELECT {', '.join(counted)} FROM {quote(ROWS)}")  # noqa: S608
    *broken, rows, ones = counts
    found = [(probe, count) for probe, count in zip(probes, broken, strict=True) if count]
    errors = [_finding(probe, count, rows) for probe, count in found if probe.fatal]
    warnings = [_finding(probe, count, rows) for probe, count in found if not probe.fatal]
    errors += _whole_table(schema, rows, ones, label_is_sound=not errors)
    if not errors:
        warnings += _unlikely_label(schema, rows, ones)
        warnings += _crowded(opened, schema)
    return CheckReport(tuple(errors), tuple(warnings))


def bucket(count: int) -> str:
    """A count of at least 1 as a power-of-ten range: "1-9", "10-99", … "1,000,000+"."""
    for power in range(1, 7):
        if count < 10**power:
            return f"{10 ** (power - 1):,}-{10**power - 1:,}"
    return "1,000,000+"


def _misfits(schema: Schema, found: dict[str, str]) -> Iterator[Finding]:
    types = {name.lower(): kind for name, kind in found.items()}
    wanted: list[tuple[str, bool]] = [
        (schema.key, encode.accepts_name(types.get(schema.key.lower(), ""))),
        (schema.label.name, encode.accepts_label(types.get(schema.label.name.lower(), ""))),
    ]
    wanted += [(c.name, encode.accepts(c, types.get(c.name.lower(), ""))) for c in schema.columns]
    for name, accepted in wanted:
        if name.lower() not in types:
            yield Finding(name, "declared but not in the table; rename or add it")
        elif not accepted:
            kind = types[name.lower()].split("(")[0]
            yield Finding(name, f"its type {kind} does not fit the declaration; cast it in SQL")


def _probes(schema: Schema) -> Iterator[_Probe]:
    key, label = schema.key, schema.label.name
    yield _Probe(key, f"{quote(key)} IS NULL", "the key is NULL", fatal=True)
    value = encode.label_value(schema)
    yield _Probe(label, f"{quote(label)} IS NULL", "the label is NULL", fatal=True)
    wrong = f"{quote(label)} IS NOT NULL AND coalesce({value} NOT IN (0, 1), true)"
    yield _Probe(label, wrong, "the label must be 0 or 1, or false or true", fatal=True)
    for column in schema.columns:
        if isinstance(column, Category):
            yield from _category_probes(column)
        else:
            yield from _bounded_probes(column)


def _category_probes(column: Category) -> Iterator[_Probe]:
    unknown = f"{quote(column.name)} IS NOT NULL AND {encode.declared_position(column)} IS NULL"
    yield _Probe(column.name, unknown, "values not declared; they count as 'other'", fatal=False)


def _bounded_probes(column: Number | Date) -> Iterator[_Probe]:
    name, value = quote(column.name), encode.typed(column)
    low, high = encode.bounds(column)
    number = "not a number; write a decimal point, not a comma"
    message = "not a date; write 2024-12-31" if isinstance(column, Date) else number
    yield _Probe(column.name, f"{name} IS NOT NULL AND {value} IS NULL", message, fatal=True)
    if not column.nullable:
        message = "NULL is not allowed; mend it or declare nullable = true"
        yield _Probe(column.name, f"{name} IS NULL", message, fatal=True)
    message = "NaN or infinite; write NULL where there is no value"
    yield _Probe(column.name, f"NOT isfinite({value})", message, fatal=True)
    outside = f"isfinite({value}) AND {value} NOT BETWEEN {low} AND {high}"
    yield _Probe(column.name, outside, "outside the declared bounds; they are clamped", fatal=False)


def _finding(probe: _Probe, count: int, rows: int) -> Finding:
    where = f"{bucket(count)} rows"
    if not probe.fatal and 2 * count > rows:
        where = "more than half of all rows: check spelling, case or unit"
    return Finding(probe.column, f"{probe.message} (in {where})")


def _whole_table(
    schema: Schema, rows: int, ones: int, *, label_is_sound: bool
) -> Iterator[Finding]:
    if rows == 0:
        yield Finding(None, "the table is empty")
    elif label_is_sound and ones in (0, rows):
        yield Finding(schema.label.name, "the label has one class only; there is nothing to learn")


def _unlikely_label(schema: Schema, rows: int, ones: int) -> Iterator[Finding]:
    """A warning for a label of two classes whose share of ones can hardly be what was declared."""
    prior = schema.label.prior
    ratio = ones * (1 - prior) / ((rows - ones) * prior)
    by_chance = _CHANCE * math.sqrt(rows * prior * (1 - prior))
    if not 1 / _FAR_ODDS <= ratio <= _FAR_ODDS and abs(ones - rows * prior) > by_chance:
        message = "the share of ones is far from the declared prior: inverted, or another label?"
        yield Finding(schema.label.name, message)


def _crowded(opened: Session, schema: Schema) -> Iterator[Finding]:
    limit = schema.max_rows_per_customer
    crowded = (
        f"SELECT count(*) FROM (SELECT 1 FROM {quote(ROWS)} "  # noqa: S608
        f"GROUP BY {encode.key_text(schema)} HAVING count(*) > {limit})"
    )
    ((customers,),) = opened.rows(crowded)
    if customers:
        message = f"more than {limit} rows; they are sampled down"
        yield Finding(schema.key, f"{message} (for {bucket(customers)} customers)")
