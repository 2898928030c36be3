"""Finished runs on disk, so that a study goes on where it stopped.

A run's file is named after a digest of all that decides its result: the model and training, the
data, the ε, the seed, this version of Dovetail. A file that is there is therefore right, and one
that belongs to another study is never found. Files appear whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from dovetail import __version__
from dovetail.crypto import canonical
from dovetail.errors import DataError, SettingError
from dovetail.simulation.comparison import Cell, CellResult
from dovetail.simulation.results import Measurement
from dovetail.simulation.study import Study
from dovetail.store import whole_file

_UNREADABLE = (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError)


class CellStore:
    """The finished runs in one folder."""

    def __init__(self, folder: Path, study: Study, data_digest: str) -> None:
        """Opens the store; the folder must exist.

        Args:
            folder: where files lie.
            study: what is run.
            data_digest: of the ground it is run on.
        """
        self._folder = folder
        self._shared = {
            "version": __version__,
            "data": data_digest,
            "training": asdict(study.training),
            "delta": study.privacy.delta,
            "minimum_cohort": study.privacy.minimum_cohort,
            "customers_overlap": study.privacy.customers_overlap,
            "every_rounds": study.evaluation.every_rounds,
        }

    def load(self, cell: Cell) -> CellResult | None:
        """What this run measured, or ``None`` if it is not finished."""
        try:
            with np.load(self._path(cell), allow_pickle=False) as arrays:
                records = json.loads(str(arrays["measurements"]))
                scores = arrays["scores"].astype(np.float32)
            return CellResult(tuple(Measurement(**record) for record in records), scores)
        except _UNREADABLE:
            return None  # not there, or damaged by something else than this program

    def save(self, cell: Cell, result: CellResult) -> None:
        """Keeps a finished run.

        Raises:
            DataError: the disk is full or the folder cannot be written; nothing half is left.
        """
        records = [asdict(measurement) for measurement in result.measurements]
        buffer = BytesIO()
        np.savez(buffer, measurements=np.array(json.dumps(records)), scores=result.scores)
        write_whole(self._path(cell), buffer.getvalue())

    def _path(self, cell: Cell) -> Path:
        name = canonical.digest({**self._shared, "cell": asdict(cell)})
        return self._folder / f"{name[:32]}.npz"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears under its name when it is complete and on disk.

    Raises:
        DataError: the disk is full or the folder cannot be written; nothing half is left.
    """
    try:
        whole_file.write_whole(path, content)
    except OSError as error:
        raise DataError(f"{path.name!r} cannot be written: {_reason(error)}") from None


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, if they are not there.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        name = str(folder)
        raise DataError(f"folder {name!r} cannot be made: {_why(error)}") from None


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Makes a folder and holds it for one run at a time; however a run ends, the kernel lets go.

    Of a run that fails before anything is finished, nothing is left that was not there.

    Raises:
        DataError: the folder cannot be made or written.
        SettingError: another process is running a study there.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    path = folder / ".lock"
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(path.open("w"))
        except OSError as error:
            raise DataError(f"folder {str(folder)!r} cannot be written: {_why(error)}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.samefile(f"/dev/fd/{lock.fileno()}")
        except OSError:
            held = False
        if not held:  # also where the run that held it has just removed it
            raise SettingError(
                f"another run is writing to {str(folder)!r}: wait for it, or choose another folder"
            )
        try:
            yield
        except BaseException:
            _remove_empty(folder, new)
            raise


def _remove_empty(folder: Path, new: list[Path]) -> None:
    with suppress(OSError):  # not empty: something is finished
        (folder / "runs").rmdir()
    if {path.name for path in folder.iterdir()} == {".lock"}:
        with suppress(OSError):
            (folder / ".lock").unlink()
            for path in new:
                path.rmdir()


def _reason(error: OSError) -> str:
    return f"{_why(error)}; what was finished is kept"


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; free some space and run again"
    return (error.strerror or "input/output error").lower()
