"""Mutated frames against either end: refused or harmless, without a crash, a hang or a hoard."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import grpc  # type: ignore[import-untyped]
import pytest

from dovetail.errors import RemoteProtocolError
from dovetail.wire import envelope
from dovetail.wire.admission import Admission
from dovetail.wire.attendance import Attendance
from dovetail.wire.federation import Federation
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.link import PACE, Link
from dovetail.wire.peers import LIMITS, Access, Peer
from dovetail.wire.presence import Seat
from dovetail.wire.tls import channel_credentials
from dovetail.wire.transfer import GRAIN
from tests.wire.halves import Asker, name
from tests.wire.parties import PATIENCE, Coordinator, Members, meeting

FRAMES = [2_000, pytest.param(100_000, marks=pytest.mark.long)]
TOTAL = 2 * GRAIN
AT_ONCE = 40
"""Frames after which a fresh conversation is begun."""


def flip(rng: random.Random, raw: bytes) -> bytes:
    """Some bits, mostly where the frame says what it is."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        end = len(changed) if rng.random() < 0.2 else min(len(changed), 40)
        if end:
            changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randint(0, len(raw))]


def swell(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randint(0, min(len(raw), 40))
    return raw[:at] + rng.randbytes(rng.choice([1, 2, 9, 300])) + raw[at:]


def stretch(rng: random.Random, raw: bytes) -> bytes:
    """A length or a number that is far too large."""
    at = rng.randint(0, min(len(raw), 40))
    return raw[:at] + b"\xff" * rng.randint(1, 10) + b"\x7f" + raw[at + 1 :]


def repeat(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randint(0, min(len(raw), 40))
    return raw[:at] * 2 + raw[at:]


def noise(rng: random.Random, _: bytes) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 2, 20, 500]))


def leave(_: random.Random, raw: bytes) -> bytes:
    """A true frame, but replayed or out of order."""
    return raw


MUTATIONS: Sequence[Callable[[random.Random, bytes], bytes]] = (
    flip, flip, cut, swell, stretch, repeat, noise, leave, leave,
)  # fmt: skip


def from_node() -> list[bytes]:
    """What a node may say about exchange 1, in some order or other."""
    chunks = (pb.Chunk(exchange=name(1), offset=at, total=TOTAL) for at in (0, GRAIN))
    inlined = pb.Offer(exchange=name(1), total=3, inlined=True)
    holding = pb.Holding(exchange=name(1), receiving=GRAIN)
    hello = pb.Hello(version=1, incarnation=name(1), holdings=[holding])
    frames = [
        pb.FromNode(offer=pb.Offer(exchange=name(1), total=TOTAL)),
        pb.FromNode(failed=pb.Failed(exchange=name(1), reason="away")),
        pb.FromNode(beat=pb.Beat()),
        pb.FromNode(nudge=pb.Nudge()),
        pb.FromNode(hello=hello),
    ]
    return [
        *(envelope.write(frame) for frame in frames),
        *(envelope.write(pb.FromNode(chunk=chunk), [bytes(GRAIN)]) for chunk in chunks),
        envelope.write(pb.FromNode(offer=inlined), [b"abc"]),
    ]


def to_node() -> list[bytes]:
    """What a coordinator may say about exchange 1, in some order or other."""
    chunks = (pb.Chunk(exchange=name(1), offset=at, total=TOTAL) for at in (0, GRAIN))
    frames = [
        pb.ToNode(send_from=pb.SendFrom(exchange=name(1))),
        pb.ToNode(done=pb.Done(exchange=name(1))),
        pb.ToNode(beat=pb.Beat()),
        pb.ToNode(farewell=pb.Farewell(reason="bye")),
        pb.ToNode(chunk=pb.Chunk(exchange=name(2), total=3)),
    ]
    welcome = pb.ToNode(welcome=pb.Welcome(clock=1.0, node=1, beat=4.0))
    return [
        *(envelope.write(frame) for frame in frames),
        *(envelope.write(pb.ToNode(chunk=chunk), [bytes(GRAIN)]) for chunk in chunks),
        envelope.write(welcome, [b"document"]),
    ]


