"""Starts the workers of a forked node, by forking them from a process that has imported everything.

The node's process forks this one before it does anything else, so that it holds nothing of the
node's but the end of a pipe. Workers are its children then, and the node's grandchildren: they are
handed the same pipe, run the same code and can be killed alike. What a fresh interpreter is given
(its environment, its path) is the matter of ``tests/node/test_worker.py``.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock


class Handle(subprocess.Popen[bytes]):
    """A process that another one has forked."""

    def __init__(self, pid: int, handle: int) -> None:
        self.pid, self._handle = pid, handle
        self.args = ()
        self.returncode: int | None = None
        self._turn = Lock()

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        with self._turn:
            if self.returncode is None:
                waiting = select.poll()
                waiting.register(self._handle, select.POLLIN)
                if not waiting.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
                self.returncode = self._reaped()
                os.close(self._handle)
            return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._handle, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reaped(self) -> int:
        """How it ended; whoever forked it forgets it."""
        return -signal.SIGKILL


class Nursery:
    """The process that forks a node's workers; ends with its node."""

    def __init__(self) -> None:
        self._node, own = socket.socketpair()
        if os.fork() == 0:
            with being():
                self._node.close()
                _fork_workers(own)
        own.close()
        self._turn = Lock()

    def start_workers(self) -> None:
        """Has this process' workers started here from now on."""
        from dovetail.node import worker

        setattr(worker, "_started", self._started)  # noqa: B010 - it is a function there

    def _started(self, descriptor: int, _threads: int) -> Handle:
        with self._turn:
            socket.send_fds(self._node, [b"w"], [descriptor])
            pid, (handle,), _, _ = socket.recv_fds(self._node, 16, 1)
        return Handle(int(pid), handle)


@contextmanager
def being() -> Iterator[None]:
    """The whole life of a forked process, which never comes back from this block."""
    code = 1
    try:
        yield
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - told in the log, as an interpreter does
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _fork_workers(node: socket.socket) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with its node
    while True:
        said, descriptors, _, _ = socket.recv_fds(node, 1, 1)
        if not said:
            return
        _reap()
        (pipe,) = descriptors
        child = os.fork()
        if child == 0:
            with being():
                node.close()
                _be_a_worker(pipe)
        os.close(pipe)
        handle = os.pidfd_open(child)
        socket.send_fds(node, [str(child).encode()], [handle])
        os.close(handle)


def _be_a_worker(pipe: int) -> None:
    from dovetail.node.worker_process import serve

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    os.dup2(0, 1)
    serve(pipe)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
