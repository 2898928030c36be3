"""What a job waits for: a quorum, people who approve, nodes that come back; and what ends it."""

from __future__ import annotations

import threading

import pytest

from dovetail.agreement.terms import Terms
from dovetail.coordinator import run as runs
from dovetail.coordinator.job import State
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.run import Suspended
from dovetail.errors import PolicyError, TooManyDropouts, TransportError
from dovetail.simulation.identities import signing_key
from tests.coordinator.nodes import NAMES, Nodes
from tests.coordinator.recording import Killed, Recording, a_run
from tests.samples import TASK, terms

MANUAL = terms(approval="manual")


def approving(nodes: Nodes, *names: str) -> None:
    for name in names:
        nodes.decide(name, "approved")


def test_a_round_waits_for_its_quorum() -> None:
    nodes, journal = Nodes(), Recording(4)
    with pytest.raises(Killed):
        a_run(nodes, journal).run()
    nodes.absent = {"retailer", "brand"}
    nodes.then = [lambda: None, lambda: nodes.arrive("brand")]
    resumed = a_run(nodes, journal)
    resumed.run()
    assert nodes.then == []
    assert nodes.rounds_sent("retailer") == [1, 2, 3], "who is absent is asked all the same"
    assert resumed.job.state is State.RELEASED
    assert nodes.charged()["retailer"] == {TASK.event: 3}, "it never heard of the end"
    assert sorted(journal.told) == ["brand", "platform"]


def test_a_quorum_that_does_not_come_back_in_time_fails_the_job() -> None:
    nodes, journal = Nodes(), Recording(5)
    with pytest.raises(Killed):
        a_run(nodes, journal).run()
    nodes.absent = {"retailer", "brand"}
    with pytest.raises(TooManyDropouts, match="fewer than 2 partners are connected"):
        a_run(nodes, journal, deadline=0.05).run()
    assert journal.job is not None
    assert journal.job.state is State.FAILED
    assert nodes.told("train") == []


def test_a_partner_that_never_answers_the_proposal_fails_the_job() -> None:
    nodes = Nodes(absent={"brand"})
    run = a_run(nodes, Recording(), deadline=0.5)
    with pytest.raises(TooManyDropouts, match="brand did not answer the proposal in time"):
        run.run()
    assert run.job.state is State.FAILED
    assert all(charged == {} for charged in nodes.charged().values())


def test_people_are_waited_for_longer_than_nodes_and_each_is_named_once() -> None:
    events: list[JobEvent] = []
    nodes = Nodes(MANUAL)
    nodes.then = [
        lambda: approving(nodes, "retailer"),
        lambda: None,
        lambda: approving(nodes, "platform", "brand"),
    ]
    run = a_run(nodes, Recording(), on_event=events.append, deadline=60.0)
    run.run()
    assert run.job.state is State.RELEASED
    awaited = [event for event in events if event.kind == "awaiting"]
    assert sorted(event.partner for event in awaited) == sorted(NAMES)
    assert all("approve" in event.text for event in awaited)
    assert next(e.partner for e in events if e.kind == "permitted") == "retailer"
    assert nodes.told("query.propose").count("retailer") == 2
    assert nodes.told("query.propose").count("brand") == 4


def test_one_person_who_refuses_ends_the_job_for_all() -> None:
    nodes = Nodes(MANUAL, decisions={"retailer": "approved"})
    nodes.then = [lambda: nodes.decide("brand", "refused")]
    run = a_run(nodes, Recording())
    with pytest.raises(PolicyError, match="brand refused: a person at this partner") as caught:
        run.run()
    assert caught.value.rule == "refusal"
    assert run.job.state is State.REFUSED
    assert sorted(nodes.told("query.close")) == sorted(NAMES)
    assert all(charged == {} for charged in nodes.charged().values())


def test_where_nobody_can_wait_a_pending_approval_refuses() -> None:
    nodes = Nodes(MANUAL)
    run = a_run(nodes, Recording())
    run.wait = None
    with pytest.raises(PolicyError) as caught:
        run.run()
    assert caught.value.rule == "approval"


