"""Spoiled messages, requests, permits and documents, up to what acts on them, at either end.

Nothing crashes, hangs or hoards; a ledger is charged for what was asked and permitted, and nothing
else. The seed of a run is in its name.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.enrolment import request_enrolment, request_from_record
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedPermit, chain_record, permit_record, request_record
from dovetail.coordinator.parties import Parties
from dovetail.coordinator.proposing import ask_permits, ask_previews
from dovetail.coordinator.round import Round
from dovetail.coordinator.service import Service
from dovetail.errors import DovetailError, RemoteProtocolError, TooManyDropouts
from dovetail.flower import actions, codec
from dovetail.flower._compat import new_message
from dovetail.flower.grid import CheckedGrid, Expected
from dovetail.node.session import Session
from dovetail.wire.channel import Answer
from dovetail.wire.document import read_document, write_document
from dovetail.wire.generated import control_pb2 as pb
from dovetail.wire.peers import DOCUMENT_BYTES, Peer
from tests.coordinator.nodes import NAMES, Nodes
from tests.coordinator.office import ANALYST as SIMULATED
from tests.coordinator.office import asked_by, office, with_analyst
from tests.coordinator.test_parties import fresh_keyring
from tests.intruders.house import COORDINATOR, House, leaks, now, with_task
from tests.intruders.mutations import (
    damaged,
    in_time,
    peak_mb,
    spoiled,
    spoiled_message,
    spoiled_text,
)
from tests.intruders.rogues import PATIENCE, good_arrays, session_of
from tests.intruders.test_rogue_models import made

TIMES = [2_000, pytest.param(100_000, marks=pytest.mark.long)]
SEEDS = [1]
NODE = 7
ROOM_MB = 300.0
"""How much more memory may be had than before, whatever is sent."""


def chosen_requests() -> list[Request]:
    """A few jobs that a node would admit."""
    return [with_task(f"job-{n}", noise_multiplier=8.0, rounds=4) for n in range(4)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture
def session(house: House) -> Iterator[Session]:
    made_one = session_of(house, "retailer")
    made_one.welcome(house.document(house.terms), now())
    assert made_one.problem is None
    yield made_one
    made_one.shut()


def to_node(house: House) -> list[bytes]:
    """What a coordinator may rightly send to a node, in some order or other."""
    found: list[Message] = []
    for request in chosen_requests():
        record = request_record(house.asked(request))
        plain, arrays = requests.to_record(request), good_arrays(house.terms)
        found += [actions.preview_message(NODE, record), actions.propose_message(NODE, record)]
        for number in (1, 2, 3, 4):
            found += actions.train_messages({NODE: 1.0}, number, plain, arrays)
        found += actions.keep_messages([NODE], *made(house.terms, request))
        found += [actions.close_message(NODE, request.job)] * (request.job in ("job-0", "job-1"))
    return [codec.encode(message) for message in found]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("times", TIMES)
def test_a_node_survives_whatever_it_is_asked(
    times: int, seed: int, house: House, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    rng, said = random.Random(seed), to_node(house)
    caplog.set_level(logging.CRITICAL)
    known = {requests.digest(request) for request in chosen_requests()}
    answers: Counter[str] = Counter()
    session.handle(said[0])
    before, contributions = peak_mb(), 0
    for _ in range(times):
        raw = rng.choice(said)
        match rng.randrange(10):
            case 0:
                pass  # as it is, in an order of its own
            case 1 | 2 | 3:
                raw = damaged(rng, raw)
            case _:
                raw = spoiled_message(rng, raw)
        with in_time():
            kind, reply = outcome(session, raw)
        answers[kind] += 1
        contributions += kind == "train"
        assert leaks(reply) == [], raw[:200]
    assert peak_mb() - before < ROOM_MB
    with closing(house.ledger("retailer")) as ledger:
        entries = ledger.entries()
        spent = ledger.refresh().spending_by_job()
    digests = {entry.request_digest for entry in entries if entry.request_digest}
    assert digests <= known
    commits = [(entry.job, entry.round) for entry in entries if entry.kind == "commit"]
    assert len(commits) == len(set(commits)) == contributions
    assert set(spent) <= {request.job for request in chosen_requests()}
    assert answers["refused"] > times // 3
    assert answers["internal error at the node"] < times // 20, answers


def outcome(session: Session, raw: bytes) -> tuple[str, bytes]:
    """The kind of message that was answered, or how it was refused; and all that was said."""
    try:
        answer = session.handle(raw)
    except RemoteProtocolError as error:
        return "no message", str(error).encode()
    reply = codec.decode(answer)
    if not reply.has_error():
        return reply.metadata.message_type, answer
    said = reply.error.reason or ""
    return ("internal error at the node" if reply.error.code == 1000 else "refused"), said.encode()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("times", [300, pytest.param(20_000, marks=pytest.mark.long)])
def test_a_node_survives_whatever_it_is_welcomed_with(
    times: int, seed: int, house: House, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    rng, first = random.Random(seed), house.terms
    caplog.set_level(logging.CRITICAL)
    record = json.loads(json.dumps(chain_record([house.signed(first)])))
    good = json.dumps(record).encode()
    before = peak_mb()
    for _ in range(times):
        raw = damaged(rng, good) if rng.random() < 0.3 else b""
        raw = raw or spoiled_text(rng, record).encode()
        with in_time(), suppress(DovetailError):
            session.welcome(raw, now())
        newest = session._kept.trusted.newest
        assert newest is not None
        assert agreed.digest(newest) == agreed.digest(first)
        assert session.problem is None
    assert peak_mb() - before < ROOM_MB


class Spoiling:
    """A channel to one node whose honest answers come back spoiled."""

    def __init__(self, rng: random.Random, honest: Nodes, node: int) -> None:
        self._rng, self._honest, self._node = rng, honest, node
        self._kept: dict[str, bytes] = {}

    def nodes(self) -> Sequence[int]:
        return [self._node]

    def exchange(
        self, requests: Mapping[int, Any], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        for node, payload in requests.items():
            message = codec.decode(payload.joined())
            kind = message.metadata.message_type
            if kind not in self._kept:
                ((_, answer),) = self._honest.exchange({node: payload}, PATIENCE)
                assert isinstance(answer, bytes | bytearray)
                self._kept[kind] = bytes(answer)
            yield node, self._spoiled(self._kept[kind], message)

    def _spoiled(self, honest: bytes, message: Message) -> bytes:
        reply, rng = codec.decode(honest), self._rng
        reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
        raw = codec.encode(reply)
        match rng.randrange(10):
            case 0:
                return raw
            case 1 | 2:
                return damaged(rng, raw)
            case 3:
                return codec.encode(spoiled_error(rng, reply))
            case _:
                return spoiled_message(rng, raw)


def spoiled_error(rng: random.Random, reply: Message) -> Message:
    """An error in the place of an answer."""
    code = rng.choice([0, 1, 999, *range(1000, 1016), 2**31 - 1, -(2**31)])
    text = rng.choice(["", "budget", ": ", "budget: spent", "\x1b[2J\0", "x" * 100_000, "\u202e"])
    return new_message(reply.metadata, Error(code, text))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("times", TIMES)
def test_a_coordinator_survives_whatever_a_node_answers(times: int, seed: int) -> None:
    rng, known = random.Random(seed), with_analyst()
    honest = Nodes(known)
    node = next(iter(honest.nodes()))
    signed = asked_by(SIMULATED, known, Request("job-1", with_task().task))
    channel, nodes = Spoiling(rng, honest, node), {node: NAMES[0]}
    arrays = good_arrays(known)
    expected = Expected({name: array.shape for name, array in arrays.items()}, {node: 300.0})
    (first,) = permits(channel, signed, known, nodes, until=SignedPermit)
    counts: Counter[str] = Counter()
    before = peak_mb()
    for _ in range(times):
        with in_time():
            match rng.randrange(3):
                case 0:
                    for found in permits(channel, signed, known, nodes):
                        good = isinstance(found, SignedPermit)
                        assert not good or permit_record(found) == permit_record(first)  # type: ignore[arg-type]
                        counts["permit" if good else "no permit"] += 1
                case 1:
                    said = ask_previews(channel, signed, nodes, 1.0)
                    json.dumps(said, allow_nan=False)
                    counts["preview"] += 1
                case _:
                    counts[summed(channel, expected, arrays, node, signed.request)] += 1
    assert peak_mb() - before < ROOM_MB
    assert min(counts[kind] for kind in ("permit", "no permit", "summed", "dropped")) > 0
    assert counts["no permit"] > counts["permit"]


def permits(
    channel: Spoiling, signed: Any, known: Any, nodes: Any, until: type | None = None
) -> list[SignedPermit | DovetailError]:
    """What comes of a proposal; asked again until it is of some kind."""
    while True:
        found = [answer for _, answer in ask_permits(channel, signed, known, nodes, 1.0)]
        if until is None or isinstance(found[0], until):
            return found


def summed(channel: Spoiling, expected: Expected, arrays: Any, node: int, request: Request) -> str:
    """Whether an answer to a round is good; if it is, so is the sum that it is added to."""
    grid = CheckedGrid(channel, expected, quorum=1, deadline=1.0)
    collected = Round(expected.weights, 1)
    record = requests.to_record(request)
    for reply in grid.receive(actions.train_messages({node: 1.0}, 1, record, arrays)):
        collected.add(reply.metadata.src_node_id, actions.arrays_of(reply))
    try:
        mean = collected.close()
    except TooManyDropouts:
        assert grid.faults[node].isprintable()
        return "dropped"
    assert all(np.isfinite(array).all() for array in mean.arrays.values())
    return "summed"


def documents(known: Any) -> dict[str, list[dict[str, Any]]]:
    """What analysts and operators may rightly ask."""
    jobs = [asked_by(SIMULATED, known, Request(f"job-{n}", with_task().task)) for n in range(3)]
    signed = [request_record(each) for each in jobs]
    names = [{"job": each.request.job} for each in jobs]
    return {
        "Preview": [{"signed": each} for each in signed],
        "Submit": [{"signed": each, "quorum": 2, "deadline": 60.0} for each in signed],
        "Approve": names,
        "Cancel": names,
        "List": [{"states": ["proposed"], "limit": 5, "before": ""}],
        "Show": names,
        "Permits": names,
        "Nodes": [{}],
        "Agreement": [{}],
        "Watch": [{"job": "job-0", "after": 0}, {"job": "", "after": 3}],
        "Fetch": names,
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("times", TIMES)
def test_a_coordinator_survives_whatever_it_is_asked(times: int, seed: int, tmp_path: Path) -> None:
    rng, known = random.Random(seed), with_analyst(approval="manual")
    nodes = Nodes(known, absent=set(NAMES))
    rooms = documents(known)
    peers = [Peer(SIMULATED, "analyst"), Peer(COORDINATOR, "operator"), Peer("other", "analyst")]
    with office(tmp_path, nodes) as opened:
        parties = Parties(tmp_path / "parties", fresh_keyring("simulated-coordinator"))
        service = Service(opened.docket, opened.store, opened.trusted, parties, list, tmp_path)
        counts: Counter[str] = Counter()
        before = peak_mb()
        for _ in range(times):
            method = rng.choice(list(rooms))
            record = rng.choice(rooms[method])
            raw = spoiled_document(rng, record)
            with in_time():
                counts[called(service, method, rng.choice(peers), raw)] += 1
        assert peak_mb() - before < ROOM_MB
        assert counts["refused"] > times // 2
        assert counts["answered"] > 0
        assert {job.job for job in opened.store.list()} <= {"job-0", "job-1", "job-2"}
        assert all(ledger.entries() == () for ledger in nodes.ledgers.values())


def spoiled_document(rng: random.Random, record: dict[str, Any]) -> bytes:
    """A document on the wire, spoiled as bytes, as JSON, or not at all."""
    match rng.randrange(10):
        case 0:
            return write_document(record, DOCUMENT_BYTES)
        case 1 | 2:
            return damaged(rng, write_document(record, DOCUMENT_BYTES))
        case _:
            return pb.Document(json=spoiled_text(rng, record)).SerializeToString()


def called(service: Any, method: str, peer: Peer, raw: bytes) -> str:
    """What comes of a call; anything but a refusal on purpose is an error of the test."""
    stopped = Event()
    stopped.set()
    calls: dict[str, Callable[[Any], Any]] = {
        "Watch": lambda record: list(service.watch(peer, record, stopped)),
        "Fetch": lambda record: service.fetch(peer, record),
    }
    try:
        record = read_document(raw, DOCUMENT_BYTES)
        answer = calls.get(method, lambda r: service.call(method, peer, r))(record)
        if method not in calls:
            write_document(answer, DOCUMENT_BYTES)
    except DovetailError as error:
        return "refused" if len(str(error)) < 5000 else "a refusal that goes on and on"
    return "answered"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("times", [300, pytest.param(20_000, marks=pytest.mark.long)])
def test_enrolment_survives_whatever_a_party_brings(times: int, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    parties = Parties(tmp_path, fresh_keyring("coop"))
    invitation = parties.invite("newcomer", "partner", "coop.example:1")
    good = vars(request_enrolment(invitation, fresh_keyring("newcomer")))
    for _ in range(times):
        record = spoiled(rng, good)
        if record == good:
            continue
        with in_time(), pytest.raises(DovetailError):
            parties.enrol(request_from_record(record))
    assert parties.enrolled() == ()
    parties.enrol(request_from_record(good))
