from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.agreement.terms import Budget
from dovetail.errors import DovetailError, LedgerError, PolicyError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian
from dovetail.store.ledger import LedgerStore

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
STEP = Gaussian(1.0, 4.0)
REQUEST = "a" * 64
STEPS = 10
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
"""Where files are written at once: what a killed process leaves behind is the same there."""
BUDGET = Budget(accountant.epsilon({STEP: STEPS}, 1e-5), 1e-5)
"""Covers ten steps and no eleventh."""
MONTHLY = Budget(BUDGET.epsilon, BUDGET.delta, "month")


def open_store(path: Path | None, **settings: Any) -> LedgerStore:
    return LedgerStore(path, settings.pop("budget", BUDGET), lambda: NOW, **settings)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder) / "ledger.db"


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
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "ledger.db"
    with open_store(path) as store:
        fill(store)
    return path


@pytest.fixture
def full(filled: Path, path: Path) -> Path:
    """A ledger of six entries, closed."""
    path.touch(mode=0o600)
    path.write_bytes(filled.read_bytes())
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
    place: int, flipped: int, filled: Path, path: Path
) -> None:
    damaged = bytearray(filled.read_bytes())
    written = [i for i, byte in enumerate(damaged) if byte]
    damaged[written[place % len(written)]] ^= flipped
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(damaged)
    try:
        with open_store(path) as store:
            ledger = store.refresh()
    except LedgerError:
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


def test_what_was_read_once_is_not_read_again(full: Path) -> None:
    with open_store(full) as store:
        tamper(full, "UPDATE entries SET count = 1 WHERE sequence = 1")
        assert store.refresh().length == 6
        store.reserve("autumn", REQUEST, STEP, 1)
    with pytest.raises(LedgerError, match="ledger entry 1: "):
        open_store(full)


def test_a_budget_refills_with_the_month_and_no_clock_brings_an_old_one_back(path: Path) -> None:
    now = NOW
    with LedgerStore(path, MONTHLY, lambda: now) as store:
        store.reserve("spring", REQUEST, STEP, 5)
        now = NOW + timedelta(days=1)
        store.reserve("summer", REQUEST, STEP, STEPS)
        store.begin("spring", 1, 5)
        now = NOW
        with pytest.raises(LedgerError, match="clock went backwards"):
            store.reserve("autumn", REQUEST, STEP, 5)
        assert store.refresh().length == 3
    with LedgerStore(path, MONTHLY, lambda: now) as again:
        assert again.refresh().periods() == ("2024-05", "2024-06")
        with pytest.raises(LedgerError, match="clock went backwards"):
            again.commit("spring", 1)
    with open_store(path) as other:  # the same history under terms without periods
        assert other.refresh().spending() == {STEP: 15}
        with pytest.raises(PolicyError):
            other.reserve("autumn", REQUEST, STEP, 1)


def test_errors_carry_no_path_and_no_statement(full: Path) -> None:
    tamper(full, "UPDATE entries SET job = 'secret customer 4711' WHERE sequence = 2")
    with pytest.raises(DovetailError) as caught:
        open_store(full)
    for leak in ("4711", str(full.parent), "SELECT", "sqlite"):
        assert leak not in str(caught.value)
    assert caught.value.__cause__ is None
