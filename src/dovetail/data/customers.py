"""From a partner's table to its customers: checked, encoded, bounded and grouped, once.

The work is one external sort in DuckDB, streamed into flat files, so memory does not grow with the
table. Nothing is written before the whole table has passed its check, and the folder appears under
its name only when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dovetail.data import decode, encode
from dovetail.data.arrays import (
    META,
    CustomerArrays,
    CustomerSubset,
    Layout,
    partial_folder,
)
from dovetail.data.check import check_opened
from dovetail.data.engine import ROWS, Limits, Session, literal, quote
from dovetail.data.private_file import private_file
from dovetail.data.source import Source
from dovetail.errors import DataError
from dovetail.schema import Schema

__all__ = ["CustomerArrays", "CustomerSubset", "prepare"]

_ENCODED, _KEY, _CROWDED, _CONTENT = "encoded rows", "customer key", "crowded keys", "row content"


def prepare(
    source: Source, schema: Schema, folder: Path, secret: bytes, limits: Limits | None = None
) -> CustomerArrays:
    """Check a table, encode it, and write its customers to ``folder``.

    Of a customer with more than ``max_rows_per_customer`` rows that many are drawn without
    replacement, each row equally likely. The draw is a keyed hash of the row's encoded content:
    the same for the same secret, whatever the order of rows or files.

    Guarantees: which rows of a customer are kept depends on that customer's rows and the secret
    alone, so one customer changes the stored rows of that customer only. A process that is killed
    (``kill -9``, power cut) leaves rows in ``.NAME.partial`` beside ``folder``, which only the
    owner can enter; the next ``prepare`` of that folder removes it, and so does ``delete``.

    Args:
        source: the table.
        schema: what was declared; only its columns are read.
        folder: where the arrays will lie; must not exist yet, its parent must.
        secret: at least 16 random bytes, the partner's own.
        limits: memory and threads. Spills go below ``folder``'s parent unless it says otherwise.

    Raises:
        DataError: the source cannot be read, ``folder`` exists or cannot be written.
        SchemaError: the table does not fit the schema.
        ValueError: the secret is too short.
    """
    if len(secret) < 16:
        raise ValueError("the secret needs at least 16 bytes")
    limits = limits or Limits()
    with _appearing(folder) as partial:
        limits = replace(limits, work_folder=limits.work_folder or partial)
        with source.open(limits) as opened:
            check_opened(opened, schema).raise_if_bad()
            ordered = _kept_in_order(opened, schema, secret)
            layout = _write(opened.batches(ordered), schema, partial)
        _write_meta(partial, layout)
    return CustomerArrays.open(folder)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write in that takes its name when all went well, and vanishes otherwise."""
    partial = partial_folder(folder)
    if folder.exists():
        raise DataError(f"{folder.name!r} exists already; delete it or choose another folder")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(mode=0o700)
        yield partial
        partial.rename(folder)
    except OSError as error:
        raise DataError(_unwritable(error, folder)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no disk space is left to write {folder.name!r}: free some or choose another disk"
    return f"{folder.name!r} cannot be written: its parent must exist and be writable"


def _kept_in_order(opened: Session, schema: Schema, secret: bytes) -> str:
    """SQL for the rows that count, customer by customer, in an order that only they decide."""
    encoded = encode.encoded_columns(schema)
    columns = ", ".join(f"{sql} AS {alias}" for alias, sql in encoded.items())
    key, rows = quote(_KEY), quote(_ENCODED)
    opened.create_view(
        _ENCODED,
        f"SELECT {encode.key_text(schema)} AS {key}, {columns} FROM {quote(ROWS)}",  # noqa: S608
    )
    limit, names = schema.max_rows_per_customer, ", ".join(encoded)
    opened.run(
        f"CREATE TEMP TABLE {quote(_CROWDED)} AS SELECT {key} FROM {rows} "  # noqa: S608
        f"GROUP BY {key} HAVING count(*) > {limit}"
    )
    ((crowded,),) = opened.rows(f"SELECT count(*) FROM {quote(_CROWDED)}")  # noqa: S608
    kept = f"SELECT {key}, {names} FROM {rows}"  # noqa: S608
    if crowded:
        few = f"{kept} WHERE {key} NOT IN (FROM {quote(_CROWDED)})"
        kept = f"{few} UNION ALL {_drawn(names, limit, secret)}"
    return f"FROM ({kept}) ORDER BY {key}, hash({names})"


def _drawn(names: str, limit: int, secret: bytes) -> str:
    """SQL for ``limit`` rows of each crowded customer.

    Equal rows are told apart by counting them, so that two copies are twice as likely to be
    drawn from; which copy is which does not matter.
    """
    key, content = quote(_KEY), quote(_CONTENT)
    keyed = literal(hashlib.sha256(secret).hexdigest())
    return (
        f"SELECT {key}, {names} FROM ("  # noqa: S608
        f"SELECT *, row_number() OVER (PARTITION BY {key}, {content}) AS copy FROM ("
        f"SELECT *, concat_ws('|', {names}) AS {content} FROM {quote(_ENCODED)} "
        f"WHERE {key} IN (FROM {quote(_CROWDED)}))) "
        f"QUALIFY row_number() OVER (PARTITION BY {key} "
        f"ORDER BY sha256(concat_ws('|', {keyed}, copy, {content}, {key}))) <= {limit}"
    )


def _write(batches: Iterator[pa.RecordBatch], schema: Schema, partial: Path) -> Layout:
    """Append the encoded rows to the array files."""
    arrays = Layout(schema, rows=0, customers=0).arrays
    rows = customers = 0
    previous: str | None = None
    with ExitStack() as stack:
        files = {name: stack.enter_context(private_file(partial / name)) for name in arrays}
        for batch in batches:
            starts = _first_rows(batch.column(0), previous)
            previous = batch.column(0)[-1].as_py()
            parts = _arrays_of(batch, schema)
            for name, part in parts.items():
                files[name].write(np.ascontiguousarray(part, arrays[name][1]).data)
            files["offsets"].write((rows + starts).astype(np.int64).data)
            rows += batch.num_rows
            customers += len(starts)
        files["offsets"].write(np.array([rows], np.int64).data)
    return Layout(schema, rows, customers)


def _first_rows(keys: pa.Array, previous: str | None) -> npt.NDArray[np.int64]:
    """Positions in ``keys`` at which another customer begins."""
    if keys.null_count:
        raise decode.changed()
    changed = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1)).cast(pa.uint8())
    begins = np.concatenate([[keys[0].as_py() != previous], decode.values(changed, np.uint8)])
    return np.flatnonzero(begins)


def _arrays_of(batch: pa.RecordBatch, schema: Schema) -> dict[str, npt.NDArray[Any]]:
    """The batch as the three arrays of its rows, refusing what the check would have refused."""
    numbers, codes = decode.features(batch, schema)
    labels = decode.values(batch.column("label"), np.uint8)
    if (labels > 1).any():
        raise decode.changed()
    return {"numbers": numbers, "codes": codes, "labels": labels}


def _write_meta(partial: Path, layout: Layout) -> None:
    with private_file(partial / META) as file:
        file.write(layout.to_json().encode())
