"""One coordinator at a time on one database.

A lock file beside a SQLite file, an advisory lock on PostgreSQL: both end with the process that
holds them, however it ends, and need no clock. Two coordinators that both believe to hold it still
cannot ask one round twice: :meth:`~dovetail.store.jobs.JobStore.begin_round` lets one of them.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import sqlalchemy as sa

from dovetail.errors import DataError, DovetailError, SettingError, TransportError
from dovetail.store.database import Database, Purpose, lock_key

_LONGEST_HOLDER = 60  # PostgreSQL keeps 63 bytes of a connection's name


def claim(database: Database, holder: str) -> FileClaim | SessionClaim:
    """Take the claim on a database.

    Args:
        database: to coordinate alone.
        holder: who takes it, for the message that another one gets; ASCII.

    Raises:
        SettingError: another holds it; the message says who.
        DataError, TransportError: as the database or its folder failed.
    """
    name = "".join(c if c.isascii() and c.isprintable() else "?" for c in holder)[:_LONGEST_HOLDER]
    if database.path is not None:
        return FileClaim(database.path.with_name(database.path.name + ".lock"), name)
    return SessionClaim(database, name)


class FileClaim:
    """A lock file that this process holds."""

    def __init__(self, path: Path, holder: str) -> None:
        """As :func:`claim`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._path = path
        try:
            self._file = os.open(path, flags, 0o600)
            self._take(holder)
        except BlockingIOError:
            found = os.pread(self._file, _LONGEST_HOLDER, 0).decode("ascii", "replace")
            os.close(self._file)
            _held_by(found)
        except OSError as error:
            message = f"the lock file {path.name!r} cannot be written ({error.strerror})"
            raise DataError(message) from None

    def _take(self, holder: str) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, holder.encode(), 0)

    def renew(self) -> None:
        """Check that it still holds.

        Raises:
            TransportError: the lock file was removed or exchanged.
        """
        try:
            same = os.path.samestat(self._path.lstat(), os.fstat(self._file))
        except OSError:
            same = False
        if not same:
            raise _lost()

    def release(self) -> None:
        """Give it back; the file stays, so that its lock means the same to everyone."""
        os.close(self._file)


class SessionClaim:
    """An advisory lock of one kept connection.

    Behind a pooler that hands one session to several clients it would mean nothing: give the
    coordinator a connection to the server itself.
    """

    def __init__(self, database: Database, holder: str) -> None:
        """As :func:`claim`."""
        self._database = database
        with database.translated():
            connection = database.engine.connect()
        try:
            with database.translated():
                self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                self._take(holder)
        except DovetailError:
            connection.invalidate()
            connection.close()
            raise

    def _take(self, holder: str) -> None:
        names = {"application_name": holder, **_KEEPALIVES}
        self._connection.execute(sa.select(*(_set(name, names[name]) for name in names)))
        key = lock_key(Purpose.COORDINATE)
        if not self._connection.scalar(sa.select(sa.func.pg_try_advisory_lock(*key))):
            _held_by(self._connection.scalar(_HOLDER) or "")

    def renew(self) -> None:
        """Check that it still holds.

        Raises:
            TransportError: the connection was lost, and the claim with it.
        """
        try:
            with self._database.translated():
                same = self._connection.scalar(_MINE)
        except DovetailError:
            same = None
        if not same:
            raise _lost()

    def release(self) -> None:
        """Give it back."""
        unlock = sa.select(sa.func.pg_advisory_unlock(*lock_key(Purpose.COORDINATE)))
        with suppress(DovetailError), self._database.translated():  # it ends with the session too
            self._connection.execute(unlock)
        self._connection.invalidate()
        self._connection.close()


def _held_by(holder: str) -> NoReturn:
    raise SettingError(
        f"another coordinator works on this database ({holder or 'it did not say which'}): stop "
        "it first, or give this one a database of its own"
    )


def _lost() -> TransportError:
    return TransportError("the claim on the database was lost; another coordinator may hold it")


def _set(name: str, value: str) -> sa.ColumnElement[str]:
    return sa.func.set_config(name, value, False)


_KEEPALIVES = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""The server finds within 30 s that the machine of a coordinator is gone, and frees its claim."""

_LOCKS = sa.table("pg_locks", sa.column("pid"), *map(sa.column, ("locktype", "classid", "objid")))
_SESSIONS = sa.table("pg_stat_activity", sa.column("pid"), sa.column("application_name", sa.Text))
_OURS = sa.and_(
    _LOCKS.c.locktype == "advisory",
    *(
        column == sa.cast(half, sa.dialects.postgresql.OID)
        for column, half in zip(
            (_LOCKS.c.classid, _LOCKS.c.objid), lock_key(Purpose.COORDINATE), strict=True
        )
    ),
)
_MINE = sa.select(sa.func.count()).where(_OURS, _LOCKS.c.pid == sa.func.pg_backend_pid())
_HOLDER = (
    sa.select(_SESSIONS.c.application_name)
    .join(_LOCKS, _LOCKS.c.pid == _SESSIONS.c.pid)
    .where(_OURS)
)
