"""All jobs of a coordinator over a real database: taken in, run, approved, cancelled, settled."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from flwr.app import Message

from dovetail.agreement.request import Request
from dovetail.coordinator import docket as dockets
from dovetail.errors import AgreementError, PolicyError, SettingError, TransportError
from dovetail.simulation.identities import COORDINATOR
from dovetail.wire.channel import Answer
from tests.coordinator.nodes import NAMES, Nodes, Sent, Twist, edited, lost_once
from tests.coordinator.office import (
    ANALYST,
    PATIENCE,
    asked_by,
    office,
    trusting,
    with_analyst,
)
from tests.samples import TASK, terms

MANUAL = with_analyst(approval="manual")


def test_a_job_goes_its_way_and_everything_is_told(tmp_path: Path) -> None:
    nodes = Nodes()
    with office(tmp_path, nodes) as one:
        assert one.submit() in ("proposed", "approved", "running")
        one.heard.until("released")
        one.done()
        kept = [event.kind for event in one.store.events("job-1")]
        assert one.store.get("job-1").state == "released"
    assert one.heard.kinds() == kept
    assert kept == ["submitted", *["permitted"] * 3, *["round"] * 3, "released"]
    assert all(len(cards) == 1 for cards in nodes.kept.values())


def test_the_same_again_changes_nothing_whatever_became_of_it(tmp_path: Path) -> None:
    with office(tmp_path, Nodes()) as one:
        for _ in range(3):
            one.submit()
        one.heard.until("released")
        assert one.submit() == "released"
        one.done()
    assert one.heard.kinds().count("submitted") == 1
    assert one.heard.kinds().count("round") == 3
    assert all(one.nodes.rounds_sent(name) == [1, 2, 3] for name in NAMES)


@pytest.mark.parametrize("over", [False, True], ids=["waiting", "ended"])
def test_other_content_under_a_known_name_is_refused(over: bool, tmp_path: Path) -> None:
    other = Request("job-1", replace(TASK, seed=5))
    with office(tmp_path, Nodes(MANUAL)) as one:
        one.submit(ANALYST)
        if over:
            one.docket.cancel("job-1")
        with pytest.raises(SettingError, match="another job is named 'job-1'"):
            one.submit(ANALYST, other)
        with pytest.raises(SettingError, match="another job is named 'job-1'"):
            one.submit(COORDINATOR)
        assert one.store.get("job-1").request["task"]["seed"] == TASK.seed


@pytest.mark.parametrize(
    ("asker", "key", "rule"),
    [
        ("retailer", "retailer", "role"),
        ("stranger", "stranger", "party"),
        (ANALYST, "stranger", "party"),
        (COORDINATOR, ANALYST, "party"),
    ],
)
def test_only_who_may_ask_can_submit(asker: str, key: str, rule: str, tmp_path: Path) -> None:
    agreed = with_analyst()
    with office(tmp_path, Nodes(agreed)) as one:
        signed = asked_by(asker, agreed, key=key)
        for call in (one.docket.preview, lambda s: one.docket.submit(s, 0, 60.0)):
            with pytest.raises(PolicyError) as caught:
                call(signed)
            assert caught.value.rule == rule
        assert one.store.list() == ()
    assert one.nodes.sent == []


def test_without_terms_in_force_nothing_is_taken_in(tmp_path: Path) -> None:
    over = terms(valid_until=date(2024, 12, 31))
    for trusted in (trusting(), trusting(over)):
        with office(tmp_path, Nodes(over), trusted) as one:
            for call in (one.docket.preview, lambda s: one.docket.submit(s, 0, 60.0)):
                with pytest.raises(AgreementError):
                    call(asked_by(COORDINATOR, over))


def test_a_request_under_other_terms_is_refused(tmp_path: Path) -> None:
    with office(tmp_path, Nodes()) as one:
        with pytest.raises(PolicyError) as caught:
            one.docket.submit(asked_by(COORDINATOR, terms(minimum_cohort=40)), 0, 60.0)
        assert caught.value.rule == "terms"


@pytest.mark.parametrize(
    ("quorum", "deadline", "named"),
    [(4, 60.0, "quorum"), (-1, 60.0, "quorum"), (2, 0.0, "deadline"), (2, 1e9, "deadline")],
)
def test_a_quorum_or_deadline_that_cannot_be_is_refused(
    quorum: int, deadline: float, named: str, tmp_path: Path
) -> None:
    with office(tmp_path, Nodes()) as one:
        with pytest.raises(SettingError, match=named):
            one.docket.submit(asked_by(COORDINATOR, terms()), quorum, deadline)
        assert one.store.list() == ()


def test_more_jobs_than_can_be_under_way_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dockets, "MOST_JOBS", 2)
    with office(tmp_path, Nodes(MANUAL)) as one:
        for name in ("job-1", "job-2", "job-1"):
            one.submit(ANALYST, Request(name, TASK))
        with pytest.raises(SettingError, match="2 jobs are under way"):
            one.submit(ANALYST, Request("job-3", TASK))
        one.docket.cancel("job-2")
        one.submit(ANALYST, Request("job-3", TASK))


def test_many_jobs_run_side_by_side(tmp_path: Path) -> None:
    names = [f"job-{number}" for number in range(5)]
    gentle = replace(TASK, noise_multiplier=5.0)
    with office(tmp_path, Nodes()) as one:
        for name in names:
            one.submit(request=Request(name, gentle))
        for name in names:
            one.heard.until("released", name)
        one.done()
        assert {job.state for job in one.store.list()} == {"released"}
    assert all(len(one.nodes.rounds_sent(name)) == 15 for name in NAMES)


def test_an_analysts_job_under_manual_terms_waits_for_the_operator(tmp_path: Path) -> None:
    with office(tmp_path, Nodes(MANUAL, decisions=dict.fromkeys(NAMES, "approved"))) as one:
        for _ in range(2):
            assert one.submit(ANALYST) == "proposed"
        (awaiting,) = one.heard.until("awaiting")
        assert awaiting.partner == COORDINATOR
        assert one.nodes.sent == []
        one.docket.approve("job-1")
        one.heard.until("released")
        with pytest.raises(SettingError, match="has ended"):
            one.docket.approve("job-1")
        one.done()


def test_what_waits_for_the_operator_still_waits_after_a_restart(tmp_path: Path) -> None:
    nodes = Nodes(MANUAL, decisions=dict.fromkeys(NAMES, "approved"))
    with office(tmp_path, nodes) as one:
        one.submit(ANALYST)
    with office(tmp_path, nodes) as again:
        again.docket.resume()
        assert again.heard.events == []
        again.docket.approve("job-1")
        again.heard.until("released")


def test_the_coordinators_own_jobs_need_no_operator_but_the_partners_people(
    tmp_path: Path,
) -> None:
    with office(tmp_path, Nodes(MANUAL)) as one:
        one.submit(COORDINATOR)
        one.heard.until("awaiting", times=3)
        for name in NAMES:
            one.nodes.decide(name, "approved")
        one.heard.until("released")


def test_a_job_is_cancelled_before_it_runs(tmp_path: Path) -> None:
    with office(tmp_path, Nodes(MANUAL)) as one:
        one.submit(ANALYST)
        assert one.docket.cancel("job-1").state == "cancelled"
        for call in (one.docket.cancel, one.docket.approve):
            with pytest.raises(SettingError, match="has ended: it is cancelled"):
                call("job-1")
        assert one.heard.kinds()[-1] == "cancelled"
    assert one.nodes.sent == []


def test_a_job_is_cancelled_while_it_waits_for_people(tmp_path: Path) -> None:
    nodes = Nodes(MANUAL, decisions={"retailer": "approved"})
    with office(tmp_path, nodes) as one:
        one.submit()
        one.heard.until("awaiting", times=2)
        one.docket.cancel("job-1")
        nodes.nudge()
        one.heard.until("cancelled")
        one.done()
        assert one.store.get("job-1").reason == "cancelled on request"
    assert all(charged == {} for charged in nodes.charged().values())


@pytest.mark.parametrize("act", ["cancel", "approve"])
def test_an_unknown_job_is_said_to_be(act: str, tmp_path: Path) -> None:
    with office(tmp_path, Nodes()) as one, pytest.raises(SettingError, match="no job named"):
        getattr(one.docket, act)("job-9")


def test_a_preview_says_what_each_would_say_and_charges_nothing(tmp_path: Path) -> None:
    nodes = Nodes(absent={"brand"})
    with office(tmp_path, nodes) as one:
        dear = Request("job-1", replace(TASK, noise_multiplier=0.2))
        fits = one.docket.preview(asked_by(COORDINATOR, nodes.terms))
        found = one.docket.preview(asked_by(COORDINATOR, nodes.terms, dear))
    assert fits["retailer"]["refused_by"] == ""
    assert fits["retailer"]["needs_approval"] is False
    assert fits["retailer"]["remaining"] == pytest.approx(nodes.terms.budget.epsilon)
    assert list(found) == [partner.name for partner in nodes.terms.partners]
    assert found["platform"]["refused_by"] == "epsilon"
    assert found["brand"] == {"refused_by": "unreachable", "text": "the node is not connected"}
    assert all(charged == {} for charged in nodes.charged().values())


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"epsilon": "1.0", "charged": 1.0, "remaining": 2.0},
        {"epsilon": True, "charged": 1.0, "remaining": 2.0},
        {"epsilon": 1.0, "remaining": 2.0},
        {"epsilon": 1.0, "charged": 1.0, "remaining": None},
        [1, 2],
    ],
)
def test_a_node_that_answers_a_preview_with_something_else_counts_as_unreachable(
    said: object, tmp_path: Path
) -> None:
    def edit(reply: Message) -> None:
        reply.content.config_records["config"]["preview"] = json.dumps(said)

    nodes = Nodes(twist=edited("query.preview", "brand", edit))
    with office(tmp_path, nodes) as one:
        found = one.docket.preview(asked_by(COORDINATOR, nodes.terms))
    assert found["brand"]["refused_by"] == "unreachable"
    assert found["retailer"]["refused_by"] == ""


def test_a_preview_holds_nothing_but_what_it_should(tmp_path: Path) -> None:
    def edit(reply: Message) -> None:
        config = reply.content.config_records["config"]
        said = json.loads(str(config["preview"]))
        config["preview"] = json.dumps({**said, "text": "x" * 10_000, "rows": 1234})

    nodes = Nodes(twist=edited("query.preview", "brand", edit))
    with office(tmp_path, nodes) as one:
        found = one.docket.preview(asked_by(COORDINATOR, nodes.terms))["brand"]
    assert set(found) == {"refused_by", "text", "needs_approval", "epsilon", "charged", "remaining"}
    assert len(str(found["text"])) == 500


def leaving_after(nodes: Nodes, name: str, number: int) -> Twist:
    """A partner is gone once it has answered a round."""

    def twist(sent: Sent, answer: Answer) -> Answer:
        if (sent.partner, sent.number) == (name, number):
            nodes.absent.add(name)
        return answer

    return twist


def test_who_was_away_at_the_end_is_told_later_and_given_the_model(tmp_path: Path) -> None:
    nodes = Nodes()
    with office(tmp_path, nodes) as one:
        nodes.twist = leaving_after(nodes, "brand", 3)
        one.submit()
        one.heard.until("released")
        one.done()
        assert one.store.unsettled() == {"job-1": ("brand",)}
        one.docket.settle()
        assert nodes.kept["brand"] == []
        nodes.arrive("brand")
        one.docket.settle()
        assert one.store.unsettled() == {}
        sent = len(nodes.sent)
        one.docket.settle()
    assert nodes.kept["brand"] == nodes.kept["retailer"]
    assert nodes.ledgers["brand"].refresh().spending_by_job()["job-1"].cancelled
    assert len(nodes.sent) == sent, "who has heard is left alone"


def test_who_could_not_keep_the_model_is_not_asked_all_the_time(tmp_path: Path) -> None:
    nodes = Nodes(twist=lost_once("query.keep", "brand"))
    with office(tmp_path, nodes) as one:
        one.submit()
        one.heard.until("released")
        one.done()
        nodes.twist = lost_once("query.keep", "brand")
        for _ in range(3):
            one.docket.settle()
    assert nodes.told("query.keep").count("brand") == 2


def test_a_refused_job_frees_who_had_permitted_even_if_it_was_away(tmp_path: Path) -> None:
    nodes = Nodes(MANUAL, decisions={"retailer": "approved"})
    with office(tmp_path, nodes) as one:
        one.submit()
        one.heard.until("permitted")
        nodes.absent = {"retailer"}
        nodes.decide("brand", "refused")
        one.heard.until("refused", times=2)
        one.done()
        assert nodes.charged()["retailer"] == {TASK.event: TASK.steps}
        nodes.absent = set()
        one.docket.settle()
        assert one.store.unsettled() == {}
    assert nodes.charged()["retailer"] == {}


def test_of_two_jobs_one_is_the_first_at_every_partner(tmp_path: Path) -> None:
    reached, overtaken = threading.Event(), threading.Event()

    def hold_the_first(sent: Sent, answer: Answer) -> Answer:
        if sent.kind == "query.propose" and not reached.is_set():
            reached.set()
            overtaken.wait(0.5)  # long enough for the other, if it need not wait
        return answer

    with office(tmp_path, Nodes(twist=hold_the_first)) as one:
        one.submit()
        assert reached.wait(PATIENCE)
        one.submit(request=Request("job-2", TASK))
        one.heard.until("released", "job-1")
        one.heard.until("released", "job-2")
        permitted = [event.job for event in one.heard.events if event.kind == "permitted"]
    assert permitted == ["job-1"] * 3 + ["job-2"] * 3


def test_a_partner_that_takes_too_long_does_not_hold_up_other_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dockets, "_LONGEST_TURN", 0.05)
    reached, enough = threading.Event(), threading.Event()

    def hold_the_first(sent: Sent, answer: Answer) -> Answer:
        if sent.kind == "query.propose" and not reached.is_set():
            reached.set()
            assert enough.wait(PATIENCE)
        return answer

    with office(tmp_path, Nodes(twist=hold_the_first)) as one:
        one.submit()
        assert reached.wait(PATIENCE)
        one.submit(request=Request("job-2", TASK))
        one.heard.until("released", "job-2")
        enough.set()
        one.heard.until("released", "job-1")


def test_a_reservation_whose_permit_was_lost_is_given_back_at_the_end(tmp_path: Path) -> None:
    decisions = {"brand": "approved", "platform": "approved", "retailer": "refused"}
    nodes = Nodes(MANUAL, decisions=decisions)  # type: ignore[arg-type]

    def gone_with_its_permit(sent: Sent, answer: Answer) -> Answer:
        if (sent.kind, sent.partner) != ("query.propose", "brand"):
            return answer
        nodes.absent.add("brand")
        return TransportError("the node is gone")

    nodes.twist = gone_with_its_permit
    with office(tmp_path, nodes) as one:
        one.submit()
        one.heard.until("refused", times=2)
        one.done()
        assert nodes.ledgers["brand"].refresh().open_jobs() == ("job-1",)
        assert one.store.unsettled() == {"job-1": ("brand",)}
        nodes.arrive("brand")
        one.docket.settle()
        assert one.store.unsettled() == {}
    assert nodes.ledgers["brand"].refresh().spending() == {}
