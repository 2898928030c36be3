"""Runners that a worker opens in its own process: exact, slow, greedy, broken.

Each writes its process id into the file ``worker`` of its folder. Where a test made the pipe
``reading`` there, it waits until the test knows that rows are being read.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovetail.errors import PolicyError, SchemaError, TooManyDropouts
from dovetail.node.runner import Runner
from dovetail.privacy.sampler import SecureSampler
from dovetail.training.batch import Batch
from tests.samples import SCHEMA, MemoryCustomers

CUSTOMERS = 200
PID, READING = "worker", "reading"
Act = Callable[[], None]


class StrangeCustomers(MemoryCustomers):
    """Customers that do something when they are read."""

    def __init__(self, folder: Path, act: Act) -> None:
        super().__init__(CUSTOMERS)
        self._reading, self._act = folder / READING, act

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        if self._reading.exists():
            self._reading.write_text("now")
        self._act()
        return super().batch(customers)


def seeded(job: str, number: int) -> SecureSampler:
    return SecureSampler(f"{job}, round {number:10}".encode())


def runner(folder: Path, declared: int, act: Act) -> Runner:
    (folder / PID).write_text(str(os.getpid()))
    return Runner(StrangeCustomers(folder, act), SCHEMA, declared, seeded)


def exact(folder: Path, declared: int) -> Runner:
    """Repeats itself: its noise comes from the job's and the round's name."""
    return runner(folder, declared, lambda: None)


def frozen(folder: Path, declared: int) -> Runner:
    return runner(folder, declared, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def busy(folder: Path, declared: int) -> Runner:
    def compute() -> None:
        while True:
            np.ones((300, 300)) @ np.ones((300, 300))

    return runner(folder, declared, compute)


def greedy(folder: Path, declared: int) -> Runner:
    def allocate() -> None:
        kept = [np.ones(2**22) for _ in range(40)]
        signal.pause()
        kept.clear()

    return runner(folder, declared, allocate)


def crashing(folder: Path, declared: int) -> Runner:
    return runner(folder, declared, lambda: print(ctypes.string_at(0)))


def raising(folder: Path, declared: int) -> Runner:
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

    return runner(folder, declared, fail)


def no_runner(folder: Path, declared: int) -> Runner:
    raise ValueError("salary 1234")
