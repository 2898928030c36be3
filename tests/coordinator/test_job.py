from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement.request import Request
from dovetail.coordinator.job import ENDS_WITH_REASON, TRANSITIONS, Job, State
from dovetail.errors import LocalProtocolError
from tests.samples import TASK

JOB = Job(Request("job-1", TASK))


def running() -> Job:
    return JOB.move(State.APPROVED).move(State.RUNNING)


@given(st.lists(st.sampled_from(State), max_size=8))
def test_only_the_table_moves_a_job(path: list[State]) -> None:
    job = JOB
    for state in path:
        allowed = state in TRANSITIONS[job.state]
        if allowed:
            job = job.move(state, "why")
            assert job.state is state
        else:
            with pytest.raises(LocalProtocolError):
                job.move(state, "why")


def test_what_ended_stays_ended() -> None:
    ended = {state for state, following in TRANSITIONS.items() if not following}
    assert ended == ENDS_WITH_REASON | {State.RELEASED}
    assert JOB.move(State.REFUSED, "budget").ended
    assert not running().ended


@pytest.mark.parametrize("state", sorted(ENDS_WITH_REASON))
def test_every_end_but_release_needs_a_reason(state: State) -> None:
    job = JOB if state is State.REFUSED else running()
    with pytest.raises(LocalProtocolError, match="reason"):
        job.move(state)
    assert job.move(state, "rule: text").reason == "rule: text"


def test_rounds_are_finished_in_order_and_once() -> None:
    job = running().finish_round(1)
    assert job.rounds_done == 1
    for number in (1, 3):
        with pytest.raises(LocalProtocolError):
            job.finish_round(number)
    with pytest.raises(LocalProtocolError):
        JOB.finish_round(1)
