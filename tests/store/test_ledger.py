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
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dovetail.agreement.terms import Budget
from dovetail.errors import DovetailError, LedgerError, PolicyError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian
from dovetail.store.ledger import LedgerStore

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
STEP = Gaussian(1.0, 4.0)
REQUEST = "a" * 64
STEPS = 10
BUDGET = Budget(accountant.epsilon({STEP: STEPS}, 1e-5), 1e-5)
"""Covers ten steps and no eleventh."""


def open_store(path: Path | None, **settings: Any) -> LedgerStore:
    return LedgerStore(path, settings.pop("budget", BUDGET), lambda: NOW, **settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[LedgerStore]:
    with open_store(path) as opened:
        yield opened


def fill(store: LedgerStore) -> None:
    """Six entries, five steps charged."""
    store.reserve("spring", REQUEST, STEP, 4)
    store.begin("spring", 1, 2)
    store.commit("spring", 1)
    store.begin("spring", 2, 2)
    store.reserve("summer", REQUEST, STEP, 3)
    store.cancel("summer")


def test_what_was_written_is_there_when_opened_again(path: Path, store: LedgerStore) -> None:
    fill(store)
    written, ledger = store.entries(), store.refresh()
    store.close()
    with open_store(path) as again:
        assert again.entries() == written
        assert again.refresh().head == ledger.head == written[-1].digest
        assert again.refresh().spending() == {STEP: 4}
        assert again.refresh().spending_by_job() == ledger.spending_by_job()


def test_in_memory_it_is_the_same_ledger(store: LedgerStore) -> None:
    with open_store(None) as memory:
        for each in (memory, store):
            fill(each)
        assert memory.entries() == store.entries()


def test_only_its_owner_may_read_the_file(path: Path, store: LedgerStore) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    store.close()
    path.chmod(0o640)
    with pytest.raises(LedgerError, match="chmod it to 600"):
        open_store(path)


def test_two_stores_on_one_file_see_each_others_entries(path: Path, store: LedgerStore) -> None:
    with open_store(path) as other:
        store.reserve("spring", REQUEST, STEP, 6)
        other.begin("spring", 1, 3)
        with pytest.raises(PolicyError):
            other.reserve("summer", REQUEST, STEP, 5)
        store.commit("spring", 1)
        with pytest.raises(LedgerError, match="committed before"):
            other.begin("spring", 1, 3)
        assert other.refresh().head == store.refresh().head


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET count = 1 WHERE sequence = 1",
        "DELETE FROM entries WHERE sequence = 6",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE sequence = 1",
        "INSERT INTO entries SELECT sequence + 9, previous, time, kind, job, round, "
        "request_digest, event, count, digest FROM entries WHERE sequence = 1",
    ],
)
def test_the_file_refuses_to_change_what_it_holds(
    statement: str, path: Path, store: LedgerStore
) -> None:
    fill(store)
    with sqlite3.connect(path) as raw, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(statement)
    assert len(store.entries()) == 6


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("filled") / "ledger.db"
    with open_store(path) as store:
        fill(store)
    return path.read_bytes()


@pytest.fixture
def full(filled: bytes, path: Path) -> Path:
    """A ledger of six entries, closed."""
    path.touch(mode=0o600)
    path.write_bytes(filled)
    return path


COLUMNS = ("previous", "time", "kind", "job", "round", "request_digest", "event", "count", "digest")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("sequence", [1, 4, 6])
@pytest.mark.parametrize("value", ["b" * 64, 7, None, "2024-05-31T12:00:01+00:00", "cancel"])
def test_every_changed_field_is_found_and_its_entry_named(
    column: str, sequence: int, value: object, full: Path
) -> None:
    before = tamper(full, f"SELECT {column} FROM entries WHERE sequence = {sequence}")
    if before == [(value,)]:
        return
    try:
        tamper(full, f"UPDATE entries SET {column} = ? WHERE sequence = {sequence}", value)
    except sqlite3.IntegrityError:
        return  # the file itself says that the column is never empty
    with pytest.raises(LedgerError, match=f"ledger entry {sequence}: "):
        open_store(full)


