"""A small disk under one party's folder, which a test fills up and frees again.

For root it is a file system of its own, in a namespace of mounts that only this thread and the
processes that it starts are in: nothing else on this machine sees it, and it vanishes with them.
For others no file may grow beyond a length, which is what a quota does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

_FILLER = ".filler"
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_RECURSIVE, _PRIVATE, _DETACH = 1 << 14, 1 << 18, 2
_LENGTH = 4096
_UNLIMITED = resource.RLIM_INFINITY


class Disk(Protocol):
    """A disk that can be full."""

    def fill(self) -> None:
        """Leaves no room."""
        ...

    def free(self) -> None:
        """Leaves all the room there is."""
        ...


@contextmanager
def small_disk(folder: Path, size: int, process: Callable[[], int]) -> Iterator[Disk]:
    """A disk under a folder, of whatever kind this user can make.

    Args:
        folder: whose files are to lie on it.
        size: in bytes.
        process: the id of the process that writes there, once it runs.
    """
    disk = _FileSystem(folder, size) if os.geteuid() == 0 else _ShortFiles(process)
    try:
        yield disk
    finally:
        disk.close()


class _FileSystem:
    """A file system of its own."""

    def __init__(self, folder: Path, size: int) -> None:
        beside = folder.with_name(f"{folder.name}.before")
        shutil.copytree(folder, beside)
        self._folder = folder
        _call("unshare", _NEW_MOUNTS)
        _call("mount", b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)
        options = f"size={size},mode=0700".encode()
        _call("mount", b"tmpfs", str(folder).encode(), b"tmpfs", ctypes.c_ulong(0), options)
        shutil.copytree(beside, folder, dirs_exist_ok=True)

    def fill(self) -> None:
        try:
            with (self._folder / _FILLER).open("ab", buffering=0) as filler:
                while True:
                    filler.write(bytes(512))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def free(self) -> None:
        (self._folder / _FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        _call("umount2", str(self._folder).encode(), _DETACH)


class _ShortFiles:
    """No file may grow beyond a length."""

    def __init__(self, process: Callable[[], int]) -> None:
        self._process = process

    def fill(self) -> None:
        resource.prlimit(self._process(), resource.RLIMIT_FSIZE, (_LENGTH, _UNLIMITED))

    def free(self) -> None:
        with suppress(ProcessLookupError, KeyError):  # it has ended
            resource.prlimit(self._process(), resource.RLIMIT_FSIZE, (_UNLIMITED, _UNLIMITED))

    close = free


def _call(function: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[function](*arguments):
        raise OSError(ctypes.get_errno(), f"{function} failed")
