"""Draws up an agreement from a template that people wrote, comments and all.

A template says everything but keys. Those come from the parties' own files, by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib import resources
from typing import Any, cast

import tomlkit
from tomlkit import TOMLDocument
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Table

from dovetail.agreement import terms as agreed
from dovetail.agreement.files import Parties
from dovetail.agreement.party import Duty, Party
from dovetail.agreement.terms import Approval, Budget, Terms
from dovetail.errors import SettingError

_ANSWERED = (
    "name",
    "valid_from",
    "valid_until",
    "approval",
    "customers_overlap",
    "minimum_cohort",
    "schema",
)

_FEWEST_TO_SHARE = 3
"""Partners below which the template's way to share noise protects nobody."""


@dataclass(frozen=True)
class PartnerAnswer:
    """What a partner brings, as :class:`~dovetail.agreement.party.Partner` says, without keys."""

    name: str
    role: str
    customers: int
    first_day: date
    last_day: date


@dataclass(frozen=True)
class Answers:
    """What people were asked; the fields are those of :class:`~dovetail.agreement.terms.Terms`.

    Attributes:
        schema: the name of the schema's file.
    """

    name: str
    purposes: tuple[str, ...]
    valid_from: date
    valid_until: date
    approval: Approval
    customers_overlap: bool
    minimum_cohort: int
    budget: Budget
    max_epsilon_per_job: float
    schema: str
    partners: tuple[PartnerAnswer, ...]


def template() -> str:
    """The template with a comment for every field; ``examples/agreement.toml`` is the same."""
    place = resources.files("dovetail.agreement") / "template.toml"
    return place.read_text(encoding="utf-8")


def fill_in(text: str, parties: Parties) -> str:
    """A template with the keys of its parties.

    Args:
        text: TOML that names a coordinator, analysts and partners.
        parties: their keys.

    Raises:
        SettingError: it is not TOML, names somebody whose keys are missing, or not everybody
            whose keys are there; all are named.
    """
    document = _parse(text)
    named = _named(document)
    keys = _keys(parties)
    missing = [f"no keys of the {d} {n!r} are there" for d, n in named if (d, n) not in keys]
    surplus = [f"the template names no {d} {n!r}" for d, n in keys if (d, n) not in named]
    if missing or surplus:
        raise SettingError("; ".join([*missing, *surplus]))
    for (duty, name), table in named.items():
        table["key"] = keys[duty, name].key
        table["certificate"] = keys[duty, name].certificate
    return tomlkit.dumps(document)


def amend(text: str, old: Terms) -> str:
    """A template for the version after ``old``.

    Raises:
        SettingError: it is not TOML.
    """
    document = _parse(text)
    document["version"] = old.version + 1
    document["previous"] = agreed.digest(old)
    return tomlkit.dumps(document)


def answered(answers: Answers, parties: Parties) -> str:
    """The :func:`template` with answers in their places; its limits and comments stay."""
    document = _parse(template())
    for name in _ANSWERED:
        document[name] = getattr(answers, name)
    document["purposes"] = list(answers.purposes)
    cast("Table", document["budget"]).update(vars(answers.budget))
    cast("Table", document["allowed"])["max_epsilon_per_job"] = answers.max_epsilon_per_job
    if len(answers.partners) < _FEWEST_TO_SHARE:
        cast("Table", document["allowed"])["protections"] = ["local"]
        document.remove("secure_aggregation")
    cast("Table", document["coordinator"])["name"] = parties.coordinator.name
    analysts = [r.name for r in parties.enrolled if r.duty == "analyst"]
    _replace(document, "analysts", [{"name": name} for name in analysts])
    _replace(document, "partners", [vars(partner) for partner in answers.partners])
    return tomlkit.dumps(document)


def as_toml(terms: Terms) -> str:
    """Terms as the file that :func:`~dovetail.agreement.files.load_terms` reads, all in one."""
    return tomlkit.dumps(agreed.to_record(terms))


def safe_delta(partners: Iterable[PartnerAnswer]) -> float:
    """A δ to propose: a power of ten, at most a tenth of one in the smallest partner's customers.

    Below 1 / customers, as terms demand, it is impossible that a mechanism keeps its promise by
    releasing a few customers whole (Dwork and Roth 2014, section 2.3).
    """
    smallest = min(partner.customers for partner in partners)
    return float(10.0 ** -(math.ceil(math.log10(smallest)) + 1))


def _parse(text: str) -> TOMLDocument:
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise SettingError(f"the template is not TOML: {error}") from None


def _keys(parties: Parties) -> dict[tuple[Duty, str], Party]:
    found: dict[tuple[Duty, str], Party] = {
        ("coordinator", parties.coordinator.name): parties.coordinator
    }
    for request in parties.enrolled:
        if (request.duty, request.name) in found:
            raise SettingError(f"two files hold keys of the {request.duty} {request.name!r}")
        found[request.duty, request.name] = request.party
    return found


def _named(document: TOMLDocument) -> dict[tuple[Duty, str], Any]:
    """Every party's table, by what it does and its name."""
    found: dict[tuple[Duty, str], Any] = {}
    places: list[tuple[Duty, str, object]] = [
        ("coordinator", "coordinator", [document.get("coordinator")]),
        ("analyst", "analysts", document.get("analysts")),
        ("partner", "partners", document.get("partners")),
    ]
    for duty, field, tables in places:
        if not isinstance(tables, list):
            raise SettingError(f"the template: {field} is missing, or no list of tables")
        for table in tables:
            name = table.get("name") if isinstance(table, Mapping) else None
            if not isinstance(name, str):
                raise SettingError(f"the template: {field} must be tables with a name")
            if (duty, name) in found:
                raise SettingError(f"the template names the {duty} {name!r} twice")
            found[duty, name] = table
    return found


def _replace(document: TOMLDocument, field: str, records: list[dict[str, Any]]) -> None:
    """Other entries in the place of a list of tables; the first keeps the template's comments."""
    if not records:
        del document[field]
        document[field] = []
        return
    tables = cast("AoT", document[field])
    while len(tables) > 1:
        del tables[-1]
    for place, record in enumerate(records):
        if place:
            tables.append(tomlkit.table())
        tables[place].update({**record, "key": "", "certificate": ""})
        if place:
            tables[place].add(tomlkit.nl())
