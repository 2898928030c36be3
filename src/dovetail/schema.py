"""Columns with meaning and bounds, agreed by all partners before any row is read.

A schema is public. Bounds, categories and the label's prior are *declared*, never measured from
rows: scaling with the data's own mean or maximum would be a release that nobody accounted for.

A schema is written as TOML (``examples/schema.toml``) and travels as the plain record of
:meth:`Schema.to_record`. Every class here validates itself, so no unusable schema can exist.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from dovetail.errors import SchemaError, SettingError

MISSING_CODE = 0
"""Code of NULL in every category column; also the ``padding_idx`` of its embedding."""
OTHER_CODE = 1
"""Code of a value that the schema does not declare."""
FIRST_VALUE_CODE = 2
"""Code of the first declared value; the others follow in their declared order."""

Transform = Literal["linear", "log"]


@dataclass(frozen=True)
class Number:
    """A number with public bounds.

    Attributes:
        low: smallest value, in ``unit``; what lies below is clamped to it and counted.
        high: largest value; ``low < high``.
        unit: what one counts, for people ("EUR", "days").
        transform: ``log`` scales ``log1p(value - low)``, for long tails.
        nullable: whether NULL is allowed; then it reads as the middle of the range (0 once
            scaled) and a second feature ``"<name> is missing"`` says so (1 where it is, else 0).
    """

    name: str
    low: float
    high: float
    unit: str = ""
    transform: Transform = "linear"
    nullable: bool = False

    def __post_init__(self) -> None:
        _require_name(self.name)
        _require_printable(self.unit)
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise SchemaError("low and high must be finite numbers", self.name)
        if not self.low < self.high:
            raise SchemaError("bounds reversed: low must be smaller than high", self.name)
        if not math.isfinite(self.high - self.low):
            raise SchemaError("low and high lie too far apart", self.name)
        if self.transform not in get_args(Transform):
            hint = did_you_mean(self.transform, get_args(Transform))
            raise SchemaError(f"transform is 'linear' or 'log'{hint}", self.name)


@dataclass(frozen=True)
class Category:
    """One of a public list of values; NULL and unlisted values have codes of their own."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_name(self.name)
        if not self.values:
            raise SchemaError("a category needs at least one value", self.name)
        if not all(value and value.isprintable() for value in self.values):
            raise SchemaError("values must be printable text and not empty", self.name)
        if repeated := _repeated(self.values):
            raise SchemaError(f"value {repeated!r} is declared twice", self.name)

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

    def __post_init__(self) -> None:
        _require_name(self.name)
        if not self.earliest < self.latest:
            raise SchemaError("bounds reversed: earliest must come before latest", self.name)


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

    def __post_init__(self) -> None:
        _require_name(self.name)
        if not 0 < self.prior < 1:
            raise SchemaError("the label's prior must lie strictly between 0 and 1", self.name)


@dataclass(frozen=True)
class Schema:
    """The table that every partner brings.

    Attributes:
        name: of the table, for people.
        key: the column that identifies a customer; never a feature.
        unit: what one customer is called ("household").
        columns: the features, in order; at least one.
        label: the label column.
        max_rows_per_customer: bound on the rows that count for one customer, >= 1.

    Column names are told apart without regard to case, as SQL does.
    """

    name: str
    key: str
    unit: str
    columns: tuple[Column, ...]
    label: Label
    max_rows_per_customer: int

    def __post_init__(self) -> None:
        _require_name(self.key)
        _require_printable(self.name + self.unit)
        if not self.columns:
            raise SchemaError("the schema declares no columns")
        if self.max_rows_per_customer < 1:
            raise SchemaError("max_rows_per_customer must be at least 1")
        if self.label.name.lower() == self.key.lower():
            raise SchemaError("the key cannot be the label", self.key)
        for column in self.columns:
            if column.name.lower() == self.key.lower():
                raise SchemaError("the key identifies customers and cannot be a feature", self.key)
            if column.name.lower() == self.label.name.lower():
                raise SchemaError("the label cannot be a feature", column.name)
        names = [name.lower() for name in (*self.number_features, *self._category_names)]
        if repeated := _repeated(names):
            raise SchemaError("the name is declared twice", repeated)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The category columns, in order; ``codes[..., i]`` of a batch belongs to the i-th."""
        return tuple(c for c in self.columns if isinstance(c, Category))

    @property
    def number_features(self) -> tuple[str, ...]:
        """Names of ``numbers[..., i]`` of a batch.

        Numbers and dates, each followed by its missing indicator where NULL is allowed.
        """
        names: list[str] = []
        for column in self.columns:
            if isinstance(column, Category):
                continue
            names.append(column.name)
            if column.nullable:
                names.append(f"{column.name} is missing")
        return tuple(names)

    @property
    def _category_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    def select(self, features: Sequence[str]) -> Schema:
        """The same table with only these feature columns, in this schema's order.

        Raises:
            SchemaError: a feature is not a column of this schema, or none is left.
        """
        names = [column.name for column in self.columns]
        for feature in features:
            if feature not in names:
                hint = did_you_mean(feature, names)
                raise SchemaError(f"not a column of the schema {self.name!r}{hint}", feature)
        chosen = tuple(column for column in self.columns if column.name in features)
        return replace(self, columns=chosen)

    def to_record(self) -> dict[str, Any]:
        """The schema as JSON-able data; :func:`schema_from_record` gives back an equal schema."""
        return {
            "name": self.name,
            "key": self.key,
            "unit": self.unit,
            "max_rows_per_customer": self.max_rows_per_customer,
            "label": _to_record(self.label),
            "columns": [{"type": _TYPE_OF[type(c)], **_to_record(c)} for c in self.columns],
        }


_COLUMN_TYPES: dict[str, type[Column]] = {"number": Number, "category": Category, "date": Date}
_TYPE_OF = {kind: name for name, kind in _COLUMN_TYPES.items()}


def load_schema(path: Path) -> Schema:
    """The schema in a TOML file.

    Raises:
        SettingError: the file cannot be read.
        SchemaError: it does not hold a usable schema; the message says where and why.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        name, reason = str(path), (error.strerror or "input/output error").lower()
        raise SettingError(f"the schema file {name!r} cannot be read: {reason}") from None
    except UnicodeDecodeError:
        message = f"the schema file {str(path)!r} cannot be read: it must be a UTF-8 text file"
        raise SettingError(message) from None
    return parse_schema(text, path.name)


