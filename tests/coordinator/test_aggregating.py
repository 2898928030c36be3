"""Jobs whose partners share their noise: the real coordinator and nodes, and a channel between."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dovetail.agreement.cost import cost_of
from dovetail.agreement.request import Request
from dovetail.agreement.sharing import sum_digest
from dovetail.agreement.terms import Budget
from dovetail.coordinator.job import State
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.run import Run
from dovetail.errors import LocalProtocolError, TooManyDropouts, TransportError
from dovetail.flower import codec
from dovetail.node.aggregating import Aggregating
from dovetail.privacy import accountant
from dovetail.secagg.messages import KEY_ADVERT
from dovetail.simulation.identities import asked, signing_key
from dovetail.wire.channel import Answer
from tests.coordinator.nodes import NAMES, Nodes, Sent, Twist, as_it_came, lost
from tests.samples import SHARED_TASK, TASK, sharing_terms, tolerant_terms

Body = dict[str, Any]
"""What a node answers to a step, as JSON has it."""
STEPS = ("advertise_keys", "share_keys", "receive_shares", "check_consistency", "unmask")
ONE_DROPOUT = tolerant_terms()
FREE = Budget(epsilon=1e12, delta=1e-3)
"""A budget under which noise may be so small that sums can be compared."""


def run_over(nodes: Nodes, task: object = SHARED_TASK, **settings: object) -> Run:
    signed = asked(Request("job-1", task), nodes.terms)  # type: ignore[arg-type]
    return Run(signed, nodes.terms, nodes, nodes.partners, **settings)  # type: ignore[arg-type]


def lost_in(step: str, partner: str, nth: int) -> Twist:
    """A partner's nth answer to a step never arrives."""
    kind, seen = step if step == "train" else f"query.aggregate.{step}", [0]

    def twist(sent: Sent, answered: Answer) -> Answer:
        if (sent.kind, sent.partner) == (kind, partner):
            seen[0] += 1
            if seen[0] == nth:
                return TransportError("the node is gone")
        return answered

    return twist


def told_in(step: str, partner: str, change: Callable[[str, Body], object]) -> Twist:
    """A partner's first answer to a step says something else; changed in place, or the result."""
    left = [Sent(f"query.aggregate.{step}", partner)]

    def twist(sent: Sent, answered: Answer) -> Answer:
        if sent not in left or isinstance(answered, TransportError):
            return answered
        left.remove(sent)
        reply = codec.decode(answered)
        config = reply.content.config_records["config"]
        body = json.loads(str(config["body"]))
        config["body"] = json.dumps(change(partner, body) or body)
        return codec.encode(reply)

    return twist


def low_order_key(partner: str, body: Body) -> Body:
    """Its first round's key is one with which anybody knows the secret; signed by itself."""
    statement = {name: text for name, text in body.items() if name != "signature"}
    statement["round_keys"] = "00" * 32 + statement["round_keys"][64:]
    return {**statement, "signature": signing_key(partner).sign(KEY_ADVERT, statement)}


def without_shares_for_one(_partner: str, body: Body) -> None:
    body["shares"].popitem()


def with_a_wrong_share(_partner: str, body: Body) -> None:
    body["self_masks"]["platform"] = "00" * 33


BAD_ANSWERS = [
    ("advertise_keys", lambda _, body: body.clear(), "advert: expected the fields"),
    ("advertise_keys", lambda _, body: body.update(member="retailer"), "has not signed"),
    ("advertise_keys", low_order_key, "cannot be used for key agreement"),
    ("share_keys", lambda _, body: body.clear(), "shares cannot be read"),
    ("share_keys", without_shares_for_one, "shares: somebody is missing"),
    ("share_keys", lambda _, body: {"shares": dict.fromkeys(body["shares"], "ab")}, "length"),
    ("check_consistency", lambda _, body: body.clear(), "has not signed this secagg survivors"),
    ("check_consistency", lambda _, body: {"signature": "ab" * 64}, "has not signed this secagg"),
    ("unmask", lambda _, body: body.clear(), "its answer: expected the fields"),
    ("unmask", lambda _, body: body.update(round=7), "its answer is for another round"),
    ("unmask", with_a_wrong_share, "share of a secret of platform does not fit"),
]
"""Steps, what ``brand`` answers, and what is said of it."""
IDS = [f"{step} {i}" for i, (step, _, _) in enumerate(BAD_ANSWERS)]


@pytest.mark.parametrize(("step", "change", "why"), BAD_ANSWERS, ids=IDS)
def test_whose_answer_cannot_be_used_is_done_without(
    step: str, change: Callable[[str, Body], object], why: str
) -> None:
    events: list[JobEvent] = []
    nodes = Nodes(terms=ONE_DROPOUT, twist=told_in(step, "brand", change))
    run = run_over(nodes, on_event=events.append)
    run.run()
    assert (run.job.rounds_done, run.job.rounds_lost) == (3, 0)
    told = [event for event in events if event.kind == "dropped"]
    assert [event.partner for event in told] == ["brand"]
    assert why in told[0].text
    rows_read = 2 if step in STEPS[:3] else 3
    others = {name: [3] for name in nodes.names if name != "brand"}
    assert charges(nodes) == {**others, "brand": [rows_read]}


