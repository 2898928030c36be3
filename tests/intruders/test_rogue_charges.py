"""What a coordinator can make a node charge, and what it cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from dovetail.agreement.ledger import MOST_DRAWN
from dovetail.agreement.policy import NOTHING_MORE
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest
from dovetail.errors import DovetailError, LedgerError, PolicyError
from dovetail.flower import codec
from dovetail.flower.grid import ask
from dovetail.node.gate import Decision, Gate
from dovetail.simulation.identities import asked
from dovetail.store.admissions import Admissions
from dovetail.store.ledger import LedgerStore
from tests.intruders.house import (
    now,
    with_task,
)
from tests.intruders.rogues import (
    PATIENCE,
    WEIGHT,
    RogueCoordinator,
    good_arrays,
    swapped,
    told,
)
from tests.samples import TASK, terms


def test_huge_weights_are_charged_and_never_trained_on(
    alone: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    alone.propose(alone.house.asked())
    good = dict(good_arrays(alone.house.terms))
    huge = swapped(good, output_weight=np.full(WEIGHT, 3e38, np.float32))
    with pytest.raises(DovetailError):
        alone.train(1, arrays=huge)
    assert told(caplog, "refused round 1: ")
    assert alone.house.kinds("retailer") == ["reserve", "begin"]
    alone.train(1)
    assert alone.house.kinds("retailer") == ["reserve", "begin", "begin", "commit"]
    assert alone.house.spent("retailer") == TASK.steps, "the reservation still covers it"


def test_a_round_asked_many_times_at_once_is_answered_once(alone: RogueCoordinator) -> None:
    alone.propose(alone.house.asked())
    raw, together = codec.encode(with_id(alone.training(1))), threading.Barrier(6)

    def again(_: int) -> bool:
        together.wait(PATIENCE)
        with suppress(DovetailError):
            answer = alone.raw(raw)
            assert isinstance(answer, bytes | bytearray)
            return not codec.decode(answer).has_error()
        return False

    with ThreadPoolExecutor(6) as pool:
        answered = list(pool.map(again, range(6)))
    assert sum(answered) == 1
    kinds = alone.house.kinds("retailer")
    assert kinds == ["reserve", "begin", "commit"], "who waits for the round costs nothing"


def test_a_round_that_limits_stop_again_and_again_costs_a_job_at_most_twice(
    alone: RogueCoordinator,
) -> None:
    alone.propose(alone.house.asked())
    good = dict(good_arrays(alone.house.terms))
    huge = swapped(good, output_weight=np.full(WEIGHT, 3e38, np.float32))
    errors: list[DovetailError] = []
    for _ in range(MOST_DRAWN * TASK.steps + 2):
        with pytest.raises(DovetailError) as caught:
            alone.train(1, arrays=huge)
        errors.append(caught.value)
    assert [isinstance(error, LedgerError) for error in errors[-3:]] == [False, True, True]
    assert alone.house.spent("retailer") == MOST_DRAWN * TASK.steps


def with_id(message: Message) -> Message:
    """The message as it goes over the wire."""
    sent: list[Message] = []

    class Wire:
        def nodes(self) -> list[int]:
            return []

        def exchange(self, requests: Any, deadline: float) -> Iterator[Any]:
            for node, payload in requests.items():
                sent.append(codec.decode(payload.joined()))
                yield node, b""

    list(ask(Wire(), [message], 1.0))
    return sent[0]


def test_two_proposals_at_once_where_one_job_may_be_open() -> None:
    known, together = terms(max_concurrent_jobs=1), threading.Barrier(2)

    def both_are_judged(_: SignedRequest) -> Decision | None:
        with suppress(threading.BrokenBarrierError):  # the second is judged after the first
            together.wait(0.2)
        return None

    with closing(LedgerStore(None, known.budget, now)) as ledger, ThreadPoolExecutor(2) as pool:
        gate = Gate(
            known, "retailer", ledger, 300, NOTHING_MORE, now, both_are_judged, Admissions(None)
        )

        def propose(job: str) -> str:
            try:
                return gate.admit(asked(Request(job, TASK), known)).job
            except PolicyError as error:
                return error.rule

        said = list(pool.map(propose, ["job-1", "job-2"]))
        assert "jobs" in said
        assert len(ledger.entries()) == 1


def test_closing_a_job_only_ever_frees_what_it_never_began(alone: RogueCoordinator) -> None:
    alone.propose(alone.house.asked())
    alone.train(1)
    assert alone.house.spent("retailer") == 3
    alone.close("job-1")
    assert alone.house.spent("retailer") == 1
    head = alone.house.head("retailer")
    with pytest.raises(LedgerError):
        alone.close("job-1")
    for call in (lambda: alone.propose(alone.house.asked()), lambda: alone.train(2)):
        with pytest.raises(PolicyError) as caught:
            call()
        assert caught.value.rule == "request"
    assert alone.house.head("retailer") == head


def test_what_is_left_of_the_budget_bounds_all_that_is_asked(alone: RogueCoordinator) -> None:
    dear: dict[str, Any] = {"noise_multiplier": 0.8, "rounds": 20}
    granted, refusals = 0, set()
    for number in range(12):
        try:
            alone.propose(alone.house.asked(with_task(f"job-{number}", **dear)))
            granted += 1
        except PolicyError as error:
            refusals.add(error.rule)
    assert refusals == {"budget"}
    with pytest.raises(PolicyError) as caught:
        alone.propose(alone.house.asked(with_task("job-99", **dear)))
    assert caught.value.rule == "budget"
    assert alone.house.spent("retailer") == granted * 20
