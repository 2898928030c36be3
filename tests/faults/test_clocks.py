"""Clocks that are wrong, and an agreement that ends: refused by its rule, and nothing charged."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta

import pytest

from dovetail.agreement.request import Request
from dovetail.agreement.terms import Budget
from dovetail.errors import AgreementError
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.records import JobRecord
from tests.faults import books
from tests.faults.host import Host
from tests.faults.points import Doom
from tests.faults.process import Setting
from tests.faults.trial import PARTNERS, Trial, request
from tests.samples import terms

pytestmark = pytest.mark.long

DAY = 24 * 3600.0
A_MOMENT = 240.0
"""Seconds before midnight at which there is time enough for a test and not for a wrong result."""
LAST_DAY = datetime.now(UTC).date() + timedelta(days=300)


@pytest.fixture(scope="module")
def trial(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    monthly = Budget(epsilon=50.0, delta=1e-3, period="month")
    agreed = terms(budget=monthly, valid_until=LAST_DAY)
    with Trial(tmp_path_factory.mktemp("clocks"), host, agreed) as started:
        started.start()
        yield started


@pytest.fixture
def wrong(trial: Trial) -> Iterator[Trial]:
    """A federation whose clocks are right again afterwards."""
    yield trial
    changed = [party for party, setting in trial.settings.items() if setting.clock_ahead]
    set_clocks(trial, dict.fromkeys(changed, 0.0))


def set_clocks(trial: Trial, ahead: dict[str, float]) -> None:
    """Starts parties again with clocks that are so many seconds ahead."""
    for party, seconds in ahead.items():
        trial.settings[party] = Setting(clock_ahead=seconds)
    trial.kill(*ahead)
    trial.restart(*ahead)


def refused(trial: Trial, asked: Request, parties: tuple[str, ...], why: str) -> JobRecord:
    """A job that is refused and for which these parties note nothing."""
    before = {party: books.ledger_of(trial, party).entries for party in parties}
    trial.hand_in(asked)
    job = trial.ended(asked)
    assert why in job.reason
    assert any(job.reason.startswith(party) for party in parties), job.reason
    assert {party: books.ledger_of(trial, party).entries for party in parties} == before
    return job


def check_nothing_charged(trial: Trial, asked: Request) -> None:
    trial.until_settled()
    books.check(trial, asked)
    for partner in PARTNERS:
        spent = books.ledger_of(trial, partner).jobs.get(asked.job)
        assert spent is None or spent.charged == 0


@pytest.mark.parametrize("days", [1, -1])
def test_a_node_that_is_a_day_off_refuses(wrong: Trial, days: int) -> None:
    set_clocks(wrong, {"brand": days * DAY})
    asked = request(f"node-{days}-day-off")
    assert refused(wrong, asked, ("brand",), "clock:").state == "refused"
    check_nothing_charged(wrong, asked)


def test_nodes_refuse_a_coordinator_that_is_a_day_off(wrong: Trial) -> None:
    set_clocks(wrong, {COORDINATOR: DAY})
    asked = request("coordinator-day-off")
    assert refused(wrong, asked, PARTNERS, "clock:").state == "refused"
    check_nothing_charged(wrong, asked)


def test_a_clock_that_goes_wrong_within_a_job_ends_that_node_s_part(wrong: Trial) -> None:
    asked = request("within")
    wrong.doom("brand", Doom("begin", "before", 2))
    wrong.hand_in(asked)
    wrong.until_killed("brand")
    wrong.settings["brand"] = Setting(clock_ahead=DAY)
    wrong.restart("brand")
    job = wrong.ended(asked)
    wrong.until_settled()
    books.check(wrong, asked)
    assert (job.state, job.rounds_done) == ("released", 3)
    late = [event for event in wrong.told(asked, "dropped") if event.partner == "brand"]
    assert late[-1].text.startswith("clock:")
    assert books.ledger_of(wrong, "brand").jobs[asked.job].rounds_begun == 1


def test_after_the_last_day_nobody_can_ask(wrong: Trial) -> None:
    set_clocks(wrong, dict.fromkeys((COORDINATOR, *PARTNERS), 301 * DAY))
    with pytest.raises(AgreementError):
        wrong.submit(request("too-late"))
    assert not wrong.knows(request("too-late"))


def test_a_node_goes_by_its_own_calendar(wrong: Trial) -> None:
    """The coordinator's last day has not ended yet, and that of one node has."""
    midnight = datetime.combine(LAST_DAY + timedelta(days=1), time(), UTC)
    left = (midnight - datetime.now(UTC)).total_seconds()
    ahead = dict.fromkeys((COORDINATOR, *PARTNERS), left - A_MOMENT)
    set_clocks(wrong, {**ahead, "retailer": left + A_MOMENT})
    asked = request("midnight")
    assert refused(wrong, asked, ("retailer",), "terms:").state == "refused"
    set_clocks(wrong, {"retailer": left - A_MOMENT})  # closed, it would not hear of the end
    check_nothing_charged(wrong, asked)


def test_a_ledger_takes_no_entry_from_before_a_month_that_has_begun(
    host: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monthly = Budget(epsilon=50.0, delta=1e-3, period="month")
    folder = tmp_path_factory.mktemp("back")
    ahead = Setting(clock_ahead=40 * DAY)
    everybody = dict.fromkeys((COORDINATOR, *PARTNERS), ahead)
    with Trial(folder, host, terms(budget=monthly), settings=everybody) as trial:
        trial.start()
        later, now = request("next-month"), request("this-month")
        trial.hand_in(later)
        assert trial.ended(later).state == "released"
        trial.until_settled()
        set_clocks(trial, dict.fromkeys(everybody, 0.0))
        assert refused(trial, now, PARTNERS, "the clock went backwards").state == "failed"
        check_nothing_charged(trial, now)
        books.check(trial, later)
