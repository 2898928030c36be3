"""Runs a study: prepares its ground, runs what is not finished, writes what was measured."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dovetail.agreement.record import require
from dovetail.data.tidy import ColumnType, write_parquet
from dovetail.errors import PrivacyError, SettingError
from dovetail.privacy.accountant import calibrate_noise_multiplier
from dovetail.simulation.cell_store import CellStore, make_folder, only_run, write_whole
from dovetail.simulation.comparison import Cell, CellResult, cells, run_cell
from dovetail.simulation.ground import Ground, Recipe, check_ground, digest, open_ground
from dovetail.simulation.pool import Pool
from dovetail.simulation.preparing import prepare_ground
from dovetail.simulation.results import Predictions
from dovetail.simulation.study import Study
from dovetail.simulation.study_result import StudyPartner, StudyResult
from dovetail.training.threads import use_one_thread

WORKER_START_SECONDS = 6.0
"""What starting workers costs before the first of them works: the import of torch and Opacus."""
WARM_UP_SECONDS = 1.0
"""What the first run in a process costs more than the next ones."""

COLUMNS: dict[str, ColumnType] = {
    "comparison": "text",
    "trained_by": "text",
    "tested_on": "text",
    "epsilon": "number",
    "delta": "number",
    "seed": "whole",
    "round": "whole",
    "final": "flag",
    "metric": "text",
    "value": "number",
}
"""Columns of ``results.parquet``: the fields of a measurement."""


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: finished runs, including those of an earlier start.
        total: all runs.
        reused: runs that an earlier start had finished.
        latest: the run that was just finished, for people; empty at the start.
        seconds_left: an estimate from the pace since this start's first finished run; ``None``
            before the second.
    """

    done: int
    total: int
    reused: int
    latest: str
    seconds_left: float | None


