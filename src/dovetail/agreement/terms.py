"""The agreement's terms, in one TOML file that a privacy officer can read.

Everything here is public among the parties, who sign it (:mod:`dovetail.agreement.signing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Literal, get_args

from dovetail.agreement.party import (
    Duty,
    Partner,
    Party,
    partner_from_record,
    party_from_record,
)
from dovetail.agreement.party import to_record as _party_record
from dovetail.agreement.record import Fields, is_digest, positive, require
from dovetail.agreement.request import Family, Protection
from dovetail.agreement.secure_aggregation import (
    SecureAggregation,
    secure_aggregation_from_record,
)
from dovetail.crypto import canonical
from dovetail.errors import SchemaError, SettingError
from dovetail.schema import Schema, schema_from_record

Approval = Literal["automatic", "manual"]
"""Who says yes to a request that keeps all rules: the rules alone, or a person at every party."""
RequestKind = Literal["training"]
"""What can be asked at all."""
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
        """The period that a moment lies in: "2026", "2026-Q4", "2026-11"; "" where it never ends.

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
class Terms:
    """What the partners allow each other to ask.

    Attributes:
        name: of the collaboration.
        version: of its terms, >= 1.
        previous: digest of the version before this one; empty for version 1.
        valid_from: first day on which anything may run.
        valid_until: last such day, in UTC.
        schema: the table that every partner brings.
        coordinator: who runs jobs, and may ask for them.
        analysts: who may ask for jobs as well.
        partners: who brings customers.
        purposes: what may be asked for.
        requests: kinds of requests that may be asked.
        approval: whether a person must say yes to each job, at every party.
        customers_overlap: whether one person may be a customer of several partners.
        minimum_cohort: fewest customers with which a partner takes part.
        budget: what all jobs together may cost, at each partner.
        model_families: which models may be trained.
        protections: how the noise may be added; never ``none``.
        max_epsilon_per_job: most ε that one job alone may cost, > 0.
        max_concurrent_jobs: most jobs that are open at a partner at once.
        max_parameters: most parameters of a model.
        max_rounds: most rounds of a job.
        max_steps: most steps of a job at one partner.
        secure_aggregation: what partners assume of each other where noise is shared; there exactly
            where ``protections`` names ``distributed``.

    Raises:
        SettingError: a list is empty, a limit out of range, days or versions do not fit, two
            parties share a name or a key, the budget's δ is not below one in the number of
            customers of the smallest partner, or the partners cannot share noise as they say.
    """

    name: str
    version: int
    previous: str
    valid_from: date
    valid_until: date
    schema: Schema
    coordinator: Party
    analysts: tuple[Party, ...]
    partners: tuple[Partner, ...]
    purposes: tuple[str, ...]
    requests: tuple[RequestKind, ...]
    approval: Approval
    customers_overlap: bool
    minimum_cohort: int
    budget: Budget
    model_families: tuple[Family, ...]
    protections: tuple[Protection, ...]
    max_epsilon_per_job: float
    max_concurrent_jobs: int
    max_parameters: int
    max_rounds: int
    max_steps: int
    secure_aggregation: SecureAggregation | None = None

    def __post_init__(self) -> None:
        for name in ("partners", "purposes", "requests", "model_families", "protections"):
            require(bool(getattr(self, name)), f"terms: {name} must name at least one")
        for name in ("version", "minimum_cohort", *_WHOLE_LIMITS):
            require(getattr(self, name) >= 1, f"terms: {name} must be at least 1")
        require(positive(self.max_epsilon_per_job), "terms: max_epsilon_per_job must be above 0")
        require("none" not in self.protections, "terms: protection 'none' cannot be agreed on")
        require(self.valid_from <= self.valid_until, "terms: valid_until lies before valid_from")
        self._check_version()
        self._check_parties()
        self._check_customers()
        self._check_sharing()

    def _check_version(self) -> None:
        first = self.version == 1
        require(
            first == (self.previous == ""),
            "terms: previous is empty for version 1, and the digest of the version before for "
            "every later one",
        )
        require(first or is_digest(self.previous), "terms: previous must be 64 hex digits")

    def _check_parties(self) -> None:
        parties = [party for party, _ in self.parties]
        for what in ("name", "key", "certificate"):
            values = [getattr(party, what).lower() for party in parties]
            require(len(set(values)) == len(values), f"terms: two parties have the same {what}")

    def _check_customers(self) -> None:
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

    def _check_sharing(self) -> None:
        shared = "distributed" in self.protections
        require(
            shared == (self.secure_aggregation is not None),
            "terms: [secure_aggregation] belongs to protection 'distributed', which needs it",
        )
        if self.secure_aggregation is not None:
            self.secure_aggregation.check(len(self.partners))

    @cached_property
    def _digest(self) -> str:
        return canonical.digest(to_record(self))

    @property
    def parties(self) -> tuple[tuple[Party, Duty], ...]:
        """Everybody who signs, and what each does."""
        return (
            (self.coordinator, "coordinator"),
            *((analyst, "analyst") for analyst in self.analysts),
            *((partner, "partner") for partner in self.partners),
        )

    def party(self, name: str) -> tuple[Party, Duty]:
        """The party of this name, and what it does.

        Raises:
            SettingError: there is none.
        """
        for party, duty in self.parties:
            if party.name == name:
                return party, duty
        raise SettingError(f"terms: no party is named {name!r}")

    def in_force(self, day: date) -> bool:
        """Whether anything may run on this day (UTC)."""
        return self.valid_from <= day <= self.valid_until

    def partner(self, name: str) -> Partner:
        """The partner of this name.

        Raises:
            SettingError: there is none.
        """
        for partner in self.partners:
            if partner.name == name:
                return partner
        raise SettingError(f"terms: no partner is named {name!r}")


