"""Rounds computed in a process of their own, which can be killed; ledger and keys stay here.

The worker is a fresh Python interpreter. It is handed the folder of prepared customers, and then
requests and arrays through a socket pair: no key, no command line and no environment variable of
the node but those in :data:`_ENVIRONMENT`.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dovetail import errors
from dovetail.agreement import request as requests
from dovetail.agreement.request import Request
from dovetail.errors import DovetailError, PolicyError, SettingError, TransportError
from dovetail.node.pipe import Arrays, Named, receive, send
from dovetail.training.round_result import RoundResult, round_result

if TYPE_CHECKING:
    from dovetail.node.worker_process import OpenRunner

_logger = logging.getLogger(__name__)

_SECONDS_TO_START = 120.0
_SECONDS_TO_DIE = 10.0
_SECONDS_BETWEEN_LOOKS = 0.2
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PRODUCTION = "dovetail.node.worker_process:open_runner"
_COMMAND = "from dovetail.node.worker_process import serve; serve({})"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Reason = Callable[[], DovetailError]
"""Makes the error that a message under way ends with."""

_DIED = partial(
    TransportError, "the node's worker died; the round stays charged and is not answered"
)
_CLOSED = partial(TransportError, "the node is closing; the round is not answered")
_SLOW_START = partial(TransportError, "the node's worker did not start in time")
_TOO_LONG = partial(
    PolicyError,
    "limits",
    "the round took longer than this partner allows; ask for fewer local steps, a smaller sample "
    "or a smaller model",
)
_TOO_LARGE = partial(
    PolicyError,
    "limits",
    "the round needed more memory than this partner allows; ask for a smaller model",
)


class WorkerError(Exception):
    """The worker failed in a way that nobody foresaw; the node's own log says how."""


@dataclass(frozen=True)
class WorkerLimits:
    """What one round may use.

    Attributes:
        seconds: longest time of a round, from handing it to a ready worker to its last byte.
        memory_mb: most resident memory of the worker, in MiB: about 350 for the libraries, what
            is mapped of the customers, and the model several times over. It is looked at five
            times per second, so that for a moment a round can have more.
        threads: processor threads; more than one only helps with large models.

    Raises:
        SettingError: one of them is not above 0.
    """

    seconds: float = 600
    memory_mb: int = 4000
    threads: int = 1

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.memory_mb > 0 and self.threads > 0):
            raise SettingError("a worker's seconds, memory_mb and threads must be above 0")


