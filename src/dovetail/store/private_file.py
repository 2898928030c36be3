"""Files that only their owner may read, from their first moment."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dovetail.errors import SettingError


def make_private(path: Path, fill: Callable[[Path], None]) -> None:
    """Create a file with mode 0600 that appears under its name when it is filled.

    Args:
        path: left as it is where it exists.
        fill: writes what belongs into the empty file that it is given.

    Raises:
        SettingError: it cannot be created, is no plain file, or others may read or write it.
    """
    try:
        if not path.exists():
            _create(path, fill)
        mode = path.lstat().st_mode
    except OSError as error:
        message = f"the file {path.name!r} cannot be opened ({error.strerror})"
        raise SettingError(message) from None
    if not stat.S_ISREG(mode):
        raise SettingError(f"the file {path.name!r} cannot be opened (it is not a plain file)")
    if mode & 0o077:
        raise SettingError(f"others may read or write the file {path.name!r}: chmod it to 600")


def _create(path: Path, fill: Callable[[Path], None]) -> None:
    empty, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
    os.close(empty)
    try:
        fill(Path(name))
        with suppress(FileExistsError):  # another process was faster
            os.link(name, path)
    finally:
        Path(name).unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk: a new or renamed file is safe only then."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
