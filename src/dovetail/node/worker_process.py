"""The inside of a worker: a process that computes rounds for its node, and nothing else."""

from __future__ import annotations

import os
import pkgutil
import resource
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.agreement import request as requests
from dovetail.errors import DovetailError
from dovetail.node.pipe import Arrays, Named, receive, send

if TYPE_CHECKING:
    from dovetail.node.app import Contributor

OpenRunner = Callable[[Path, int], "Contributor"]
"""Makes the runner from the folder of prepared customers and the declared number of customers."""

_NICENESS = 5  # the node's own heartbeats come first


def open_runner(arrays: Path, declared_customers: int) -> Contributor:
    """The runner of a production node: every round draws a fresh key of the operating system."""
    from dovetail.data.arrays import CustomerArrays  # first, for a bad folder needs no torch

    customers = CustomerArrays.open(arrays)
    from dovetail.node.runner import Runner, fresh_dice  # brings torch

    return Runner(customers, customers.schema, declared_customers, fresh_dice)


def serve(descriptor: int) -> None:
    """Computes rounds until the node closes the pipe or dies; the whole life of a worker.

    Args:
        descriptor: of the worker's end of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted node ends the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold rows
    os.nice(_NICENESS)
    with socket.socket(fileno=descriptor) as pipe, suppress(EOFError, OSError):
        threading.Thread(target=_leave_with_the_node, args=(descriptor,), daemon=True).start()
        start, _ = receive(pipe)
        try:
            runner = _opened(start)
        except Exception as error:  # noqa: BLE001 - told to the node, which logs it
            send(pipe, _told(error))
            return
        send(pipe, {})
        while True:
            head, groups = receive(pipe)
            answer, results = _round(runner, head, groups)
            send(pipe, answer, *results)


def _leave_with_the_node(descriptor: int) -> None:
    """Ends this process when the other end of the pipe is closed, whatever it is computing.

    ``PR_SET_PDEATHSIG`` would not do: it goes by the thread that started the worker.
    """
    pipe = select.poll()
    pipe.register(descriptor, 0)  # a hang-up is always reported
    pipe.poll()
    os._exit(0)


def _opened(start: dict[str, Any]) -> Contributor:
    make: OpenRunner = pkgutil.resolve_name(start["open"])
    return make(Path(start["arrays"]), start["declared_customers"])


def _round(
    runner: Contributor, head: dict[str, Any], groups: list[Named]
) -> tuple[dict[str, Any], list[Arrays]]:
    try:
        request = requests.from_record(head["request"])
        result = runner.contribute(request, head["number"], *groups)
    except Exception as error:  # noqa: BLE001 - told to the node, which logs it
        return _told(error), []
    return {}, result.groups()


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, DovetailError):
        return {"error": type(error).__name__, "text": str(error), "about": vars(error)}
    return {"failure": "".join(traceback.format_exception(error))}
