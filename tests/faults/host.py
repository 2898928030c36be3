"""Starts parties' processes quickly, by forking them from one that has imported everything.

What is forked is a process like any other: it has its own number, files and connections, can be
killed, and runs the same command. Only the seconds in which Python imports libraries are saved.
The workers of nodes are forked too, by :mod:`tests.faults.nursery`.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dovetail.simulation.federation import COORDINATOR
from tests.faults.nursery import Handle, Nursery, being
from tests.faults.process import ROOT, Setting, run

_MAIN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.faults.host import main; main()"


class Host:
    """The process that others are forked from; a context manager that ends them all."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._turn = threading.Lock()

    def start(self, party: str, setting: Setting, arguments: Sequence[str], log: Path) -> Forked:
        """Starts a party's process."""
        told = self.ask(
            start=party, setting=asdict(setting), arguments=list(arguments), log=str(log)
        )
        return Forked(self, int(told))

    def ask(self, **record: object) -> Any:
        """What the process answers to one line."""
        with self._turn:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(record) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


class Forked(Handle):
    """A forked process, as what a :class:`~dovetail.simulation.federation.Federation` holds."""

    def __init__(self, host: Host, pid: int) -> None:
        super().__init__(pid, os.pidfd_open(pid))
        self._host = host

    def _reaped(self) -> int:
        return int(self._host.ask(reap=self.pid))


def main() -> None:
    """The process that forks: one request a line, until there are no more."""
    _import_everything()
    children: set[int] = set()
    for line in sys.stdin:
        told = json.loads(line)
        if "reap" in told:
            _, status = os.waitpid(told["reap"], 0)
            children.discard(told["reap"])
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = _fork(told)
            children.add(answer)
        print(answer, flush=True)
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _fork(told: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    with being():
        _take_files(told["log"])
        random.seed()
        if told["start"] != COORDINATOR:
            Nursery().start_workers()
        run(told["start"], Setting(**told["setting"]), told["arguments"])
    raise AssertionError


def _take_files(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for number, file in enumerate((nothing, written, written)):
        os.dup2(file, number)
    os.close(nothing)
    os.close(written)


def _import_everything() -> None:
    import dp_accounting.pld.privacy_loss_distribution  # noqa: F401

    import dovetail.cli.unlock
    import dovetail.coordinator.app
    import dovetail.data.arrays
    import dovetail.flower.engine
    import dovetail.node.attending
    import dovetail.node.runner
    import dovetail.node.worker_process  # noqa: F401

    gc.collect()
    gc.freeze()  # a child that collects leaves the pages of what was imported alone
