"""Files that only their owner can read, for rows and what was computed from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """A new file of mode 0600, on disk when the block ends.

    Raises:
        OSError: it exists already or cannot be written.
    """
    with _new(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes batches to a new Parquet file of mode 0600, one at a time; it need not last.

    Raises:
        OSError: it exists already or cannot be written.
    """
    with _new(path) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
