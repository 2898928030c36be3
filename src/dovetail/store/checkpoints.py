"""The model after each round, and the server optimiser's state, as files.

A checkpoint is one safetensors file, ``checkpoints/JOB/ROUND.safetensors``, in the coordinator's
folder. The order that survives a crash anywhere: :func:`save`, then the database's
``finish_round`` with the digest, then :func:`keep`, which removes the rounds before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from dovetail.agreement.request import require_job
from dovetail.errors import DataError, LocalProtocolError
from dovetail.store.private_file import sync_folder

Model = Mapping[str, npt.NDArray[np.float32]]
State = Mapping[str, npt.NDArray[np.generic]]

_FOLDER = "checkpoints"
_MODEL, _STATE, _NAMES = "model/", "state/", "names"


@dataclass(frozen=True)
class Checkpoint:
    """A model, float32, and the server optimiser's state, float32 or float64.

    Both are by name, in the order in which they were saved: an optimiser may go by it.
    """

    model: Mapping[str, npt.NDArray[np.float32]]
    state: Mapping[str, npt.NDArray[np.generic]]


def save(folder: Path, job: str, number: int, model: Model, state: State) -> str:
    """Write the checkpoint after a round; on return it is on the disk.

    Args:
        folder: the coordinator's, which exists.
        job: its name.
        number: the round's, >= 1.
        model: float32 arrays by name.
        state: float32 or float64 arrays by name.

    Returns:
        The SHA-256 of the file, in hex, for :func:`load`.

    Raises:
        SettingError: ``job`` cannot name a job.
        LocalProtocolError: an array is of another type.
        DataError: the disk is full or the folder cannot be written; earlier checkpoints stay.
    """
    path, named = _path(folder, job, number), _named(model, state)
    try:
        for above in (path.parent.parent, path.parent):
            above.mkdir(mode=0o700, exist_ok=True)
        digest = _write(path, named)
        for above in (path.parent, path.parent.parent, folder):
            sync_folder(above)
    except (OSError, SafetensorError) as error:
        message = f"the checkpoint of job {job!r} cannot be written ({_reason(error)})"
        raise DataError(message) from None
    return digest


def load(folder: Path, job: str, number: int, digest: str) -> Checkpoint:
    """The checkpoint that :func:`save` wrote.

    Args:
        folder: the coordinator's.
        job: its name.
        number: the round's.
        digest: what :func:`save` returned.

    Raises:
        SettingError: ``job`` cannot name a job.
        DataError: the file is missing, cannot be read, or is not what was written.
    """
    path = _path(folder, job, number)
    what = f"the checkpoint of job {job!r} after round {number}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{what} is damaged: it is not what was written")
    arrays, names = safetensors.numpy.load(content), _names(content)
    return Checkpoint(model=_group(arrays, names, _MODEL), state=_group(arrays, names, _STATE))


def keep(folder: Path, job: str, number: int) -> None:
    """Remove all files of a job but the checkpoint after one round.

    Raises:
        SettingError: ``job`` cannot name a job.
        DataError: the folder cannot be written.
    """
    kept = _path(folder, job, number)
    try:
        for path in kept.parent.iterdir() if kept.parent.is_dir() else ():
            if path != kept:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_removed(job, error) from None


def forget(folder: Path, job: str) -> None:
    """Remove all checkpoints of a job.

    Raises:
        SettingError: ``job`` cannot name a job.
        DataError: the folder cannot be written.
    """
    try:
        shutil.rmtree(_path(folder, job, 0).parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _not_removed(job, error) from None


def kept(folder: Path) -> tuple[str, ...]:
    """The jobs that have checkpoints, by name.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return tuple(sorted(path.name for path in (folder / _FOLDER).iterdir()))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(f"the checkpoints cannot be listed ({_reason(error)})") from None


def _path(folder: Path, job: str, number: int) -> Path:
    require_job(job)  # which cannot hold a separator, nor begin with a dot
    return folder / _FOLDER / job / f"{number}.safetensors"


def _named(model: Model, state: State) -> dict[str, npt.NDArray[np.generic]]:
    groups: tuple[tuple[str, State, tuple[type, ...]], ...] = (
        (_MODEL, model, (np.float32,)),
        (_STATE, state, (np.float32, np.float64)),
    )
    named: dict[str, npt.NDArray[np.generic]] = {}
    for prefix, arrays, kinds in groups:
        if any(array.dtype.type not in kinds for array in arrays.values()):
            raise LocalProtocolError("a checkpoint holds float32, and its state float64 too")
        named |= {prefix + name: np.asarray(array, order="C") for name, array in arrays.items()}
    return named


def _write(path: Path, named: dict[str, npt.NDArray[np.generic]]) -> str:
    """Writes straight from the arrays: a copy of a large model would be as large again."""
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.numpy.save_file(named, waiting, {_NAMES: json.dumps(list(named))})
        with waiting.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        waiting.replace(path)
    finally:
        waiting.unlink(missing_ok=True)
    return digest


def _names(content: bytes) -> list[str]:
    """The arrays' names in their order, which safetensors itself does not keep."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return [str(name) for name in json.loads(header["__metadata__"][_NAMES])]


def _group(
    arrays: Mapping[str, npt.NDArray[np.float32]], names: Iterable[str], prefix: str
) -> dict[str, npt.NDArray[np.float32]]:
    return {k.removeprefix(prefix): arrays[k] for k in names if k.startswith(prefix)}


def _reason(error: OSError | SafetensorError) -> str:
    found = re.search(r"os error (\d+)", str(error))  # all that safetensors says of one
    code = int(found[1]) if found else getattr(error, "errno", None)
    return os.strerror(code) if code else "unknown"


def _not_removed(job: str, error: OSError) -> DataError:
    return DataError(f"checkpoints of job {job!r} cannot be removed ({_reason(error)})")
