"""Worker processes that apply one function to many inputs.

Each worker is a fresh interpreter (``python -c``) at the other end of a socket pair. Not
``multiprocessing``: a fork of a process that used torch or gRPC hangs, and spawn and forkserver
run the caller's script again, so that five lines without an ``if __name__`` guard would fail.

A worker waits for nothing but its socket: when its parent is gone, even by
``kill -9``, it ends with the item it is at. Ctrl-C reaches the parent only.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from dovetail.errors import DovetailError, TransportError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Worker = Callable[[Any], Any]
_PROGRAM = "import sys; from dovetail.simulation.pool import serve; serve(int(sys.argv[1]))"
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Pool(Generic[_Item, _Result]):
    """Some workers; leaving the ``with`` block ends them, whatever they are doing."""

    def __init__(self, workers: int, make_worker: Callable[..., Worker], *arguments: Any) -> None:
        """Starts the processes; they get ready while the caller goes on.

        Args:
            workers: how many, >= 1.
            make_worker: a module's function; called once in every worker with ``arguments``, it
                returns the function to apply to the items.
            arguments: for ``make_worker``; small, they are copied to every worker.
        """
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}
        for _ in range(workers):
            connection, process = _start()
            self._processes[connection] = process
            connection.send((make_worker, arguments))

    def __enter__(self) -> Pool[_Item, _Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.kill()
        for process in self._processes.values():
            process.wait()

    def map(self, items: Iterable[_Item]) -> Iterator[tuple[_Item, _Result]]:
        """Items and their results, in the order in which they get done.

        Raises:
            DovetailError: what a worker raised.
            TransportError: a worker died; probably the machine ran out of memory.
            RuntimeError: a worker raised something that is not Dovetail's; its traceback.
        """
        todo = iter(items)
        busy: dict[Connection, _Item] = {}
        for connection in self._processes:
            _give_next(connection, todo, busy)
        while busy:
            awake = wait(list(busy))
            for ready in [connection for connection in busy if connection in awake]:
                result = _receive(ready)
                item = busy.pop(ready)
                _give_next(ready, todo, busy)
                yield item, result


def serve(descriptor: int) -> None:
    """What a worker process runs, until its parent's end of the socket closes.

    Args:
        descriptor: of the worker's end of the socket pair.
    """
    with Connection(descriptor) as parent:
        try:
            make_worker, arguments = parent.recv()
            work = make_worker(*arguments)
            while True:
                parent.send((True, work(parent.recv())))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except DovetailError as error:
            parent.send((False, (type(error), str(error), vars(error))))
        except Exception:  # noqa: BLE001 - any failure must reach the parent
            parent.send((False, (RuntimeError, traceback.format_exc(), {})))


def _start() -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,
            env=_environment(os.environ),
        )
        return Connection(ours.detach()), process


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Ours, with one thread per worker, and with the modules that this process would import."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**ours, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": path}


def _give_next(
    connection: Connection, todo: Iterator[_Item], busy: dict[Connection, _Item]
) -> None:
    for item in todo:
        with suppress(BrokenPipeError, ConnectionResetError):  # its last words are read next
            connection.send(item)
        busy[connection] = item
        return


def _receive(connection: Connection) -> Any:
    try:
        fine, answer = connection.recv()
    except (EOFError, ConnectionResetError):
        raise TransportError(
            "a worker process died, perhaps for lack of memory; what was finished is kept: "
            "run again with fewer workers"
        ) from None
    if fine:
        return answer
    kind, message, attributes = answer
    raise _revived(kind, message, attributes)


def _revived(kind: type[Exception], message: str, attributes: Mapping[str, object]) -> Exception:
    """The exception that a worker raised, without calling a constructor that may want more."""
    error = kind.__new__(kind, message)
    vars(error).update(attributes)
    return error
