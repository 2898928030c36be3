from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.agreement.entry import Entry, time_of
from dovetail.agreement.ledger import MOST_DRAWN, Ledger
from dovetail.agreement.terms import Budget
from dovetail.errors import LedgerError, PolicyError, PrivacyError, SettingError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian, SampledGaussian
from tests.agreement.ledgers import (
    BUDGET,
    NOW,
    REQUEST,
    STEP,
    VECTORS,
    do,
    rechained,
    replayed,
    reserve,
)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(BUDGET)


def test_the_good_vector_adds_up_to_what_it_says() -> None:
    good = VECTORS["good"]
    ledger = replayed(good["entries"])
    assert ledger.head == good["head"]
    assert ledger.length == len(good["entries"])
    jobs = ledger.spending_by_job()
    assert {name: job.charged for name, job in jobs.items()} == good["charged"]
    assert ledger.spending() == {SampledGaussian(0.1, 1.0, 1.5): 8, Gaussian(2.0, 10.0): 1}


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_a_bad_chain_is_refused_where_it_breaks(
    vector: dict[str, Any], changed: Callable[..., Any]
) -> None:
    records = changed(VECTORS["good"]["entries"], vector)
    if "drop" in vector:
        del records[vector["drop"]]
    if "twice" in vector:
        records.insert(vector["twice"], copy.deepcopy(records[vector["twice"]]))
    if "swap" in vector:
        one, other = vector["swap"]
        records[one], records[other] = records[other], records[one]
    with pytest.raises(LedgerError) as caught:
        replayed(rechained(records) if vector["rechain"] else records)
    assert str(caught.value).startswith(f"ledger entry {vector['entry']}: ")
    assert vector["message"] in str(caught.value)


def test_a_reservation_counts_at_once_and_drawing_from_it_costs_nothing_more(
    ledger: Ledger,
) -> None:
    reserve(ledger, "spring", 6)
    promised = ledger.epsilon()
    do(ledger, "begin", "spring", 1, 3)
    do(ledger, "commit", "spring", 1)
    do(ledger, "begin", "spring", 2, 3)
    assert ledger.spending() == {STEP: 6}
    assert ledger.epsilon() == promised == accountant.epsilon({STEP: 6}, 1e-5)


def test_the_last_step_of_a_budget_can_be_spent_and_not_one_more(ledger: Ledger) -> None:
    reserve(ledger, "spring", 9)
    with pytest.raises(PolicyError) as caught:
        reserve(ledger, "summer", 2)
    assert caught.value.rule == "budget"
    reserve(ledger, "summer", 1)
    assert ledger.remaining(NOW) == 0
    with pytest.raises(PolicyError):
        reserve(ledger, "autumn", 1)


@pytest.mark.parametrize("request_digest", [REQUEST, "b" * 64])
def test_a_job_takes_place_once(request_digest: str, ledger: Ledger) -> None:
    reserve(ledger, "spring", 1)
    with pytest.raises(LedgerError, match="reserved before"):
        ledger.decide_reserve("spring", request_digest, STEP, 1, NOW)
    do(ledger, "cancel", "spring")
    with pytest.raises(LedgerError, match="reserved before"):
        ledger.decide_reserve("spring", request_digest, STEP, 1, NOW)


def test_a_committed_round_is_never_answered_again(ledger: Ledger) -> None:
    reserve(ledger, "spring", 4)
    do(ledger, "begin", "spring", 1, 1)
    do(ledger, "commit", "spring", 1)
    with pytest.raises(LedgerError, match="committed before"):
        ledger.decide_begin("spring", 1, 1, NOW)
    with pytest.raises(LedgerError, match="committed before"):
        ledger.decide_commit("spring", 1, NOW)


def test_nothing_is_committed_that_was_not_begun(ledger: Ledger) -> None:
    reserve(ledger, "spring", 4)
    with pytest.raises(LedgerError, match="never begun"):
        ledger.decide_commit("spring", 1, NOW)


