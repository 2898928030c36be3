"""The one gate, over a real ledger and a desk where people decide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from dovetail.agreement.party import Party
from dovetail.agreement.permit import PERMIT_DAYS
from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.agreement.request import Request
from dovetail.agreement.signing import PREVIEW, SignedRequest, sign_request
from dovetail.agreement.terms import Budget, Terms, digest
from dovetail.errors import LedgerError, PolicyError
from dovetail.node.gate import Decision, Decisions, Gate
from dovetail.privacy import accountant
from dovetail.schema import Category, Column, Label, Number, Schema
from dovetail.simulation.identities import COORDINATOR, asked, partner, signing_key
from dovetail.store.admissions import Admissions
from dovetail.store.desk import Desk
from dovetail.store.ledger import LedgerStore
from tests.samples import SCHEMA, TASK, terms

REQUEST, REQUEST_2 = Request("job-1", TASK), Request("job-2", TASK)
FIRST, LAST = date(2024, 1, 1), date(2024, 12, 31)
START = datetime(2026, 5, 15, 12, tzinfo=UTC)
TERMS = terms()
MANUAL = terms(approval="manual")
LARGE = tuple(replace(known, customers=500) for known in TERMS.partners)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def later(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Iterator[LedgerStore]:
    with closing(LedgerStore(None, TERMS.budget, clock)) as store:
        yield store


@pytest.fixture
def admissions() -> Admissions:
    return Admissions(None)


def nobody(_: SignedRequest) -> Decision | None:
    return None


def fits() -> None:
    """Whatever came with a round can be used."""


def gate(
    ledger: LedgerStore,
    clock: Clock,
    agreed: Terms = TERMS,
    policy: NodePolicy = NOTHING_MORE,
    decisions: Decisions = nobody,
    admissions: Admissions | None = None,
) -> Gate:
    kept = admissions or Admissions(None)
    return Gate(agreed, "retailer", ledger, 304, policy, clock, decisions, kept)


def answers(desk: Desk, clock: Clock) -> Decisions:
    return lambda signed: desk.decision(signed, clock())


def kinds(ledger: LedgerStore) -> list[str]:
    return [entry.kind for entry in ledger.entries()]


def refused(rule: str) -> pytest.RaisesExc[PolicyError]:
    return pytest.RaisesExc(PolicyError, check=lambda error: error.rule == rule)


def test_a_permit_is_given_again_for_the_same_and_costs_nothing_more(
    ledger: LedgerStore, clock: Clock
) -> None:
    one = gate(ledger, clock)
    first = one.admit(asked(REQUEST, TERMS))
    clock.later(days=3)
    again = one.admit(asked(REQUEST, TERMS))
    assert again == first
    assert kinds(ledger) == ["reserve"]
    one.begin(REQUEST, 1, fits)
    late = one.admit(asked(REQUEST, TERMS))
    assert late == replace(first, ledger_head=ledger.entries()[-1].digest)


def test_a_permit_given_again_needs_no_room_and_asks_nobody_again(
    ledger: LedgerStore, clock: Clock
) -> None:
    tight = NodePolicy(max_concurrent_jobs=1)
    one = gate(ledger, clock, policy=tight)
    one.admit(asked(REQUEST, TERMS))
    one.admit(asked(REQUEST, TERMS))
    with refused("jobs"):
        one.admit(asked(Request("job-2", TASK), TERMS))


def test_what_was_signed_to_be_priced_is_priced_and_not_admitted(
    ledger: LedgerStore, clock: Clock
) -> None:
    key = signing_key(COORDINATOR)
    priced = sign_request(REQUEST, digest(TERMS), COORDINATOR, key, PREVIEW)
    one = gate(ledger, clock)
    assert one.preview(priced).refused_by == ""
    with refused("party"):
        one.admit(priced)
    assert kinds(ledger) == []
    assert one.preview(asked(REQUEST, TERMS)).refused_by == ""
    one.admit(asked(REQUEST, TERMS))
    with refused("party"):
        one.admit(priced)


def test_other_content_under_an_admitted_name_is_no_permit(
    ledger: LedgerStore, clock: Clock
) -> None:
    one = gate(ledger, clock)
    one.admit(asked(REQUEST, TERMS))
    with refused("request"):
        one.admit(asked(Request("job-1", replace(TASK, seed=3)), TERMS))
    assert kinds(ledger) == ["reserve"]


def test_a_job_that_ended_is_not_admitted_again(ledger: LedgerStore, clock: Clock) -> None:
    one = gate(ledger, clock)
    one.admit(asked(REQUEST, TERMS))
    one.close("job-1")
    with refused("request"):
        one.admit(asked(REQUEST, TERMS))
    with refused("request"):
        one.begin(REQUEST, 1, fits)
    with pytest.raises(LedgerError):
        one.close("job-1")


def test_a_permit_ends_thirty_days_after_it_was_reserved(ledger: LedgerStore, clock: Clock) -> None:
    one = gate(ledger, clock)
    permit = one.admit(asked(REQUEST, TERMS))
    assert permit.expires == (START + timedelta(days=30)).isoformat()
    clock.later(days=30)
    one.begin(REQUEST, 1, fits)
    clock.later(seconds=1)
    with refused("permit"):
        one.begin(REQUEST, 2, fits)
    assert kinds(ledger) == ["reserve", "begin"]
    assert one.admit(asked(REQUEST, TERMS)).expires == permit.expires, "asking again renews nothing"


def test_a_job_whose_end_nobody_told_gives_back_what_it_never_began(
    ledger: LedgerStore, clock: Clock
) -> None:
    one = gate(ledger, clock, policy=NodePolicy(max_concurrent_jobs=1))
    one.admit(asked(REQUEST, TERMS))
    one.begin(REQUEST, 1, fits)
    next_one = asked(Request("job-2", TASK), TERMS)
    clock.later(days=30)
    with refused("jobs"):
        one.admit(next_one)
    clock.later(seconds=1)
    one.admit(next_one)
    assert ledger.refresh().spending() == {TASK.event: 1 + TASK.steps}
    assert kinds(ledger) == ["reserve", "begin", "cancel", "reserve"]
    one.admit(next_one)


def test_a_permit_does_not_outlast_the_terms(ledger: LedgerStore, clock: Clock) -> None:
    ending = terms(valid_until=date(2026, 5, 16))
    one = gate(ledger, clock, ending)
    assert one.admit(asked(REQUEST, ending)).expires == "2026-05-16T23:59:59+00:00"
    clock.later(days=2)
    with refused("permit"):
        one.begin(REQUEST, 1, fits)
    with refused("dates"):
        one.admit(asked(Request("job-2", TASK), ending))


@pytest.mark.parametrize("policy", [NOTHING_MORE, NodePolicy(approval="manual")])
@pytest.mark.parametrize("agreed", [TERMS, MANUAL], ids=["automatic", "manual"])
def test_a_person_is_asked_where_terms_or_policy_say_so(
    agreed: Terms, policy: NodePolicy, ledger: LedgerStore, clock: Clock
) -> None:
    one = gate(ledger, clock, agreed, policy)
    needed = agreed is MANUAL or policy.approval == "manual"
    assert one.preview(asked(REQUEST, agreed)).needs_approval is needed
    if needed:
        with refused("approval"):
            one.admit(asked(REQUEST, agreed))
    else:
        one.admit(asked(REQUEST, agreed))
    assert kinds(ledger) == ([] if needed else ["reserve"])


def test_a_decision_is_about_one_request_exactly(
    ledger: LedgerStore, clock: Clock, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "desk")
    one = gate(ledger, clock, MANUAL, decisions=answers(desk, clock))
    desk.wait_for_decision(asked(REQUEST, MANUAL), START)
    desk.decide("job-1", "approved", START)
    other = Request("job-1", replace(TASK, rounds=4))
    with refused("approval"):
        one.admit(asked(other, MANUAL))
    one.admit(asked(REQUEST, MANUAL))


def test_a_person_can_refuse_what_rules_would_allow(
    ledger: LedgerStore, clock: Clock, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "desk")
    desk.wait_for_decision(asked(REQUEST, TERMS), START)
    desk.decide("job-1", "refused", START)
    with refused("refusal"):
        gate(ledger, clock, decisions=answers(desk, clock)).admit(asked(REQUEST, TERMS))
    assert kinds(ledger) == []


def test_people_are_not_asked_about_what_the_rules_refuse(
    ledger: LedgerStore, clock: Clock
) -> None:
    resale = Request("job-1", replace(TASK, purpose="resale"))
    with refused("purpose"):
        gate(ledger, clock, MANUAL).admit(asked(resale, MANUAL))


def test_a_preview_of_what_has_no_cost_names_the_rule(ledger: LedgerStore, clock: Clock) -> None:
    shared = Request("job-1", replace(TASK, protection="distributed"))
    with pytest.raises(PolicyError) as refused:
        gate(ledger, clock).preview(asked(shared, TERMS))
    assert refused.value.rule == "protection"
    assert kinds(ledger) == []


def test_a_preview_charges_nothing_and_says_what_is_left(ledger: LedgerStore, clock: Clock) -> None:
    one = gate(ledger, clock)
    epsilon = accountant.epsilon({TASK.event: TASK.steps}, TERMS.budget.delta)
    before = one.preview(asked(REQUEST, TERMS))
    assert before.epsilon == before.charged == pytest.approx(epsilon)
    assert before.remaining == pytest.approx(TERMS.budget.epsilon)
    one.admit(asked(REQUEST, TERMS))
    after = one.preview(asked(Request("job-2", TASK), TERMS))
    assert after.remaining == pytest.approx(TERMS.budget.epsilon - epsilon)
    assert (after.refused_by, after.text) == ("", "")
    dear = Request("job-3", replace(TASK, noise_multiplier=0.2))
    refusal = one.preview(asked(dear, TERMS))
    assert refusal.refused_by == "epsilon"
    assert not refusal.text.startswith("epsilon")
    assert kinds(ledger) == ["reserve"]


def test_what_no_epsilon_can_be_stated_for_is_refused_by_that_rule(
    ledger: LedgerStore, clock: Clock
) -> None:
    loud = asked(Request("job-1", replace(TASK, noise_multiplier=1e-3)), TERMS)
    one = gate(ledger, clock)
    for call in (one.preview, one.admit):
        with refused("epsilon"):
            call(loud)


def test_a_budget_refills_with_its_period(clock: Clock) -> None:
    monthly = terms(budget=Budget(8.0, 1e-3, "month"))
    dear = replace(TASK, noise_multiplier=0.6, rounds=20)
    with closing(LedgerStore(None, monthly.budget, clock)) as ledger:
        one = gate(ledger, clock, monthly)
        one.admit(asked(Request("job-1", dear), monthly))
        with refused("budget"):
            one.admit(asked(Request("job-2", dear), monthly))
        clock.later(days=17)
        one.admit(asked(Request("job-2", dear), monthly))
        one.begin(Request("job-1", dear), 1, fits)
        with refused("budget"):
            one.admit(asked(Request("job-3", dear), monthly))
        clock.later(days=-17)
        with pytest.raises(LedgerError, match="backwards"):
            one.begin(Request("job-1", dear), 2, fits)


def test_terms_that_became_stricter_stop_an_admitted_job(
    ledger: LedgerStore, clock: Clock, admissions: Admissions
) -> None:
    gate(ledger, clock, admissions=admissions).admit(asked(REQUEST, TERMS))
    stricter = gate(ledger, clock, terms(max_rounds=2), admissions=admissions)
    with refused("rounds"):
        stricter.begin(REQUEST, 1, fits)
    assert kinds(ledger) == ["reserve"]


ANALYST = Party("analyst", signing_key("analyst").public, "a" * 64)
WITH_ANALYST = terms(analysts=(ANALYST,))


def asked_by_analyst(known: Terms = WITH_ANALYST) -> SignedRequest:
    return sign_request(REQUEST, digest(known), "analyst", signing_key("analyst"))


def with_columns(*columns: Column) -> Schema:
    return replace(SCHEMA, columns=columns)


AGE, SPEND, REGION = SCHEMA.columns
NARROW = Number("age", 0, 50, nullable=True)
AMENDMENTS: list[tuple[str, Terms]] = [
    ("party", TERMS),
    ("party", terms(analysts=(replace(ANALYST, key=signing_key("another").public),))),
    ("role", terms(partners=(*TERMS.partners, partner("analyst", "brand", 100, FIRST, LAST)))),
    ("purpose", replace(WITH_ANALYST, purposes=("churn",))),
    ("label", replace(WITH_ANALYST, schema=replace(SCHEMA, label=Label("returned", 0.2)))),
    ("column", replace(WITH_ANALYST, schema=with_columns(AGE, SPEND))),
    ("column", replace(WITH_ANALYST, schema=with_columns(NARROW, SPEND, REGION))),
    ("column", replace(WITH_ANALYST, schema=replace(SCHEMA, max_rows_per_customer=1))),
    ("column", replace(WITH_ANALYST, schema=replace(SCHEMA, label=Label("bought", 0.4)))),
    ("model", replace(WITH_ANALYST, model_families=("mlp",))),
    ("model", replace(WITH_ANALYST, max_parameters=1)),
    ("rounds", replace(WITH_ANALYST, max_rounds=2)),
    ("steps", replace(WITH_ANALYST, max_steps=2)),
    ("cohort", replace(WITH_ANALYST, partners=LARGE, minimum_cohort=400)),
    ("dates", replace(WITH_ANALYST, valid_from=date(2027, 1, 1))),
]


@pytest.mark.parametrize(("rule", "amended"), AMENDMENTS)
def test_a_running_job_is_judged_again_by_the_terms_now_in_force(
    rule: str, amended: Terms, ledger: LedgerStore, clock: Clock, admissions: Admissions
) -> None:
    before = gate(ledger, clock, WITH_ANALYST, admissions=admissions)
    before.admit(asked_by_analyst())
    before.begin(REQUEST, 1, fits)
    after = gate(ledger, clock, amended, admissions=admissions)
    with refused(rule):
        after.begin(REQUEST, 2, fits)
    assert kinds(ledger) == ["reserve", "begin"]


def test_a_running_job_goes_on_under_an_amendment_that_does_not_concern_it(
    ledger: LedgerStore, clock: Clock, admissions: Admissions
) -> None:
    gate(ledger, clock, WITH_ANALYST, admissions=admissions).admit(asked_by_analyst())
    more = with_columns(AGE, SPEND, REGION, Category("channel", ("shop", "web")))
    amended = replace(WITH_ANALYST, schema=more, max_concurrent_jobs=1, max_epsilon_per_job=1e-3)
    after = gate(ledger, clock, amended, admissions=admissions)
    after.begin(REQUEST, 1, fits)
    with refused("epsilon"):
        after.admit(asked_by_analyst(amended))


def test_asking_again_does_not_take_a_job_over_to_columns_declared_otherwise(
    ledger: LedgerStore, clock: Clock, admissions: Admissions
) -> None:
    gate(ledger, clock, WITH_ANALYST, admissions=admissions).admit(asked_by_analyst())
    amended = replace(WITH_ANALYST, schema=with_columns(NARROW, SPEND, REGION))
    after = gate(ledger, clock, amended, admissions=admissions)
    with refused("column"):
        after.admit(asked_by_analyst(amended))
    with refused("column"):
        after.begin(REQUEST, 1, fits)


def test_a_known_job_is_judged_again_but_its_room_and_budget_are_not(
    ledger: LedgerStore, clock: Clock
) -> None:
    tight = terms(max_concurrent_jobs=1, budget=TERMS.budget)
    one = gate(ledger, clock, tight)
    whole = Request("job-1", replace(TASK, noise_multiplier=0.6, rounds=20))
    one.admit(asked(whole, tight))
    with refused("jobs"):
        one.admit(asked(REQUEST_2, tight))
    one.admit(asked(whole, tight))
    assert kinds(ledger) == ["reserve"]


def test_whose_job_it_is_must_be_known_here(ledger: LedgerStore, clock: Clock) -> None:
    gate(ledger, clock).admit(asked(REQUEST, TERMS))
    forgetful = gate(ledger, clock)
    with refused("request"):
        forgetful.begin(REQUEST, 1, fits)
    forgetful.admit(asked(REQUEST, TERMS))
    forgetful.begin(REQUEST, 1, fits)
    assert kinds(ledger) == ["reserve", "begin"]


def test_a_job_that_ended_is_not_kept(
    ledger: LedgerStore, clock: Clock, admissions: Admissions
) -> None:
    one = gate(ledger, clock, admissions=admissions)
    one.admit(asked(REQUEST, TERMS))
    one.close("job-1")
    assert admissions.admitted("job-1") is None


MANUAL_WITH_ANALYST = terms(approval="manual", analysts=(ANALYST,))


def test_a_yes_is_for_who_asked_under_the_terms_of_that_time(
    ledger: LedgerStore, clock: Clock, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "desk")
    desk.wait_for_decision(asked_by_analyst(MANUAL_WITH_ANALYST), clock())
    desk.decide("job-1", "approved", clock())
    says = answers(desk, clock)
    one = gate(ledger, clock, MANUAL_WITH_ANALYST, decisions=says)
    with refused("approval"):
        one.admit(asked(REQUEST, MANUAL_WITH_ANALYST))
    amended = replace(MANUAL_WITH_ANALYST, max_rounds=40)
    with refused("approval"):
        gate(ledger, clock, amended, decisions=says).admit(asked_by_analyst(amended))
    assert kinds(ledger) == []
    one.admit(asked_by_analyst(MANUAL_WITH_ANALYST))


def test_a_known_job_needs_another_yes_under_other_terms_or_from_another_asker(
    ledger: LedgerStore, clock: Clock, admissions: Admissions, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "desk")
    says, signed = answers(desk, clock), asked_by_analyst(MANUAL_WITH_ANALYST)
    desk.wait_for_decision(signed, clock())
    desk.decide("job-1", "approved", clock())
    one = gate(ledger, clock, MANUAL_WITH_ANALYST, NOTHING_MORE, says, admissions)
    one.admit(signed)
    with refused("approval"):
        one.admit(asked(REQUEST, MANUAL_WITH_ANALYST))
    amended = replace(MANUAL_WITH_ANALYST, max_rounds=40)
    after = gate(ledger, clock, amended, NOTHING_MORE, says, admissions)
    with refused("approval"):
        after.admit(asked_by_analyst(amended))
    desk.wait_for_decision(asked_by_analyst(amended), clock())
    desk.decide("job-1", "approved", clock())
    after.admit(asked_by_analyst(amended))
    assert kinds(ledger) == ["reserve"]


def test_a_yes_lasts_as_long_as_a_permit(ledger: LedgerStore, clock: Clock, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    one = gate(ledger, clock, MANUAL, decisions=answers(desk, clock))
    for job in ("job-1", "job-2"):
        desk.wait_for_decision(asked(Request(job, TASK), MANUAL), clock())
        desk.decide(job, "approved", clock())
    clock.later(days=PERMIT_DAYS)
    one.admit(asked(REQUEST, MANUAL))
    clock.later(seconds=1)
    with refused("approval"):
        one.admit(asked(REQUEST_2, MANUAL))


def test_a_no_stops_a_running_job_whichever_terms_it_was_said_under(
    ledger: LedgerStore, clock: Clock, admissions: Admissions, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "desk")
    says = answers(desk, clock)
    one = gate(ledger, clock, TERMS, NOTHING_MORE, says, admissions)
    one.admit(asked(REQUEST, TERMS))
    amended = terms(max_rounds=40)
    desk.wait_for_decision(asked(REQUEST, amended), clock())
    desk.decide("job-1", "refused", clock())
    with refused("refusal"):
        gate(ledger, clock, amended, NOTHING_MORE, says, admissions).begin(REQUEST, 1, fits)


@pytest.mark.parametrize("rule", ["terms", "party", "role"])
def test_who_may_not_ask_learns_nothing_of_a_budget(
    rule: str, ledger: LedgerStore, clock: Clock
) -> None:
    signed = {
        "terms": asked(REQUEST, terms(max_rounds=49)),
        "party": replace(asked(REQUEST, TERMS), signature="0" * 128),
        "role": sign_request(REQUEST, digest(TERMS), "platform", signing_key("platform")),
    }
    with refused(rule):
        gate(ledger, clock).preview(signed[rule])
