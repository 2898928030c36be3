"""A partner's rows and what a model says of them: by row, then by customer, then ranked.

Everything happens in files beside the result: the rows are encoded and scored batch by batch in
whatever order they come, and DuckDB gathers and sorts the scores, so memory does not grow with the
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dovetail.data import decode, encode
from dovetail.data.check import has_label
from dovetail.data.engine import ROWS, Limits, Session, quote
from dovetail.data.private_file import write_batches
from dovetail.data.source import materialise, run_query
from dovetail.errors import DataError
from dovetail.schema import Schema
from dovetail.training.batch import Batch

Scorer = Callable[[Batch], npt.NDArray[np.float32]]
"""The score of each row, ``(rows,)`` in [0, 1], of a batch of customers with one row each."""

_SCORED = pa.schema([("key", pa.string()), ("score", pa.float32()), ("label", pa.uint8())])
_NOT_IN_PARQUET = ("ENUM", "HUGEINT", "UHUGEINT")
_TENTH = "CAST(1 + 10 * (rank - 1) // customers AS TINYINT)"


@dataclass(frozen=True)
class Ranking:
    """A file of customers and their scores, made by :func:`rank`.

    Attributes:
        path: the file, with the columns ``key`` (text), ``score``, ``observed``, ``rank`` (from 1
            for the highest score) and ``customers`` (how many there are).
        customers: how many there are.
        observed: the share of ones among them, as in a :class:`Decile`.
    """

    path: Path
    customers: int
    observed: float | None


@dataclass(frozen=True)
class Decile:
    """A tenth of the customers.

    Attributes:
        number: 1 for the highest scores, 10 for the lowest.
        customers: how many there are in it.
        mean_score: the mean of their scores.
        observed: the share of ones among them, each customer counting once with the mean of its
            labelled rows; ``None`` where no row has a label.
        lift: that share, as a multiple of the share among all customers; ``None`` where either is
            unknown, or there are no ones at all.
    """

    number: int
    customers: int
    mean_score: float
    observed: float | None
    lift: float | None


def write_scored(opened: Session, schema: Schema, scorer: Scorer, destination: Path) -> None:
    """Writes the key, the score and, where there is one, the label of every row.

    Args:
        opened: the table, checked with :func:`~dovetail.data.check.check_scorable`.
        schema: the model's columns.
        scorer: the model.
        destination: a new Parquet file, readable only by its owner.

    Raises:
        DataError: the table changed since it was checked, the model gives no number, or the file
            cannot be written.
    """
    columns = {**encode.encoded_features(schema), "key": encode.key_text(schema)}
    columns["label"] = _label(opened, schema)
    selected = ", ".join(f"{sql} AS {quote(alias)}" for alias, sql in columns.items())
    batches = opened.batches(f"SELECT {selected} FROM {quote(ROWS)}")  # noqa: S608 - quoted above
    try:
        write_batches(destination, _SCORED, _scored(batches, schema, scorer))
    except OSError:
        name = destination.parent.parent.name
        raise DataError(f"the scores cannot be written to {name!r}: is its disk full?") from None


def rank(scored: Path, destination: Path, limits: Limits) -> Ranking:
    """Gathers what :func:`write_scored` wrote by customer, whose score is the mean of its rows'.

    Equal scores stand in the order of the keys as text.

    Args:
        scored: the scores by row.
        destination: the file to write.
        limits: memory, and where to spill.

    Raises:
        DataError: the file cannot be written.
    """
    gathered = (
        "SELECT key, CAST(avg(score) AS FLOAT) AS score, avg(label) AS observed "
        "FROM scored GROUP BY key"
    )
    query = (
        "SELECT *, row_number() OVER (ORDER BY score DESC, key) AS rank, "  # noqa: S608 - ours
        f"count(*) OVER () AS customers FROM ({gathered})"
    )
    materialise(query, {"scored": scored}, destination, limits)
    query = "SELECT count(*), avg(observed) FROM ranked"
    ((customers, observed),) = run_query(query, {"ranked": destination}, limits)
    return Ranking(destination, customers, observed)


def write_ranked(
    ranking: Ranking, key_name: str, key_type: str, output: Path, limits: Limits
) -> None:
    """Writes key, score and decile of each customer, best first, as CSV or Parquet by the ending.

    Args:
        ranking: the customers.
        key_name: what to call the key; a ``score`` or ``decile`` is called ``key``.
        key_type: its SQL type in the table.
        output: the file to write, readable only by its owner.
        limits: memory, and where to spill.

    Raises:
        DataError: the file cannot be written.
    """
    name = "key" if key_name.lower() in ("score", "decile") else key_name
    text = key_type.startswith(_NOT_IN_PARQUET)
    key = "key" if text else f"CAST(key AS {key_type})"
    query = (
        f"SELECT {key} AS {quote(name)}, score, {_TENTH} AS decile "  # noqa: S608 - quoted
        "FROM ranked ORDER BY rank"
    )
    materialise(query, {"ranked": ranking.path}, output, limits)


def deciles(ranking: Ranking, limits: Limits) -> tuple[Decile, ...]:
    """What the tenths are like; with fewer than ten customers, those that have one."""
    query = (
        f"SELECT {_TENTH} AS decile, count(*), avg(score), avg(observed) "  # noqa: S608 - ours
        "FROM ranked GROUP BY decile ORDER BY decile"
    )
    found = run_query(query, {"ranked": ranking.path}, limits)
    return tuple(
        Decile(number, customers, score, observed, _lift(observed, ranking.observed))
        for number, customers, score, observed in found
    )


def _lift(observed: float | None, overall: float | None) -> float | None:
    return None if observed is None or not overall else observed / overall


def _label(opened: Session, schema: Schema) -> str:
    """SQL for the label; NULL where there is none that can be read."""
    if not has_label(opened, schema):
        return "CAST(NULL AS UTINYINT)"
    value = encode.label_value(schema)
    return f"CASE WHEN {value} IN (0, 1) THEN CAST({value} AS UTINYINT) END"


def _scored(
    batches: Iterator[pa.RecordBatch], schema: Schema, scorer: Scorer
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        keys, labels = batch.column("key"), batch.column("label")
        if keys.null_count:
            raise decode.changed()
        scores = scorer(_one_row_each(*decode.features(batch, schema)))
        columns = [keys, pa.array(_inside(scores)), labels]
        yield pa.record_batch(columns, schema=_SCORED)


def _one_row_each(numbers: npt.NDArray[np.float32], codes: npt.NDArray[np.uint32]) -> Batch:
    rows = (len(numbers), 1)
    return Batch(
        numbers=numbers[:, None],
        codes=codes[:, None].astype(np.int64),
        labels=np.zeros(rows, np.float32),
        mask=np.ones(rows, np.float32),
    )


def _inside(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores in (0, 1): float32 rounds those of extreme rows to its ends."""
    if not np.isfinite(scores).all():
        raise DataError(
            "the model's parameters are too large to compute with; it may have diverged"
        )
    return np.clip(scores, np.finfo(np.float32).tiny, np.float32(1 - 2**-24))
