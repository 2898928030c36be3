"""Columns with meaning and bounds, agreed by all partners before any row is read.

A schema is public. Bounds, categories and the label's prior are *declared*, never measured from
rows: scaling with the data's own mean or maximum would be a release that nobody accounted for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

MISSING_CODE = 0
"""Code of NULL in every category column; also the ``padding_idx`` of its embedding."""
OTHER_CODE = 1
"""Code of a value that the schema does not declare."""
FIRST_VALUE_CODE = 2
"""Code of the first declared value; the others follow in their declared order."""


@dataclass(frozen=True)
class Number:
    """A number with public bounds.

    Attributes:
        low: smallest value, in ``unit``; what lies below is clamped to it and counted.
        high: largest value; ``low < high``.
        unit: what one counts, for people ("EUR", "days").
        transform: ``log`` scales ``log1p(value - low)``, for long tails.
        nullable: whether NULL is allowed; then it reads as the middle of the range (0 once
            scaled) and a second feature ``"<name> is missing"`` says so.
    """

    name: str
    low: float
    high: float
    unit: str = ""
    transform: Literal["linear", "log"] = "linear"
    nullable: bool = False


@dataclass(frozen=True)
class Category:
    """One of a public list of values; NULL and unlisted values have codes of their own."""

    name: str
    values: tuple[str, ...]

    @property
    def cardinality(self) -> int:
        """Number of codes: the declared values, "missing" and "other"."""
        return len(self.values) + FIRST_VALUE_CODE


@dataclass(frozen=True)
class Date:
    """A calendar day with public bounds; scaled like a :class:`Number` of days."""

    name: str
    earliest: date
    latest: date
    nullable: bool = False


Column = Number | Category | Date


@dataclass(frozen=True)
class Label:
    """What is to be predicted: 0 or 1.

    Attributes:
        prior: the share of ones that the partners declare, in (0, 1). Public, so that class
            imbalance can be handled without looking at private counts.
    """

    name: str
    prior: float


@dataclass(frozen=True)
class Schema:
    """The table that every partner brings.

    Attributes:
        name: of the table, for people.
        key: the column that identifies a customer; never a feature.
        unit: what one customer is called ("household").
        columns: the features, in order.
        label: the label column.
        max_rows_per_customer: bound on the rows that count for one customer, >= 1.
    """

    name: str
    key: str
    unit: str
    columns: tuple[Column, ...]
    label: Label
    max_rows_per_customer: int

    @property
    def categories(self) -> tuple[Category, ...]:
        """The category columns, in order; ``codes[..., i]`` of a batch belongs to the i-th."""
        return tuple(c for c in self.columns if isinstance(c, Category))

    @property
    def number_features(self) -> tuple[str, ...]:
        """Names of ``numbers[..., i]`` of a batch: numbers and dates, each followed by its
        missing indicator where NULL is allowed."""
        names: list[str] = []
        for column in self.columns:
            if isinstance(column, Category):
                continue
            names.append(column.name)
            if column.nullable:
                names.append(f"{column.name} is missing")
        return tuple(names)