def run_study(
    study: Study,
    output: str | Path | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> StudyResult:
    """Runs what is not finished in ``output``, and writes the results there.

    Torch is kept to one thread for the rest of this process: equal studies give equal results.

    Args:
        study: what to run.
        output: a folder: ``runs/`` for finished runs, ``results.parquet``, ``results.json``,
            ``privacy-utility.svg`` and ``.png``. By default one named after the study, in the
            current folder. A later call with the same folder goes on where this one stops.
        workers: processes; 1 runs everything in this one, ``None`` takes as many as pay off.
        on_progress: called at the start and after every finished run.
        clock: seconds from some fixed moment.

    Raises:
        DovetailError: data, settings or partners do not allow it. Finished runs stay.
    """
    require(workers is None or workers >= 1, "workers must be at least 1")
    output = study.default_output if output is None else Path(output)
    use_one_thread()
    noise = _noise_multipliers(study)
    with only_run(output), _scratch(output) as scratch:
        make_folder(output / "runs")
        recipe = prepare_ground(study, scratch)
        ground = open_ground(recipe)
        check_ground(study, ground)
        listed = cells(study, tuple(partner.name for partner in ground.partners), noise)
        store = CellStore(output / "runs", study, digest(ground))
        found = {cell: known for cell in listed if (known := store.load(cell)) is not None}
        todo = [cell for cell in listed if cell not in found]
        tell = _teller(len(listed), len(found), on_progress, clock)
        tell("")
        with closing(_run_all(todo, study, recipe, ground, workers, clock)) as finished:
            for cell, fresh in finished:
                store.save(cell, fresh)
                found[cell] = fresh
                tell(str(cell))
        result = _gather(study, ground, noise, {cell: found[cell] for cell in listed})
        write_results(result, output)
    return result


def write_results(result: StudyResult, output: Path) -> None:
    """Writes the tidy table, the whole result as JSON, and the chart.

    Raises:
        DataError: the disk is full or the folder cannot be written; nothing half is left.
    """
    rows = [asdict(measurement) for measurement in result.measurements]
    write_parquet(rows, COLUMNS, output / "results.parquet")
    text = json.dumps(result.to_record(), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(output / "results.json", text.encode())
    _write_chart(result, output)


def _write_chart(result: StudyResult, output: Path) -> None:
    from dovetail.simulation import plots

    figure = result.plot()
    write_whole(output / "privacy-utility.svg", plots.file(figure, "svg"))
    write_whole(output / "privacy-utility.png", plots.file(figure, "png"))


def _noise_multipliers(study: Study) -> dict[float, float]:
    task = study.training
    steps = task.rounds * task.local_steps
    delta = study.privacy.delta
    try:
        return {
            epsilon: calibrate_noise_multiplier(epsilon, delta, task.sampling_prob, steps)
            for epsilon in study.privacy.epsilons
        }
    except PrivacyError as error:
        raise SettingError(f"[privacy]: epsilons at delta = {delta:g}: {error}") from None


def _teller(
    total: int,
    reused: int,
    on_progress: Callable[[Progress], None] | None,
    clock: Callable[[], float],
) -> Callable[[str], None]:
    finished: list[float] = []

    def tell(latest: str) -> None:
        if latest:
            finished.append(clock())
        done, left = reused + len(finished), None
        if len(finished) > 1:
            pace = (finished[-1] - finished[0]) / (len(finished) - 1)
            left = pace * (total - done)
        if on_progress is not None:
            on_progress(Progress(done, total, reused, latest, left))

    return tell


def _run_all(
    todo: list[Cell],
    study: Study,
    recipe: Recipe,
    ground: Ground,
    workers: int | None,
    clock: Callable[[], float],
) -> Generator[tuple[Cell, CellResult], None, None]:
    """Runs cells here or in worker processes; which of the two changes no result.

    Without a given number of workers, cells are run here and timed, until it turns out that
    workers would save more than their start costs.
    """
    start, here = clock(), 0
    while here < len(todo):
        count = workers or _worth_starting(len(todo) - here, here, clock() - start)
        if min(count, len(todo) - here) > 1:
            break
        yield todo[here], run_cell(todo[here], study, ground)
        here += 1
    if left := todo[here:]:
        with Pool[Cell, CellResult](min(count, len(left)), worker, study, recipe) as pool:
            yield from pool.map(left)


def _worth_starting(left: int, done: int, seconds: float) -> int:
    per_cell = max(seconds - WARM_UP_SECONDS, 0) / done if done else 0.0
    return worth_starting(left, per_cell, os.cpu_count() or 1)


def worth_starting(cells_left: int, seconds_per_cell: float, cores: int) -> int:
    """How many processes finish soonest; 1 means: go on in this one.

    Args:
        cells_left: runs still to do.
        seconds_per_cell: how long one takes.
        cores: of the machine.
    """
    workers = max(min(cores, cells_left), 1)
    saved = seconds_per_cell * cells_left * (1 - 1 / workers)
    return workers if saved > WORKER_START_SECONDS else 1


def worker(study: Study, recipe: Recipe) -> Callable[[Cell], CellResult]:
    """What a worker process does with each cell, over the shared memory-mapped rows."""
    use_one_thread()
    return partial(run_cell, study=study, ground=open_ground(recipe))


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder for prepared rows: as private as the data, and gone when the study ends.

    What a killed run left behind is removed first; the caller holds the folder's lock.
    """
    folder = output / ".prepared"
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        make_folder(folder)
        folder.chmod(0o700)
        yield folder


def _gather(
    study: Study, ground: Ground, noise: dict[float, float], found: dict[Cell, CellResult]
) -> StudyResult:
    everyone = ground.held_out.batch(np.arange(len(ground.held_out), dtype=np.int64))
    rows = everyone.mask > 0
    customer = np.nonzero(rows)[0].astype(np.int64)
    labels, partner = everyone.labels[rows], ground.held_out_partner[customer]
    return StudyResult(
        study=study,
        schema=ground.schema,
        partners=tuple(_partner(ground, i) for i in range(len(ground.partners))),
        noise_multipliers=noise,
        measurements=tuple(m for result in found.values() for m in result.measurements),
        predictions=tuple(
            Predictions(
                comparison=cell.comparison,
                trained_by=cell.trained_by,
                epsilon=cell.epsilon,
                seed=cell.seed,
                scores=result.scores,
                labels=labels,
                partner=partner,
                customer=customer,
            )
            for cell, result in found.items()
        ),
    )


def _partner(ground: Ground, index: int) -> StudyPartner:
    partner = ground.partners[index]
    return StudyPartner(
        name=partner.name,
        role=partner.role,
        declared_customers=partner.customers,
        training_customers=len(ground.training[partner.name]),
        held_out_customers=int((ground.held_out_partner == index).sum()),
        data_period=partner.data_period,
    )
