"""Any order of spending, crashes and months, beside a plain count."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dovetail.agreement.terms import Budget
from dovetail.errors import LedgerError, PolicyError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian
from dovetail.store.ledger import LedgerStore

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
STEP = Gaussian(1.0, 4.0)
REQUEST = "a" * 64
STEPS = 10
MONTHLY = Budget(accountant.epsilon({STEP: STEPS}, 1e-5), 1e-5, "month")
"""Covers ten steps a month and no eleventh."""
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
"""Where files are written at once: what a killed process leaves behind is the same there."""


class Spending(RuleBasedStateMachine):
    """A partner's jobs with crashes anywhere, beside a plain count of what was begun.

    The budget covers ten steps a month; the counter is kept apart from the ledger and forgets
    nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.path = Path(self.folder.name) / "ledger.db"
        self.now = NOW
        self.store = self.opened()
        self.month_of: dict[str, str] = {}
        self.reserved: dict[str, int] = {}
        self.begun: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.committed: set[tuple[str, int]] = set()
        self.attempts: dict[tuple[str, int], int] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    jobs = st.sampled_from(["a", "b", "c"])
    counts = st.integers(min_value=1, max_value=3)
    rounds = st.integers(min_value=1, max_value=2)

    def opened(self) -> LedgerStore:
        return LedgerStore(self.path, MONTHLY, lambda: self.now)

    @property
    def month(self) -> str:
        return f"{self.now:%Y-%m}"

    def charged(self, month: str) -> int:
        return sum(
            self.begun[job] if job in self.cancelled else max(self.begun[job], promised)
            for job, promised in self.reserved.items()
            if self.month_of[job] == month
        )

    @rule(job=jobs, count=counts)
    def reserve(self, job: str, count: int) -> None:
        fits = job not in self.reserved and self.charged(self.month) + count <= STEPS
        if self.tried(fits, self.store.reserve, job, REQUEST, STEP, count):
            self.reserved[job], self.begun[job], self.month_of[job] = count, 0, self.month

    @rule(job=jobs, number=rounds, count=counts)
    def begin(self, job: str, number: int, count: int) -> None:
        before = self.charged(self.month_of.get(job, ""))
        open_ = job in self.reserved and job not in self.cancelled
        first = {key: n for key, n in self.attempts.items() if key[0] == job}
        fits = open_ and (job, number) not in self.committed
        if fits and (job, number) in first:
            fits = first[job, number] == count
        elif fits:
            fits = sum(first.values()) + count <= self.reserved[job]
        if fits:
            after = max(self.reserved[job], self.begun[job] + count)
            fits = before - max(self.reserved[job], self.begun[job]) + after <= STEPS
        if self.tried(fits, self.store.begin, job, number, count):
            self.begun[job] += count
            self.attempts.setdefault((job, number), count)

    @rule(job=jobs, number=rounds)
    def commit(self, job: str, number: int) -> None:
        fits = (job, number) in self.attempts and (job, number) not in self.committed
        if self.tried(fits and job not in self.cancelled, self.store.commit, job, number):
            self.committed.add((job, number))

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        fits = job in self.reserved and job not in self.cancelled
        if self.tried(fits, self.store.cancel, job):
            self.cancelled.add(job)

    @rule()
    def crash(self) -> None:
        self.store = self.opened()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.opened()

    @rule(days=st.integers(1, 40))
    def time_passes(self, days: int) -> None:
        self.now += timedelta(days=days)

    @precondition(lambda self: self.store.refresh().length)
    @rule(job=jobs, count=counts)
    def the_clock_is_set_back(self, job: str, count: int) -> None:
        last = datetime.fromisoformat(self.store.entries()[-1].time)
        self.now, right = last.replace(day=1) - timedelta(days=1), self.now
        self.tried(False, self.store.reserve, job, REQUEST, STEP, count)
        self.tried(False, self.store.cancel, job)
        self.now = right

    @invariant()
    def the_budget_holds_and_nothing_that_was_begun_is_missing(self) -> None:
        ledger = self.store.refresh()
        for month in set(self.month_of.values()):
            assert ledger.epsilon(period=month) <= MONTHLY.epsilon
            assert ledger.spending(month).get(STEP, 0) == self.charged(month) <= STEPS
        assert sum(ledger.spending().values()) >= sum(self.begun.values())
        drawn = {job: spent.drawn for job, spent in ledger.spending_by_job().items()}
        assert drawn == self.begun

    def tried(self, fits: bool, act: Any, *details: Any) -> bool:
        length = self.store.refresh().length
        try:
            act(*details)
        except (LedgerError, PolicyError):
            assert not fits
            assert self.store.refresh().length == length
            return False
        assert fits
        return True


Spending.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestSpending = Spending.TestCase
