"""A coordinator that is killed, or whose database fails, and what becomes of its jobs."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovetail.agreement.request import Request
from dovetail.coordinator import docket as dockets
from dovetail.simulation.identities import COORDINATOR
from dovetail.wire.channel import Answer
from tests.coordinator.nodes import NAMES, Nodes, Sent, as_it_came
from tests.coordinator.office import (
    ANALYST,
    PATIENCE,
    REQUEST,
    asked_by,
    office,
    opened_office,
    with_analyst,
)
from tests.samples import TASK


class Freeze:
    """A coordinator that stops for ever when an answer comes in, as one that was killed."""

    def __init__(self, kind: str, number: int = 0) -> None:
        self._at = (kind, number)
        self.reached = threading.Event()

    def __call__(self, sent: Sent, answer: Answer) -> Answer:
        if (sent.kind, sent.number) == self._at:
            self.reached.set()
            threading.Event().wait()
        return answer


def killed(folder: Path, nodes: Nodes, kind: str, number: int = 0) -> None:
    """Leaves behind what a coordinator had done by the time it was killed."""
    freeze = Freeze(kind, number)
    nodes.twist = freeze
    dead = opened_office(folder, nodes)
    dead.submit()
    assert freeze.reached.wait(PATIENCE)
    nodes.twist = as_it_came
    nodes.sent.clear()


@pytest.mark.parametrize(
    ("kind", "number", "lost", "asked"),
    [
        ("query.propose", 0, 0, [1, 2, 3]),
        ("train", 1, 1, [2, 3]),
        ("train", 3, 1, []),
        ("query.keep", 0, 0, []),
    ],
)
def test_the_next_coordinator_goes_on_with_what_it_finds(
    kind: str, number: int, lost: int, asked: list[int], tmp_path: Path
) -> None:
    nodes = Nodes(folder=tmp_path)
    killed(tmp_path, nodes, kind, number)
    with office(tmp_path, nodes) as one:
        one.docket.resume()
        if kind != "query.keep":
            one.heard.until("resumed")
            one.heard.until("released")
        one.done()
        one.docket.settle()
        record = one.store.get("job-1")
        assert (record.state, record.rounds_done, record.lost_rounds) == (
            "released",
            3 - lost,
            lost,
        )
        assert one.store.unsettled() == {}
    assert all(nodes.rounds_sent(name) == asked for name in NAMES)
    assert all(nodes.kept.values())
    for name in NAMES:
        spent = nodes.ledgers[name].refresh().spending_by_job()["job-1"]
        assert spent.cancelled
        assert spent.charged == spent.rounds_begun == spent.rounds_committed


def test_a_job_that_was_submitted_twice_around_a_crash_takes_place_once(tmp_path: Path) -> None:
    nodes = Nodes()
    killed(tmp_path, nodes, "train", 2)
    with office(tmp_path, nodes) as one:
        one.docket.resume()
        one.submit()
        one.heard.until("released")
        one.done()
    assert "submitted" not in one.heard.kinds()
    assert all(nodes.rounds_sent(name) == [3] for name in NAMES)


def test_a_coordinator_that_stops_in_good_order_loses_no_round(tmp_path: Path) -> None:
    nodes, stop = Nodes(), threading.Event()

    def at_round_two(sent: Sent, answer: Answer) -> Answer:
        if (sent.kind, sent.number) == ("train", 2):
            stop.set()
            assert suspending.wait(PATIENCE)
        return answer

    suspending = threading.Event()
    nodes.twist = at_round_two
    with office(tmp_path, nodes) as one:
        one.submit()
        assert stop.wait(PATIENCE)
        one.docket._suspended.set()
        suspending.set()
        one.done()
        record = one.store.get("job-1")
        assert (record.state, record.rounds_done, record.round_open) == ("running", 2, False)
        assert one.submit() == "running", "nothing starts any more"
    assert nodes.told("query.close") == []
    with office(tmp_path, nodes) as again:
        again.docket.resume()
        again.heard.until("released")
        again.done()
        assert again.store.get("job-1").lost_rounds == 0


def test_a_damaged_checkpoint_fails_the_job_with_a_reason(tmp_path: Path) -> None:
    nodes = Nodes()
    killed(tmp_path, nodes, "train", 3)
    (tmp_path / "checkpoints" / "job-1" / "2.safetensors").write_bytes(b"rubbish")
    with office(tmp_path, nodes) as one:
        one.docket.resume()
        (failed,) = one.heard.until("failed")
        one.done()
        assert "damaged" in failed.text
        assert one.store.get("job-1").reason == failed.text
        one.docket.settle()
        assert one.store.unsettled() == {}
    assert sorted(nodes.told("query.close")) == sorted(NAMES)
    assert all(not cards for cards in nodes.kept.values())


class Noticing(logging.Handler):
    """Notices when something is logged."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text, self.noticed = text, threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.noticed.set()


@pytest.fixture
def put_off() -> Iterator[threading.Event]:
    """Set once a job was put off."""
    logger, handler = logging.getLogger("dovetail.coordinator.docket"), Noticing("another time")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.noticed
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_database_that_does_not_answer_for_a_while_costs_a_round_and_not_the_job(
    tmp_path: Path, put_off: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dockets, "_RETRY_SECONDS", 0.05)
    nodes = Nodes()
    with office(tmp_path, nodes, lock_timeout=0.05) as one:
        other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        locked = threading.Event()

        def wait_for_the_lock(sent: Sent, answer: Answer) -> Answer:
            if (sent.kind, sent.number) == ("train", 2):
                reached.set()
                assert locked.wait(PATIENCE)
            return answer

        reached = threading.Event()
        nodes.twist = wait_for_the_lock
        one.submit()
        assert reached.wait(PATIENCE)
        other.execute("BEGIN IMMEDIATE")  # the database's only write lock
        locked.set()
        assert put_off.wait(PATIENCE)
        other.execute("ROLLBACK")
        one.heard.until("released")
        one.done()
        record = one.store.get("job-1")
    other.close()
    assert (record.state, record.rounds_done, record.lost_rounds) == ("released", 2, 1)
    assert all(nodes.rounds_sent(name) == [1, 2, 3] for name in NAMES)


def test_a_job_that_was_kept_and_not_yet_taken_is_taken_at_the_next_start(tmp_path: Path) -> None:
    """Killed in between, the coordinator gave no answer, and who asked may never ask again."""
    approved = dict.fromkeys(NAMES, "approved")
    nodes = Nodes(with_analyst(approval="manual"), decisions=approved)  # type: ignore[arg-type]
    theirs = Request("job-2", TASK)
    with office(tmp_path, nodes) as one:
        for asker, request in ((COORDINATOR, REQUEST), (ANALYST, theirs)):
            signed = asked_by(asker, nodes.terms, request)
            one.store.add(one.docket._new_record(signed, 2, PATIENCE))
        one.docket.resume()
        one.heard.until("released")
        assert one.store.get("job-2").owner == "", "this one waits for the operator"


def test_checkpoints_that_a_killed_coordinator_left_at_a_jobs_end_are_removed(
    tmp_path: Path,
) -> None:
    nodes = Nodes()
    with office(tmp_path, nodes) as one:
        one.submit()
        one.heard.until("released")
        one.done()
    for job in ("job-1", "not of ours"):
        (tmp_path / "checkpoints" / job).mkdir()
    with office(tmp_path, nodes) as again:
        again.docket.resume()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["not of ours"]
