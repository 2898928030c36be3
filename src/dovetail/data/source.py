"""Where a partner's rows are: files, SQL over files, or a database; read lazily by DuckDB."""

from __future__ import annotations

import csv
import glob
import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dovetail.data.database import DatabaseQuery, fetched
from dovetail.data.engine import ROWS, Limits, Session, exactly, literal, quote, session
from dovetail.errors import DataError, SettingError
from dovetail.schema import did_you_mean

_PARQUET, _CSV = (".parquet", ".pq"), (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_CSV_RULES = "header = true, skip = 0, comment = '', quote = '\"', escape = '\"'"
"""What is not left to DuckDB's guessing: left alone it may skip lines or quotes that puzzle it."""
_SEPARATORS = ",;\t|"
_LONGEST_HEADER = 2**20
_FILES_TABLE = "files"
_OWN = "rows under their own names"


@dataclass(frozen=True)
class Source:
    """Rows to read, described and not yet opened.

    Make one with :meth:`files`, :meth:`sql` or :meth:`database`, and perhaps :meth:`renamed`.

    Attributes:
        tables: path of each named table: one file, a glob, or a folder of files of one format.
        query: SQL over those names.
        as_text: whether CSV columns stay text, to be read as the schema declares them.
        fetched_from: the database whose rows are fetched into a file of their own first.
        columns: pairs of a schema's name and the table's own name for it.
    """

    tables: tuple[tuple[str, Path], ...]
    query: str
    as_text: bool
    fetched_from: DatabaseQuery | None = None
    columns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def files(cls, path: Path) -> Source:
        """All rows of one file, of the files that match a glob, or of those in a folder.

        CSV files have a header. Their columns are typed by the schema, not by guessing; an empty
        field is NULL. The files' columns are matched by name.
        """
        return cls(((_FILES_TABLE, path),), f"FROM {_FILES_TABLE}", as_text=True)

    @classmethod
    def sql(cls, query: str, tables: Mapping[str, Path], *, as_text: bool = False) -> Source:
        """The result of one SELECT over named tables.

        The types of CSV columns are found by reading the whole file, so that a late surprise is
        a type error in the query and not a failure half-way. With ``as_text`` they all stay text,
        and a key ``007`` does not become 7.
        """
        return cls(tuple(tables.items()), query, as_text)

    @classmethod
    def database(cls, url: str, query: str) -> Source:
        """The result of one SELECT in a PostgreSQL database, or all rows of one table or view.

        The rows are copied whenever the source is opened, into a private file in the work folder
        that the limits must name; so the query should select no more columns than are needed.

        Args:
            url: ``postgresql://user@host:5432/database``, with whatever else libpq reads. A
                password is better kept in ``PGPASSWORD`` or ``~/.pgpass``.
            query: PostgreSQL's SQL, or a table's name, with its schema's where needed.

        Raises:
            SettingError: the URL is not PostgreSQL's, or the query is empty.
        """
        return cls((), f"FROM {_FILES_TABLE}", True, DatabaseQuery(url, query))

    def renamed(self, columns: Mapping[str, str]) -> Source:
        """The same rows under a schema's names.

        Args:
            columns: the schema's name of a column, and the table's own. Columns that are not
                mentioned keep their names, unless another takes it.

        Raises:
            SettingError: a schema's name occurs twice, in upper and lower case say.
        """
        if len({name.lower() for name in columns}) < len(columns):
            raise SettingError("columns: a name is mapped twice")
        return replace(self, columns=tuple(columns.items()))

    def own_name(self, column: str) -> str:
        """What the table itself calls a column of the schema."""
        return next((own for name, own in self.columns if name.lower() == column.lower()), column)

    @contextmanager
    def open(self, limits: Limits) -> Iterator[Session]:
        """A session in which the rows stand under the view :data:`~dovetail.data.engine.ROWS`.

        Raises:
            DataError: a file is missing or unreadable, or the query does not fit; the message
                says how to mend it and holds no value.
        """
        with _opened(self, limits) as opened:
            yield opened


def run_query(
    query: str,
    tables: Mapping[str, Path],
    limits: Limits | None = None,
    *,
    as_text: bool = False,
) -> list[tuple[Any, ...]]:
    """The rows of a small result; a large one belongs into :func:`materialise`.

    ``as_text`` is that of :meth:`Source.sql`.

    Raises:
        DataError: as :meth:`Source.open`.
    """
    with Source.sql(query, tables, as_text=as_text).open(limits or Limits()) as opened:
        return opened.rows(f"FROM {quote(ROWS)}")


def materialise(
    query: str,
    tables: Mapping[str, Path],
    destination: Path,
    limits: Limits | None = None,
    *,
    as_text: bool = False,
) -> None:
    """Write a query's result to a file that only its owner can read (mode 0600).

    It is CSV with a header where its name ends in ``.csv``, and Parquet otherwise.

    The file appears under its name when it is complete, or not at all. Without a work folder of
    its own the query spills beside ``destination``, whose folder must exist. ``as_text`` is that
    of :meth:`Source.sql`.

    Raises:
        DataError: as :meth:`Source.open`; or the destination cannot be written.
    """
    limits = limits or Limits()
    limits = replace(limits, work_folder=limits.work_folder or destination.parent)
    partial = destination.absolute().with_name(f".{destination.name}.partial")
    source = Source.sql(query, tables, as_text=as_text)
    try:
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        with _opened(source, limits, writable=partial) as opened:
            kind = "csv, HEADER true" if destination.suffix.lower() == ".csv" else "parquet"
            options = f"FORMAT {kind}, USE_TMP_FILE false"
            opened.run(f"COPY (FROM {quote(ROWS)}) TO {literal(str(partial))} ({options})")
        partial.replace(destination)
    except OSError:
        raise DataError(f"{destination.name!r} cannot be written in its folder") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _opened(source: Source, limits: Limits, writable: Path | None = None) -> Iterator[Session]:
    with ExitStack() as stack:
        tables = source.tables
        if source.fetched_from:
            path = stack.enter_context(fetched(source.fetched_from, limits))
            tables = ((_FILES_TABLE, path),)
        files = {name: _matching(path) for name, path in tables}
        readable = [file for matched in files.values() for file in matched]
        outputs = [writable] if writable else []
        opened = stack.enter_context(session(limits, readable, outputs))
        for name, matched in files.items():
            opened.create_view(name, _reader(matched, source.as_text))
        opened.create_user_view(_OWN if source.columns else ROWS, source.query)
        if source.columns:
            opened.create_view(ROWS, _under_new_names(source, list(opened.columns(_OWN))))
        yield opened


def _under_new_names(source: Source, found: list[str]) -> str:
    """SQL for the rows with columns renamed; what a name is renamed to is a column, never SQL."""
    own = {name.lower(): name for name in found}
    for _, wanted in source.columns:
        if wanted.lower() not in own:
            hint = did_you_mean(wanted, found)
            raise DataError(f"columns: the table has no column {wanted!r}{hint}")
    taken = {name.lower() for pair in source.columns for name in pair}
    selected = [f"{quote(own[wanted.lower()])} AS {quote(name)}" for name, wanted in source.columns]
    selected += [quote(name) for name in found if name.lower() not in taken]
    return f"SELECT {', '.join(selected)} FROM {quote(_OWN)}"  # noqa: S608 - quoted


def _matching(path: Path) -> list[Path]:
    """The files at ``path``, sorted, all of one format and not obviously broken."""
    if path.is_dir():
        found = [file for file in path.iterdir() if not file.name.startswith((".", "_"))]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    files = sorted(file.absolute() for file in found if file.is_file())
    name = path.absolute().name
    if not files:
        raise DataError(f"no file found at {name!r}: check the path")
    if not (_all_end(files, _PARQUET) or _all_end(files, _CSV)):
        kinds = f"Parquet ({', '.join(_PARQUET)}) or CSV ({', '.join(_CSV)})"
        raise DataError(f"{name!r} must be {kinds}; a folder or glob holds one kind only")
    for file in files:
        _require_readable(file)
    return files


def _require_readable(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            head = opened.read(4)
            opened.seek(max(file.stat().st_size - 4, 0))
            tail = opened.read(4)
    except OSError:
        raise DataError(f"file {file.name!r} cannot be opened: check its permissions") from None
    if not head:
        raise DataError(f"file {file.name!r} is empty")
    if _all_end([file], _PARQUET):
        if not head == tail == b"PAR1":
            raise DataError(f"file {file.name!r} is truncated or no Parquet file; write it anew")
        _require_distinct_columns(file)


def _require_distinct_columns(file: Path) -> None:
    """Refuses names that SQL does not tell apart; DuckDB would rename all but one in silence."""
    with suppress(OSError, pa.ArrowException):  # what is damaged, DuckDB finds and names
        names = [name.lower() for name in pq.read_schema(file).names]
        if len(set(names)) < len(names):
            raise DataError(f"file {file.name!r} has two columns of one name; rename one")


def _reader(files: list[Path], as_text: bool) -> str:
    paths = "[" + ", ".join(literal(exactly(file)) for file in files) + "]"
    if _all_end(files, _PARQUET):
        options = "union_by_name = true, hive_partitioning = false"
        return f"SELECT * FROM read_parquet({paths}, {options})"  # noqa: S608 - quoted above
    types = "all_varchar = true" if as_text else "sample_size = -1"
    rules = f"{_CSV_RULES}, delim = {literal(_separator(files))}"
    options = f"{rules}, union_by_name = true, hive_partitioning = false, {types}"
    return f"SELECT * FROM read_csv({paths}, {options})"  # noqa: S608 - quoted above


def _separator(files: list[Path]) -> str:
    """What stands between the columns of these CSV files, by their headers."""
    found = {_separator_in_header(file) for file in files}
    if len(found) > 1:
        raise DataError("the CSV files differ in what separates their columns; write them alike")
    return found.pop()


def _separator_in_header(file: Path) -> str:
    """The separator that divides the header best; a header that cannot be right is refused."""
    header = _header(file)
    rows = [header.split(separator) for separator in _SEPARATORS]
    with suppress(csv.Error):  # a field beyond csv's limit
        rows = [next(csv.reader([header], delimiter=separator)) for separator in _SEPARATORS]
    widest = max(rows, key=len)
    names = [name.strip().lower() for name in widest if name.strip()]
    if len(set(names)) < len(names):
        raise DataError(
            f"file {file.name!r}: its first row must name the columns, each once; "
            "add a header or rename what stands there twice"
        )
    return _SEPARATORS[rows.index(widest)]


def _header(file: Path) -> str:
    try:
        with file.open("rb") as raw:
            packed = file.name.lower().endswith(".gz")
            line = (gzip.GzipFile(fileobj=raw) if packed else raw).readline(_LONGEST_HEADER)
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"file {file.name!r} is not UTF-8 text: save it as CSV in UTF-8") from None
    except (OSError, EOFError, zlib.error):
        raise DataError(f"file {file.name!r} is truncated or damaged; write it anew") from None


def _all_end(files: list[Path], endings: tuple[str, ...]) -> bool:
    return all(file.name.lower().endswith(endings) for file in files)
