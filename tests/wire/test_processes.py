import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pytest

from dovetail.errors import DataError, TransportError
from dovetail.wire.memory import Handler
from dovetail.wire.payload import Payload
from dovetail.wire.processes import ProcessChannel


def behave(node: int, data: bytes) -> bytes:
    match data:
        case b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"hang":
            time.sleep(3600)
        case b"freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case b"break":
            raise ValueError("salary 1234")
        case b"leave":
            raise TransportError("partner is away")
        case b"who":
            return str(os.getpid()).encode()
    return bytes([node]) + data


def make(nodes: Sequence[int]) -> Mapping[int, Handler]:
    return {node: partial(behave, node) for node in nodes}


def fail(nodes: Sequence[int]) -> Mapping[int, Handler]:
    raise SystemExit(3)


def refuse(nodes: Sequence[int]) -> Mapping[int, Handler]:
    raise DataError("the folder is missing")


def packed(requests: dict[int, bytes]) -> dict[int, Payload]:
    return {node: Payload(request) for node, request in requests.items()}


@pytest.fixture
def channel() -> Iterator[ProcessChannel]:
    with ProcessChannel([(make, [1, 2]), (make, [3])]) as channel:
        yield channel


def test_nodes_answer_from_their_own_process(channel: ProcessChannel) -> None:
    assert channel.nodes() == [1, 2, 3]
    answers = dict(channel.exchange(packed({1: b"a", 2: b"", 3: b"c" * 3_000_000}), 60))
    assert answers == {1: b"\x01a", 2: b"\x02", 3: b"\x03" + b"c" * 3_000_000}
    who = dict(channel.exchange(packed({1: b"who", 2: b"who", 3: b"who"}), 60))
    assert who[1] == who[2] != who[3]
    assert str(os.getpid()).encode() not in who.values()


def test_failing_and_unknown_nodes_are_transport_errors_that_tell_nothing(
    channel: ProcessChannel,
) -> None:
    answers = dict(channel.exchange(packed({1: b"break", 2: b"leave", 3: b"x", 9: b"x"}), 60))
    assert answers[3] == b"\x03x"
    assert {node: str(answers[node]) for node in (1, 2, 9)} == {
        1: "the node failed to answer",
        2: "partner is away",
        9: "the node is not connected",
    }


def test_a_killed_worker_is_noticed_at_once_and_stays_gone(channel: ProcessChannel) -> None:
    answers = dict(channel.exchange(packed({1: b"die", 2: b"x", 3: b"x"}), 3600))
    assert isinstance(answers[1], TransportError)
    assert isinstance(answers[2], TransportError)
    assert answers[3] == b"\x03x"
    assert dict(channel.exchange(packed({2: b"x", 3: b"x"}), 3600))[3] == b"\x03x"
    assert channel.nodes() == [3]


@pytest.mark.parametrize("how", [b"hang", b"freeze"])
def test_a_worker_that_hangs_neither_blocks_nor_outlives_the_channel(how: bytes) -> None:
    with ProcessChannel([(make, [1]), (make, [3])]) as channel:
        (pid,) = (int(a) for _, a in channel.exchange(packed({1: b"who"}), 60))  # type: ignore[arg-type]
        for request in (how, b"y" * 3_000_000):
            answers = dict(channel.exchange(packed({1: request, 3: b"x"}), 0.3))
            assert str(answers[1]) == "the node did not answer in time"
            assert answers[3] == b"\x03x"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_cannot_start_is_an_error() -> None:
    with pytest.raises(TransportError, match="could not start: see its own output"):
        ProcessChannel([(fail, [1])])
    with pytest.raises(TransportError, match="could not start: the folder is missing"):
        ProcessChannel([(refuse, [1]), (refuse, [2])])