def parse_terms(record: object) -> Terms:
    """The terms that :func:`to_record` wrote, or that a file with its schema in it says.

    Raises:
        SettingError: a field is missing, unknown, of another type or out of range; the message
            names it, and the field that was probably meant.
    """
    optional = (_SHARING,) if isinstance(record, Mapping) and _SHARING in record else ()
    read = Fields(record, "terms", (*_TERMS, *optional))
    allowed = Fields(read.raw("allowed"), "terms.allowed", _ALLOWED)
    return Terms(
        name=read.text("name"),
        version=read.whole("version"),
        previous=_previous(read),
        valid_from=read.day("valid_from"),
        valid_until=read.day("valid_until"),
        schema=_schema(read.raw("schema")),
        coordinator=party_from_record(read.raw("coordinator"), "terms.coordinator"),
        analysts=tuple(party_from_record(a, "terms.analysts") for a in read.items("analysts")),
        partners=tuple(partner_from_record(p, "terms.partners") for p in read.items("partners")),
        purposes=read.texts("purposes"),
        requests=read.choices("requests", get_args(RequestKind)),
        approval=read.choice("approval", get_args(Approval)),
        customers_overlap=read.flag("customers_overlap"),
        minimum_cohort=read.whole("minimum_cohort"),
        budget=_budget(read.raw("budget")),
        model_families=allowed.choices("model_families", get_args(Family)),
        protections=allowed.choices("protections", get_args(Protection)),
        max_epsilon_per_job=allowed.number("max_epsilon_per_job"),
        max_concurrent_jobs=allowed.whole("max_concurrent_jobs"),
        max_parameters=allowed.whole("max_parameters"),
        max_rounds=allowed.whole("max_rounds"),
        max_steps=allowed.whole("max_steps"),
        secure_aggregation=secure_aggregation_from_record(read.raw(_SHARING)) if optional else None,
    )


def to_record(terms: Terms) -> dict[str, object]:
    """The terms as JSON-able data, laid out like the file."""
    return {
        "name": terms.name,
        "version": terms.version,
        "previous": terms.previous,
        "valid_from": terms.valid_from.isoformat(),
        "valid_until": terms.valid_until.isoformat(),
        "purposes": list(terms.purposes),
        "requests": list(terms.requests),
        "approval": terms.approval,
        "customers_overlap": terms.customers_overlap,
        "minimum_cohort": terms.minimum_cohort,
        "budget": {name: getattr(terms.budget, name) for name in _BUDGET},
        "allowed": {
            "model_families": list(terms.model_families),
            "protections": list(terms.protections),
            **{name: getattr(terms, name) for name in ("max_epsilon_per_job", *_WHOLE_LIMITS)},
        },
        **({_SHARING: dict(vars(shared))} if (shared := terms.secure_aggregation) else {}),
        "coordinator": _party_record(terms.coordinator),
        "analysts": [_party_record(analyst) for analyst in terms.analysts],
        "partners": [_party_record(partner) for partner in terms.partners],
        "schema": terms.schema.to_record(),
    }


def digest(terms: Terms) -> str:
    """SHA-256 of the terms' canonical form, in hex: the collaboration's identity."""
    return terms._digest


_TERMS = (
    "name",
    "version",
    "previous",
    "valid_from",
    "valid_until",
    "purposes",
    "requests",
    "approval",
    "customers_overlap",
    "minimum_cohort",
    "budget",
    "allowed",
    "coordinator",
    "analysts",
    "partners",
    "schema",
)
_SHARING = "secure_aggregation"
_BUDGET = ("epsilon", "delta", "period")
_WHOLE_LIMITS = ("max_concurrent_jobs", "max_parameters", "max_rounds", "max_steps")
_ALLOWED = ("model_families", "protections", "max_epsilon_per_job", *_WHOLE_LIMITS)


def _schema(record: object) -> Schema:
    if not isinstance(record, Mapping):
        raise SettingError("terms: schema must be a table, or the name of a file")
    try:
        return schema_from_record(record)
    except SchemaError as error:
        raise SettingError(f"terms.schema: {error}") from None


def _previous(read: Fields) -> str:
    return "" if read.raw("previous") == "" else read.text("previous")


def _budget(record: object) -> Budget:
    read = Fields(record, "terms.budget", _BUDGET)
    period = read.choice("period", get_args(Period))
    return Budget(read.number("epsilon"), read.number("delta"), period)