async def survives(
    rng: random.Random, frames: list[bytes], hear: Callable[[bytes], Awaitable[None]]
) -> tuple[int, int]:
    """Hears mutated frames; how many bytes they had, and how many were refused."""
    fed = refused = 0
    for _ in range(AT_ONCE):
        raw = rng.choice(MUTATIONS)(rng, rng.choice(frames))
        fed += len(raw)
        try:
            await hear(raw)
        except RemoteProtocolError:
            refused += 1
    return fed, refused


class Silent:
    """A stream that nothing comes from."""

    async def read(self) -> bytes | None:
        return None

    async def write(self, frame: bytes) -> None:
        return None


async def against_the_coordinator(rng: random.Random, federation: Federation) -> int:
    """A conversation with one request, at some stage; how many frames were refused."""
    said = from_node()
    half = Asker(federation.budget, 4 * TOTAL)
    half.hello(pb.Hello(version=1, incarnation=name(1)))
    half.begin(1, b"x")
    if rng.random() < 0.9:
        half.said()
        if rng.random() < 0.7:
            half.hear(pb.FromNode(offer=pb.Offer(exchange=name(1), total=TOTAL)))
    seat = Seat(Peer("a", "node", 1), half.asking)
    _, refused = await survives(rng, said, partial(federation._hear, seat))
    assert len(half.outcomes) + half.asking.outstanding == 1
    assert federation.budget.used <= 4 * TOTAL
    half.asking.fail("over")
    for share in half.shares.values():
        federation.release(share)
    assert federation.budget.used == 0
    return refused


@pytest.mark.parametrize("frames", FRAMES)
def test_the_coordinator_survives_whatever_a_node_says(frames: int) -> None:
    rng = random.Random(1)
    federation = Federation(Admission(Members(), lambda _: None), lambda _: b"", LIMITS, PACE)

    async def fuzz() -> int:
        return sum(
            [await against_the_coordinator(rng, federation) for _ in range(frames // AT_ONCE)]
        )

    assert asyncio.run(fuzz()) > frames // 4


async def against_a_node(rng: random.Random, access: Access) -> int:
    """A conversation in which something may have been asked; how many frames were refused."""
    said = to_node()
    worked: list[int] = []
    attendance = Attendance(access, bytes, lambda *_: None)
    answering = attendance._answering
    answering._work = lambda exchange, request: worked.append(len(request))
    link = Link(Silent(), answering.outbox, b"", PACE)
    for raw in rng.choice([[], said[5:6], said[5:7]]):
        await attendance._hear(link, raw)
    if worked and rng.random() < 0.7:
        answering.answer(name(1), bytes(TOTAL))
    fed, refused = await survives(rng, said, partial(attendance._hear, link))
    held = sum(len(exchange.incoming.data) for exchange in answering._exchanges.values())
    assert held + sum(worked) <= fed + TOTAL
    answering.hello(0.0)
    return refused


@pytest.mark.parametrize("frames", FRAMES)
def test_a_node_survives_whatever_its_coordinator_says(frames: int) -> None:
    rng, access = random.Random(2), Coordinator("a").access("a", 1)

    async def fuzz() -> int:
        return sum([await against_a_node(rng, access) for _ in range(frames // AT_ONCE)])

    assert asyncio.run(fuzz()) > frames // 4


def test_a_node_that_talks_nonsense_disturbs_nobody_else() -> None:
    rng, said = random.Random(3), from_node()
    with meeting({"a": bytes}) as coordinator:
        coordinator.members.admit("b", "node", 2)
        access = coordinator.access("b")
        for _ in range(30):
            nonsense = [rng.choice(MUTATIONS)(rng, rng.choice(said)) for _ in range(5)]
            with grpc.secure_channel(access.address, channel_credentials(access)) as channel:
                call = channel.stream_stream("/dovetail.v1.Federation/Attend")
                with suppress(grpc.RpcError):
                    for raw in call(iter([said[4], *nonsense]), timeout=PATIENCE):
                        envelope.read(raw, pb.ToNode)
        assert coordinator.ask({1: b"x" * 100_000}) == {1: b"x" * 100_000}
        coordinator.until_absent(2)
