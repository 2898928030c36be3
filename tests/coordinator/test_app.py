"""The real coordinator and real nodes, over a channel that misbehaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from dovetail.agreement.request import Request, digest
from dovetail.coordinator.app import JobEvent, Run
from dovetail.coordinator.job import State
from dovetail.errors import (
    PolicyError,
    RemoteProtocolError,
    SettingError,
    TooManyDropouts,
    TransportError,
)
from dovetail.flower import codec
from dovetail.flower.records import array_record, named_arrays
from dovetail.simulation.world import World
from dovetail.wire.channel import Answer, Channel
from tests.samples import TASK, customers, terms

REQUEST = Request("job-1", TASK)
Twist = Callable[[int, int, Answer], Answer]
"""Changes an answer, given the number of the exchange (0 proposes) and the node."""


class TwistedChannel:
    """A channel whose answers are changed on the way back."""

    def __init__(self, channel: Channel, twist: Twist) -> None:
        self._channel = channel
        self._twist = twist
        self.exchanges = 0

    def nodes(self) -> Sequence[int]:
        return self._channel.nodes()

    def exchange(
        self, requests: Mapping[int, bytes], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        number = self.exchanges
        self.exchanges += 1
        for node, answer in self._channel.exchange(requests, deadline):
            yield node, self._twist(number, node, answer)


def lost(exchange: int, *nodes: int) -> Twist:
    def twist(number: int, node: int, answer: Answer) -> Answer:
        if number == exchange and node in nodes:
            return TransportError("the node is gone")
        return answer

    return twist


def poisoned(exchange: int, node: int) -> Twist:
    """The node's arrays arrive with a NaN in them."""

    def twist(number: int, at: int, answer: Answer) -> Answer:
        if (number, at) != (exchange, node) or isinstance(answer, TransportError):
            return answer
        reply = codec.decode(answer)
        arrays = {
            k: np.array(a) for k, a in named_arrays(reply.content.array_records["arrays"]).items()
        }
        arrays["output.bias"][0] = np.nan
        reply.content["arrays"] = array_record(arrays)
        return codec.encode(reply)

    return twist


def start(world: World, twist: Twist, events: list[JobEvent], **settings: int) -> Run:
    return Run(
        REQUEST,
        terms(),
        TwistedChannel(world.channel, twist),
        world.partners,
        on_event=events.append,
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("twist", [lost(2, 0), poisoned(2, 0)], ids=["lost", "poisoned"])
def test_a_job_outlives_one_bad_answer(twist: Twist) -> None:
    events: list[JobEvent] = []
    with World(terms(), customers(), 0) as world:
        run = start(world, twist, events)
        release = run.run()
        charged = {name: store.refresh().spending() for name, store in world.ledgers.items()}
    assert run.job.state is State.RELEASED
    assert all(np.isfinite(array).all() for array in release.value.values())
    dropped = [(e.partner, e.round) for e in events if e.kind == "dropped"]
    assert dropped == [("retailer", 1)]
    assert charged["retailer"] == {TASK.event: TASK.steps}


def test_too_few_answers_fail_the_job_and_free_what_was_never_begun() -> None:
    events: list[JobEvent] = []
    with World(terms(), customers(), 0) as world:
        run = start(world, lost(2, 0, 2), events)
        with pytest.raises(TooManyDropouts, match="round 2"):
            run.run()
        charged = [store.refresh().spending() for store in world.ledgers.values()]
    assert run.job.state is State.FAILED
    assert charged == [{TASK.event: 2}] * 3
    assert events[-1].kind == "failed"


def test_a_quorum_of_all_allows_no_dropout() -> None:
    with World(terms(), customers(), 0) as world, pytest.raises(TooManyDropouts):
        start(world, lost(1, 1), [], quorum=3).run()


def test_a_lost_permit_means_no_job() -> None:
    events: list[JobEvent] = []
    with World(terms(), customers(), 0) as world:
        run = start(world, lost(0, 1), events)
        with pytest.raises(TransportError, match="platform"):
            run.run()
        charged = [store.refresh().spending() for store in world.ledgers.values()]
    assert run.job.state is State.FAILED
    assert charged == [{}, {}, {}]


def test_a_refused_job_says_who_and_which_rule() -> None:
    request = replace(REQUEST, task=replace(TASK, purpose="resale"))
    with World(terms(), customers(), 0) as world:
        run = Run(request, terms(), world.channel, world.partners)
        with pytest.raises(PolicyError) as caught:
            run.run()
    assert caught.value.rule == "purpose"
    assert run.job.state is State.REFUSED
    assert all(name in run.job.reason for name in world.ledgers)


def test_an_operator_who_stops_the_job_leaves_nothing_reserved() -> None:
    def stop(number: int, _arrays: object) -> None:
        raise KeyboardInterrupt

    with World(terms(), customers(), 0) as world:
        run = Run(REQUEST, terms(), world.channel, world.partners, on_round=stop)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        charged = [store.refresh().spending() for store in world.ledgers.values()]
    assert run.job.state is State.CANCELLED
    assert charged == [{TASK.event: 1}] * 3


def test_a_job_needs_partners() -> None:
    with World(terms(), customers(), 0) as world, pytest.raises(SettingError):
        Run(REQUEST, terms(), world.channel, {})


def test_overlapping_customers_pay_for_all_partners() -> None:
    with World(terms(), customers(), 0) as world:
        apart = world.run(REQUEST)
    with World(terms(customers_overlap=True), customers(), 0) as world:
        together = world.run(REQUEST)
    assert apart.joint_epsilon == max(apart.epsilon.values())
    assert together.joint_epsilon > 1.3 * apart.joint_epsilon


def test_a_permit_for_something_else_is_no_permit() -> None:
    other = Request("job-1", replace(TASK, seed=7))

    def swapped(number: int, node: int, answer: Answer) -> Answer:
        if number or node != 1 or isinstance(answer, TransportError):
            return answer
        reply = codec.decode(answer)
        config = reply.content.config_records["config"]
        permit = json.loads(str(config["permit"]))
        config["permit"] = json.dumps({**permit, "request_digest": digest(other)})
        return codec.encode(reply)

    with World(terms(), customers(), 0) as world:
        run = start(world, swapped, [])
        with pytest.raises(RemoteProtocolError, match="platform"):
            run.run()
        charged = [store.refresh().spending() for store in world.ledgers.values()]
    assert run.job.state is State.FAILED
    assert charged == [{}, {}, {}]
