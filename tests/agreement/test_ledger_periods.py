"""A budget that refills: what belongs to which period, and what no period is charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.agreement.ledger import Ledger
from dovetail.agreement.terms import Budget
from dovetail.errors import LedgerError, PolicyError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian, SampledGaussian
from tests.agreement.ledgers import (
    BUDGET,
    MONTHLY,
    NOW,
    REQUEST,
    STEP,
    VECTORS,
    day,
    do,
    rechained,
    replayed,
    reserve,
)


@pytest.mark.parametrize("vector", VECTORS["periods"], ids=lambda vector: vector["name"])
def test_jobs_belong_to_the_periods_that_the_vectors_say(
    vector: dict[str, Any], changed: Callable[..., Any]
) -> None:
    records = rechained(changed(VECTORS["good"]["entries"], vector))
    ledger = replayed(records, Budget(8.0, 1e-5, vector["period"]))
    jobs = ledger.spending_by_job()
    assert {name: job.period for name, job in jobs.items()} == vector["jobs"]
    charged = {each: sum(ledger.spending(each).values()) for each in ledger.periods()}
    assert charged == vector["charged"]
    assert sum(charged.values()) == sum(ledger.spending().values()) == 9


def test_a_new_period_has_the_whole_budget_again() -> None:
    ledger = Ledger(MONTHLY)
    reserve(ledger, "spring", 10, day(5, 31))
    assert not ledger.would_fit(STEP, 1, day(5, 31))
    with pytest.raises(PolicyError):
        reserve(ledger, "summer", 1, day(5, 31))
    assert ledger.would_fit(STEP, 10, day(6, 1))
    assert ledger.remaining(day(6, 1)) == MONTHLY.epsilon
    reserve(ledger, "summer", 10, day(6, 1))
    assert ledger.periods() == ("2024-05", "2024-06")
    assert ledger.epsilon(period="2024-06") == ledger.epsilon(period="2024-05") == MONTHLY.epsilon
    assert ledger.epsilon() == accountant.epsilon({STEP: 20}, 1e-5)
    assert ledger.remaining(day(6, 30)) == 0


def test_rounds_in_a_later_period_are_charged_to_the_one_of_the_reservation() -> None:
    ledger = Ledger(MONTHLY)
    reserve(ledger, "spring", 8, day(5))
    reserve(ledger, "summer", 10, day(6))
    do(ledger, "begin", "spring", 1, 4, now=day(7))
    do(ledger, "begin", "spring", 1, 4, now=day(7))
    do(ledger, "begin", "spring", 2, 2, now=day(7))
    assert ledger.spending("2024-05") == {STEP: 10}
    assert ledger.spending("2024-06") == {STEP: 10}
    assert ledger.spending("2024-07") == {}
    with pytest.raises(PolicyError) as caught:
        ledger.decide_begin("spring", 2, 2, day(7))
    assert caught.value.rule == "budget"
    job = ledger.job("spring")
    assert job is not None
    assert (job.period, job.reserved_at) == ("2024-05", "2024-05-15T12:00:00+00:00")


def test_what_is_given_back_late_is_given_back_to_the_period_it_was_taken_from() -> None:
    ledger = Ledger(MONTHLY)
    reserve(ledger, "spring", 8, day(5))
    reserve(ledger, "summer", 10, day(6))
    do(ledger, "cancel", "spring", now=day(6))
    assert ledger.periods() == ("2024-06",)
    assert not ledger.would_fit(STEP, 1, day(6))


@pytest.mark.parametrize(
    ("kind", "details"),
    [("reserve", (REQUEST, STEP, 1)), ("begin", (1, 1)), ("commit", (1,)), ("cancel", ())],
)
def test_a_clock_that_went_back_to_an_earlier_period_is_refused(
    kind: str, details: tuple[Any, ...]
) -> None:
    ledger = Ledger(MONTHLY)
    reserve(ledger, "spring", 1, day(5, 1))
    do(ledger, "begin", "spring", 1, 1, now=day(6, 30))
    job = "summer" if kind == "reserve" else "spring"
    for now in (day(5, 31), day(5, 1)):
        with pytest.raises(LedgerError, match="clock went backwards"):
            do(ledger, kind, job, *details, now=now)
        assert ledger.period(now) == "2024-06"
    assert ledger.length == 2
    do(ledger, kind, job, *details, now=day(6, 1))


def test_a_clock_may_go_back_within_a_period() -> None:
    ledger = Ledger(BUDGET)
    reserve(ledger, "spring", 5, NOW)
    reserve(ledger, "summer", 5, NOW - timedelta(days=400))
    assert ledger.job("summer") is not None


def test_months_are_those_of_utc() -> None:
    ledger = Ledger(MONTHLY)
    late = datetime.fromisoformat("2024-06-30T23:30:00-02:00")
    reserve(ledger, "spring", 1, late)
    assert ledger.periods() == ("2024-07",)


COUNTS = st.integers(1, 4)
JOBS = st.sampled_from("abcde")
ROUNDS = st.integers(1, 2)
DETAILS = {
    "reserve": st.tuples(st.just(REQUEST), st.just(STEP), COUNTS),
    "begin": st.tuples(ROUNDS, COUNTS),
    "commit": st.tuples(ROUNDS),
    "cancel": st.tuples(),
}
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2024, 4, 1), timezones=st.just(UTC))
ACTS = st.sampled_from(sorted(DETAILS)).flatmap(
    lambda kind: st.tuples(st.just(kind), JOBS, DETAILS[kind], MOMENTS)
)


@settings(max_examples=100, deadline=None)
@given(
    acts=st.lists(ACTS, max_size=60),
    in_order=st.booleans(),
    period=st.sampled_from(["never", "year", "quarter", "month"]),
)
def test_no_period_is_charged_more_than_the_budget_whatever_is_asked_in_whatever_order(
    acts: list[Any], in_order: bool, period: Any
) -> None:
    budget = Budget(BUDGET.epsilon, BUDGET.delta, period)
    ledger, written = Ledger(budget), []
    for kind, job, details, now in sorted(acts, key=lambda act: act[3]) if in_order else acts:
        before = ledger.spending(), ledger.length
        try:
            written.append(do(ledger, kind, job, *details, now=now))
        except (LedgerError, PolicyError):
            assert before == (ledger.spending(), ledger.length)
    times = [budget.period_of(entry.moment) for entry in written]
    assert times == sorted(times)
    charged: Counter[str] = Counter()
    for job in ledger.spending_by_job().values():
        assert job.period == budget.period_of(datetime.fromisoformat(job.reserved_at))
        charged[job.period] += job.charged
    assert {each: ledger.spending(each)[STEP] for each in ledger.periods()} == +charged
    assert max(charged.values(), default=0) <= 10
    read_back = Ledger(budget)
    for entry in written:
        read_back.apply(entry)
    assert read_back.spending_by_job() == ledger.spending_by_job()
    assert read_back.open_jobs() == ledger.open_jobs()


KINDS = [SampledGaussian(0.02, 1.0, 1.0), SampledGaussian(0.1, 1.0, 3.0), Gaussian(1.0, 9.0)]


@settings(max_examples=25, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(1, 80), st.integers(1, 3)), max_size=12
    ),
    cancelled=st.sets(st.integers(0, 11)),
    epsilon=st.floats(0.5, 4.0),
)
def test_mixed_jobs_never_cost_a_period_more_than_its_budget(
    asked: list[tuple[Any, int, int]], cancelled: set[int], epsilon: float
) -> None:
    """Close to the budget, where an upper bound no longer decides, and after giving back."""
    ledger = Ledger(Budget(epsilon, 1e-5, "month"))
    for number, (event, count, month) in enumerate(sorted(asked, key=lambda each: each[2])):
        fits = ledger.would_fit(event, count, day(month))
        after = ledger.spending(ledger.period(day(month)))
        after[event] = after.get(event, 0) + count
        assert fits == (accountant.epsilon(after, 1e-5) <= epsilon)
        if fits:
            do(ledger, "reserve", f"job-{number}", REQUEST, event, count, now=day(month))
            if number in cancelled:
                do(ledger, "cancel", f"job-{number}", now=day(month))
        for period in ledger.periods():
            assert accountant.epsilon(ledger.spending(period), 1e-5) <= epsilon
