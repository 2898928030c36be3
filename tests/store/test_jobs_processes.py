"""A coordinator's store under several processes at once, killed processes and full disks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dovetail.errors import SettingError
from dovetail.store import checkpoints
from dovetail.store.jobs import JobStore
from dovetail.store.records import JobRecord

HOST = Path(__file__).with_name("job_host.py")
ROUNDS = 4


class Host:
    """Starts real processes that write to a store, from one that has already imported it all."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HOST)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.heard() == "ready"

    def start(
        self, role: str, place: str | Path, folder: Path, processes: int = 1
    ) -> tuple[int, ...]:
        """Start processes in one role; their ids."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{role} {place} {folder} {processes}\n")
        self._process.stdin.flush()
        return tuple(int(word) for word in self.heard().split())

    def heard(self) -> str:
        """The next line that any of them says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def rest(self) -> list[str]:
        """All lines until they have ended."""
        return list(iter(self.heard, "done"))

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    opened = Host()
    yield opened
    opened.close()


def open_store(place: str | Path) -> JobStore:
    return JobStore.open(place, lambda: datetime.now(UTC))


def kill_again_and_again(host: Host, place: str | Path, folder: Path, kills: int) -> list[str]:
    """Everything that coordinators said was kept, each killed at a moment of chance."""
    dice, told = random.Random(kills), []
    for _ in range(kills):
        (coordinator,) = host.start("coordinate", place, folder)
        told += [host.heard() for _ in range(dice.randrange(0, 40))]
        os.kill(coordinator, signal.SIGKILL)
        told += host.rest()
    return told


def check(store: JobStore, folder: Path, told: list[str]) -> None:
    """All that was told stands in the store, and nothing in it contradicts itself."""
    told_of = Counter(line.rpartition(" ")[0] for line in told)
    jobs = {record.job: record for record in store.list(limit=10**6)}
    asked = Counter(line for line in told if line.startswith("asked "))
    assert set(asked.values()) <= {1}
    for job, record in jobs.items():
        assert record.round_asked - 1 <= record.rounds_done + record.lost_rounds
        assert record.rounds_done + record.lost_rounds <= record.round_asked <= ROUNDS
        assert told_of[f"asked {job}"] <= record.round_asked
        assert told_of[f"finished {job}"] <= record.rounds_done
        assert told_of[f"released {job}"] <= (record.state == "released")
        assert (store.release(job) is not None) >= (record.state == "released")
        if record.state == "running" and record.checkpoint_round:
            number = record.checkpoint_round
            model = checkpoints.load(folder, job, number, record.checkpoint).model
            assert (model["weight"] == number).all()
    assert {line.split()[1] for line in told} <= set(jobs)
    sequences = [event.sequence for event in store.events(limit=10**6)]
    assert sequences == sorted(set(sequences))
    assert {int(line.split()[2]) for line in told if line.startswith("event ")} <= set(sequences)


def test_a_killed_coordinator_loses_nothing_that_it_was_told_is_kept(
    place: str | Path, tmp_path: Path, host: Host
) -> None:
    told = kill_again_and_again(host, place, tmp_path, kills=12)
    with open_store(place) as store:
        check(store, tmp_path, told)
        assert len(store.list(["proposed", "running"], limit=10**6)) <= 12
        assert store.list(["released"])


@pytest.mark.long
def test_a_coordinator_killed_at_a_thousand_moments(
    place: str | Path, tmp_path: Path, host: Host
) -> None:
    told = kill_again_and_again(host, place, tmp_path, kills=1000)
    with open_store(place) as store:
        check(store, tmp_path, told)


def test_of_several_processes_one_gets_what_all_want(
    place: str | Path, tmp_path: Path, host: Host
) -> None:
    with open_store(place) as store:
        for job, state in (("waiting", "proposed"), ("running", "running")):
            store.add(JobRecord(job, {}, "", "", "", "", 2, 60.0, ROUNDS, state=state))
    host.start("race", place, tmp_path, processes=4)
    told = Counter(line.split()[0] for line in host.rest())
    assert told == {"added": 1, "approved": 1, "asked": 1, "agreed": 1, "not": 12, "event": 80}
    with open_store(place) as store:
        assert len(store.events()) == 80


def test_who_reads_events_while_others_write_misses_none(
    place: str | Path, tmp_path: Path, host: Host
) -> None:
    with open_store(place) as store:
        store.add(JobRecord("waiting", {}, "", "", "", "", 2, 60.0, ROUNDS))
        store.add(JobRecord("running", {}, "", "", "", "", 2, 60.0, ROUNDS, state="running"))
        host.start("race", place, tmp_path, processes=4)
        seen: list[int] = []
        while len(seen) < 80:
            seen += [e.sequence for e in store.events(after=seen[-1] if seen else 0)]
        host.rest()
        assert seen == [event.sequence for event in store.events()]


def test_several_processes_make_one_database(place: str | Path, tmp_path: Path, host: Host) -> None:
    host.start("migrate", place, tmp_path, processes=4)
    assert host.rest() == ["opened 0"] * 4


def test_a_claim_ends_with_its_process(place: str | Path, tmp_path: Path, host: Host) -> None:
    (holder,) = host.start("hold", place, tmp_path)
    assert host.heard() == "claimed"
    with open_store(place) as store:
        with pytest.raises(SettingError, match=r"\(holder 0\)"):
            store.claim("the next")
        os.kill(holder, signal.SIGKILL)
        host.rest()
        claim_when_free(store)
        store.renew()


def claim_when_free(store: JobStore) -> None:
    """PostgreSQL's server takes a moment to see that a process is gone."""
    for _ in range(10_000):
        try:
            return store.claim("the next")
        except SettingError:
            continue
    raise AssertionError("the claim outlived its process")


def test_files_that_may_not_grow_stay_whole(tmp_path: Path, host: Host) -> None:
    place = tmp_path / "coordinator.db"
    host.start("fill", place, tmp_path)
    first, second, third = host.rest()
    assert first == ("DataError the checkpoint of job 'spring' cannot be written (File too large)")
    assert second == "DataError the database 'coordinator.db' cannot be written: the disk failed"
    last, afterwards, digest = third.split()
    assert int(afterwards) == int(last) + 1
    with open_store(place) as store:
        assert len(store.events(limit=10**6)) == int(afterwards) > 5
    weight = checkpoints.load(tmp_path, "spring", 1, digest).model["weight"]
    assert (weight == 1).all()
    assert [path.name for path in (tmp_path / "checkpoints/spring").iterdir()] == ["1.safetensors"]
