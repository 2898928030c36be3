from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

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


@pytest.mark.parametrize("state", [s for s in State if s is not State.RUNNING])
def test_only_a_running_job_has_rounds(state: State) -> None:
    job = replace(running(), state=state)
    for act in (job.ask_round, replace(job, round_asked=1).finish_round, job.lose_round):
        with pytest.raises(LocalProtocolError):
            act()


Act = Literal["ask_round", "finish_round", "lose_round"]


@given(st.lists(st.sampled_from(get_args(Act)), max_size=12))
def test_a_rounds_number_is_asked_once_and_ends_once(acts: list[Act]) -> None:
    job, asked, open_one = running(), 0, False
    for act in acts:
        allowed = not open_one and asked < TASK.rounds if act == "ask_round" else open_one
        if not allowed:
            with pytest.raises(LocalProtocolError):
                getattr(job, act)()
            continue
        job, open_one = getattr(job, act)(), act == "ask_round"
        asked += open_one
        assert job.round_asked == asked <= job.rounds
        assert job.round_open is open_one
        assert job.rounds_done + job.rounds_lost == asked - open_one


@pytest.mark.parametrize(("rounds", "most"), [(1, 1), (3, 1), (19, 1), (20, 2), (100, 10)])
def test_a_tenth_of_the_rounds_or_one_may_be_lost(rounds: int, most: int) -> None:
    job = replace(running(), request=Request("job-1", replace(TASK, rounds=rounds)))
    assert not replace(job, round_asked=most, rounds_lost=most).too_many_lost
    assert replace(job, round_asked=most, rounds_lost=most + 1).too_many_lost
