import threading
from collections.abc import Callable, Iterator

import pytest

from dovetail.errors import TransportError
from dovetail.wire.memory import MemoryChannel
from dovetail.wire.payload import Payload


def echo(data: bytes) -> bytes:
    return data[::-1]


def ticking(*times: float) -> Callable[[], float]:
    moments: Iterator[float] = iter(times)
    return lambda: next(moments)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_every_node_answers_once(threads: int) -> None:
    channel = MemoryChannel(dict.fromkeys(range(20), echo), threads=threads)
    answers = list(channel.exchange({n: Payload(bytes([n, 1])) for n in range(0, 20, 2)}, 60))
    assert sorted(answers) == [(n, bytes([1, n])) for n in range(0, 20, 2)]


def test_without_threads_order_is_that_of_the_requests() -> None:
    channel = MemoryChannel(dict.fromkeys(range(3), echo))
    assert channel.nodes() == [0, 1, 2]
    assert [node for node, _ in channel.exchange(dict.fromkeys((2, 0, 1), Payload()), 60)] == [
        2,
        0,
        1,
    ]


@pytest.mark.parametrize("threads", [0, 2])
def test_failing_and_unknown_nodes_are_transport_errors_that_tell_nothing(threads: int) -> None:
    def broken(_: bytes) -> bytes:
        raise ValueError("salary 1234")

    def gone(_: bytes) -> bytes:
        raise TransportError("partner is away")

    channel = MemoryChannel({1: broken, 2: gone, 3: echo}, threads=threads)
    answers = dict(channel.exchange(dict.fromkeys((1, 2, 3, 4), Payload(b"ab")), 60))
    assert answers[3] == b"ba"
    assert {n: str(answers[n]) for n in (1, 2, 4)} == {
        1: "the node failed to answer",
        2: "partner is away",
        4: "the node is not connected",
    }


def test_deadline_is_looked_at_between_nodes() -> None:
    asked = []

    def note(data: bytes) -> bytes:
        asked.append(data)
        return data

    clock = ticking(0, 1, 2, 3, 11, 12, 13)  # start; before and after each of three nodes
    channel = MemoryChannel({1: note, 2: note, 3: note}, clock=clock)
    answers = dict(channel.exchange({n: Payload(str(n).encode()) for n in (1, 2, 3)}, 10))
    assert answers[1] == b"1"
    assert asked == [b"1", b"2"]
    assert isinstance(answers[2], TransportError)
    assert isinstance(answers[3], TransportError)


def test_a_hanging_node_neither_blocks_nor_is_asked_again_while_it_hangs() -> None:
    release, freed = threading.Event(), threading.Event()

    def hang(_: bytes) -> bytes:
        release.wait()
        freed.set()
        return b"too late"

    channel = MemoryChannel({1: hang, 2: echo}, threads=2)
    answers = dict(channel.exchange({1: Payload(), 2: Payload(b"ab")}, 0.2))
    assert answers[2] == b"ba"
    assert str(answers[1]) == "the node did not answer in time"
    again = dict(channel.exchange({1: Payload(), 2: Payload(b"ab")}, 60))
    assert str(again[1]) == "the node is still busy with an earlier request"
    assert again[2] == b"ba"
    release.set()
    assert freed.wait(60)


def test_nobody_is_asked_after_the_deadline() -> None:
    release = threading.Event()
    asked = []

    def hang(data: bytes) -> bytes:
        asked.append(data)
        release.wait()
        return data

    channel = MemoryChannel(dict.fromkeys(range(5), hang), threads=1)
    answers = dict(channel.exchange({n: Payload(bytes([n])) for n in range(5)}, 0.05))
    release.set()
    assert all(isinstance(answer, TransportError) for answer in answers.values())
    assert len(answers) == 5
    assert len(asked) == 1