@pytest.mark.parametrize(("step", "change", "why"), BAD_ANSWERS, ids=IDS)
def test_where_nobody_may_fail_a_lost_round_says_who_did(
    step: str, change: Callable[[str, Body], object], why: str
) -> None:
    events: list[JobEvent] = []
    nodes = Nodes(terms=sharing_terms(), twist=told_in(step, "brand", change))
    run = run_over(nodes, on_event=events.append, wait=nodes.wait)
    run.run()
    assert (run.job.state, run.job.rounds_lost) == (State.RELEASED, 1)
    lost = [event.text for event in events if event.kind == "lost"]
    assert len(lost) == 1
    assert why in lost[0] or "platform: shares of its secret do not fit" in lost[0]


def test_a_model_without_a_partner_is_the_same_whatever_the_partner_did() -> None:
    """Refused or away: the step is that of the others' customers."""
    agreed = replace(ONE_DROPOUT, budget=FREE, max_epsilon_per_job=1e12)
    task = replace(SHARED_TASK, sampling_prob=1.0, rounds=1)
    refused, away = (
        noiseless(Nodes(terms=agreed, twist=twist), task)
        for twist in (
            told_in("advertise_keys", "brand", low_order_key),
            lost_in("advertise_keys", "brand", 1),
        )
    )
    for name, array in refused.items():
        np.testing.assert_allclose(array, away[name], atol=5e-3)


def charges(nodes: Nodes) -> dict[str, list[int]]:
    return {name: list(spent.values()) for name, spent in nodes.charged().items()}


def test_a_job_is_charged_once_a_round_and_released() -> None:
    nodes = Nodes(terms=sharing_terms())
    release = run_over(nodes).run()
    cost = cost_of(SHARED_TASK, nodes.terms)
    assert nodes.charged() == {name: {cost.event: SHARED_TASK.rounds} for name in NAMES}
    assert dict(release.spending) == nodes.charged()
    assert release.joint_epsilon == max(release.epsilon.values())
    for step in STEPS[:3]:
        assert sorted(nodes.told(f"query.aggregate.{step}")) == sorted(NAMES)
    assert len(nodes.told("query.aggregate.unmask")) == 3 * SHARED_TASK.rounds


def noiseless(nodes: Nodes, task: object) -> dict[str, np.ndarray]:
    return dict(run_over(nodes, task).run().value)


@pytest.mark.parametrize(
    ("changes", "noise"),
    [
        ({}, 5e-3),
        ({"server_optimizer": "fedavgm"}, 1e-2),
        ({"server_optimizer": "fedyogi", "server_learning_rate": 0.01}, 5e-2),
    ],
    ids=str,
)
def test_a_shared_step_is_the_step_of_all_customers(
    changes: dict[str, object], noise: float
) -> None:
    """Where everybody takes part, hundreds of customers: noise hardly moves the mean."""
    agreed = sharing_terms(budget=FREE, max_epsilon_per_job=1e12)
    common = {"sampling_prob": 1.0, "rounds": 4, **changes}
    shared = noiseless(Nodes(terms=agreed), replace(SHARED_TASK, **common))  # type: ignore[arg-type]
    local = noiseless(Nodes(terms=agreed), replace(TASK, **common))  # type: ignore[arg-type]
    for name, array in shared.items():
        np.testing.assert_allclose(array, local[name], atol=noise)


def test_updates_of_several_steps_are_clipped_and_averaged() -> None:
    agreed = sharing_terms(budget=FREE, max_epsilon_per_job=1e12)
    task = replace(SHARED_TASK, local_steps=3, noise_multiplier=1.0, l2_clip_norm=1e-3, rounds=1)
    weights = run_over(Nodes(terms=agreed), task).run().value["output.weight"]
    assert 0 < np.linalg.norm(weights) < 5e-3  # of which the noise is about 1.3e-3


@pytest.mark.parametrize("step", ["train", "check_consistency", "unmask"])
@pytest.mark.parametrize("gone", NAMES)
def test_a_partner_that_leaves_within_a_round_is_done_without(step: str, gone: str) -> None:
    events: list[JobEvent] = []
    nodes = Nodes(terms=ONE_DROPOUT, twist=lost_in(step, gone, 2))
    run = run_over(nodes, on_event=events.append)
    release = run.run()
    assert (run.job.rounds_done, run.job.rounds_lost) == (3, 0)
    assert [event.partner for event in events if event.kind == "dropped"] == [gone]
    assert nodes.told("query.aggregate.advertise_keys") == [*nodes.names] * 2
    assert all(np.isfinite(array).all() for array in release.value.values())
    assert charges(nodes) == {name: [3] for name in nodes.names}


@pytest.mark.parametrize("step", STEPS[:3])
def test_a_partner_that_leaves_while_keys_are_shared(step: str) -> None:
    events: list[JobEvent] = []
    nodes = Nodes(terms=ONE_DROPOUT, twist=lost_in(step, "brand", 1))
    run = run_over(nodes, on_event=events.append)
    run.run()
    assert (run.job.rounds_done, run.job.rounds_lost) == (3, 0)
    told = [(event.partner, event.text) for event in events if event.kind == "dropped"]
    assert told == [("brand", "the node is gone")], "what happened, not what followed from it"


