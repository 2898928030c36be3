"""Hold a partner's table against the schema, before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from dovetail.data import encode
from dovetail.data.engine import ROWS, Limits, Session, quote
from dovetail.data.source import Source
from dovetail.errors import SchemaError
from dovetail.schema import Category, Date, Number, Schema

_FAR_ODDS = 3.0
"""Odds of a one this many times the declared ones, or this part of them, are worth a look."""
_CHANCE = 4.0
"""Standard deviations within which a small table's share of ones may lie by chance alone."""


_Accepts = Callable[[str], bool]
"""Whether a column may have an SQL type."""


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
        rows: of the table, exactly; show people its :func:`bucket`. 0 if they were not counted.
        customers: how many would take part, exactly, and the same for showing it; 0 while there
            are errors.
    """

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    rows: int = field(default=0, repr=False)
    customers: int = field(default=0, repr=False)

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
    wanted = {schema.key: encode.accepts_name, schema.label.name: encode.accepts_label}
    if misfits := _misfits(opened, schema, wanted):
        return CheckReport(misfits, ())
    probes = [*_key_probes(schema), *_label_probes(schema), *_column_probes(schema)]
    found = _found(opened, probes, f"{encode.label_value(schema)} = 1")
    if not found.errors and found.ones in (0, found.rows):
        message = "the label has one class only; there is nothing to learn"
        return found.report((Finding(schema.label.name, message),))
    if found.errors:
        return found.report(found.errors)
    customers, crowded = _customers(opened, schema)
    more = (*_unlikely_label(schema, found.rows, found.ones), *_crowded(schema, crowded))
    return CheckReport((), (*found.warnings, *more), found.rows, customers)


def check_scorable(opened: Session, schema: Schema) -> CheckReport:
    """Whether a model's scores can be computed: the same, but no label need be there.

    Labels that are neither 0 nor 1 are worth a warning, and all of a customer's rows count.
    """
    if misfits := _misfits(opened, schema, {schema.key: encode.accepts_name}):
        return CheckReport(misfits, ())
    probes = [*_key_probes(schema), *_column_probes(schema)]
    if has_label(opened, schema):
        probes.append(replace(_foreign_label(schema), fatal=False))
    found = _found(opened, probes, "false")
    if found.errors:
        return found.report(found.errors)
    customers, _ = _customers(opened, schema)
    return CheckReport((), found.warnings, found.rows, customers)


def has_label(opened: Session, schema: Schema) -> bool:
    """Whether the table has a column that can be the schema's label."""
    name = schema.label.name.lower()
    return any(
        column.lower() == name and encode.accepts_label(kind)
        for column, kind in opened.columns(ROWS).items()
    )


def bucket(count: int) -> str:
    """A count of at least 1 as a power-of-ten range: "1-9", "10-99", … "1,000,000+"."""
    for power in range(1, 7):
        if count < 10**power:
            return f"{10 ** (power - 1):,}-{10**power - 1:,}"
    return "1,000,000+"


@dataclass(frozen=True)
class _Found:
    """What one reading of all rows has counted: rows, labels of 1, and rules broken."""

    rows: int
    ones: int
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    def report(self, errors: tuple[Finding, ...]) -> CheckReport:
        return CheckReport(errors, self.warnings, self.rows)


def _misfits(
    opened: Session, schema: Schema, wanted: Mapping[str, _Accepts]
) -> tuple[Finding, ...]:
    """Columns that are missing, or whose type cannot be meant."""
    columns: dict[str, _Accepts] = {c.name: partial(encode.accepts, c) for c in schema.columns}
    accepts = {**wanted, **columns}
    types = {name.lower(): kind for name, kind in opened.columns(ROWS).items()}
    misfits = []
    for name, accepted in accepts.items():
        if name.lower() not in types:
            misfits.append(Finding(name, "declared but not in the table; rename or add it"))
        elif not accepted(types[name.lower()]):
            kind = types[name.lower()].split("(")[0]
            message = f"its type {kind} does not fit the declaration; cast it in SQL"
            misfits.append(Finding(name, message))
    if len(misfits) == len(accepts):
        message = "it has none of the declared columns: is it the right file, with a header?"
        return (Finding(None, message),)
    return tuple(misfits)


def _found(opened: Session, probes: list[_Probe], is_one: str) -> _Found:
    counted = [f"count_if({probe.broken})" for probe in probes]
    counted += ["count(*)", f"count_if({is_one})"]
    (counts,) = opened.rows(f"SELECT {', '.join(counted)} FROM {quote(ROWS)}")  # noqa: S608
    *broken, rows, ones = counts
    found = [(p.fatal, _finding(p, n, rows)) for p, n in zip(probes, broken, strict=True) if n]
    errors = [finding for fatal, finding in found if fatal]
    if rows == 0:
        errors.append(Finding(None, "the table is empty"))
    warnings = [finding for fatal, finding in found if not fatal]
    return _Found(rows, ones, tuple(errors), tuple(warnings))


def _key_probes(schema: Schema) -> Iterator[_Probe]:
    yield _Probe(schema.key, f"{quote(schema.key)} IS NULL", "the key is NULL", fatal=True)


def _label_probes(schema: Schema) -> Iterator[_Probe]:
    label = schema.label.name
    yield _Probe(label, f"{quote(label)} IS NULL", "the label is NULL", fatal=True)
    yield _foreign_label(schema)


def _foreign_label(schema: Schema) -> _Probe:
    label, value = schema.label.name, encode.label_value(schema)
    wrong = f"{quote(label)} IS NOT NULL AND coalesce({value} NOT IN (0, 1), true)"
    return _Probe(label, wrong, "the label must be 0 or 1, or false or true", fatal=True)


def _column_probes(schema: Schema) -> Iterator[_Probe]:
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


def _unlikely_label(schema: Schema, rows: int, ones: int) -> Iterator[Finding]:
    """A warning for a label of two classes whose share of ones can hardly be what was declared."""
    prior = schema.label.prior
    ratio = ones * (1 - prior) / ((rows - ones) * prior)
    by_chance = _CHANCE * math.sqrt(rows * prior * (1 - prior))
    if not 1 / _FAR_ODDS <= ratio <= _FAR_ODDS and abs(ones - rows * prior) > by_chance:
        message = "the share of ones is far from the declared prior: inverted, or another label?"
        yield Finding(schema.label.name, message)


def _customers(opened: Session, schema: Schema) -> tuple[int, int]:
    """How many customers there are, and how many have more rows than count."""
    counts = f"SELECT count(*) AS n FROM {quote(ROWS)} GROUP BY {encode.key_text(schema)}"  # noqa: S608
    limit = schema.max_rows_per_customer
    ((customers, crowded),) = opened.rows(f"SELECT count(*), count_if(n > {limit}) FROM ({counts})")  # noqa: S608
    return customers, crowded


def _crowded(schema: Schema, customers: int) -> Iterator[Finding]:
    if customers:
        message = f"more than {schema.max_rows_per_customer} rows; they are sampled down"
        yield Finding(schema.key, f"{message} (for {bucket(customers)} customers)")
