"""``kill -9`` of one party at every named point of a job: the job ends, and the books are right."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovetail.agreement.request import Request
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.records import JobRecord
from tests.faults import books
from tests.faults.host import Host
from tests.faults.points import Doom, When
from tests.faults.trial import PARTNERS, Trial, eventually, request


@pytest.fixture(scope="module")
def trial(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    with Trial(tmp_path_factory.mktemp("matrix"), host) as started:
        started.start()
        yield started


AT_THE_COORDINATOR = [
    ("add", 1),
    ("change", 1),  # taken
    ("permit", 2),
    ("change", 2),  # approved
    ("change", 3),  # running
    ("ask", 2),
    ("send", 8),  # to the second node of round 2
    ("receive", 5),  # from the second node of round 2
    ("aggregate", 2),
    ("save", 2),
    ("finish", 2),
    ("tidy", 2),
    ("release", 1),
    ("model", 1),
    ("put", 1),
    ("change", 4),  # released
    ("forget", 1),
    ("settle", 2),
]
AT_A_NODE = [
    ("receive", 1),  # the proposal
    ("permit", 1),
    ("reserve", 1),
    ("send", 1),  # the permit
    ("receive", 3),  # round 2
    ("begin", 2),
    ("read", 2),
    ("commit", 2),
    ("send", 3),
    ("keep", 1),
    ("close", 1),
]


def both(places: list[tuple[str, int]]) -> list[Doom]:
    return [Doom(point, when, nth) for point, nth in places for when in ("before", "after")]


def name(doom: Doom) -> str:
    return f"{doom.when}-{doom.point}-{doom.nth}"


def killed_once(trial: Trial, party: str, doom: Doom) -> JobRecord:
    """A job during which a party is killed and started again, and how it ended."""
    asked = request(f"{party}-{name(doom)}")
    trial.doom(party, doom)
    trial.hand_in(asked)
    trial.until_killed(party)
    trial.restart(party)
    return finished(trial, asked)


def finished(trial: Trial, asked: Request) -> JobRecord:
    """A job that has ended, all books checked."""
    job = trial.ended(asked)
    trial.until_settled()
    books.check(trial, asked)
    return job


@pytest.mark.parametrize("doom", both(AT_THE_COORDINATOR), ids=name)
def test_the_coordinator_is_killed(trial: Trial, doom: Doom) -> None:
    job = killed_once(trial, COORDINATOR, doom)
    assert job.state == "released"
    assert job.lost_rounds <= 1
    assert not (trial.home(COORDINATOR) / "checkpoints" / job.job).exists()


@pytest.mark.parametrize("doom", both(AT_A_NODE), ids=name)
def test_a_node_is_killed(trial: Trial, doom: Doom) -> None:
    party = PARTNERS[AT_A_NODE.index((doom.point, doom.nth)) % len(PARTNERS)]
    job = killed_once(trial, party, doom)
    assert (job.state, job.lost_rounds) == ("released", 0), "the others are quorum enough"
    spent = books.ledger_of(trial, party).jobs[job.job]
    assert spent.rounds_begun >= job.rounds - 1
    assert spent.rounds_committed >= job.rounds - 1


@pytest.mark.long
def test_a_worker_is_killed_while_it_computes(trial: Trial) -> None:
    warm, asked = request("warm"), request("worker-computes")
    trial.hand_in(warm)
    finished(trial, warm)  # the worker is ready, and does nothing
    os.kill(trial.worker("brand"), signal.SIGSTOP)
    trial.hand_in(asked)
    eventually(lambda: bool(books.ledger_of(trial, "brand").rounds(asked.job, "begin")))
    trial.kill_worker("brand")
    job = finished(trial, asked)
    assert (job.state, job.rounds_done) == ("released", 3)
    (dropped,) = trial.told(asked, "dropped")
    assert (dropped.partner, "the node's worker died" in dropped.text) == ("brand", True)
    spent = books.ledger_of(trial, "brand").jobs[job.job]
    assert (spent.rounds_begun, spent.rounds_committed) == (3, 2), "charged, and not answered"


@pytest.mark.long
def test_a_worker_is_killed_between_jobs(trial: Trial) -> None:
    asked = request("worker-idle")
    trial.kill_worker("platform")
    trial.hand_in(asked)
    job = finished(trial, asked)
    assert (job.state, job.rounds_done) == ("released", 3)
    assert not trial.told(asked, "dropped"), "another one took its place"


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_coordinator_is_killed_again_while_it_resumes(trial: Trial, when: When) -> None:
    asked = request(f"again-{when}")
    trial.doom(COORDINATOR, Doom("receive", "before"))
    trial.hand_in(asked)
    trial.until_killed(COORDINATOR)
    trial.doom(COORDINATOR, Doom("lose", when))
    trial.start_coordinator()
    trial.until_killed(COORDINATOR)
    trial.restart(COORDINATOR)
    job = finished(trial, asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", 2, 1)


def test_a_job_that_loses_too_many_rounds_fails_and_frees_what_never_began(trial: Trial) -> None:
    asked = request("unlucky")
    for _ in range(2):
        trial.doom(COORDINATOR, Doom("receive", "after", 2))
        trial.hand_in(asked)
        trial.until_killed(COORDINATOR)
        trial.start_coordinator()
    trial.wait_until_connected(PARTNERS)
    job = finished(trial, asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("failed", 0, 2)
    assert job.reason == "the coordinator was interrupted"
    for partner in PARTNERS:
        assert books.ledger_of(trial, partner).jobs[job.job].charged <= 2 * asked.task.local_steps


def test_with_its_only_round_lost_a_job_fails(trial: Trial) -> None:
    asked = request("only-round", rounds=1)
    trial.doom(COORDINATOR, Doom("aggregate", "before"))
    trial.hand_in(asked)
    trial.until_killed(COORDINATOR)
    trial.restart(COORDINATOR)
    job = finished(trial, asked)
    assert (job.state, job.lost_rounds) == ("failed", 1)
    assert "nothing to release" in job.reason


@pytest.mark.long
def test_below_the_quorum_a_round_is_lost_and_the_job_waits(trial: Trial) -> None:
    asked = request("two-nodes")
    for partner in ("brand", "platform"):
        trial.doom(partner, Doom("commit", "before", 2))
    trial.hand_in(asked)
    for partner in ("brand", "platform"):
        trial.until_killed(partner)
    trial.restart("brand", "platform")
    job = finished(trial, asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", 2, 1)


@pytest.mark.long
def test_a_power_cut_everywhere(trial: Trial) -> None:
    asked = request("power-cut")
    trial.doom("retailer", Doom("commit", "after", 2))
    trial.hand_in(asked)
    trial.until_killed("retailer")
    trial.kill(COORDINATOR, "brand", "platform")
    trial.restart(COORDINATOR, *PARTNERS)
    job = finished(trial, asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", 2, 1)
    spent = books.ledger_of(trial, "retailer").jobs[job.job]
    assert spent.rounds_committed >= 2, "what nobody received stays charged"


@pytest.mark.long
def test_a_node_is_killed_at_its_first_start(host: Host, tmp_path: Path) -> None:
    with Trial(tmp_path, host) as trial:
        trial.start_coordinator()
        for doom in both([("trust", 1), ("write", 1), ("prepare", 1)]):
            trial.doom("brand", doom)
            trial.start_node("brand")
            trial.until_killed("brand")
        trial.restart(*PARTNERS)
        asked = request("first")
        trial.hand_in(asked)
        assert finished(trial, asked).state == "released"
        assert not list(trial.home("brand").glob("arrays/.*")), "no rows lie about"