@pytest.mark.parametrize("step", ["train", *STEPS])
def test_where_nobody_may_leave_the_round_is_lost_and_the_next_one_goes(step: str) -> None:
    nodes = Nodes(terms=sharing_terms(), twist=lost_in(step, "platform", 1))
    run = run_over(nodes, wait=nodes.wait)
    release = run.run()
    assert (run.job.state, run.job.rounds_lost) == (State.RELEASED, 1)
    charged = 2 if step in STEPS[:3] else 3
    assert charges(nodes) == {name: [charged] for name in NAMES}, "no keys, no rows read"
    spending = cost_of(SHARED_TASK, nodes.terms).spending
    assert dict(release.spending) == dict.fromkeys(NAMES, spending)


def test_too_many_that_leave_end_the_job() -> None:
    twist = lost("query.aggregate.unmask", "platform", "brand")
    nodes = Nodes(terms=ONE_DROPOUT, twist=twist)
    run = run_over(nodes, wait=nodes.wait)
    with pytest.raises(TooManyDropouts):
        run.run()
    assert run.job.state is State.FAILED
    assert charges(nodes) == {name: [2] for name in nodes.names}


def test_the_coordinator_sees_no_update() -> None:
    """What a node sends is uniform: its bits are those of a coin, and change with every run."""
    seen: list[np.ndarray] = []

    def look(sent: Sent, answered: Answer) -> Answer:
        from dovetail.flower.records import named_arrays

        if sent.kind == "train" and not isinstance(answered, TransportError):
            reply = codec.decode(answered)
            seen.append(np.array(named_arrays(reply.content.array_records["arrays"])["masked"]))
        return answered

    task = replace(SHARED_TASK, rounds=40)
    for _ in range(2):
        run_over(Nodes(terms=sharing_terms(), twist=look), task).run()
    words = np.array(seen)
    assert len(np.unique(words)) > 0.99 * words.size
    shares = np.unpackbits(words.view(np.uint8)).mean()
    assert abs(shares - 0.5) < 5 * 0.5 / np.sqrt(words.size * 32)


def test_a_restarted_node_takes_part_from_the_next_block_on(tmp_path: object) -> None:
    """Its keys are gone with its memory; the coordinator's exchange shows it as dropped once."""
    nodes = Nodes(terms=ONE_DROPOUT, folder=tmp_path)  # type: ignore[arg-type]
    seen: list[Sequence[int]] = []

    def restart(number: int, _arrays: object) -> None:
        seen.append(nodes.nodes())
        if number == 1:
            nodes.restart("brand")

    events: list[JobEvent] = []
    run = run_over(nodes, on_event=events.append, on_round=restart)
    run.run()
    assert (run.job.rounds_done, len(seen)) == (3, 3)
    assert [event.partner for event in events if event.kind == "dropped"] == ["brand"]
    assert charges(nodes)["brand"] == [2]


def test_local_protection_goes_on_beside_it() -> None:
    nodes = Nodes(terms=sharing_terms(), twist=as_it_came)
    run_over(nodes, TASK).run()
    assert nodes.told("query.aggregate.advertise_keys") == []


def test_where_customers_overlap_both_kinds_of_customer_are_told_theirs() -> None:
    agreed = sharing_terms(customers_overlap=True)
    nodes = Nodes(terms=agreed)
    release, cost = run_over(nodes).run(), cost_of(SHARED_TASK, agreed)
    assert charges(nodes) == {name: [9] for name in NAMES}, "what is charged is the joint cost"
    assert dict(release.spending) == nodes.charged()
    assert release.epsilon["brand"] == accountant.epsilon(cost.alone(), 1e-3)
    assert release.joint_epsilon == accountant.epsilon(cost.spending, 1e-3)


def test_nodes_under_different_terms_do_not_add_up() -> None:
    """The request says the same under both; their grids and noise need not."""
    agreed = sharing_terms()
    other = replace(
        agreed, partners=tuple(replace(p, customers=p.customers * 2) for p in agreed.partners)
    )
    request = Request("job-1", SHARED_TASK)
    assert sum_digest(request, agreed) != sum_digest(request, other)
    assert sum_digest(request, agreed) == sum_digest(request, agreed)


def test_keys_of_ended_jobs_are_forgotten() -> None:
    agreed, partner = sharing_terms(), "brand"
    aggregating = Aggregating(agreed, partner, signing_key(partner))
    block = {"block": 1, "first_round": 1, "rounds": 3}
    asked_for = [Request(f"job-{i}", SHARED_TASK) for i in range(2)]
    for request in asked_for:
        aggregating.step("advertise_keys", request, block)
    aggregating.forget_all_but({"job-1"})
    with pytest.raises(LocalProtocolError, match="no keys for this job"):
        aggregating.step("share_keys", asked_for[0], {"adverts": []})
    with pytest.raises(TooManyDropouts):
        aggregating.step("share_keys", asked_for[1], {"adverts": []})
