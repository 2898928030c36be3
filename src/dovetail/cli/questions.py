"""The questions of ``dovetail agreement new``, for whoever has no template."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import typer

from dovetail.cli.asking import ask, confirmed

if TYPE_CHECKING:
    from dovetail.agreement.draft import Answers, PartnerAnswer
    from dovetail.agreement.files import Parties
    from dovetail.agreement.terms import Budget

INSTEAD = "give a template with --from; examples/agreement.toml is one"
_COUNT = click.IntRange(min=1)
_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


def ask_answers(parties: Parties) -> tuple[Answers, Path]:
    """What the agreement is to say, and the folder of its schema.

    Raises:
        SettingError: nobody is there to answer, or an answer cannot be agreed on.
    """
    from dovetail.agreement.draft import Answers
    from dovetail.agreement.terms import Approval

    _say("What is it about?")
    name, purposes = _ask("Name of the collaboration"), _ask("Purposes, with commas between them")
    first, last = _days("First day", "Last day", _today(), _today() + timedelta(days=364))
    schema = Path(_ask("File of the schema, the table that all bring", default="schema.toml"))
    partners = tuple(_partner(r.name) for r in parties.enrolled if r.duty == "partner")
    overlap = confirmed("May one person be a customer of several of them?", INSTEAD)
    smallest = min((partner.customers for partner in partners), default=100)
    cohort = _ask(
        "Fewest customers with which one answers", default=min(100, smallest), type=_COUNT
    )
    budget, most = _budget(partners)
    return (
        Answers(
            name=name,
            purposes=tuple(word.strip() for word in purposes.split(",")),
            valid_from=first,
            valid_until=last,
            approval=_ask("Who says yes to a job", default="manual", type=_choice(Approval)),
            customers_overlap=overlap,
            minimum_cohort=cohort,
            budget=budget,
            max_epsilon_per_job=most,
            schema=schema.name,
            partners=partners,
        ),
        schema.parent,
    )


def _partner(name: str) -> PartnerAnswer:
    from dovetail.agreement.draft import PartnerAnswer
    from dovetail.agreement.party import rounded

    _say(f"\nPartner {name}")
    role = _ask("What it is, such as retailer", default=name)
    customers = rounded(_ask("About how many customers it brings", type=_COUNT))
    _say(f"It will be said to bring {customers:,}.")
    year = timedelta(days=364)
    first, last = _days("First day of its data", "Last day of its data", _today() - year, _today())
    return PartnerAnswer(name, role, customers, first, last)


def _budget(partners: tuple[PartnerAnswer, ...]) -> tuple[Budget, float]:
    """The budget, and how much of its ε one job alone may cost."""
    from dovetail.agreement.draft import safe_delta
    from dovetail.agreement.terms import Budget, Period

    _say("\nWhat may it cost? Smaller is more private.")
    epsilon = _ask("ε of all jobs together", default=3.0, type=_ABOVE_ZERO)
    delta = _ask("δ", default=safe_delta(partners) if partners else 1e-5, type=_ABOVE_ZERO)
    period = _ask("When the budget refills", default="year", type=_choice(Period))
    most = _ask("ε of one job alone", default=epsilon, type=_ABOVE_ZERO)
    return Budget(epsilon, delta, period), most


def _days(first: str, last: str, from_: date, until: date) -> tuple[date, date]:
    day = click.DateTime(["%Y-%m-%d"])
    begins: datetime = _ask(first, default=from_.isoformat(), type=day)
    ends: datetime = _ask(last, default=until.isoformat(), type=day)
    return begins.date(), ends.date()


def _choice(literal: Any) -> click.Choice[str]:
    return click.Choice(get_args(literal))


def _ask(question: str, **how: Any) -> Any:
    return ask(question, INSTEAD, **how)


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _today() -> date:
    return datetime.now(UTC).date()
