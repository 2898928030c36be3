"""A coordinator's database, SQLite or PostgreSQL: transactions, and errors in words of ours.

SQLite writes ahead in a log of its own, with ``synchronous = FULL``: what is committed survives a
power cut. Its write transactions take the file's only write lock when they begin. On PostgreSQL
they run at READ COMMITTED: whoever decides on what stands there does so in the statement that
changes it, or holds :meth:`Database.lock`.
"""

from __future__ import annotations

import sqlite3
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dovetail.errors import (
    DataError,
    DovetailError,
    LocalProtocolError,
    SettingError,
    TransportError,
)
from dovetail.store.engine import APPLICATION_ID, address, connect
from dovetail.store.migrations import VERSION_TABLE, migrate

LOCK_TIMEOUT = 30.0


_FOREIGN = (
    sa.exc.SQLAlchemyError,
    sqlite3.Error,
    OSError,
    OverflowError,
    UnicodeError,
    struct.error,
)
"""What SQLAlchemy and the drivers raise; they do not wrap all of their own."""


class Purpose(IntEnum):
    """What one process at a time does, where several use one PostgreSQL database."""

    MIGRATE = 1
    APPEND_EVENT = 2
    COORDINATE = 3


class Database:
    """One open database. Several threads may use it.

    Attributes:
        name: what to call it in messages; no URL, which may hold a password.
        path: the file; ``None`` on PostgreSQL.
        engine: SQLAlchemy's.
    """

    def __init__(self, place: str | Path, lock_timeout: float = LOCK_TIMEOUT) -> None:
        """Open it, made and brought up to date where necessary.

        Args:
            place: as in :func:`~dovetail.store.engine.address`; a file gets the mode 0600.
            lock_timeout: seconds to wait for another process that writes.

        Raises:
            SettingError: the place cannot be used, holds something else, or was written by a
                later version.
            DataError: it is damaged, or the disk is full.
            TransportError: it does not answer.
        """
        url = address(place)
        self.path = Path(url.database or "") if url.drivername == "sqlite" else None
        self.name = f"the database {self.path.name!r}" if self.path else "the database"
        self._guard = Lock()
        with self.translated():
            self.engine = connect(url, lock_timeout)
        self._writer = self.engine.execution_options(dovetail_writes=True)
        try:
            with self.write() as connection:
                self.lock(connection, Purpose.MIGRATE)
                _recognise(connection, self.name)
                migrate(connection, self.name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One transaction that reads one state of everything.

        Raises:
            DataError, TransportError: as the database failed.
        """
        with self.translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, on disk when the block is left, or undone where it raised.

        Raises:
            DataError, TransportError: as the database failed. If it stopped answering at the last
                moment, what was written may stand.
            LocalProtocolError: what was written contradicts what stands there.
        """
        with self._guard, self.translated(), self._writer.begin() as connection:
            yield connection

    def lock(self, connection: sa.Connection, purpose: Purpose) -> None:
        """Keep other processes from the same purpose to the transaction's end.

        SQLite's write transactions do so without.
        """
        if self.path is None:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(*lock_key(purpose))))

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows ON CONFLICT."""
        return sqlite.insert(table) if self.path else postgresql.insert(table)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Errors of the database in words of ours."""
        try:
            yield
        except _FOREIGN as error:
            raise _in_our_words(error, self.name) from None


def lock_key(purpose: Purpose) -> tuple[sa.ColumnElement[int], sa.ColumnElement[int]]:
    """PostgreSQL's key of an advisory lock: the purpose, and the schema that holds our tables."""
    schema = sa.func.hashtext(sa.func.coalesce(sa.func.current_schema(), ""))
    return sa.literal(APPLICATION_ID + purpose, sa.Integer), schema


def _recognise(connection: sa.Connection, name: str) -> None:
    if connection.dialect.name == "sqlite":
        found = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        ours = found == APPLICATION_ID
    else:
        tables = sa.inspect(connection).get_table_names()
        ours = not tables or VERSION_TABLE in tables
    if not ours:
        raise SettingError(f"{name} holds something else: give the coordinator one of its own")


def _in_our_words(error: Exception, name: str) -> DovetailError:
    """What went wrong; their words would show statements and what stands in the database."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, DovetailError):
        return cause
    sign = _sign(cause)
    for known, kind, reason in _REASONS:
        if known in sign:
            return kind(f"{name} {reason}")
    return DataError(f"{name} cannot be read or written")


def _sign(error: BaseException) -> str:
    """PostgreSQL's five-letter code of an error, or the text of another."""
    if isinstance(error, UnicodeError):
        return "malformed"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate"
    if isinstance(error, OSError | struct.error):
        return "network error"
    interrupted = getattr(error.__context__, "__context__", None)
    for each in (error, interrupted):  # pg8000 may fail to say goodbye to a server that refused it
        details = each.args[0] if each is not None and each.args else ""
        if isinstance(details, dict):
            return f"[{details.get('C')}]".lower()
    return str(error).lower()


_NO_ANSWER = "does not answer; trying again is reasonable"
_FULL = "cannot be written: the disk is full"
_DAMAGED = "is damaged; put back its newest copy"
_HELD = "is held by another process; nothing was changed, and trying again is reasonable"
_CONTRADICTS = "refuses what contradicts what it holds"
_CERTIFICATE = "is at a server whose certificate is not the one that its URL asks for"
_REFUSED = "refuses the user or the password that its URL gives"
_REASONS: tuple[tuple[str, type[DovetailError], str], ...] = (
    ("constraint failed", LocalProtocolError, _CONTRADICTS),
    ("[23", LocalProtocolError, _CONTRADICTS),
    ("database is locked", TransportError, _HELD),
    ("table is locked", TransportError, _HELD),
    ("is full", DataError, _FULL),
    ("readonly", DataError, "may not be written"),
    ("malformed", DataError, _DAMAGED),
    ("could not decode", DataError, _DAMAGED),
    ("not a database", DataError, "is damaged, or is no database"),
    ("disk i/o", DataError, "cannot be written: the disk failed"),
    ("unable to open", SettingError, "cannot be opened"),
    ("queuepool limit", TransportError, _NO_ANSWER),
    ("network error", TransportError, _NO_ANSWER),
    ("communication error", TransportError, _NO_ANSWER),
    ("create a connection", TransportError, _NO_ANSWER),
    ("connection is closed", TransportError, _NO_ANSWER),
    (
        "certificate",
        SettingError,
        "is at a server whose certificate is not the one that its URL asks for",
    ),
    ("refuses ssl", SettingError, "does not speak TLS, and its URL asks for it"),
    ("[08", TransportError, _NO_ANSWER),
    ("[57", TransportError, _NO_ANSWER),
    ("[53100]", DataError, _FULL),
    ("[53", TransportError, _NO_ANSWER),
    ("[55p03]", TransportError, _HELD),
    ("[40", TransportError, _HELD),
    ("[28", SettingError, _REFUSED),
    ("[3d", SettingError, "does not exist on that server: create it first"),
    ("[42501]", SettingError, "does not allow its user to make or write tables"),
    ("[25006]", DataError, "may not be written"),
    ("[xx", DataError, _DAMAGED),
)