@pytest.mark.parametrize(
    ("statements", "entry"),
    [
        (["DELETE FROM entries WHERE sequence = 3"], 3),
        (["DELETE FROM entries WHERE sequence = 1"], 1),
        (
            [
                "UPDATE entries SET sequence = 99 WHERE sequence = 2",
                "UPDATE entries SET sequence = 2 WHERE sequence = 3",
                "UPDATE entries SET sequence = 3 WHERE sequence = 99",
            ],
            2,
        ),
        (
            [
                "INSERT INTO entries SELECT sequence + 1, previous, time, kind, job, round, "
                "request_digest, event, count, digest FROM entries WHERE sequence = 6"
            ],
            7,
        ),
        (["UPDATE entries SET sequence = sequence + 10"], 11),
    ],
    ids=["one dropped", "the first dropped", "two exchanged", "one repeated", "all moved"],
)
def test_rows_dropped_repeated_or_moved_are_found(
    statements: list[str], entry: int, full: Path
) -> None:
    for statement in statements:
        tamper(full, statement)
    with pytest.raises(LedgerError, match=f"ledger entry {entry}: "):
        open_store(full)


def tamper(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as raw:
        for change in ("UPDATE", "DELETE", "INSERT"):
            raw.execute(f"DROP TRIGGER IF EXISTS entries_refuse_{change}")
        return raw.execute(statement, values).fetchall()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(min_value=0), flipped=st.integers(min_value=1, max_value=255))
def test_a_damaged_byte_is_found_or_changes_nothing(
    place: int, flipped: int, filled: bytes, path: Path
) -> None:
    damaged = bytearray(filled)
    damaged[place % len(filled)] ^= flipped
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(damaged)
    try:
        with open_store(path) as store:
            ledger = store.refresh()
    except LedgerError as error:
        assert "sqlite" not in str(error).lower()
        return
    assert ledger.spending() == {STEP: 4}
    assert ledger.length == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is no database, but a text " * 200, "is damaged, or is no ledger"),
        (b"SQLite format 3\x00" + b"\xff" * 5000, "is damaged"),
    ],
)
def test_a_file_that_is_no_ledger_is_left_alone(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match=message):
        open_store(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TABLE customers (id)", "a database, but not a ledger"),
        ("PRAGMA user_version = 7", "a database, but not a ledger"),
    ],
)
def test_another_database_is_not_taken_for_a_ledger(
    statement: str, message: str, path: Path
) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute(statement)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match=message):
        open_store(path)


def test_a_later_layout_is_refused(path: Path, store: LedgerStore) -> None:
    store.close()
    tamper(path, "PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match="later version"):
        open_store(path)


def test_a_ledger_cut_short_is_damaged(path: Path, store: LedgerStore) -> None:
    for i in range(40):
        store.reserve(f"job-{i}", REQUEST, STEP, 1)
        store.cancel(f"job-{i}")
    store.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(LedgerError, match="is damaged"):
        open_store(path)


def test_a_link_to_a_file_is_not_followed(path: Path, store: LedgerStore) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(LedgerError, match="not a plain file"):
        open_store(link)


def test_opening_a_ledger_twice_in_one_process_keeps_its_lock(
    path: Path, store: LedgerStore, host: Host
) -> None:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="another process holds it"):
        open_store(path, lock_timeout=0)
    host.start("race", path)
    holder.execute("ROLLBACK")
    holder.close()
    assert host.rest() == ["got"]


@pytest.mark.parametrize("place", ["missing/ledger.db", "."])
def test_a_place_that_cannot_hold_a_file_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        open_store(tmp_path / place)


def test_a_file_that_another_process_holds_is_not_waited_for_for_ever(
    path: Path, store: LedgerStore
) -> None:
    store.close()
    with open_store(path, lock_timeout=0.05) as impatient:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="another process holds it"):
            impatient.reserve("spring", REQUEST, STEP, 1)
        holder.execute("ROLLBACK")
        holder.close()
        assert impatient.reserve("spring", REQUEST, STEP, 1).sequence == 1


def test_a_clock_that_fails_leaves_nothing_behind(path: Path, store: LedgerStore) -> None:
    fill(store)

    def broken() -> datetime:
        raise RuntimeError("no time")

    with LedgerStore(path, BUDGET, broken) as other, pytest.raises(RuntimeError):
        other.reserve("autumn", REQUEST, STEP, 1)
    assert len(store.entries()) == 6
    store.reserve("autumn", REQUEST, STEP, 1)


