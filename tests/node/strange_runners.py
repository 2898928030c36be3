"""Runners that a worker opens in its own process: exact, slow, greedy, broken.

Each writes its process id into the file ``worker`` of its folder. Where a test made the pipe
``reading`` there, it waits until the test knows that a round is being computed. Only the exact
one trains; the others need no torch, which takes seconds to import.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dovetail.agreement.request import Request
from dovetail.errors import PolicyError, SchemaError, TooManyDropouts
from dovetail.privacy.sampler import SecureSampler
from dovetail.training.round_result import RoundResult
from tests.samples import SCHEMA, MemoryCustomers

if TYPE_CHECKING:
    from dovetail.node.app import Arrays, Contributor

CUSTOMERS = 200
PID, READING = "worker", "reading"
Act = Callable[[], None]


class StrangeRunner:
    """Does something in each round, and gives the model back as it came."""

    def __init__(self, folder: Path, act: Act) -> None:
        (folder / PID).write_text(str(os.getpid()))
        self._reading, self._act = folder / READING, act

    def contribute(
        self, request: Request, number: int, arrays: Arrays, optimizer_state: Arrays
    ) -> RoundResult:
        if self._reading.exists():
            self._reading.write_text("now")
        self._act()
        return RoundResult(dict(arrays), {})


def seeded(job: str, number: int) -> SecureSampler:
    return SecureSampler(f"{job}, round {number:10}".encode())


def exact(folder: Path, declared: int) -> Contributor:
    """Trains, and repeats itself: its noise comes from the job's and the round's name."""
    from dovetail.node.runner import Runner

    (folder / PID).write_text(str(os.getpid()))
    return Runner(MemoryCustomers(CUSTOMERS), SCHEMA, declared, seeded)


def idle(folder: Path, declared: int) -> Contributor:
    return StrangeRunner(folder, lambda: None)


def frozen(folder: Path, declared: int) -> Contributor:
    return StrangeRunner(folder, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def busy(folder: Path, declared: int) -> Contributor:
    def compute() -> None:
        while True:
            np.ones((300, 300)) @ np.ones((300, 300))

    return StrangeRunner(folder, compute)


def greedy(folder: Path, declared: int) -> Contributor:
    def allocate() -> None:
        kept = [np.ones(2**22) for _ in range(40)]
        signal.pause()
        kept.clear()

    return StrangeRunner(folder, allocate)


def crashing(folder: Path, declared: int) -> Contributor:
    return StrangeRunner(folder, lambda: print(ctypes.string_at(0)))


def raising(folder: Path, declared: int) -> Contributor:
    """Raises what the file ``error`` of its folder names."""
    made: dict[str, Callable[[], Exception]] = {
        "policy": lambda: PolicyError("cohort", "too few"),
        "schema": lambda: SchemaError("no such thing", "age"),
        "dropouts": lambda: TooManyDropouts("nobody is left"),
        "bug": lambda: ValueError("salary 1234"),
    }

    def fail() -> None:
        name = (folder / "error").read_text()
        if name in made:
            raise made[name]()

    return StrangeRunner(folder, fail)


def no_runner(folder: Path, declared: int) -> Contributor:
    raise ValueError("salary 1234")