def test_a_round_begun_again_is_charged_again_and_beyond_the_reservation(ledger: Ledger) -> None:
    reserve(ledger, "spring", 4)
    do(ledger, "begin", "spring", 1, 2)
    do(ledger, "begin", "spring", 1, 2)
    assert ledger.spending() == {STEP: 4}
    do(ledger, "commit", "spring", 1)
    do(ledger, "begin", "spring", 2, 2)
    assert ledger.spending() == {STEP: 6}
    assert ledger.spending_by_job()["spring"].drawn_once == 4


def test_a_round_is_not_begun_again_where_the_budget_does_not_cover_it(ledger: Ledger) -> None:
    reserve(ledger, "spring", 10)
    do(ledger, "begin", "spring", 1, 10)
    with pytest.raises(PolicyError) as caught:
        ledger.decide_begin("spring", 1, 10, NOW)
    assert caught.value.rule == "budget"
    assert ledger.spending() == {STEP: 10}


def test_a_round_asked_again_and_again_costs_a_job_at_most_twice(ledger: Ledger) -> None:
    reserve(ledger, "spring", 3)
    for _ in range(MOST_DRAWN):
        do(ledger, "begin", "spring", 1, 3)
    with pytest.raises(LedgerError, match="begun too often"):
        ledger.decide_begin("spring", 1, 3, NOW)
    assert ledger.spending() == {STEP: MOST_DRAWN * 3}
    do(ledger, "commit", "spring", 1)
    reserve(ledger, "summer", 4)


def test_attempts_at_one_round_leave_less_for_the_others(ledger: Ledger) -> None:
    reserve(ledger, "spring", 2)
    for _ in range(4):
        do(ledger, "begin", "spring", 1, 1)
    for number in (1, 2):
        with pytest.raises(LedgerError, match="begun too often"):
            ledger.decide_begin("spring", number, 1, NOW)
    do(ledger, "commit", "spring", 1)
    do(ledger, "cancel", "spring")
    assert ledger.spending() == {STEP: 4}


def test_a_history_of_more_attempts_than_are_allowed_now_is_readable(ledger: Ledger) -> None:
    reserve(ledger, "spring", 1)
    for _ in range(MOST_DRAWN + 1):
        ledger.apply(
            Entry(ledger.length + 1, ledger.head, time_of(NOW), "begin", "spring", 1, count=1)
        )
    assert ledger.spending() == {STEP: MOST_DRAWN + 1}


def test_first_attempts_draw_no_more_than_was_reserved(ledger: Ledger) -> None:
    reserve(ledger, "spring", 3)
    do(ledger, "begin", "spring", 1, 2)
    with pytest.raises(LedgerError, match="used up"):
        ledger.decide_begin("spring", 2, 2, NOW)
    do(ledger, "begin", "spring", 2, 1)


def test_cancelling_gives_back_only_what_was_never_begun(ledger: Ledger) -> None:
    reserve(ledger, "spring", 8)
    do(ledger, "begin", "spring", 1, 3)
    do(ledger, "cancel", "spring")
    assert ledger.spending() == {STEP: 3}
    decisions: list[Callable[[], Entry]] = [
        lambda: ledger.decide_begin("spring", 1, 3, NOW),
        lambda: ledger.decide_begin("spring", 2, 3, NOW),
        lambda: ledger.decide_commit("spring", 1, NOW),
        lambda: ledger.decide_cancel("spring", NOW),
    ]
    for decide in decisions:
        with pytest.raises(LedgerError, match="not open"):
            decide()


def test_cancelling_untouched_gives_everything_back(ledger: Ledger) -> None:
    reserve(ledger, "spring", 10)
    do(ledger, "cancel", "spring")
    assert (ledger.spending(), ledger.epsilon()) == ({}, 0.0)
    reserve(ledger, "summer", 10)


