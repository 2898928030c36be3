from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dovetail.node.pipe import receive, send

Pipe = tuple[socket.socket, socket.socket]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


groups = st.lists(
    st.dictionaries(
        st.text(max_size=5),
        arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, min_side=0)),
        max_size=3,
    ),
    max_size=3,
)
heads = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heads, groups)
def test_what_is_received_is_what_was_sent(
    pipe: Pipe, head: dict[str, object], sent: list[dict[str, np.ndarray]]
) -> None:
    send(pipe[0], head, *sent)
    got, received = receive(pipe[1])
    assert got == head
    assert [list(group) for group in received] == [list(group) for group in sent]
    for one, other in zip(sent, received, strict=True):
        for name, array in one.items():
            assert other[name].shape == array.shape
            assert other[name].tobytes() == array.tobytes()
            other[name][...] = 0  # one's own


@pytest.mark.parametrize(
    ("made", "arrives"), [(np.float64, np.float64), (np.int32, np.float32), (">f4", np.float32)]
)
def test_arrays_arrive_as_one_of_two_makes(pipe: Pipe, made: str, arrives: type) -> None:
    whole = np.arange(24, dtype=made).reshape(4, 6)
    whole.flags.writeable = False
    send(pipe[0], {}, {"a": whole[::2, ::3].T})
    _, (received,) = receive(pipe[1])
    array = received["a"]
    assert array.dtype == arrives
    assert array.tolist() == whole[::2, ::3].T.tolist()


def test_messages_larger_than_the_pipe(pipe: Pipe) -> None:
    large = np.arange(3_000_000, dtype=np.float32)
    with ThreadPoolExecutor() as pool:
        sent = pool.submit(send, pipe[0], {}, {"a": large}, {"b": large})
        _, received = receive(pipe[1])
        sent.result()
    assert (received[0]["a"] == large).all()
    assert (received[1]["b"] == large).all()


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0" * 7 + b"\x04{}", b"\0" * 7 + b"\x04"])
def test_a_pipe_that_ends_is_an_end_of_file(pipe: Pipe, sent: bytes) -> None:
    pipe[0].sendall(sent)
    pipe[0].close()
    with pytest.raises(EOFError):
        receive(pipe[1])
