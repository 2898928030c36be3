"""A partner's table in PostgreSQL, copied batch by batch into a private file; the door to ADBC.

The driver's own messages quote the query, and values where one fails; and a wrong address may
quote the password. None of them is ever passed on: :func:`_mapped` writes a new message from the
SQLSTATE and from PostgreSQL's fixed words.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dovetail.data.engine import Limits
from dovetail.data.private_file import write_batches
from dovetail.errors import DataError, SettingError

_SCHEMES = ("postgresql://", "postgres://")
_SECONDS_TO_CONNECT = 30
_WORD = r'(?:[^\W\d][\w$]*|"(?:[^"]|"")+")'
_TABLE = re.compile(rf"{_WORD}(?:\.{_WORD}){{0,2}}")
_UNREADABLE = ("interval", "money")
"""The driver reads amounts of money as cents, and Parquet has no intervals."""

_FIRST = {pa.int32(): -2_440_588, pa.int64(): -2_440_588 * 86_400_000_000}
"""PostgreSQL's first day: of a date in days, of a timestamp in microseconds since 1970."""


@dataclass(frozen=True)
class DatabaseQuery:
    """What to read from which database.

    Attributes:
        url: as libpq reads it; what it leaves out comes from ``PGPASSWORD``, ``~/.pgpass`` and
            their like. Not shown when this object is printed.
        query: one SELECT, or the name of a table or view.

    Raises:
        SettingError: the URL is not PostgreSQL's, or the query is empty.
    """

    url: str = field(repr=False)
    query: str

    def __post_init__(self) -> None:
        if not self.url.startswith(_SCHEMES):
            raise SettingError("a database's url begins with postgresql://")
        if not self.query.strip():
            raise SettingError("a database needs a query: one SELECT, or the name of a table")

    @property
    def sql(self) -> str:
        """The query as the server gets it; its last line may be a comment."""
        query = self.query.strip().rstrip("; \n\t")
        return f"TABLE {query}" if _TABLE.fullmatch(query) else f"{query}\n"

    @property
    def patient_url(self) -> str:
        """The URL, with a limit to how long a server may take to answer at all."""
        if "connect_timeout" in self.url or "PGCONNECT_TIMEOUT" in os.environ:
            return self.url
        sign = "&" if "?" in self.url else "?"
        return f"{self.url}{sign}connect_timeout={_SECONDS_TO_CONNECT}"


@contextmanager
def fetched(database: DatabaseQuery, limits: Limits) -> Iterator[Path]:
    """A Parquet file of the query's rows, in the work folder, that is gone after the block.

    Args:
        database: what to read.
        limits: names the work folder. The rows lie there in a folder of their own (mode 0700), in
            a file that only its owner can read (0600).

    Raises:
        SettingError: the driver is not installed.
        DataError: the database cannot be reached or read; the message says how to mend it and
            holds no value, no SQL and no password.

    Guarantees: the query runs in a read-only transaction and sees one state of the database;
    memory does not grow with the table.
    """
    folder = _own_folder(limits)
    try:
        path = folder / "rows.parquet"
        _copy(database, path)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_folder(limits: Limits) -> Path:
    if limits.work_folder is None:
        raise DataError("the rows of a database need a work folder while they are read: set one")
    try:
        return Path(tempfile.mkdtemp(prefix=".fetched-", dir=limits.work_folder))
    except OSError:
        name = limits.work_folder.name
        raise DataError(f"the work folder {name!r} must exist and be writable") from None


def _driver() -> Any:
    try:
        import adbc_driver_postgresql.dbapi as driver  # type: ignore[import-untyped]
    except ImportError:
        message = "reading PostgreSQL needs its driver: pip install 'dovetail[postgres]'"
        raise SettingError(message) from None
    return driver