def test_people_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "APPROVAL_SECONDS", 0.05)
    nodes = Nodes(MANUAL)
    with pytest.raises(TooManyDropouts, match="did not answer the proposal in time"):
        a_run(nodes, Recording(), deadline=0.5).run()
    assert all(charged == {} for charged in nodes.charged().values())


def test_a_job_that_waits_can_be_cancelled() -> None:
    cancelled, events = threading.Event(), list[JobEvent]()
    nodes = Nodes(MANUAL, decisions={"retailer": "approved"}, then=[cancelled.set])
    run = a_run(nodes, Recording(), cancelled=cancelled, on_event=events.append)
    with pytest.raises(TooManyDropouts, match="cancelled"):
        run.run()
    assert (run.job.state, run.job.reason) == (State.CANCELLED, "cancelled on request")
    assert events[-1].kind == "cancelled"
    assert all(charged == {} for charged in nodes.charged().values())


def test_a_running_job_is_cancelled_between_rounds_and_frees_the_rest() -> None:
    cancelled = threading.Event()
    nodes, journal = Nodes(), Recording()
    run = a_run(nodes, journal, cancelled=cancelled, on_round=lambda *_: cancelled.set())
    with pytest.raises(TooManyDropouts):
        run.run()
    assert run.job.state is State.CANCELLED
    assert all(nodes.rounds_sent(name) == [1] for name in NAMES)
    assert all(charged == {TASK.event: 1} for charged in nodes.charged().values())
    assert sorted(journal.told) == sorted(NAMES)


@pytest.mark.parametrize("agreed", [terms(), MANUAL], ids=["running", "proposed"])
def test_a_suspended_job_leaves_the_nodes_alone_and_goes_on_another_time(agreed: Terms) -> None:
    suspended = threading.Event()
    nodes, journal = Nodes(agreed, then=[suspended.set]), Recording()
    with pytest.raises(Suspended):
        a_run(nodes, journal, suspended=suspended, on_round=lambda *_: suspended.set()).run()
    assert nodes.told("query.close") == []
    assert journal.job is None or not journal.job.ended
    approving(nodes, *NAMES)
    resumed = a_run(nodes, journal)
    resumed.run()
    assert (resumed.job.rounds_done, resumed.job.rounds_lost) == (TASK.rounds, 0)
    assert all(nodes.rounds_sent(name) == [1, 2, 3] for name in NAMES)


def test_a_permit_that_was_noted_before_a_crash_is_asked_for_again_and_costs_nothing() -> None:
    nodes, journal = Nodes(), Recording(2)
    with pytest.raises(Killed):
        a_run(nodes, journal).run()
    assert len(journal.permits) == 2
    a_run(nodes, journal).run()
    for name in NAMES:
        entries = nodes.ledgers[name].entries()
        assert [entry.kind for entry in entries].count("reserve") == 1
        signed = journal.permits[name]
        assert signed.signature
        assert signed.permit.ledger_head == entries[0].digest
        assert signing_key(name).public == nodes.terms.partner(name).key


def test_a_partner_that_is_gone_when_it_is_proposed_to_and_comes_back_takes_part() -> None:
    nodes = Nodes(absent={"brand"})
    nodes.then = [lambda: nodes.arrive("brand")]
    run = a_run(nodes, Recording(), deadline=60.0)
    run.run()
    assert nodes.rounds_sent("brand") == [1, 2, 3]


def test_an_answer_that_is_no_refusal_and_no_silence_ends_the_job() -> None:
    nodes = Nodes(twist=lambda sent, answer: b"nonsense" if sent.partner == "brand" else answer)
    run = a_run(nodes, Recording())
    with pytest.raises(Exception, match="brand") as caught:
        run.run()
    assert not isinstance(caught.value, TransportError)
    assert run.job.state is State.FAILED