class Worker:
    """Computes contributions in a process of its own, one round at a time.

    The process is started when it is first needed, stays for later rounds and jobs, and is
    replaced when it died or was killed. Use it as a context manager; leaving it kills the process.

    Guarantees: the noise of every round comes from a fresh key, drawn in the worker; a round that
    breaks a limit is killed and never answered; the worker does not outlive this process, not even
    while it computes.
    """

    def __init__(
        self,
        arrays: Path,
        declared_customers: int,
        limits: WorkerLimits,
        open_runner: OpenRunner | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            arrays: the folder of prepared customers.
            declared_customers: the public number of customers in the terms, which normalises.
            limits: what one round may use.
            open_runner: a function of a module, called in the worker; by default the one that
                opens the folder and draws fresh noise.
        """
        self._start = {
            "open": _name_of(open_runner) if open_runner else _PRODUCTION,
            "arrays": str(arrays.absolute()),
            "declared_customers": declared_customers,
        }
        self._limits = limits
        self._turn = threading.Lock()
        self._process: _Process | None = None
        self._closed = False

    def start(self) -> None:
        """Starts the process now, so that what is wrong with it shows before a round is charged.

        Raises:
            DovetailError: the folder cannot be used.
            TransportError: the process could not start, or this worker is closed.
        """
        with self._turn:
            self._ready()

    def contribute(
        self, request: Request, number: int, arrays: Arrays, optimizer_state: Arrays
    ) -> RoundResult:
        """What :meth:`dovetail.node.runner.Runner.contribute` returns; waits for its turn.

        Raises:
            PolicyError: rule ``limits``: the round took more time or memory than this partner
                allows.
            TransportError: the worker died, or this object was closed.
            DovetailError: what the runner raised, of the same class.
            WorkerError: the runner failed otherwise.
        """
        head = {"request": requests.to_record(request), "number": number}
        with self._turn:
            process = self._ready()
            with process.watched(self._limits.seconds, self._limits.memory_mb, _TOO_LONG):
                results = process.ask(head, arrays, optimizer_state)
        return round_result(results)

    def close(self) -> None:
        """Kills the process; a round under way ends with a :class:`TransportError`."""
        self._closed = True
        if process := self._process:
            process.kill(_CLOSED)
            if self._turn.acquire(blocking=False):  # or else the round under way does it
                process.discard()
                self._turn.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ready(self) -> _Process:
        if self._process and self._process.alive:
            return self._process
        if self._process:
            self._process.discard()
        process = self._process = _Process(self._limits.threads)
        try:
            with process.watched(_SECONDS_TO_START, math.inf, _SLOW_START):
                if self._closed:
                    process.kill(_CLOSED)
                process.ask(self._start)
        except BaseException:
            process.discard()
            raise
        return process


class _Process:
    """One process, from its start to its end."""

    def __init__(self, threads: int) -> None:
        self._pipe, theirs = socket.socketpair()
        self._reason: Reason = _DIED
        with theirs:
            self._process = _started(theirs.fileno(), threads)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, head: dict[str, Any], *groups: Arrays) -> list[Named]:
        """The arrays that the process answers with."""
        try:
            send(self._pipe, head, *groups)
            answer, results = receive(self._pipe)
        except (OSError, EOFError):
            self.discard()
            raise self._reason() from None
        except BaseException:
            self.discard()  # it may hold half a message
            raise
        _raise_told(answer)
        return results

    @contextmanager
    def watched(self, seconds: float, memory_mb: float, too_long: Reason) -> Iterator[None]:
        """Kills the process if the block takes longer, or the process more memory."""
        done = threading.Event()
        limits = (done, time.monotonic() + seconds, memory_mb, too_long)
        watch = threading.Thread(target=self._watch, args=limits, daemon=True)
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    def kill(self, reason: Reason) -> None:
        """Ends the process, from any thread; a message under way ends with the first reason."""
        if self._reason is _DIED:
            self._reason = reason
        self._process.kill()
        with suppress(OSError):
            self._pipe.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_DIE)

    def discard(self) -> None:
        """Ends the process for good; only for who has the turn."""
        self.kill(_DIED)
        self._pipe.close()

    def _watch(self, done: threading.Event, end: float, memory_mb: float, too_long: Reason) -> None:
        while not done.wait(_next_look(end)):
            if time.monotonic() >= end:
                self.kill(too_long)
                break
            if _resident_mb(self._process.pid) > memory_mb:
                self.kill(_TOO_LARGE)
                break


def _started(descriptor: int, threads: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-P", "-c", _COMMAND.format(descriptor)],
        env=_environment(threads),
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the node
    )


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _environment(threads: int) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    kept |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)}


def _next_look(end: float) -> float:
    return min(_SECONDS_BETWEEN_LOOKS, max(0.0, end - time.monotonic()))


def _resident_mb(pid: int) -> float:
    """Resident memory of a process in MiB; 0 where it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0.0
    return int(pages) * _PAGE_BYTES / 2**20


def _raise_told(answer: dict[str, Any]) -> None:
    """Raises what the worker met, if it did."""
    if "failure" in answer:
        _logger.error("the worker failed:\n%s", answer["failure"])
        raise WorkerError("the worker failed; this node's log says how")
    if "error" in answer:
        kind: type[DovetailError] = getattr(errors, answer["error"])
        error = kind.__new__(kind, answer["text"])  # their __init__ differ
        vars(error).update(answer["about"])
        raise error
