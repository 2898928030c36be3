"""Workers hand back results and errors, and never outlive their pool."""

from __future__ import annotations

import functools
import math
import operator
import os
import signal

import pytest

from dovetail.errors import SchemaError, TransportError
from dovetail.simulation.pool import Pool
from tests.samples import SCHEMA


def test_every_item_comes_back_with_its_result() -> None:
    with Pool[int, int](2, functools.partial, math.factorial) as pool:
        assert dict(pool.map(range(20))) == {n: math.factorial(n) for n in range(20)}
        assert dict(pool.map([5])) == {5: 120}


def test_an_error_of_ours_keeps_its_message_and_attributes() -> None:
    with (
        Pool[object, object](1, operator.methodcaller, "select", ["spnd"]) as pool,
        pytest.raises(SchemaError, match="did you mean 'spend'") as caught,
    ):
        list(pool.map([SCHEMA]))
    assert caught.value.column == "spnd"


def test_any_other_error_brings_its_traceback() -> None:
    with (
        Pool[str, str](1, operator.itemgetter, 5) as pool,
        pytest.raises(RuntimeError, match=r"(?s)Traceback.*IndexError"),
    ):
        list(pool.map(["ab"]))


def test_a_worker_that_cannot_start_work_says_why() -> None:
    with (
        Pool[str, str](1, operator.itemgetter) as pool,
        pytest.raises(RuntimeError, match="TypeError"),
    ):
        list(pool.map(["ab"]))


def test_a_dead_worker_is_noticed() -> None:
    with (
        Pool[int, None](1, functools.partial, os._exit) as pool,
        pytest.raises(TransportError, match="worker process died"),
    ):
        list(pool.map([1]))


def test_leaving_ends_busy_workers() -> None:
    with Pool[list[int], int](2, functools.partial, signal.sigwait) as pool:
        workers = [process.pid for process in pool._processes.values()]
        for connection in pool._processes:
            connection.send([signal.SIGUSR1])  # waits for ever
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
