"""The real coordinator and real nodes, over a channel that misbehaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request, digest
from dovetail.coordinator.job import State
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.run import Run
from dovetail.errors import (
    PolicyError,
    RemoteProtocolError,
    SettingError,
    TooManyDropouts,
    TransportError,
)
from dovetail.flower.actions import CLOSE
from dovetail.privacy.event import to_record
from dovetail.simulation.identities import asked
from dovetail.simulation.world import World
from tests.coordinator.nodes import (
    NAMES,
    PARTNERS,
    Nodes,
    Twist,
    lost,
    lost_once,
    permit_with,
    poisoned,
)
from tests.samples import TASK, customers, terms

REQUEST = Request("job-1", TASK)
ALL = {name: {TASK.event: TASK.steps} for name in NAMES}
NOTHING: dict[str, dict[object, int]] = {name: {} for name in NAMES}


def run_over(nodes: Nodes, request: Request = REQUEST, **settings: object) -> Run:
    """A job over these nodes for which waiting brings nobody back, unless told otherwise."""
    signed = asked(request, nodes.terms)
    return Run(signed, nodes.terms, nodes, PARTNERS, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "twist", [lost("train", "retailer", rounds=[2]), poisoned("retailer", 2)], ids=["lost", "nan"]
)
def test_a_job_outlives_one_bad_answer(twist: Twist) -> None:
    events: list[JobEvent] = []
    nodes = Nodes(twist=twist)
    run = run_over(nodes, on_event=events.append)
    release = run.run()
    assert run.job.state is State.RELEASED
    assert all(np.isfinite(array).all() for array in release.value.values())
    dropped = [(e.partner, e.round) for e in events if e.kind == "dropped"]
    assert dropped == [("retailer", 1)]
    assert nodes.charged() == ALL


def test_too_few_answers_fail_a_job_that_cannot_wait_and_free_what_was_never_begun() -> None:
    events: list[JobEvent] = []
    nodes = Nodes(twist=lost("train", "retailer", "brand", rounds=[2]))
    run = run_over(nodes, on_event=events.append)
    with pytest.raises(TooManyDropouts, match="round 2: 1 of 3 partners contributed"):
        run.run()
    assert run.job.state is State.FAILED
    assert run.job.reason.endswith("brand: the node is gone")
    assert nodes.charged() == {name: {TASK.event: 2} for name in NAMES}
    assert [event.kind for event in events[-4:]] == ["dropped", "dropped", "lost", "failed"]


def test_a_lost_round_costs_its_number_and_the_model_goes_on_from_the_one_before() -> None:
    twist = lost("train", "retailer", "brand", rounds=[2])
    nodes, models = Nodes(twist=twist), []
    run = run_over(
        nodes, wait=nodes.wait, on_round=lambda number, arrays: models.append((number, arrays))
    )
    release = run.run()
    assert (run.job.rounds_done, run.job.rounds_lost) == (2, 1)
    assert [number for number, _ in models] == [1, 3]
    assert all(nodes.rounds_sent(name) == [1, 2, 3] for name in NAMES)
    assert release.provenance.rounds == 2
    assert nodes.charged() == ALL, "noise was drawn for a lost round, so it stays charged"
    np.testing.assert_array_equal(release.value["output.bias"], models[-1][1]["output.bias"])


def test_a_job_may_not_lose_more_than_its_share_of_rounds() -> None:
    events: list[JobEvent] = []
    nodes = Nodes(twist=lost("train", "retailer", "brand", rounds=[1, 2]))
    run = run_over(nodes, wait=nodes.wait, on_event=events.append)
    with pytest.raises(TooManyDropouts, match="round 2"):
        run.run()
    assert run.job.state is State.FAILED
    assert [event.kind for event in events].count("lost") == 2
    assert nodes.rounds_sent("platform") == [1, 2]
    assert nodes.told("query.close") == list(NAMES)


def test_a_quorum_of_all_allows_no_dropout() -> None:
    with pytest.raises(TooManyDropouts, match="the job needs 3"):
        run_over(Nodes(twist=lost("train", "platform", rounds=[1])), quorum=3).run()


def test_a_lost_permit_means_no_job_where_nobody_waits() -> None:
    nodes = Nodes(twist=lost("query.propose", "platform"))
    run = run_over(nodes)
    with pytest.raises(TransportError, match="platform"):
        run.run()
    assert run.job.state is State.FAILED
    assert nodes.charged() == NOTHING


def test_a_lost_permit_is_asked_for_again_of_who_lost_it_and_costs_nothing_more() -> None:
    nodes = Nodes(twist=lost_once("query.propose", "platform"), then=[lambda: None])
    run_over(nodes, wait=nodes.wait, deadline=60.0).run()
    assert sorted(nodes.told("query.propose")) == sorted([*NAMES, "platform"])
    assert nodes.charged() == ALL


def test_a_refused_job_says_who_and_which_rule() -> None:
    events: list[JobEvent] = []
    nodes = Nodes()
    request = replace(REQUEST, task=replace(TASK, purpose="resale"))
    run = run_over(nodes, request, on_event=events.append, wait=nodes.wait)
    with pytest.raises(PolicyError) as caught:
        run.run()
    assert caught.value.rule == "purpose"
    assert run.job.state is State.REFUSED
    assert all(name in run.job.reason for name in NAMES)
    assert {event.partner for event in events[:-1]} == set(NAMES)
    assert (events[-1].partner, events[-1].kind) == ("", "refused")
    assert nodes.charged() == NOTHING


def test_who_permitted_a_refused_job_gives_its_budget_back_before_another_has_its_turn() -> None:
    closed: list[str] = []

    @contextmanager
    def turn() -> Iterator[None]:
        try:
            yield
        finally:
            closed.extend(nodes.told(CLOSE))

    nodes = Nodes(decisions={"platform": "refused"})
    run = run_over(nodes, turn=turn, wait=nodes.wait)
    with pytest.raises(PolicyError, match="platform refused"):
        run.run()
    assert sorted(closed) == sorted(NAMES)
    assert nodes.told(CLOSE) == closed, "nobody is told twice"
    assert nodes.charged() == NOTHING


def test_an_operator_who_stops_the_job_leaves_nothing_reserved() -> None:
    def stop(_number: int, _arrays: object) -> None:
        raise KeyboardInterrupt

    nodes = Nodes()
    run = run_over(nodes, on_round=stop)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.job.state is State.CANCELLED
    assert nodes.charged() == {name: {TASK.event: 1} for name in NAMES}


def test_a_bug_at_the_coordinator_is_told_to_nobody_and_ends_the_job() -> None:
    def fail(_number: int, _arrays: object) -> None:
        raise ValueError("/home/operator/secret")

    events: list[JobEvent] = []
    nodes = Nodes()
    run = run_over(nodes, on_round=fail, on_event=events.append)
    with pytest.raises(ValueError, match="secret"):
        run.run()
    assert (run.job.state, run.job.reason) == (State.FAILED, "internal error at the coordinator")
    assert events[-1].text == "internal error at the coordinator"
    assert sorted(nodes.told("query.close")) == sorted(NAMES)


def test_a_job_needs_partners() -> None:
    with pytest.raises(SettingError):
        Run(asked(REQUEST, terms()), terms(), Nodes(), {})


def test_overlapping_customers_pay_for_all_partners() -> None:
    with World(terms(), customers(), 0) as world:
        apart = world.run(REQUEST)
    with World(terms(customers_overlap=True), customers(), 0) as world:
        together = world.run(REQUEST)
    assert apart.joint_epsilon == max(apart.epsilon.values())
    assert together.joint_epsilon > 1.3 * apart.joint_epsilon


OTHER = Request("job-1", replace(TASK, seed=7))


OTHER_TASK = {
    "request_digest": digest(Request("job-1", replace(TASK, seed=7))),
    "terms_digest": agreed.digest(terms(minimum_cohort=40)),
    "job": "job-2",
    "partner": "retailer",
    "steps": 2,
    "event": to_record(replace(TASK, noise_multiplier=2.0).event),
}
UNREADABLE = {"signature": "no signature", "steps": "three", "event": {}, "more": 1}


@pytest.mark.parametrize(
    ("changes", "signed"),
    [
        *[pytest.param({k: v}, True, id=f"signed {k}") for k, v in OTHER_TASK.items()],
        *[pytest.param({k: v}, False, id=f"forged {k}") for k, v in OTHER_TASK.items()],
        *[pytest.param({k: v}, False, id=f"unreadable {k}") for k, v in UNREADABLE.items()],
        pytest.param({"expires": "2999-01-01T00:00:00+00:00"}, False, id="forged expires"),
        pytest.param({"ledger_head": "0" * 64}, False, id="forged ledger_head"),
        pytest.param({"signature": "0" * 128}, False, id="forged signature"),
    ],
)
def test_a_permit_that_its_partner_did_not_give_for_this_is_no_permit(
    changes: dict[str, object], signed: bool
) -> None:
    nodes = Nodes(twist=permit_with("platform", changes, signed=signed))
    run = run_over(nodes, wait=nodes.wait)
    with pytest.raises(RemoteProtocolError, match=r"^platform: "):
        run.run()
    assert run.job.state is State.FAILED
    assert nodes.charged() == NOTHING
    assert nodes.told("train") == []


def test_every_partner_that_took_part_is_given_the_model() -> None:
    nodes = Nodes()
    release = run_over(nodes, card_of=lambda released: {"job": released.provenance.job}).run()
    assert nodes.kept == {name: [{"job": "job-1"}] for name in NAMES}
    assert nodes.told("query.keep") == nodes.told("query.close")
    assert set(release.epsilon) == set(NAMES)
