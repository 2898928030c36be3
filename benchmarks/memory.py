"""Memory of one epoch over a table larger than memory ought to be.

Writes a Parquet file of ``--rows`` x 40 columns, prepares it, gathers one epoch of Poisson batches
and trains one epoch of customer-level DP-SGD, each in a fresh process whose resident memory is
watched from outside. ``scripts/bench memory --rows 10000000 --folder /somewhere/roomy``
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from dovetail.data.arrays import CustomerArrays
from dovetail.data.check import check
from dovetail.data.customers import prepare
from dovetail.data.engine import Limits
from dovetail.data.source import Source, materialise
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Category, Column, Date, Label, Number, Schema

NUMBERS, CATEGORIES, ROWS_PER_CUSTOMER, ROWS_PER_BATCH = 30, 6, 2.5, 4096
KEY = bytes(range(32))
BYTES_PER_ROW = 500
LIMIT_MB = 1000


@dataclass(frozen=True)
class Measured:
    """One phase: how long, how many rows, and the most that was resident (MB)."""

    seconds: float
    rows: int
    peak: float
    anonymous: float
    mapped: float


def the_schema() -> Schema:
    """40 columns: key, label, 30 numbers, 2 dates, 6 categories."""
    numbers = [
        Number(f"n{i}", 0, 1000, transform="log" if i % 2 else "linear") for i in range(NUMBERS)
    ]
    dates = [Date(f"d{i}", date(2020, 1, 1), date(2023, 1, 1), nullable=True) for i in range(2)]
    categories = [
        Category(f"c{i}", tuple(f"value {j}" for j in range(20))) for i in range(CATEGORIES)
    ]
    columns: tuple[Column, ...] = (*numbers, *dates, *categories)
    return Schema("benchmark", "customer", "customer", columns, Label("label", 0.1), 8)


def generate(folder: Path, rows: int) -> int:
    """Write the table, streamed."""
    columns = [f"'customer ' || floor(random() * {rows / ROWS_PER_CUSTOMER})::INT AS customer"]
    columns += [f"(1000 * random())::FLOAT AS n{i}" for i in range(NUMBERS)]
    columns += [f"DATE '2020-01-01' + (1000 * random())::INT AS d{i}" for i in range(2)]
    columns += [f"'value ' || (20 * random())::INT AS c{i}" for i in range(CATEGORIES)]
    columns.append("(random() < 0.1)::INT AS label")
    query = f"SELECT {', '.join(columns)} FROM range({rows})"
    materialise(query, {}, folder / "table.parquet")
    return rows


def import_only(_folder: Path, _rows: int) -> int:
    """What the libraries take before any row is read."""
    import dovetail.training.dp_sgd  # noqa: F401

    return 0


def check_table(folder: Path, rows: int) -> int:
    """Hold the table against its schema."""
    limits = Limits(work_folder=folder)
    check(Source.files(folder / "table.parquet"), the_schema(), limits).raise_if_bad()
    return rows


def prepare_table(folder: Path, rows: int) -> int:
    """Check, encode, sort and write."""
    prepare(Source.files(folder / "table.parquet"), the_schema(), folder / "customers", KEY)
    return rows


def gather_epoch(folder: Path, rows: int) -> int:
    """One epoch of Poisson batches, without training."""
    customers, sampler = CustomerArrays.open(folder / "customers"), SecureSampler(KEY)
    gathered = 0
    for _ in range(steps(rows)):
        batch = customers.batch(sampler.poisson_sample(len(customers), 1 / steps(rows)))
        gathered += int(batch.mask.sum())
    return gathered


def train_epoch(folder: Path, rows: int) -> int:
    """One epoch of DP-SGD, MLP with two hidden layers, one thread."""
    import torch

    from dovetail.agreement.request import ModelSpec, TrainingTask
    from dovetail.coordinator.round import initial_arrays
    from dovetail.training.dp_sgd import train_round

    torch.set_num_threads(1)
    schema, customers = the_schema(), CustomerArrays.open(folder / "customers")
    task = TrainingTask(
        purpose="benchmark",
        features=tuple(column.name for column in schema.columns),
        label="label",
        model=ModelSpec("mlp", (128, 64)),
        rounds=1,
        local_steps=steps(rows),
        sampling_prob=1 / steps(rows),
        l2_clip_norm=1.0,
        noise_multiplier=1.0,
        learning_rate=0.1,
    )
    arrays = initial_arrays(task, schema)
    declared = round(rows / ROWS_PER_CUSTOMER)
    result = train_round(arrays, customers, schema, task, declared, SecureSampler(KEY), {})
    assert all(np.isfinite(array).all() for array in result.arrays.values())
    return rows


PHASES: dict[str, Callable[[Path, int], int]] = {
    "import": import_only,
    "generate": generate,
    "check": check_table,
    "prepare": prepare_table,
    "gather epoch": gather_epoch,
    "train epoch": train_epoch,
}


def steps(rows: int) -> int:
    """Steps of one epoch."""
    return max(1, round(rows / ROWS_PER_BATCH))


def measure(phase: str, folder: Path, rows: int) -> Measured:
    """Run one phase in a process of its own and watch its memory every 20 ms."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_run_phase, args=(phase, folder, rows, theirs))
    child.start()
    theirs.close()
    most = {"RssAnon": 0.0, "RssFile": 0.0}
    while not ours.poll(0.02):
        now = _status(child.pid)
        most = {name: max(most[name], now.get(name, 0.0)) for name in most}
    seconds, processed, peak = ours.recv()
    child.join()
    return Measured(seconds, processed, peak, most["RssAnon"], most["RssFile"])


def _run_phase(phase: str, folder: Path, rows: int, answer: object) -> None:
    start = time.perf_counter()
    processed = PHASES[phase](folder, rows)
    seconds = time.perf_counter() - start
    answer.send((seconds, processed, _status(os.getpid())["VmHWM"]))  # type: ignore[attr-defined]


def _status(pid: int | None) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(size) / 1000 for name, size, _ in sizes}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    needed, free = options.rows * BYTES_PER_ROW, shutil.disk_usage(options.folder).free
    if free < needed:
        parser.exit(1, f"{needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} are free\n")
    print(f"{options.rows:,} rows x 40 columns, about {ROWS_PER_CUSTOMER} rows per customer")
    print("peak resident, its anonymous and its file-mapped part apart (peaks of each), in MB")
    print(f"{'phase':<14}{'s':>8}{'rows/s':>12}{'peak':>8}{'anon':>8}{'mapped':>8}{'of 1 GB':>9}")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="dovetail-memory-") as folder:
        for phase in PHASES:
            m = measure(phase, Path(folder), options.rows)
            print(
                f"{phase:<14}{m.seconds:>8.1f}{m.rows / m.seconds:>12,.0f}{m.peak:>8.0f}"
                f"{m.anonymous:>8.0f}{m.mapped:>8.0f}{m.peak / LIMIT_MB:>8.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
