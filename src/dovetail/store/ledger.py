"""A partner's ledger in one SQLite file: what was decided is on the disk before anything happens.

One transaction holds one entry, and it begins by taking the file's only write lock: two processes
on the same file decide one after the other, and the later one first reads what the earlier wrote.

The journal is SQLite's rollback journal with ``synchronous = EXTRA`` and not a write-ahead log.
Both survive a crash and a power cut; a write-ahead log commits about four times as fast, but keeps
the newest entries in a second file, so that a copy of the ledger alone would forget spending.

Guarantees:
    An entry is returned only when it is on the disk. An error means that nothing may be done on it;
    if the disk failed at the last moment it may still be charged, in vain. The file refuses to
    change or delete entries (by triggers), and opening it checks every entry against the rules and
    the chain of digests. Whoever can write the file can still replace all of it, or cut off its
    end; see :mod:`dovetail.agreement.ledger`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from dovetail.agreement import entry as entries
from dovetail.agreement.entry import Entry
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.terms import Budget
from dovetail.errors import DovetailError, LedgerError
from dovetail.privacy.event import Event

Clock = Callable[[], datetime]

SCHEMA_VERSION = 1
APPLICATION_ID = 0x444F5645  # "DOVE": tells a ledger from any other SQLite file
LOCK_TIMEOUT = 30.0

_METADATA = sa.MetaData()
_ENTRIES = sa.Table(
    "entries",
    _METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("round", sa.Integer),
    sa.Column("request_digest", sa.Text),
    sa.Column("event", sa.Text),
    sa.Column("count", sa.Integer),
    sa.Column("digest", sa.Text, nullable=False),
)
_COLUMNS = tuple(column.name for column in _ENTRIES.columns)
_INSERT = _ENTRIES.insert()
_AFTER = (
    sa.select(_ENTRIES)
    .where(_ENTRIES.c.sequence > sa.bindparam("known"))
    .order_by(_ENTRIES.c.sequence)
)
_APPEND_ONLY = {  # REPLACE deletes without asking the DELETE trigger, but not the INSERT one
    "UPDATE": "",
    "DELETE": "",
    "INSERT": "WHEN NEW.sequence <> (SELECT coalesce(max(sequence), 0) + 1 FROM entries)",
}


class LedgerStore:
    """A ledger and the file it is kept in. Several threads may use it."""

    def __init__(
        self,
        path: Path | None,
        budget: Budget,
        clock: Clock,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> None:
        """Open a ledger, or begin one; check all that it holds.

        Args:
            path: the file, created with mode 0600; ``None`` keeps the ledger in memory only.
            budget: under which to decide from now on.
            clock: the time, with its zone, to write into new entries.
            lock_timeout: seconds to wait for another process that writes.

        Raises:
            LedgerError: the file cannot be used, is no ledger, is damaged or was tampered with,
                or others on this machine may read it.
        """
        self._path, self._clock, self._guard = path, clock, Lock()
        self._ledger = Ledger(budget)
        if path is not None:
            _claim(path)
        self._engine = _engine(path, lock_timeout)
        try:
            with self._transaction() as connection:
                _prepare(connection)
                self._catch_up(connection)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LedgerStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, once an entry that is being written is written."""
        with self._guard:
            self._engine.dispose()

    def refresh(self) -> Ledger:
        """What the file adds up to now, entries of other processes included. To read only.

        Raises:
            LedgerError: the file cannot be read, or was tampered with.
        """
        with self._guard, self._transaction() as connection:
            self._catch_up(connection)
        return self._ledger

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first.

        Raises:
            LedgerError: the file cannot be read, or is damaged.
        """
        with self._guard, self._transaction() as connection:
            return tuple(_entry(row) for row in connection.execute(_AFTER, {"known": 0}))

    def reserve(self, job: str, request_digest: str, event: Event, count: int) -> Entry:
        """As :meth:`Ledger.decide_reserve`; on return the entry is on the disk."""
        return self._append(
            lambda now: self._ledger.decide_reserve(job, request_digest, event, count, now)
        )

    def begin(self, job: str, round_number: int, count: int) -> Entry:
        """As :meth:`Ledger.decide_begin`; on return the entry is on the disk."""
        return self._append(lambda now: self._ledger.decide_begin(job, round_number, count, now))

    def commit(self, job: str, round_number: int) -> Entry:
        """As :meth:`Ledger.decide_commit`; on return the entry is on the disk."""
        return self._append(lambda now: self._ledger.decide_commit(job, round_number, now))

    def cancel(self, job: str) -> Entry:
        """As :meth:`Ledger.decide_cancel`; on return the entry is on the disk."""
        return self._append(lambda now: self._ledger.decide_cancel(job, now))

    def _append(self, decide: Callable[[datetime], Entry]) -> Entry:
        with self._guard:
            with self._transaction() as connection:
                self._catch_up(connection)
                entry = decide(self._clock())
                connection.execute(_INSERT, _row(entry))
            self._ledger.apply(entry)
        return entry

    def _catch_up(self, connection: sa.Connection) -> None:
        for row in connection.execute(_AFTER, {"known": self._ledger.length}):
            self._ledger.apply(_entry(row))

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.SQLAlchemyError, sqlite3.Error, UnicodeError) as error:
            raise LedgerError(f"{self._name}: {_reason(error)}") from None

    @property
    def _name(self) -> str:
        return "the ledger" if self._path is None else f"the ledger {self._path.name!r}"


def _claim(path: Path) -> None:
    """Create the file so that nobody else can ever have read it, or check that nobody else can.

    A file that may be in use is never opened here: closing it would release the locks that SQLite
    holds on it for this process.
    """
    try:
        if not path.exists():
            _create(path)
        mode = path.lstat().st_mode
    except OSError as error:
        message = f"the ledger {path.name!r} cannot be opened ({error.strerror})"
        raise LedgerError(message) from None
    if not stat.S_ISREG(mode):
        raise LedgerError(f"the ledger {path.name!r} cannot be opened (it is not a plain file)")
    if mode & 0o077:
        raise LedgerError(f"others may read or write the ledger {path.name!r}: chmod it to 600")


def _create(path: Path) -> None:
    empty, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
    os.close(empty)
    try:
        with suppress(FileExistsError):  # another process was faster
            os.link(name, path)
    finally:
        Path(name).unlink()


def _engine(path: Path | None, lock_timeout: float) -> sa.Engine:
    url = sa.URL.create("sqlite", database=":memory:" if path is None else str(path))
    engine = sa.create_engine(
        url,
        poolclass=sa.pool.StaticPool,
        connect_args={"check_same_thread": False, "timeout": lock_timeout, "isolation_level": None},
    )
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _take_the_lock)
    return engine


def _configure(connection: Any, record: object) -> None:  # noqa: ARG001 - SQLAlchemy's signature
    for pragma in ("journal_mode = DELETE", "synchronous = EXTRA", "trusted_schema = OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _take_the_lock(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare(connection: sa.Connection) -> None:
    """Lay out a file that is still empty; recognise one that is not."""
    found = [_pragma(connection, name) for name in ("application_id", "user_version")]
    if found == [APPLICATION_ID, SCHEMA_VERSION]:
        return
    if found[0] == APPLICATION_ID:
        raise LedgerError("the ledger was written by a later version of Dovetail")
    if found != [0, 0] or sa.inspect(connection).get_table_names():
        raise LedgerError("the file is a database, but not a ledger")
    _METADATA.create_all(connection)
    for change, when in _APPEND_ONLY.items():
        connection.exec_driver_sql(
            f"CREATE TRIGGER entries_refuse_{change} BEFORE {change} ON entries {when} "
            "BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"
        )
    connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _pragma(connection: sa.Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def _row(entry: Entry) -> dict[str, object]:
    record = entries.to_record(entry)
    event = None if record["event"] is None else json.dumps(record["event"])
    return {**record, "event": event, "digest": entry.digest}


def _entry(row: sa.Row[Any]) -> Entry:
    record: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    digest, sequence = record.pop("digest"), record["sequence"]
    try:
        if record["event"] is not None:
            record["event"] = json.loads(record["event"])
        entry = entries.from_record(record)
    except (DovetailError, ValueError, TypeError) as error:
        raise LedgerError(f"ledger entry {sequence}: {error}") from None
    if entry.digest != digest:
        raise LedgerError(f"ledger entry {sequence}: is not what was written (its digest differs)")
    return entry


def _reason(error: Exception) -> str:
    """What went wrong in words of ours: theirs would show statements and what stands in the file.

    Text that cannot be decoded comes from damaged pages, in SQLite's own messages too.
    """
    if isinstance(error, UnicodeError):
        return _REASONS["malformed"]
    cause = str(getattr(error, "orig", error)).lower()
    for sign, reason in _REASONS.items():
        if sign in cause:
            return reason
    return "cannot be read or written"


_REASONS = {
    "locked": "another process holds it; nothing was added, try again",
    "full": "the disk is full; nothing was added",
    "readonly": "may not be written",
    "could not decode": "is damaged; put back its newest copy and tell the other partners",
    "malformed": "is damaged; put back its newest copy and tell the other partners",
    "not a database": "is damaged, or is no ledger",
    "append-only": "is append-only",
    "disk i/o": "the disk failed; nothing was added",
    "unable to open": "cannot be opened",
}