def _copy(database: DatabaseQuery, path: Path) -> None:
    driver = _driver()
    with (
        _mapping(database.query, driver.Error),
        driver.connect(database.patient_url) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(database.sql)
        reader = cursor.fetch_record_batch()
        _require_readable(reader.schema)
        _write(path, _plain_schema(reader.schema), _batches(reader, database.query))


def _batches(reader: pa.RecordBatchReader, query: str) -> Iterator[pa.RecordBatch]:
    with _mapping(query, pa.ArrowException):
        yield from map(_plain, reader)


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    try:
        write_batches(path, schema, batches)
    except OSError:
        name = path.parent.parent.name
        message = f"the database's rows cannot be written to {name!r}: is its disk full?"
        raise DataError(message) from None


def _require_readable(schema: pa.Schema) -> None:
    names = [name.lower() for name in schema.names]
    if len(set(names)) < len(names):
        raise DataError("the query's result has two columns of one name; rename one with AS")
    for column in schema:
        if (kind := _kind(column)) in _UNREADABLE:
            raise DataError(
                f"column {column.name!r} has the type {kind}, which cannot be read: leave it out "
                "or cast it in the query"
            )


def _kind(column: pa.Field) -> str:
    """PostgreSQL's name of a column's type."""
    metadata: dict[bytes, bytes] = column.metadata or {}
    return metadata.get(b"POSTGRESQL:type", b"").decode()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(column.name, _plain_type(column.type)) for column in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type to store: what Parquet does not know (``numeric``) as the text that it came as."""
    foreign = isinstance(kind, pa.BaseExtensionType) and kind.extension_name != "arrow.uuid"
    return kind.storage_type if foreign else kind


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = map(_plain_column, batch.schema, batch.columns)
    return pa.record_batch(list(columns), schema=_plain_schema(batch.schema))


def _plain_column(column: pa.Field, values: pa.Array) -> pa.Array:
    if pa.types.is_date32(column.type) or pa.types.is_timestamp(column.type):
        _require_finite(column, values)
    if _kind(column) == "bpchar":  # blanks that only fill it up
        return pc.utf8_rtrim(values, " ")
    return values if _plain_type(column.type) is column.type else values.storage


def _require_finite(column: pa.Field, values: pa.Array) -> None:
    """Refuses infinite days: the driver makes days out of both that lie before PostgreSQL's first.

    Left alone, a contract without an end would have ended before all others.
    """
    number = pa.int32() if pa.types.is_date32(values.type) else pa.int64()
    lowest = pc.min(values.view(number)).as_py()
    if lowest is not None and lowest < _FIRST[number]:
        raise DataError(
            f"column {column.name!r} holds infinite dates: leave it out, or write "
            "nullif(…, 'infinity') in the query"
        )


_LOST = "the connection was lost; try again"
_READ_ONLY = "the query may only read"
_CANCELLED = "the query was cancelled, by a time limit or by an administrator"
_FAILED = "the query fails on some of the rows: check its functions against odd or missing values"

_STATES = {
    "25006": _READ_ONLY,
    "42P01": "the query names a table that does not exist",
    "42703": "the query names a column that does not exist",
    "42883": "the query uses a function or operator that does not exist for such values: cast them",
    "42501": "its user may not read that table: GRANT SELECT on it",
    "42601": "the query must be one SELECT in PostgreSQL's SQL and nothing else",
    "42": "the query does not fit its tables: check its columns and types",
    "22": _FAILED,
    "57014": _CANCELLED,
    "57": _LOST,
    "08": _LOST,
    "53": "the server has no memory, disk or connection left",
}
"""What a SQLSTATE means, or a whole class of them; the first that fits."""

_WHILE_CONNECTING = {
    "password": "the password is missing or wrong: set PGPASSWORD or ~/.pgpass",
    "role .* does not exist": "there is no such user: check the url",
    "database .* does not exist": "there is no such database: check the url",
    "pg_hba|authentication": "it does not let this user in from this machine: see its pg_hba.conf",
    "translate host name": "its host is not known: check the url",
    "refused|No such file": "nothing answers there: check host and port, and whether it runs",
    "timeout|timed out": "it does not answer in time: check host, port and firewall",
    "SSL|certificate": "no secure connection: check sslmode and the certificates",
    "invalid|missing": "its url cannot be read: postgresql://user@host:5432/database",
    "": "it cannot be reached: check the url",
}
_WHILE_READING = {
    "read-only transaction": _READ_ONLY,
    "cancell?ing statement": _CANCELLED,
    "closed the connection|terminating connection|receive data": _LOST,
    "": _FAILED,
}
"""What fixed words of a message mean that has no SQLSTATE; the first that occur."""


@contextmanager
def _mapping(query: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (kind, OSError) as error:
        raise DataError(f"the database: {_mapped(error, query)}") from None


def _mapped(error: Exception, query: str) -> str:
    text, state = str(error), getattr(error, "sqlstate", None)
    if state:
        meant = next((m for s, m in _STATES.items() if state.startswith(s)), _FAILED)
        return meant + _name_of_ours(text, query)
    words = _WHILE_CONNECTING if "Failed to connect" in text else _WHILE_READING
    return next(meant for word, meant in words.items() if re.search(word, text))


def _name_of_ours(text: str, query: str) -> str:
    """The table or column that does not exist, if the query itself names it."""
    found = re.search(r'(?:column|relation) "?([^"\s]+)"? does not exist', text)
    if found is None or found[1].lower() not in query.lower():
        return ""
    return f" (there is no {found[1]!r})"
