"""Ledgers to write to and chains to read back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dovetail.agreement import entry as entries
from dovetail.agreement.entry import GENESIS, Entry
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.terms import Budget
from dovetail.crypto import canonical
from dovetail.errors import DovetailError, LedgerError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian
from tests.agreement.conftest import read

VECTORS = read("ledger.json")
NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
STEP = Gaussian(1.0, 4.0)
REQUEST = "a" * 64
BUDGET = Budget(accountant.epsilon({STEP: 10}, 1e-5), 1e-5)
"""Covers ten steps and no eleventh."""
MONTHLY = Budget(BUDGET.epsilon, BUDGET.delta, "month")


def day(month: int, number: int = 15) -> datetime:
    return datetime(2024, month, number, 12, tzinfo=UTC)


def do(ledger: Ledger, kind: str, job: str, *details: Any, now: datetime = NOW) -> Entry:
    entry: Entry = getattr(ledger, f"decide_{kind}")(job, *details, now)
    ledger.apply(entry)
    return entry


def reserve(ledger: Ledger, job: str, count: int, now: datetime = NOW) -> Entry:
    return do(ledger, "reserve", job, REQUEST, STEP, count, now=now)


def replayed(records: list[dict[str, Any]], budget: Budget = BUDGET) -> Ledger:
    ledger = Ledger(budget)
    for place, record in enumerate(records, 1):
        try:
            entry = entries.from_record(record)
        except DovetailError as error:
            raise LedgerError(f"ledger entry {place}: {error}") from None
        ledger.apply(entry)
    return ledger


def rechained(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    previous = GENESIS
    for record in records:
        record["previous"] = previous
        previous = canonical.digest(record)
    return records
