"""What one step of a job costs in the ledger, with few and with many entries before it.

Prints, for each length of the history, milliseconds per operation: `reserve` (which computes ε of
the whole history), `begin`, `commit` and `cancel`, each a transaction on the disk; the three that a
job of one round needs together; the accountant alone, which is part of `reserve`; what this disk
takes for one row in a bare SQLite file with the same settings, which is part of each; and opening
the file, which checks every entry. Run as ``python benchmarks/ledger.py [ENTRIES ...]``.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from dovetail.agreement.ledger import Ledger
from dovetail.agreement.terms import Budget
from dovetail.privacy import accountant
from dovetail.privacy.event import SampledGaussian, Spending
from dovetail.store import ledger as stores
from dovetail.store.ledger import LedgerStore

BUDGET = Budget(10_000.0, 1e-5)
STEP = SampledGaussian(0.01, 1.0, 30.0)
NOW = datetime(2024, 5, 31, tzinfo=UTC)
REPEATS = 30
COLUMNS = (
    "reserve",
    "begin",
    "commit",
    "cancel",
    "reserve + begin + commit",
    "the accountant alone",
    "the disk alone",
    "open",
)


def write_history(path: Path, length: int) -> None:
    """A ledger of many finished rounds, in one transaction instead of one for each entry."""
    LedgerStore(path, BUDGET, lambda: NOW).close()
    ledger, rows = Ledger(BUDGET, free), []
    for entry in _decisions(ledger, length):
        ledger.apply(entry)
        rows.append(stores._row(entry))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(stores._INSERT, rows)
    engine.dispose()


def free(spending: Spending, delta: float) -> float:  # noqa: ARG001 - an accounting
    """Accounting for a history that is only written down."""
    return 0.0


def _decisions(ledger: Ledger, length: int):  # type: ignore[no-untyped-def]
    rounds = 200
    while ledger.length < length:
        job, left = f"job-{ledger.length}", length - ledger.length
        yield ledger.decide_reserve(job, "a" * 64, STEP, rounds, NOW)
        for number in range(1, min(rounds, left // 2) + 1):
            yield ledger.decide_begin(job, number, 1, NOW)
            yield ledger.decide_commit(job, number, NOW)


def milliseconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1e3


def measure(length: int, folder: Path) -> dict[str, float]:
    path = folder / f"{length}.db"
    write_history(path, length)
    costs: list[float] = []

    def epsilon(spending: Spending, delta: float) -> float:
        start = time.perf_counter()
        cost = accountant.epsilon(spending, delta)
        costs.append((time.perf_counter() - start) * 1e3)
        return cost

    start = time.perf_counter()
    store = LedgerStore(path, BUDGET, lambda: NOW, epsilon)
    opening = (time.perf_counter() - start) * 1e3
    bare = sqlite3.connect(folder / f"{length}-bare.db", isolation_level=None)
    bare.executescript("PRAGMA synchronous = EXTRA; CREATE TABLE rows (content TEXT)")
    taken: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for i in range(REPEATS):
        job = f"timed-{i}"
        acts: dict[str, Callable[[], object]] = {
            "reserve": lambda job=job: store.reserve(job, "a" * 64, STEP, 3),  # type: ignore[misc]
            "begin": lambda job=job: store.begin(job, 1, 1),  # type: ignore[misc]
            "commit": lambda job=job: store.commit(job, 1),  # type: ignore[misc]
            "cancel": lambda job=job: store.cancel(job),  # type: ignore[misc]
        }
        spent = {name: milliseconds(act) for name, act in acts.items()}
        spent["the disk alone"] = milliseconds(
            lambda: bare.execute("INSERT INTO rows VALUES (?)", ("x" * 300,))
        )
        for name, cost in spent.items():
            taken[name].append(cost)
        together = spent["reserve"] + spent["begin"] + spent["commit"]
        taken["reserve + begin + commit"].append(together)
    store.close()
    bare.close()
    taken["the accountant alone"], taken["open"] = costs, [opening]
    return {name: median(values) for name, values in taken.items()}


def main() -> None:
    lengths = [int(word) for word in sys.argv[1:]] or [1_000, 100_000]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        results = {length: measure(length, Path(folder)) for length in lengths}
    first, last = lengths[0], lengths[-1]
    print(
        f"{'ms per operation (median)':28}" + "".join(f"{n:>12,}" for n in lengths) + "     ratio"
    )
    for name in COLUMNS:
        row = "".join(f"{results[length][name]:12.2f}" for length in lengths)
        print(f"{name:28}{row}{results[last][name] / results[first][name]:10.2f}")


if __name__ == "__main__":
    main()
