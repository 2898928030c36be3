"""A disk that is full at a node or at the coordinator: nothing leaves unpaid, nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from dovetail.agreement.request import Request
from dovetail.simulation.federation import COORDINATOR
from tests.faults import books
from tests.faults.disks import Disk, small_disk
from tests.faults.trial import PARTNERS, Trial, eventually, request

pytestmark = pytest.mark.long

SIZE = 2 << 20


@pytest.fixture(scope="module")
def disks() -> dict[str, Disk]:
    """The disks of those parties that have one of their own."""
    return {}


@pytest.fixture(scope="module")
def trial(disks: dict[str, Disk], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """Fresh interpreters, two of them on small disks, that have done one job."""
    made = Trial(tmp_path_factory.mktemp("disk"))
    with ExitStack() as stack:
        for party in (COORDINATOR, "brand"):
            disk = small_disk(made.home(party), SIZE, partial(process_of, made, party))
            disks[party] = stack.enter_context(disk)
        stack.enter_context(made)
        made.start()
        warm = request("warm")
        made.hand_in(warm)
        made.ended(warm)
        made.until_settled()
        yield made


def process_of(trial: Trial, party: str) -> int:
    return trial.processes[party].pid


@contextmanager
def in_a_round(trial: Trial, asked: Request) -> Iterator[None]:
    """Inside, brand has begun a job's first round and does not get on with it."""
    worker = trial.worker("brand")
    os.kill(worker, signal.SIGSTOP)
    trial.hand_in(asked)
    eventually(lambda: bool(books.ledger_of(trial, "brand").rounds(asked.job, "begin")))
    yield
    os.kill(worker, signal.SIGCONT)


def test_a_ledger_that_cannot_be_written_permits_nothing(
    trial: Trial, disks: dict[str, Disk]
) -> None:
    asked = request("no-permit")
    before = books.ledger_of(trial, "brand").entries
    disks["brand"].fill()
    trial.hand_in(asked)
    job = trial.ended(asked)
    disks["brand"].free()
    trial.until_settled()
    assert job.state == "failed"
    assert "brand" in job.reason
    assert "nothing was added" in job.reason
    assert books.ledger_of(trial, "brand").entries == before
    books.check(trial, asked)


def test_what_cannot_be_recorded_does_not_leave(trial: Trial, disks: dict[str, Disk]) -> None:
    asked = request("no-commit")
    with in_a_round(trial, asked):
        disks["brand"].fill()
    job = trial.ended(asked)
    assert (job.state, job.rounds_done) == ("released", 3), "the others are quorum enough"
    disks["brand"].free()
    dropped = trial.told(asked, "dropped")
    assert {event.partner for event in dropped} == {"brand"}
    assert len(dropped) == 3
    assert all("nothing was added" in event.text for event in dropped)
    trial.kill(COORDINATOR)  # its next start tells at once who does not know yet
    trial.restart(COORDINATOR)
    trial.until_settled()
    books.check(trial, asked)
    spent = books.ledger_of(trial, "brand").jobs[asked.job]
    assert (spent.rounds_begun, spent.rounds_committed) == (1, 0)


def test_a_coordinator_without_room_loses_nothing(trial: Trial, disks: dict[str, Disk]) -> None:
    asked, next_one = request("no-checkpoint"), request("after")
    with in_a_round(trial, asked):
        disks[COORDINATOR].fill()
    eventually(lambda: "cannot be written" in trial.log(COORDINATOR).read_text())
    disks[COORDINATOR].free()
    job = trial.ended(asked)
    assert job.state in ("released", "failed")
    trial.hand_in(next_one)
    assert trial.ended(next_one).state == "released"
    trial.wait_until_connected(PARTNERS)
    trial.until_settled()
    books.check(trial, asked, next_one)