def parse_schema(text: str, source: str) -> Schema:
    """The schema in a TOML text.

    Args:
        text: the TOML.
        source: what to call it in an error, such as its file's name.

    Raises:
        SchemaError: the text does not hold a usable schema; the message names ``source``.
    """
    try:
        return schema_from_record(tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # a number too long, or nested too deep
        raise SchemaError(f"{source}: not valid TOML: {error}") from None
    except SchemaError as error:
        placed = SchemaError(f"{source}: {error}")
        placed.column = error.column
        raise placed from None


def schema_from_record(record: Mapping[str, Any]) -> Schema:
    """The schema that :meth:`Schema.to_record` wrote, or that a TOML file says.

    Raises:
        SchemaError: a field is missing, unknown, of the wrong type or out of range.
    """
    columns = record.get("columns")
    if isinstance(columns, Mapping):
        columns = [_named(name, table) for name, table in columns.items()]
    if not isinstance(columns, list):
        mend = _misspelt("columns", record) or ": write [columns.NAME] for each"
        raise SchemaError(f"the schema declares no columns{mend}")
    if "label" not in record:
        raise SchemaError(f"[label] is missing{_misspelt('label', record)}")
    label = _build(Label, _table(record.get("label"), "label"), "[label]")
    built = {"label": label, "columns": tuple(_column(_table(c, "columns")) for c in columns)}
    schema: Schema = _build(Schema, {**record, **built}, "the schema")
    return schema


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A hint to append to an error about ``word``; empty where no candidate comes near."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def _misspelt(section: str, record: Mapping[str, Any]) -> str:
    """A hint at the unknown key that was probably meant as ``section``; empty if there is none."""
    known = {field.name for field in fields(Schema)}
    for key in record:
        if key not in known and (hint := did_you_mean(key, [section])):
            return f", but there is an unknown key {key!r}{hint}"
    return ""


def _named(name: str, table: object) -> dict[str, Any]:
    settings = dict(_table(table, f"columns.{name}"))
    if "name" in settings:
        raise SchemaError(f"column {name!r}: unknown key 'name'; its name is that of its table")
    return {"name": name, **settings}


def _column(record: Mapping[str, Any]) -> Column:
    name, rest = record.get("name"), dict(record)
    where = f"column {name!r}"
    kind = rest.pop("type", None)
    if not isinstance(kind, str) or kind not in _COLUMN_TYPES:
        hint = did_you_mean(str(kind), _COLUMN_TYPES)
        raise SchemaError(f"{where}: type must be one of {', '.join(_COLUMN_TYPES)}{hint}")
    column: Column = _build(_COLUMN_TYPES[kind], rest, where)
    return column


def _build(kind: type[Any], record: Mapping[str, Any], where: str) -> Any:
    declared: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    for key in record:
        if key not in declared:
            hint = did_you_mean(key, declared)
            raise SchemaError(f"{where}: unknown key {key!r}{hint}")
    for name, field in declared.items():
        if field.default is MISSING and name not in record:
            raise SchemaError(f"{where}: {name!r} is missing")
    return kind(**{k: _READERS[k](v, f"{where}: {k!r}") for k, v in record.items()})


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(f"{where} must be a number")
    try:
        return float(value)
    except OverflowError:
        raise SchemaError(f"{where} is too large") from None


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SchemaError(f"{where} must be a whole number")
    if abs(value) > _LARGEST_WHOLE:
        raise SchemaError(f"{where} is too large")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"{where} must be text")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise SchemaError(f"{where} must be a list of texts")
    return tuple(_text(item, f"each of {where}") for item in value)


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise SchemaError(f"{where} must be true or false")
    return value


def _day(value: object, where: str) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(_text(value, where))
    except (ValueError, SchemaError):
        raise SchemaError(f"{where} must be a date such as 2024-12-31") from None


def _as_is(value: Any, where: str) -> Any:  # noqa: ARG001 - already built
    return value


_LARGEST_WHOLE = 2**53 - 1
"""What JSON carries exactly."""
_READERS: dict[str, Callable[[Any, str], Any]] = {
    "name": _text,
    "key": _text,
    "unit": _text,
    "low": _number,
    "high": _number,
    "transform": _text,
    "nullable": _flag,
    "values": _texts,
    "earliest": _day,
    "latest": _day,
    "prior": _number,
    "max_rows_per_customer": _whole,
    "label": _as_is,
    "columns": _as_is,
}


def _to_record(part: Column | Label) -> dict[str, Any]:
    return {field.name: _plain(getattr(part, field.name)) for field in fields(part)}


def _plain(value: object) -> object:
    if isinstance(value, date):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemaError(f"[{where}] must be a table of keys and values")
    return value


def _require_name(name: str) -> None:
    if not name or not name.isprintable():
        raise SchemaError("every column needs a printable name")


def _require_printable(text: str) -> None:
    if not text.isprintable():
        raise SchemaError("names and units must be printable")


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
