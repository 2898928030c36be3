"""The terms that partners agree on, in one TOML file that a privacy officer can read.

Everything here is public among the partners. Signatures, keys and validity are not part of it yet.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from dovetail.agreement.record import Fields, positive, require
from dovetail.agreement.request import Family, Protection
from dovetail.crypto import canonical
from dovetail.errors import SchemaError, SettingError
from dovetail.schema import Schema, load_schema, schema_from_record


Period = Literal["never", "year", "quarter", "month"]
"""When a budget refills: never, or at the beginning of each calendar year, quarter or month."""


@dataclass(frozen=True)
class Budget:
    """What all jobs together may cost at one partner.

    Attributes:
        epsilon: the most that all jobs reserved within one period may be charged, > 0.
        delta: the δ at which it is stated, in (0, 1).
        period: when the budget refills; calendar periods in UTC.

    Raises:
        SettingError: out of range.
    """

    epsilon: float
    delta: float
    period: Period = "never"

    def __post_init__(self) -> None:
        require(positive(self.epsilon), "budget: epsilon must be above 0 and finite")
        require(0 < self.delta < 1, "budget: delta must lie in (0, 1)")

    def period_of(self, moment: datetime) -> str:
        """The period that a moment lies in: "2026", "2026-Q4", "2026-11", or "" where it never ends.

        Periods sort by time as texts do.
        """
        utc = moment.astimezone(UTC)
        return {
            "never": "",
            "year": f"{utc.year:04}",
            "quarter": f"{utc.year:04}-Q{(utc.month + 2) // 3}",
            "month": f"{utc.year:04}-{utc.month:02}",
        }[self.period]


@dataclass(frozen=True)
class Partner:
    """One company that brings customers.

    Attributes:
        name: by which it is known in requests, reports and errors.
        role: what it is, for people ("retailer").
        customers: how many it *declares* to bring, to two significant digits. Public: weights and
            the expected batch size come from it, and never from the private count.
        first_day: of the data it brings.
        last_day: of the data it brings, not before ``first_day``.

    Raises:
        SettingError: no customers, a number that looks like an exact count, or days reversed.
    """

    name: str
    role: str
    customers: int
    first_day: date
    last_day: date

    def __post_init__(self) -> None:
        where = f"partner {self.name!r}"
        require(self.customers >= 1, f"{where}: customers must be at least 1")
        require(
            self.customers == rounded(self.customers),
            f"{where}: customers is public; round it to two significant digits, such as 1200",
        )
        require(self.first_day <= self.last_day, f"{where}: last_day lies before first_day")

    @property
    def data_period(self) -> str:
        """The days its data covers, as reports show them."""
        return f"{self.first_day.isoformat()} to {self.last_day.isoformat()}"


@dataclass(frozen=True)
class Terms:
    """What the partners allow each other to ask.

    Attributes:
        name: of the collaboration.
        version: of its terms, >= 1.
        schema: the table that every partner brings.
        partners: who takes part; names differ.
        purposes: what may be asked for.
        customers_overlap: whether one person may be a customer of several partners.
        minimum_cohort: fewest customers with which a partner takes part.
        budget: what all jobs together may cost, at each partner.
        model_families: which models may be trained.
        protections: how the noise may be added; never ``none``.
        max_parameters: most parameters of a model.
        max_rounds: most rounds of a job.
        max_steps: most steps of a job at one partner.

    Raises:
        SettingError: a list is empty, a limit out of range, or the budget's δ is not below one in
            the number of customers of the smallest partner.
    """

    name: str
    version: int
    schema: Schema
    partners: tuple[Partner, ...]
    purposes: tuple[str, ...]
    customers_overlap: bool
    minimum_cohort: int
    budget: Budget
    model_families: tuple[Family, ...]
    protections: tuple[Protection, ...]
    max_parameters: int
    max_rounds: int
    max_steps: int

    def __post_init__(self) -> None:
        for name in ("partners", "purposes", "model_families", "protections"):
            require(bool(getattr(self, name)), f"terms: {name} must name at least one")
        for name in ("version", "minimum_cohort", "max_parameters", "max_rounds", "max_steps"):
            require(getattr(self, name) >= 1, f"terms: {name} must be at least 1")
        require("none" not in self.protections, "terms: protection 'none' cannot be agreed on")
        self._check_partners()

    def _check_partners(self) -> None:
        names = [partner.name for partner in self.partners]
        require(len(set(names)) == len(names), "terms: two partners have the same name")
        smallest = min(self.partners, key=lambda partner: partner.customers)
        require(
            self.budget.delta * smallest.customers < 1,
            f"terms: delta must be below 1/{smallest.customers}, one in the customers that "
            f"{smallest.name!r} declares",
        )
        require(
            self.minimum_cohort <= smallest.customers,
            f"terms: minimum_cohort is above the customers that {smallest.name!r} declares",
        )

    @cached_property
    def _digest(self) -> str:
        return canonical.digest(to_record(self))

    def partner(self, name: str) -> Partner:
        """The partner of this name.

        Raises:
            SettingError: there is none.
        """
        for partner in self.partners:
            if partner.name == name:
                return partner
        raise SettingError(f"terms: no partner is named {name!r}")


def rounded(customers: int) -> int:
    """A number of customers to two significant digits, halves upwards: fit to be declared."""
    unit: int = 10 ** max(len(str(abs(customers))) - 2, 0)
    return (customers + unit // 2) // unit * unit


def load_terms(path: Path) -> Terms:
    """Read terms from a TOML file; ``schema`` is a table, or the name of a file beside this one.

    Raises:
        SettingError: a file cannot be read, or what it says cannot be agreed on.
    """
    record = _read_toml(path)
    try:
        schema = record.get("schema")
        if isinstance(schema, str):
            return _terms(record, load_schema(path.parent / schema))
        return parse_terms(record)
    except (SettingError, SchemaError) as error:
        raise SettingError(f"{path.name}: {error}") from None


def parse_terms(record: object) -> Terms:
    """The terms that :func:`to_record` wrote, or that a file with its schema in it says.

    Raises:
        SettingError: a field is missing, unknown, of another type or out of range; the message
            names it, and the field that was probably meant.
    """
    schema = record.get("schema") if isinstance(record, Mapping) else None
    try:
        return _terms(record, _schema(schema))
    except SchemaError as error:
        raise SettingError(f"terms.schema: {error}") from None


def to_record(terms: Terms) -> dict[str, object]:
    """The terms as JSON-able data, laid out like the file."""
    return {
        "name": terms.name,
        "version": terms.version,
        "purposes": list(terms.purposes),
        "customers_overlap": terms.customers_overlap,
        "minimum_cohort": terms.minimum_cohort,
        "budget": {"epsilon": terms.budget.epsilon, "delta": terms.budget.delta},
        "allowed": {
            "model_families": list(terms.model_families),
            "protections": list(terms.protections),
            "max_parameters": terms.max_parameters,
            "max_rounds": terms.max_rounds,
            "max_steps": terms.max_steps,
        },
        "partners": [
            {
                "name": partner.name,
                "role": partner.role,
                "customers": partner.customers,
                "first_day": partner.first_day.isoformat(),
                "last_day": partner.last_day.isoformat(),
            }
            for partner in terms.partners
        ],
        "schema": terms.schema.to_record(),
    }


def digest(terms: Terms) -> str:
    """SHA-256 of the terms' canonical form, in hex: the collaboration's identity."""
    return terms._digest


_TERMS = (
    "name",
    "version",
    "purposes",
    "customers_overlap",
    "minimum_cohort",
    "budget",
    "allowed",
    "partners",
    "schema",
)
_ALLOWED = ("model_families", "protections", "max_parameters", "max_rounds", "max_steps")
_PARTNER = ("name", "role", "customers", "first_day", "last_day")


def _schema(record: object) -> Schema:
    if not isinstance(record, Mapping):
        raise SettingError("terms: schema must be a table, or the name of a file")
    columns = record.get("columns")
    if isinstance(columns, Mapping) and all(isinstance(c, Mapping) for c in columns.values()):
        record = {**record, "columns": [{"name": name, **c} for name, c in columns.items()]}
    return schema_from_record(record)


def _terms(record: object, schema: Schema) -> Terms:
    read = Fields(record, "terms", _TERMS)
    allowed = Fields(read.raw("allowed"), "terms.allowed", _ALLOWED)
    budget = Fields(read.raw("budget"), "terms.budget", ("epsilon", "delta"))
    return Terms(
        name=read.text("name"),
        version=read.whole("version"),
        schema=schema,
        partners=tuple(_partner(item) for item in read.items("partners")),
        purposes=read.texts("purposes"),
        customers_overlap=read.flag("customers_overlap"),
        minimum_cohort=read.whole("minimum_cohort"),
        budget=Budget(budget.number("epsilon"), budget.number("delta")),
        model_families=allowed.choices("model_families", get_args(Family)),
        protections=allowed.choices("protections", get_args(Protection)),
        max_parameters=allowed.whole("max_parameters"),
        max_rounds=allowed.whole("max_rounds"),
        max_steps=allowed.whole("max_steps"),
    )


def _partner(record: object) -> Partner:
    read = Fields(record, "terms.partners", _PARTNER)
    return Partner(
        name=read.text("name"),
        role=read.text("role"),
        customers=read.whole("customers"),
        first_day=read.day("first_day"),
        last_day=read.day("last_day"),
    )


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path.name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingError(f"{path.name}: is not a UTF-8 text file") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path.name}: is not TOML: {error}") from None
