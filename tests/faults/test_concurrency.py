"""Several jobs at once on the same nodes, and a race for the last of a budget."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from dovetail.agreement.request import Request
from dovetail.agreement.terms import Budget
from dovetail.privacy import accountant
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.records import JobRecord
from tests.faults import books
from tests.faults.host import Host
from tests.faults.trial import CHEAP, PARTNERS, Trial, request
from tests.samples import terms

DELTA = 1e-3
ANALYSTS = ("ann", "bob")
FITS = 8
"""Jobs that the budget has room for."""


def cost(jobs: int) -> float:
    return accountant.epsilon({CHEAP.event: CHEAP.steps * jobs}, DELTA)


@pytest.fixture
def trial(host: Host, tmp_path: Path) -> Iterator[Trial]:
    """A federation with two analysts, and a budget for eight jobs and not for nine."""
    budget = Budget(epsilon=(cost(FITS) + cost(FITS + 1)) / 2, delta=DELTA)
    agreed = terms(budget=budget, max_epsilon_per_job=budget.epsilon)
    with Trial(tmp_path, host, agreed, analysts=ANALYSTS) as started:
        started.start()
        yield started


def at_once(trial: Trial, asked: list[tuple[str, Request]]) -> dict[str, JobRecord]:
    """Jobs that these parties hand in at the same moment, and how they ended."""
    ready = Barrier(len(asked))

    def hand_in(party: str, request: Request) -> None:
        with trial.client_of(party) as client:
            client.call("Nodes", {})  # it is connected
            ready.wait()
            trial.submit_as(party, request, client)

    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(hand_in, *zip(*asked, strict=True)))
    return {request.job: trial.ended(request) for _, request in asked}


def test_the_last_of_a_budget_goes_to_exactly_one(trial: Trial) -> None:
    half = FITS // 2
    many = [(name, request(f"{name}-{i}")) for i in range(half) for name in ANALYSTS]
    first, last = many[:-1], [many[-1], (COORDINATOR, request("too-much"))]
    together = at_once(trial, first)
    assert {job.state for job in together.values()} == {"released"}
    ended = at_once(trial, last)
    trial.until_settled()
    books.check(trial, *(asked for _, asked in (*first, *last)))
    assert sorted(job.state for job in ended.values()) == ["refused", "released"]
    (loser,) = (job for job in ended.values() if job.state == "refused")
    for partner in PARTNERS:
        assert f"{partner}: budget: " in loser.reason
        spent = books.ledger_of(trial, partner).jobs
        assert loser.job not in spent
        assert sum(job.charged for job in spent.values()) == FITS * CHEAP.steps


@pytest.mark.long
def test_of_many_at_once_as_many_get_it_as_the_budget_has_room_for(trial: Trial) -> None:
    """Exactly as many, as long as every partner answers in the time that one turn may take.

    One job at a time asks for permits, and what a refused one had reserved is given back in the
    same turn: of jobs that end released, none is refused for the sake of one that is refused.
    """
    asked = [(name, request(f"{name}-{i}")) for i in range(FITS) for name in ANALYSTS]
    ended = at_once(trial, asked)
    trial.until_settled()
    books.check(trial, *(request for _, request in asked))
    states = [job.state for job in ended.values()]
    assert (states.count("released"), states.count("refused")) == (FITS, FITS)
