"""A ledger's file under several processes at once, killed processes and full disks."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dovetail.agreement.terms import Budget
from dovetail.errors import LedgerError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian
from dovetail.store.ledger import LOCK_TIMEOUT, LedgerStore

STEP = Gaussian(1.0, 4.0)
STEPS = 10
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
"""Where files are written at once: what a killed process leaves behind is the same there."""


def open_store(path: Path, steps: int = STEPS, lock_timeout: float = LOCK_TIMEOUT) -> LedgerStore:
    """A ledger whose budget covers so many steps and not one more."""
    budget = Budget(accountant.epsilon({STEP: steps}, 1e-5), 1e-5)
    return LedgerStore(path, budget, lambda: datetime.now(UTC), lock_timeout=lock_timeout)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder) / "ledger.db"


HOST = """
import os, resource, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from dovetail.agreement.terms import Budget
from dovetail.errors import DovetailError
from dovetail.privacy.event import Gaussian
from dovetail.store.ledger import LedgerStore

STEP, REQUEST = Gaussian(1.0, 4.0), "a" * 64

def say(word):
    os.write(1, f"{word}\\n".encode())

def race(store, number, limit):
    try:
        store.reserve(f"job-{number}", REQUEST, STEP, 6)
        say("got")
    except DovetailError as error:
        say(str(error).split(":")[0])

def write(store, number, limit):
    for i in range(10**6):
        job = f"job-{os.getpid()}-{i}"
        say(store.reserve(job, REQUEST, STEP, 2).sequence)
        say(store.begin(job, 1, 1).sequence)
        say(store.commit(job, 1).sequence)
        say(store.cancel(job).sequence)

def fill(store, number, limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    i = last = 0
    try:
        while True:
            i += 1
            last = store.reserve(f"job-{i}", REQUEST, STEP, 1).sequence
            last = store.cancel(f"job-{i}").sequence
    except DovetailError as error:
        say(error)
    say(last)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    say(len(store.entries()))

def peek(store, number, limit):
    say("opened")

def work(role, path, epsilon, limit, number, gate):
    os.read(gate, 1)
    budget, wait = Budget(float(epsilon), 1e-5), 0 if role == "peek" else 30
    try:
        store = LedgerStore(Path(path), budget, lambda: datetime.now(UTC), lock_timeout=wait)
        globals()[role](store, number, int(limit))
    except BaseException as error:
        say(repr(error))
    os._exit(0)

say("ready")
for line in sys.stdin:
    role, path, epsilon, limit, processes = line.split()
    gate, opened = os.pipe()
    children = []
    for number in range(int(processes)):
        children.append(os.fork())
        if not children[-1]:
            os.close(opened)
            work(role, path, epsilon, limit, number, gate)
    say(" ".join(map(str, children)))
    os.close(gate)
    os.close(opened)
    for child in children:
        os.waitpid(child, 0)
    say("done")
"""
PRIVATE_MOUNTS = ["unshare", "--map-root-user", "--mount"]


class Host:
    """Starts real processes that write to a ledger, from one that has already imported it all.

    ``disk`` is a folder on a disk of 96 KiB that only those processes see, or ``None`` where the
    machine does not allow that.
    """

    def __init__(self, disk: Path) -> None:
        command = [sys.executable, "-c", HOST]
        tmpfs = f'mount -t tmpfs -o size=96k none "{disk}"'
        own = (
            shutil.which("unshare") is not None
            and not subprocess.run(
                [*PRIVATE_MOUNTS, "sh", "-c", tmpfs], capture_output=True, check=False
            ).returncode
        )
        if own:
            command = [*PRIVATE_MOUNTS, "sh", "-c", f'{tmpfs} && exec "$0" "$@"', *command]
        self.disk = disk if own else None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.heard() == "ready"

    def start(
        self, role: str, path: Path, steps: int = STEPS, limit: int = 0, processes: int = 1
    ) -> list[int]:
        """Start processes on a ledger whose budget covers so many steps; their ids."""
        epsilon = accountant.epsilon({STEP: steps}, 1e-5)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{role} {path} {epsilon!r} {limit} {processes}\n")
        self._process.stdin.flush()
        return [int(word) for word in self.heard().split()]

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
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    opened = Host(tmp_path_factory.mktemp("disk"))
    yield opened
    opened.close()


def test_of_two_processes_one_gets_the_last_of_a_budget(host: Host, path: Path) -> None:
    for attempt in range(12):
        path = path.with_name(f"ledger-{attempt}.db")
        host.start("race", path, processes=2)
        assert sorted(host.rest()) == ["budget", "got"]
        with open_store(path) as store:
            assert store.refresh().spending() == {STEP: 6}


def test_of_many_processes_as_many_get_something_as_the_budget_covers(
    host: Host, path: Path
) -> None:
    host.start("race", path, steps=20, processes=8)
    assert sorted(host.rest()) == ["budget"] * 5 + ["got"] * 3


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 6, 17, 40])
def test_a_process_killed_while_writing_loses_nothing_that_it_was_told_is_written(
    lines: int, host: Host, path: Path
) -> None:
    known = 0
    for killed in range(1, 4):
        (writer,) = host.start("write", path, steps=10_000)
        told = [host.heard() for _ in range(lines)]
        os.kill(writer, signal.SIGKILL)
        told += host.rest()
        known = int(told[-1]) if told else known
        with open_store(path, steps=10_000) as store:
            ledger = store.refresh()
        assert known <= ledger.length <= known + 1
        known = ledger.length
        jobs = ledger.spending_by_job().values()
        assert sum(not job.cancelled for job in jobs) <= killed
        assert ledger.spending().get(STEP, 0) == sum(job.charged for job in jobs)


@pytest.mark.parametrize("limit", [30_000, 45_000, 60_001])
def test_a_file_that_may_not_grow_stays_whole(limit: int, host: Host, path: Path) -> None:
    host.start("fill", path, limit=limit)
    message, last, length = host.rest()
    assert message == "the ledger 'ledger.db': the disk failed; nothing was added"
    assert 0 < int(last) == int(length)
    with open_store(path) as store:
        assert store.refresh().length == int(length)
        store.reserve("afterwards", "a" * 64, STEP, 1)


def test_a_full_disk_stops_the_ledger_and_leaves_it_whole(host: Host) -> None:
    if host.disk is None:
        pytest.skip("no disk of one's own can be mounted here")
    host.start("fill", host.disk / "ledger.db")
    message, last, length = host.rest()
    assert message == "the ledger 'ledger.db': the disk is full; nothing was added"
    assert 0 < int(last) == int(length)


def test_opening_a_ledger_twice_in_one_process_keeps_its_lock(path: Path, host: Host) -> None:
    open_store(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="another process holds it"):
        open_store(path, lock_timeout=0)
    host.start("peek", path)
    (answer,) = host.rest()
    assert "another process holds it" in answer
    holder.execute("ROLLBACK")
    holder.close()
    host.start("peek", path)
    assert host.rest() == ["opened"]
