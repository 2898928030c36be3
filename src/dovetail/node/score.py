"""A released model applied to the partner's own rows; everything stays with the partner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovetail.agreement.request import ModelSpec
from dovetail.data.check import Finding, check_scorable
from dovetail.data.engine import ROWS, Limits
from dovetail.data.scores import Decile, Scorer, deciles, rank, write_ranked, write_scored
from dovetail.data.source import Source
from dovetail.errors import DataError, SettingError
from dovetail.schema import Schema
from dovetail.store.model import load_model
from dovetail.training.batch import Batch
from dovetail.training.evaluate import scores
from dovetail.training.model import Arrays

ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class ScoreSummary:
    """What scoring has found; exact, and for the partner alone.

    Attributes:
        rows: of the table.
        customers: lines of the output.
        deciles: tenths of the customers, the highest scores first; with fewer than ten customers
            some tenths are empty and left out.
        observed: the share of ones among all customers, as in a decile.
        warnings: columns with values that were clamped or count as "other", and odd labels.
    """

    rows: int
    customers: int
    deciles: tuple[Decile, ...]
    observed: float | None
    warnings: tuple[Finding, ...]


def score(
    model_folder: Path, source: Source, output: Path, limits: Limits | None = None
) -> ScoreSummary:
    """Score a table with a released model.

    The output has one line per customer, best first: the key as it stands in the table, the score
    in (0, 1), and the decile from 1 (the highest tenth) to 10. A customer with several rows has
    the mean of their scores, of all of them, so that customers with many rows are not favoured and
    scores can be compared with observed rates. Equal scores stand in the order of the keys as text.

    Args:
        model_folder: the released model and its card.
        source: the partner's table, with the key and the columns that the model uses. Where it
            also has the label, the summary says how well the scores did.
        output: ``.csv`` or ``.parquet``, in a folder that exists. A file of that name is replaced.
        limits: memory and threads. Scores lie in a private folder beside ``output`` for a while,
            and spills too unless the limits say otherwise.

    Raises:
        SettingError: the output's ending is another, or the card cannot be understood.
        DataError: the model or the table cannot be read, or the output cannot be written.
        SchemaError: the table does not fit the model.

    Guarantees: nothing leaves this machine; memory does not grow with the table; the output
    appears whole, for its owner only (mode 0600), or not at all.
    """
    if output.suffix.lower() not in ENDINGS:
        raise SettingError(f"{output.name!r}: scores are written to a .csv or a .parquet file")
    arrays, card = load_model(model_folder)
    task = card.request.task
    schema = card.terms.schema.select(task.features)
    with _work_folder(output) as folder:
        limits = limits or Limits()
        limits = replace(limits, work_folder=limits.work_folder or folder)
        with source.open(limits) as opened:
            if opened.reads(output):
                raise SettingError(f"{output.name!r} is a file of the table itself")
            report = check_scorable(opened, schema)
            report.raise_if_bad()
            key_type = _type_of(opened.columns(ROWS), schema.key)
            write_scored(
                opened, schema, _scorer(arrays, task.model, schema), folder / "rows.parquet"
            )
        ranking = rank(folder / "rows.parquet", folder / "ranked.parquet", limits)
        write_ranked(ranking, source.own_name(schema.key), key_type, output, limits)
        tenths = deciles(ranking, limits)
    return ScoreSummary(report.rows, ranking.customers, tenths, ranking.observed, report.warnings)


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """A private folder beside the output; what a killed run left there goes first."""
    folder = output.absolute().with_name(f".{output.name}.scoring")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except OSError:
        message = f"{output.name!r} cannot be written: its folder must exist and be writable"
        raise DataError(message) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _type_of(columns: dict[str, str], name: str) -> str:
    return next(kind for column, kind in columns.items() if column.lower() == name.lower())


def _scorer(arrays: Arrays, spec: ModelSpec, schema: Schema) -> Scorer:
    single = replace(schema, max_rows_per_customer=1)
    return lambda batch: scores(arrays, spec, single, _Everyone(batch))[0]


class _Everyone:
    """The customers of one batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch.mask)

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        whole = self._batch
        return Batch(
            whole.numbers[customers],
            whole.codes[customers],
            whole.labels[customers],
            whole.mask[customers],
        )
