"""Messages in chunks: whole and in order, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dovetail.errors import RemoteProtocolError
from dovetail.wire.payload import Payload
from dovetail.wire.transfer import CHUNK, GRAIN, Incoming, Outgoing

SIZES = st.sampled_from([0, 1, GRAIN - 1, GRAIN, GRAIN + 1, 3 * GRAIN, CHUNK + 7, 5 * GRAIN + 3])
STEPS = st.sampled_from([GRAIN, 2 * GRAIN, CHUNK])


def message(size: int) -> bytes:
    return bytes(i * i % 251 for i in range(256)) * (size // 256) + bytes(size % 256)


class Journey(RuleBasedStateMachine):
    """A message on its way: chunks arrive in order, connections break and are resumed."""

    @initialize(size=SIZES)
    def begin(self, size: int) -> None:
        self.whole = message(size)
        half = size // 2
        self.outgoing = Outgoing(Payload(self.whole[:half], self.whole[half:]))
        self.incoming = Incoming(size)
        self.on_the_way: list[tuple[int, bytes]] = []

    @precondition(lambda self: not self.outgoing.finished)
    @rule(size=STEPS)
    def send(self, size: int) -> None:
        offset, parts = self.outgoing.next(size)
        self.on_the_way.append((offset, b"".join(parts)))

    @precondition(lambda self: self.on_the_way)
    @rule()
    def arrive(self) -> None:
        offset, data = self.on_the_way.pop(0)
        self.incoming.take(offset, len(self.whole), memoryview(data))
        assert self.whole.startswith(self.incoming.data)
        assert not self.incoming.complete or self.incoming.data == self.whole

    @precondition(lambda self: not self.incoming.complete)
    @rule()
    def break_and_resume(self) -> None:
        self.on_the_way.clear()
        self.outgoing.resume(len(self.incoming.data))

    @precondition(lambda self: len(self.on_the_way) > 1)
    @rule(data=st.data())
    def another_chunk_comes_first(self, data: st.DataObject) -> None:
        offset, chunk = data.draw(st.sampled_from(self.on_the_way[1:]))
        self.refused(offset, len(self.whole), chunk)

    @precondition(lambda self: self.incoming.data)
    @rule(data=st.data())
    def a_chunk_comes_again(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, len(self.incoming.data) - 1))
        self.refused(offset, len(self.whole), self.whole[offset : offset + GRAIN])

    @rule()
    def a_chunk_comes_from_beyond_the_end(self) -> None:
        self.refused(len(self.whole) + GRAIN, len(self.whole), b"")

    def refused(self, offset: int, total: int, chunk: bytes) -> None:
        before = bytes(self.incoming.data)
        with pytest.raises(RemoteProtocolError):
            self.incoming.take(offset, total, memoryview(chunk))
        assert self.incoming.data == before

    def teardown(self) -> None:
        if not hasattr(self, "whole"):
            return
        while not self.incoming.complete:
            while not self.outgoing.finished:
                self.send(CHUNK)
            while self.on_the_way:
                self.arrive()
        assert self.incoming.data == self.whole


TestJourney = Journey.TestCase
TestJourney.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(
    ("offset", "total", "size"),
    [
        (0, 10 * GRAIN, GRAIN - 1),
        (0, 10 * GRAIN, GRAIN + 1),
        (0, 10 * GRAIN, 0),
        (GRAIN, 10 * GRAIN, GRAIN),
        (0, 11 * GRAIN, GRAIN),
        (0, 10 * GRAIN, 11 * GRAIN),
        (2**63, 10 * GRAIN, GRAIN),
    ],
)
def test_chunks_of_another_length_or_place_are_refused(offset: int, total: int, size: int) -> None:
    incoming = Incoming(10 * GRAIN)
    with pytest.raises(RemoteProtocolError):
        incoming.take(offset, total, memoryview(bytes(size)))
    assert not incoming.data


def test_a_chunk_beyond_the_longest_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        Incoming(4 * CHUNK).take(0, 4 * CHUNK, memoryview(bytes(CHUNK + GRAIN)))


def test_nothing_comes_after_the_end() -> None:
    incoming = Incoming(0)
    assert not incoming.complete
    incoming.take(0, 0, memoryview(b""))
    assert incoming.complete
    with pytest.raises(RemoteProtocolError):
        incoming.take(0, 0, memoryview(b""))


@given(SIZES, st.integers(0, 2**64 - 1))
def test_a_transfer_goes_on_only_where_it_was(size: int, offset: int) -> None:
    outgoing = Outgoing(Payload(message(size)))
    while not outgoing.finished:
        outgoing.next(GRAIN)
    if offset % GRAIN == 0 and (offset < size or offset == 0):
        outgoing.resume(offset)
        assert outgoing.next(GRAIN)[0] == offset
    else:
        with pytest.raises(RemoteProtocolError):
            outgoing.resume(offset)


def test_a_transfer_does_not_begin_in_the_middle() -> None:
    outgoing = Outgoing(Payload(message(3 * GRAIN)))
    outgoing.next(GRAIN)
    with pytest.raises(RemoteProtocolError):
        outgoing.resume(2 * GRAIN)


def test_memory_is_taken_as_bytes_come() -> None:
    assert len(Incoming(2**62).data) == 0
