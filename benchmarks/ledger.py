"""What asking, promising and answering cost in the ledger, with few and with many entries before.

Prints milliseconds (medians) after histories of several lengths, for four of them each: of one
kind of event or of 100, with the budget far away or so near that the Rényi bound no longer decides
and privacy loss distributions are composed. `check` is what the policy asks of the ledger,
`reserve`, `begin` and `commit` are transactions on the disk; the last rows stand beside them, in
the same run: three rows in a bare SQLite file with the same settings, and composing the whole
history anew. Run as ``python -m benchmarks.ledger [ENTRIES ...]``.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from benchmarks.machine import describe
from dovetail.agreement.entry import Entry
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.terms import Budget
from dovetail.privacy import accountant, pld
from dovetail.privacy.event import SampledGaussian, Spending
from dovetail.privacy.history import history_of
from dovetail.store import ledger as stores
from dovetail.store.ledger import LedgerStore

DELTA = 1e-5
ENDLESS = Budget(sys.float_info.max, DELTA)
NOW = datetime(2024, 5, 31, tzinfo=UTC)
JOBS = 125
REPEATS = 30
BARE_ROW = "INSERT INTO rows VALUES (?)", ("x" * 300,)
MEASURED = (
    "check",
    "reserve",
    "begin",
    "commit",
    "check + reserve + begin + commit",
    "check of a kind never seen",
    "three rows in a bare file",
)
ROWS = (
    *MEASURED,
    "composing anew",
    "together / three bare rows",
    "composing anew / together",
    "opening the file",
)


def kind_of_event(number: int) -> SampledGaussian:
    return SampledGaussian(0.01, 1.0, 8.0 + number / 25)


def write_history(path: Path, length: int, kinds: int) -> Spending:
    """A ledger of many finished rounds, in one transaction instead of one for each entry."""
    LedgerStore(path, ENDLESS, lambda: NOW).close()
    ledger, rows = Ledger(ENDLESS), []
    for entry in _entries(ledger, length, kinds):
        ledger.apply(entry)
        rows.append(stores._row(entry))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(stores._INSERT, rows)
    engine.dispose()
    return ledger.spending()


def _entries(ledger: Ledger, length: int, kinds: int) -> Iterator[Entry]:
    rounds, jobs = max(length // JOBS // 2, 1), 0
    while ledger.length < length:
        job, left = f"job-{jobs}", length - ledger.length
        yield ledger.decide_reserve(job, "a" * 64, kind_of_event(jobs % kinds), rounds, NOW)
        for number in range(1, min(rounds, left // 2) + 1):
            yield ledger.decide_begin(job, number, 1, NOW)
            yield ledger.decide_commit(job, number, NOW)
        jobs += 1


def milliseconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1e3


def budget_for(spending: Spending, kinds: int, near: bool) -> Budget:
    """One that leaves room for the timed jobs: and much more, or just that."""
    if not near:
        return Budget(2 * accountant.epsilon_rdp(spending, DELTA), DELTA)
    after = dict(spending)
    for number in range(REPEATS + 1):
        after[kind_of_event(number % kinds)] += 1
    budget = Budget(accountant.epsilon(after, DELTA) + 1e-4, DELTA)
    assert budget.epsilon < accountant.epsilon_rdp(spending, DELTA), "the bound decides"
    return budget


def measure(length: int, kinds: int, near: bool, folder: Path) -> dict[str, float]:
    path = folder / f"{length}.db"
    spending = write_history(path, length, kinds)
    budget = budget_for(spending, kinds, near)
    opened: list[LedgerStore] = []
    opening = milliseconds(lambda: opened.append(LedgerStore(path, budget, lambda: NOW)))
    bare = sqlite3.connect(path.with_suffix(".bare"), isolation_level=None)
    bare.executescript("PRAGMA synchronous = EXTRA; CREATE TABLE rows (content TEXT)")
    with opened[0] as store:
        taken = timed(store, bare, kinds)
    bare.close()
    taken["opening the file"] = opening
    taken["composing anew"] = milliseconds(partial(compose_anew, spending))
    together = taken["check + reserve + begin + commit"]
    taken["together / three bare rows"] = together / taken["three rows in a bare file"]
    taken["composing anew / together"] = taken["composing anew"] / together
    return taken


def timed(store: LedgerStore, bare: sqlite3.Connection, kinds: int) -> dict[str, float]:
    """Medians over jobs that follow each other; the first one, which fills caches, is left out."""
    taken: dict[str, list[float]] = {name: [] for name in MEASURED}
    for number in range(REPEATS + 1):
        job, event = f"timed-{number}", kind_of_event(number % kinds)
        costs = [
            milliseconds(partial(check, store, event)),
            milliseconds(partial(store.reserve, job, "a" * 64, event, 1)),
            milliseconds(partial(store.begin, job, 1, 1)),
            milliseconds(partial(store.commit, job, 1)),
        ]
        costs.append(sum(costs))
        unknown = SampledGaussian(0.01, 1.0, 20.0 + number / 7)
        costs.append(milliseconds(partial(check, store, unknown)))
        costs.append(sum(milliseconds(partial(bare.execute, *BARE_ROW)) for _ in range(3)))
        for name, cost in zip(MEASURED, costs, strict=True):
            taken[name].append(cost)
    return {name: median(costs[1:]) for name, costs in taken.items()}


def check(store: LedgerStore, event: SampledGaussian) -> None:
    """What the policy asks of a ledger before a job is admitted."""
    ledger = store.refresh()
    assert ledger.fits_alone(event, 1, ledger.budget.epsilon)
    assert len(ledger.open_jobs()) < ledger.length
    ledger.would_fit(event, 1, NOW)


def compose_anew(spending: Spending) -> None:
    history = history_of(spending)
    pld._one_step.cache_clear()
    pld._repeated.cache_clear()
    pld.Compositions().of(history, pld.cell_for(history, DELTA)).get_epsilon_for_delta(DELTA)


def main() -> None:
    lengths = [int(word) for word in sys.argv[1:]] or [1_000, 10_000, 100_000]
    print(describe())
    for kinds in (1, 100):
        for near in (False, True):
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
                found = [measure(length, kinds, near, Path(folder)) for length in lengths]
            title = f"{kinds} kinds" if kinds > 1 else "one kind"
            title += ", near the budget" if near else ", far from the budget"
            print(f"\n{title:34}" + "".join(f"{length:>12,}" for length in lengths))
            for name in ROWS:
                print(f"{name:34}" + "".join(f"{each[name]:12.2f}" for each in found))


if __name__ == "__main__":
    main()