def test_deciding_changes_nothing(ledger: Ledger) -> None:
    reserve(ledger, "spring", 4)
    before = ledger.head, ledger.length, ledger.spending(), ledger.spending_by_job()
    ledger.decide_reserve("summer", REQUEST, STEP, 2, NOW)
    ledger.decide_begin("spring", 1, 4, NOW)
    ledger.decide_cancel("spring", NOW)
    assert before == (ledger.head, ledger.length, ledger.spending(), ledger.spending_by_job())


def test_an_entry_fits_only_where_it_was_decided(ledger: Ledger) -> None:
    first = ledger.decide_reserve("spring", REQUEST, STEP, 5, NOW)
    second = ledger.decide_reserve("summer", REQUEST, STEP, 6, NOW)
    ledger.apply(first)
    for stale in (first, second):
        with pytest.raises(LedgerError, match="ledger entry 2"):
            ledger.apply(stale)
    assert ledger.spending() == {STEP: 5}


def test_a_history_is_readable_under_a_budget_that_was_lowered_since(ledger: Ledger) -> None:
    decided = reserve(ledger, "spring", 10)
    lowered = Ledger(Budget(BUDGET.epsilon / 2, BUDGET.delta))
    lowered.apply(decided)
    assert lowered.remaining(NOW) == 0
    with pytest.raises(PolicyError):
        lowered.decide_reserve("summer", REQUEST, STEP, 1, NOW)


def test_a_clock_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(SettingError, match="time zone"):
        ledger.decide_reserve("spring", REQUEST, STEP, 1, NOW.replace(tzinfo=None))


def test_asking_whether_something_fits_says_what_deciding_does(ledger: Ledger) -> None:
    reserve(ledger, "spring", 7)
    before = ledger.head, ledger.spending()
    for count in range(1, 6):
        assert ledger.would_fit(STEP, count, NOW) == (count <= 3)
    assert before == (ledger.head, ledger.spending())
    assert ledger.fits_alone(STEP, 10, BUDGET.epsilon)
    assert not ledger.fits_alone(STEP, 11, BUDGET.epsilon)


def test_open_jobs_are_those_that_are_not_cancelled(ledger: Ledger) -> None:
    assert ledger.open_jobs() == ()
    for job in ("spring", "summer", "autumn"):
        reserve(ledger, job, 1)
    do(ledger, "begin", "summer", 1, 1)
    do(ledger, "cancel", "spring")
    assert ledger.open_jobs() == ("summer", "autumn")
    do(ledger, "commit", "summer", 1)
    do(ledger, "cancel", "summer")
    assert ledger.open_jobs() == ("autumn",)


@pytest.mark.parametrize("count", [0, -1])
def test_no_steps_are_no_promise(count: int, ledger: Ledger) -> None:
    with pytest.raises(SettingError, match="at least 1"):
        reserve(ledger, "spring", count)


def test_noise_that_cannot_be_accounted_for_is_refused(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="noise multipliers"):
        do(ledger, "reserve", "spring", REQUEST, Gaussian(1.0, 1e-3), 1)


FIELDS = [(i, name) for i, e in enumerate(VECTORS["good"]["entries"]) for name in e]


@settings(max_examples=200, deadline=None)
@given(
    place=st.sampled_from(FIELDS),
    value=st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["reserve", "begin", "commit", "cancel", "spring", "f" * 64]),
)
def test_no_field_of_any_entry_can_be_changed_unnoticed_by_one_who_knows_the_head(
    place: tuple[int, str], value: object
) -> None:
    records = copy.deepcopy(VECTORS["good"]["entries"])
    index, name = place
    if records[index][name] == value and type(records[index][name]) is type(value):
        return
    records[index][name] = value
    if index < len(records) - 1:
        with pytest.raises(LedgerError, match=f"ledger entry ({index + 1}|{index + 2}): "):
            replayed(records)
        return
    try:
        head = replayed(records).head
    except LedgerError:
        return
    assert head != VECTORS["good"]["head"]