class Spending(RuleBasedStateMachine):
    """A partner's jobs with crashes anywhere, beside a plain count of what was begun.

    The budget covers ten steps; the counter is kept apart from the ledger and forgets nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.store = open_store(self.path)
        self.reserved: dict[str, int] = {}
        self.begun: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.committed: set[tuple[str, int]] = set()
        self.attempts: dict[tuple[str, int], int] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    jobs = st.sampled_from(["a", "b", "c", "d"])
    counts = st.integers(min_value=1, max_value=6)
    rounds = st.integers(min_value=1, max_value=3)

    def charged(self) -> int:
        return sum(
            self.begun[job] if job in self.cancelled else max(self.begun[job], promised)
            for job, promised in self.reserved.items()
        )

    @rule(job=jobs, count=counts)
    def reserve(self, job: str, count: int) -> None:
        fits = job not in self.reserved and self.charged() + count <= STEPS
        if self.tried(fits, self.store.reserve, job, REQUEST, STEP, count):
            self.reserved[job], self.begun[job] = count, 0

    @rule(job=jobs, number=rounds, count=counts)
    def begin(self, job: str, number: int, count: int) -> None:
        before = self.charged()
        open_ = job in self.reserved and job not in self.cancelled
        first = {key: n for key, n in self.attempts.items() if key[0] == job}
        fits = open_ and (job, number) not in self.committed
        if fits and (job, number) in first:
            fits = first[job, number] == count
        elif fits:
            fits = sum(first.values()) + count <= self.reserved[job]
        if fits:
            after = max(self.reserved[job], self.begun[job] + count)
            fits = before - max(self.reserved[job], self.begun[job]) + after <= STEPS
        if self.tried(fits, self.store.begin, job, number, count):
            self.begun[job] += count
            self.attempts.setdefault((job, number), count)

    @rule(job=jobs, number=rounds)
    def commit(self, job: str, number: int) -> None:
        fits = (job, number) in self.attempts and (job, number) not in self.committed
        if self.tried(fits and job not in self.cancelled, self.store.commit, job, number):
            self.committed.add((job, number))

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        fits = job in self.reserved and job not in self.cancelled
        if self.tried(fits, self.store.cancel, job):
            self.cancelled.add(job)

    @rule()
    def crash(self) -> None:
        self.store = open_store(self.path)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = open_store(self.path)

    @invariant()
    def the_budget_holds_and_nothing_that_was_begun_is_missing(self) -> None:
        ledger = self.store.refresh()
        assert ledger.epsilon() <= BUDGET.epsilon
        assert ledger.spending().get(STEP, 0) == self.charged() <= STEPS
        assert self.charged() >= sum(self.begun.values())
        drawn = {job: spent.drawn for job, spent in ledger.spending_by_job().items()}
        assert drawn == self.begun

    def tried(self, fits: bool, act: Any, *details: Any) -> bool:
        length = self.store.refresh().length
        try:
            act(*details)
        except (LedgerError, PolicyError):
            assert not fits
            assert self.store.refresh().length == length
            return False
        assert fits
        return True


Spending.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestSpending = Spending.TestCase

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

def work(role, path, epsilon, limit, number, gate):
    os.read(gate, 1)
    try:
        store = LedgerStore(Path(path), Budget(float(epsilon), 1e-5), lambda: datetime.now(UTC))
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


def test_of_two_processes_one_gets_the_last_of_a_budget(host: Host, tmp_path: Path) -> None:
    for attempt in range(12):
        path = tmp_path / f"ledger-{attempt}.db"
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
    generous = Budget(accountant.epsilon({STEP: 10_000}, 1e-5), 1e-5)
    known = 0
    for killed in range(1, 4):
        (writer,) = host.start("write", path, steps=10_000)
        told = [host.heard() for _ in range(lines)]
        os.kill(writer, signal.SIGKILL)
        told += host.rest()
        known = int(told[-1]) if told else known
        with open_store(path, budget=generous) as store:
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
        store.reserve("afterwards", REQUEST, STEP, 1)


def test_a_full_disk_stops_the_ledger_and_leaves_it_whole(host: Host) -> None:
    if host.disk is None:
        pytest.skip("no disk of one's own can be mounted here")
    host.start("fill", host.disk / "ledger.db")
    message, last, length = host.rest()
    assert message == "the ledger 'ledger.db': the disk is full; nothing was added"
    assert 0 < int(last) == int(length)


def test_errors_carry_no_path_and_no_statement(full: Path) -> None:
    tamper(full, "UPDATE entries SET job = 'secret customer 4711' WHERE sequence = 2")
    with pytest.raises(DovetailError) as caught:
        open_store(full)
    for leak in ("4711", str(full.parent), "SELECT", "sqlite"):
        assert leak not in str(caught.value)
    assert caught.value.__cause__ is None
