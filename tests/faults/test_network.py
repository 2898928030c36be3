"""Lines that are cut or slow, processes that stand still: jobs go on, and the books are right."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from dovetail.agreement.request import ModelSpec, Request
from dovetail.simulation.federation import COORDINATOR, Member
from dovetail.store.records import JobRecord
from tests.faults import books
from tests.faults.host import Host
from tests.faults.lines import Line
from tests.faults.points import Doom
from tests.faults.process import Setting
from tests.faults.trial import CHEAP, PARTNERS, RICH, Trial, eventually, request, tables
from tests.samples import terms

pytestmark = pytest.mark.long

LARGE = replace(CHEAP, model=ModelSpec("mlp", (512, 512)), local_steps=1)
MODEL_BYTES = 1 << 20
"""Its length, a little more than that."""
GRACE = 2.0
"""Seconds that a lost node has to come back, so that a test need not wait for twenty."""
SLOW = 256 << 10
LIMITED = "platform"
LIMITS = "\n[limits]\nseconds = 10\n"


@pytest.fixture(scope="module")
def far(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trial, Line]]:
    """A federation whose brand is reached over a line; ``platform`` limits a round's seconds."""
    folder = tmp_path_factory.mktemp("network")
    members = tables(folder)
    members[LIMITED] = Member(members[LIMITED].table, LIMITS)
    agreed = terms(budget=RICH, max_parameters=1_000_000)
    settings = {COORDINATOR: Setting(limits={"reconnect_grace": GRACE})}
    with Trial(folder, host, agreed, members, settings) as trial, Line(trial.address) as line:
        line.lead(trial.home("brand") / "keys")
        trial.start()
        run(trial, request("warm"))
        yield trial, line


def run(trial: Trial, asked: Request) -> JobRecord:
    trial.hand_in(asked)
    return finished(trial, asked)


def finished(trial: Trial, asked: Request) -> JobRecord:
    job = trial.ended(asked)
    trial.wait_until_connected(PARTNERS)
    trial.until_settled()
    books.check(trial, asked)
    return job


@contextmanager
def frozen(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def until_begun(trial: Trial, partner: str, asked: Request) -> None:
    eventually(lambda: bool(books.ledger_of(trial, partner).rounds(asked.job, "begin")))


def until_told(trial: Trial, asked: Request, kind: str) -> None:
    eventually(lambda: bool(trial.told(asked, kind)))


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_transfer_that_is_cut_goes_on(far: tuple[Trial, Line], way: str) -> None:
    trial, line = far
    asked, cuts = request(f"cut-{way}", rounds=2, task=LARGE), line.cuts
    line.cut_after("down" if way == "down" else "up", MODEL_BYTES // 2)
    job = run(trial, asked)
    assert line.cuts == cuts + 1
    assert (job.state, job.rounds_done) == ("released", 2)
    assert not trial.told(asked, "dropped")
    assert books.ledger_of(trial, "brand").rounds(asked.job, "commit").total() == 2


def test_a_node_that_is_cut_off_for_long_is_left_out_and_comes_back(
    far: tuple[Trial, Line],
) -> None:
    trial, line = far
    asked = request("cut-off", rounds=4)
    with frozen(trial.worker("brand")):
        trial.hand_in(asked)
        until_begun(trial, "brand", asked)
        line.cut_off()
    until_told(trial, asked, "dropped")
    line.mend()
    job = finished(trial, asked)
    assert (job.state, job.rounds_done) == ("released", 4)
    dropped = trial.told(asked, "dropped")
    assert {event.partner for event in dropped} == {"brand"}
    assert dropped[0].text == "the node was lost and did not come back"
    assert books.ledger_of(trial, "brand").jobs[asked.job].rounds_committed >= 1


def test_a_slow_line_only_takes_longer(far: tuple[Trial, Line]) -> None:
    trial, line = far
    asked = request("slow", rounds=1, task=LARGE)
    line.cut()  # what the first connection had is none of the slow one's
    trial.wait_until_connected(PARTNERS)
    line.speed = SLOW
    job = run(trial, asked)
    line.speed = None
    assert (job.state, job.rounds_done) == ("released", 1)
    assert not trial.told(asked, "dropped")


def test_a_frozen_node_is_found_and_left_out(far: tuple[Trial, Line]) -> None:
    trial, _ = far
    asked = request("frozen")
    with frozen(trial.worker("retailer")):
        trial.hand_in(asked)
        until_begun(trial, "retailer", asked)
        with frozen(trial.processes["retailer"].pid):
            until_told(trial, asked, "dropped")
            job = trial.ended(asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", 3, 0)
    finished(trial, asked)
    assert {event.partner for event in trial.told(asked, "dropped")} == {"retailer"}
    spent = books.ledger_of(trial, "retailer").jobs[asked.job]
    assert spent.charged == asked.task.local_steps, "for the one round that it had begun"


def test_a_frozen_worker_is_replaced(far: tuple[Trial, Line]) -> None:
    trial, _ = far
    asked, worker = request("frozen-worker"), trial.worker(LIMITED)
    os.kill(worker, signal.SIGSTOP)
    job = run(trial, asked)
    assert (job.state, job.rounds_done) == ("released", 3)
    (dropped,) = trial.told(asked, "dropped")
    assert (dropped.partner, dropped.text.partition(":")[0]) == (LIMITED, "limits")
    assert trial.worker(LIMITED) != worker
    spent = books.ledger_of(trial, LIMITED).jobs[asked.job]
    assert (spent.rounds_begun, spent.rounds_committed) == (3, 2)


def test_a_frozen_coordinator_is_waited_for(far: tuple[Trial, Line]) -> None:
    trial, _ = far
    asked = request("frozen-coordinator")
    with frozen(trial.worker("retailer")):
        trial.hand_in(asked)
        until_begun(trial, "retailer", asked)
        said = {partner: trial.log(partner).read_text().count("silent") for partner in PARTNERS}
        with frozen(trial.processes[COORDINATOR].pid):
            for partner, before in said.items():
                log = trial.log(partner)
                eventually(lambda log=log, n=before: log.read_text().count("silent") > n)  # type: ignore[misc]
    job = finished(trial, asked)
    assert (job.state, job.rounds_done + job.lost_rounds) == ("released", 3)


def test_a_reservation_whose_permit_was_lost_is_given_back_at_the_end(
    far: tuple[Trial, Line],
) -> None:
    trial, _ = far
    asked = request("lost-permit")
    trial.doom("retailer", Doom("reserve", "after"))
    trial.hand_in(asked)
    trial.until_killed("retailer")
    with trial.client() as client:
        client.call("Cancel", {"job": asked.job})
    job = trial.ended(asked)
    assert (job.state, job.reason) == ("cancelled", "cancelled on request")
    assert books.ledger_of(trial, "retailer").jobs[asked.job].charged == asked.task.steps
    trial.restart("retailer")
    finished(trial, asked)
    assert books.ledger_of(trial, "retailer").jobs[asked.job].charged == 0
