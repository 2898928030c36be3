"""DuckDB behind a closed door: named files in, bounded memory, no network, safe errors.

DuckDB's own messages quote the values they stumble over and the columns they found instead (in a
CSV without a header those are values too). None of them is ever passed on: :func:`_mapped` writes
a new message from the exception's class and from what the caller already knew.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from dovetail.errors import DataError

ROWS = "dovetail rows"
"""The view that a source's rows stand under."""
BATCH_ROWS = 65_536
"""Rows that a query hands over at a time."""

_PATTERN_CHARACTERS = str.maketrans({"[": "[[]", "*": "[*]", "?": "[?]"})


@dataclass(frozen=True)
class Limits:
    """What reading may use.

    Attributes:
        memory_mb: DuckDB's memory; what a query needs beyond it is spilled. The process takes
            about 150 MB more.
        threads: threads of a query.
        work_folder: where to spill, in a folder of its own (mode 0700) that is removed
            afterwards. Spilled rows are as private as the table. ``None`` never spills: a query
            that needs more memory is refused.
    """

    memory_mb: int = 400
    threads: int = 1
    work_folder: Path | None = None


class Session:
    """One DuckDB connection that can read the named files and nothing else.

    Guarantees: the configuration is locked, extensions are neither loaded nor installed, and no
    file, network address or environment variable is reachable but for ``readable``. Every
    exception is a :class:`DataError` whose text holds no value from a row.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, readable: Sequence[Path]) -> None:
        self._connection = connection
        self._readable = readable

    def reads(self, path: Path) -> bool:
        """Whether this is one of the files that queries may read."""
        return path.exists() and any(path.samefile(file) for file in self._readable)

    def create_view(self, name: str, query: str) -> None:
        """Name a query of this program; it is bound now and read later."""
        with self._mapping(query):
            self._connection.execute(f"CREATE VIEW {quote(name)} AS {query}")

    def create_user_view(self, name: str, query: str) -> None:
        """Name a query that somebody else wrote, once it is known to be a single SELECT."""
        with self._mapping(query):
            statements = self._connection.extract_statements(query)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise DataError("the query must be one SELECT statement and nothing else")
        self.create_view(name, statements[0].query.rstrip().rstrip(";"))

    def columns(self, view: str) -> dict[str, str]:
        """Names and SQL types of a view's columns, in order."""
        query = f"FROM {quote(view)}"
        with self._mapping(query):
            relation = self._connection.sql(query)
            return dict(zip(relation.columns, map(str, relation.types), strict=True))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a small result."""
        with self._mapping(query):
            return self._connection.sql(query).fetchall()

    def run(self, query: str) -> None:
        """Execute a statement of this program."""
        with self._mapping(query):
            self._connection.execute(query)

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a result of any size, at most :data:`BATCH_ROWS` at a time."""
        with self._mapping(query):
            # Through sql(), not execute(): the latter's reader outgrows the memory limit.
            yield from self._connection.sql(query).to_arrow_reader(BATCH_ROWS)

    @contextmanager
    def _mapping(self, query: str) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(_mapped(error, query, self._readable)) from None


@contextmanager
def session(
    limits: Limits, readable: Sequence[Path], writable: Sequence[Path] = ()
) -> Iterator[Session]:
    """A session that ends, and whose spilled rows are removed, with the block.

    Args:
        limits: memory, threads and the place to spill.
        readable: the files that queries may read.
        writable: the files that :meth:`Session.run` may write.

    Raises:
        DataError: the place to spill cannot be written.
    """
    spill = _spill_folder(limits)
    try:
        connection = duckdb.connect(":memory:", config=_config(limits, spill))
        try:
            exact = [exactly(path) for path in readable]
            paths = ", ".join(literal(str(path)) for path in (*readable, *exact, *writable))
            connection.execute(f"SET allowed_paths = [{paths}]")
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield Session(connection, readable)
        finally:
            connection.close()
    finally:
        if spill is not None:
            shutil.rmtree(spill, ignore_errors=True)


def quote(name: str) -> str:
    """A column's or view's name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def exactly(file: Path) -> str:
    """The pattern that only this file's path matches.

    DuckDB takes every path for a pattern, and reads ``rows1.csv`` where it is told ``rows[1].csv``.
    """
    return str(file).translate(_PATTERN_CHARACTERS)


def _spill_folder(limits: Limits) -> Path | None:
    if limits.work_folder is None:
        return None
    try:
        return Path(tempfile.mkdtemp(prefix=".spill-", dir=limits.work_folder))
    except OSError:
        name = limits.work_folder.name
        raise DataError(f"the work folder {name!r} must exist and be writable") from None


def _config(limits: Limits, spill: Path | None) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "memory_limit": f"{limits.memory_mb}MB",
        "threads": limits.threads,
        "temp_directory": str(spill or ""),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "enable_external_file_cache": False,
        "python_enable_replacements": False,
    }


_NO_ROOM = "no disk space or memory is left: free some, or give the work folder more room"
_OUT_OF_MEMORY = "the query needs more memory than allowed: raise memory_mb or set a work folder"
_UNREADABLE = "cannot be read: it is truncated, damaged or of another format; write it anew"
_NOT_UTF8 = "is not UTF-8 text: save it as CSV in UTF-8"
_UNEVEN = (
    "cannot be read: a row has more or fewer fields than the header, or a quote is never closed; "
    "write it anew"
)
_FAILED = "the query fails on some of the rows: check its functions against odd or missing values"
_MISTYPED = "holds values of another type than its column's; TRY_CAST or mend that column"

_RULES: tuple[tuple[type[duckdb.Error], str], ...] = (
    (duckdb.OutOfMemoryException, _OUT_OF_MEMORY),
    (duckdb.ParserException, "the query is not valid SQL"),
    (duckdb.BinderException, "the query does not fit its tables: check its columns and types"),
    (duckdb.CatalogException, "the query names a table or function that does not exist"),
    (duckdb.PermissionException, "the query may read its named tables and nothing else"),
    (duckdb.InterruptException, "the query was interrupted"),
)


def _mapped(error: Exception, query: str, readable: Sequence[Path]) -> str:
    text = str(error)
    if re.search(r"no space left|could not write|max_temp_directory_size", text, re.IGNORECASE):
        return _NO_ROOM
    for kind, message in _RULES:
        if isinstance(error, kind):
            return message + _column_of_ours(text, query)
    mistyped = isinstance(error, duckdb.ConversionException | duckdb.OutOfRangeException)
    file = next((path.name for path in readable if str(path) in text), None)
    if file is None:
        return f"the table {_MISTYPED}" if mistyped else _FAILED
    return f"file {file!r} {_MISTYPED if mistyped else _fault(text)}"


def _fault(text: str) -> str:
    """What is wrong with a file, by the fixed words of DuckDB's message."""
    if "not utf-8 encoded" in text:
        return _NOT_UTF8
    uneven = ("Expected Number of Columns", "quote", "detect the CSV parsing dialect")
    return _UNEVEN if any(words in text for words in uneven) else _UNREADABLE


def _column_of_ours(text: str, query: str) -> str:
    """The column that a message complains about, if the query itself names it."""
    found = re.search(r'Referenced column "([^"]+)" not found', text)
    if found is None or not re.search(rf"\b{re.escape(found[1])}\b", query):
        return ""
    return f" (there is no column {found[1]!r})"
