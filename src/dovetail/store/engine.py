"""Where a coordinator's database is, and how SQLAlchemy is to speak to it."""

from __future__ import annotations

import logging
import sqlite3
import ssl
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dovetail.errors import SettingError
from dovetail.store.private_file import make_private

APPLICATION_ID = 0x444F564A  # "DOVJ": tells a coordinator's SQLite file from any other
_NETWORK_TIMEOUT = 15.0
"""Seconds beyond the lock's that PostgreSQL may take to answer."""
_PLACES = "write a file's path, or postgresql://USER:PASSWORD@HOST/NAME"


def address(place: str | Path) -> sa.URL:
    """The URL of a database, its driver filled in.

    Args:
        place: a file's path, or a URL: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.
            After a ``?`` PostgreSQL's may name a ``unix_sock``; or ``sslmode=verify-full``, which
            refuses a server without a certificate that fits its name, and with ``sslrootcert``
            the PEM file of its authority. Otherwise TLS is used where the server offers it, and
            its certificate is not looked at.

    Raises:
        SettingError: it is neither.
    """
    if isinstance(place, Path) or "://" not in place:
        return sa.URL.create("sqlite", database=str(Path(place).absolute()))
    try:
        url = sa.make_url(place)
    except (sa.exc.ArgumentError, ValueError):
        raise SettingError("the database's URL cannot be read; " + _PLACES) from None
    if url.drivername in ("postgresql", "postgresql+pg8000") and url.database and url.username:
        return url.set(drivername="postgresql+pg8000")
    if url.drivername == "sqlite" and url.database:
        return sa.URL.create("sqlite", database=str(Path(url.database).absolute()))
    raise SettingError("the database's URL cannot be used; " + _PLACES)


def connect(url: sa.URL, lock_timeout: float) -> sa.Engine:
    """An engine for the database at ``url``; a SQLite file is made where it is missing.

    Transactions that run with the execution option ``dovetail_writes`` take SQLite's write lock
    when they begin.

    Raises:
        SettingError: the file cannot be made, or others may read it; PostgreSQL's driver is
            missing, or the URL has a setting that is not known.
    """
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # its errors show statements
    if url.drivername == "sqlite":
        return _sqlite(url, lock_timeout)
    arguments = _arguments(url)
    try:
        engine = sa.create_engine(
            url.set(query={}),
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"timeout": lock_timeout + _NETWORK_TIMEOUT, **arguments},
        )
    except ModuleNotFoundError:
        message = "PostgreSQL needs a driver: pip install 'dovetail[postgres]'"
        raise SettingError(message) from None
    settings = f"SELECT set_config('lock_timeout', '{round(lock_timeout * 1000)}', false)"
    sa.event.listen(engine, "connect", lambda raw, _: _run(raw, settings))
    return engine


def _sqlite(url: sa.URL, lock_timeout: float) -> sa.Engine:
    make_private(Path(url.database or ""), _begin_file)
    arguments = {"check_same_thread": False, "isolation_level": None, "timeout": lock_timeout}
    engine = sa.create_engine(url, hide_parameters=True, connect_args=arguments)
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _begin_file(path: Path) -> None:
    """Lay out what must stand in a SQLite file before a second process can open it."""
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    raw.close()


def _configure(raw: Any, record: object) -> None:  # noqa: ARG001 - SQLAlchemy's signature
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
        raw.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("dovetail_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _run(raw: Any, statement: str) -> None:
    cursor = raw.cursor()
    cursor.execute(statement)
    cursor.close()
    raw.commit()


def _arguments(url: sa.URL) -> dict[str, Any]:
    """The driver's arguments for what stands after the ``?``."""
    query = dict(url.query)
    mode, authority = query.pop("sslmode", "prefer"), query.pop("sslrootcert", None)
    arguments: dict[str, Any] = {k: query.pop(k) for k in ("unix_sock",) if k in query}
    if query or mode not in ("prefer", "verify-full") or (authority and mode == "prefer"):
        known = "unix_sock, sslmode=verify-full and with it sslrootcert"
        raise SettingError(f"the database's URL has a setting that is not known; known are {known}")
    if mode == "verify-full":
        arguments["ssl_context"] = _verifying(authority)
    elif "unix_sock" in arguments:
        arguments["ssl_context"] = False
    return arguments


def _verifying(authority: Any) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError:  # of which ssl.SSLError is one
        message = "sslrootcert in the database's URL does not name a readable PEM file"
        raise SettingError(message) from None
