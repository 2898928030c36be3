"""Real nodes of the terms' partners in this process, behind a channel that tests disturb."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Message

from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.agreement.signing import PERMIT
from dovetail.agreement.terms import Terms
from dovetail.coordinator.parties import node_number
from dovetail.crypto.prg import derive_key
from dovetail.errors import TransportError
from dovetail.flower import codec
from dovetail.flower.actions import Record, node_app
from dovetail.flower.client import answer, new_context
from dovetail.flower.records import array_record, named_arrays
from dovetail.node.app import Node
from dovetail.node.gate import Decision
from dovetail.node.runner import Runner
from dovetail.privacy.event import Event
from dovetail.privacy.sampler import SecureSampler
from dovetail.simulation.identities import signing_key
from dovetail.store.admissions import Admissions
from dovetail.store.ledger import LedgerStore
from dovetail.wire.channel import Answer
from dovetail.wire.memory import Handler, MemoryChannel
from dovetail.wire.payload import Payload
from tests.samples import MemoryCustomers, customers_of_four, terms

NAMES = ("retailer", "platform", "brand")
PARTNERS = {node_number(name): name for name in NAMES}
"""Who partners are in most terms: nodes' numbers, and names."""


@dataclass(frozen=True)
class Sent:
    """A message that went to a node: its kind, the partner, and of which round it was.

    The kind of a step of secure aggregation ends in the step's name.
    """

    kind: str
    partner: str
    number: int = 0


Twist = Callable[[Sent, Answer], Answer]
"""Changes an answer on its way back."""


def as_it_came(_sent: Sent, answer: Answer) -> Answer:
    return answer


@dataclass
class Nodes:
    """The nodes, and a channel to those that are present.

    Attributes:
        terms: under which they work.
        folder: of their ledgers; in memory where ``None``.
        twist: changes answers on their way back.
        policy: of all of them.
        decisions: what people said, by partner.
        absent: who is not connected.
        then: what happens while somebody waits, one at a time.
        sent: every message, in order.
        kept: the cards of the models that each partner was given.
    """

    terms: Terms = field(default_factory=terms)
    folder: Path | None = None
    twist: Twist = as_it_came
    policy: NodePolicy = NOTHING_MORE
    decisions: dict[str, Decision] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    then: list[Callable[[], object]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    kept: dict[str, list[Record]] = field(init=False)

    def __post_init__(self) -> None:
        rows = customers_of_four()
        self.names = tuple(partner.name for partner in self.terms.partners)
        self.partners = {node_number(name): name for name in self.names}
        self.kept = {name: [] for name in self.names}
        self.ledgers = {name: self._ledger(name) for name in self.names}
        self._handlers = {
            number: self._handler(name, rows[name]) for number, name in self.partners.items()
        }
        self._channel = MemoryChannel(self._handlers)
        self._changed = threading.Condition()
        self._changes = 0
        self._turn = threading.Lock()

    def nodes(self) -> Sequence[int]:
        return [number for number, name in self.partners.items() if name not in self.absent]

    def exchange(
        self, requests: Mapping[int, Payload], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        sent = {node: self._sent(node, payload) for node, payload in requests.items()}
        self.sent += sent.values()
        present = {n: p for n, p in requests.items() if self.partners[n] not in self.absent}
        for node in requests.keys() - present.keys():
            yield node, TransportError("the node is not connected")
        with self._turn:
            answers = list(self._channel.exchange(present, deadline))
        for node, answered in answers:
            yield node, self.twist(sent[node], answered)

    def wait(self, seconds: float) -> None:
        """Lets the next thing happen; else waits for a change."""
        if self.then:
            self.then.pop(0)()
        else:
            self.wait_for_change(seconds, None)

    def wait_for_change(self, seconds: float, seen: int | None) -> int:
        """As that of the wire's server."""
        with self._changed:
            known = self._changes if seen is None else seen
            self._changed.wait_for(lambda: self._changes > known, seconds)
            return self._changes

    def nudge(self) -> None:
        """Wakes who waits."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def arrive(self, *names: str) -> None:
        self.absent -= set(names)
        self.nudge()

    def decide(self, name: str, decision: Decision) -> None:
        self.decisions[name] = decision
        self.nudge()

    def restart(self, name: str) -> None:
        """A partner's node begins anew, with the ledger that it has."""
        self._handlers[node_number(name)] = self._handler(name, customers_of_four()[name])
        self._channel = MemoryChannel(self._handlers)

    def rounds_sent(self, name: str) -> list[int]:
        """The rounds that a partner was asked for, in order."""
        return [s.number for s in self.sent if s.kind == "train" and s.partner == name]

    def told(self, kind: str) -> list[str]:
        """The partners that were sent a kind of message, in order."""
        return [s.partner for s in self.sent if s.kind == kind]

    def charged(self) -> dict[str, dict[Event, int]]:
        return {name: dict(ledger.refresh().spending()) for name, ledger in self.ledgers.items()}

    def _ledger(self, name: str) -> LedgerStore:
        path = self.folder / f"{name}.ledger" if self.folder else None
        return LedgerStore(path, self.terms.budget, now)

    def _handler(self, name: str, rows: MemoryCustomers) -> Handler:
        runner = Runner(rows, self.terms.schema, self.terms.partner(name).customers, _dice(name))
        node = Node(
            self.terms,
            name,
            signing_key(name),
            len(rows),
            runner,
            self.ledgers[name],
            now,
            self.policy,
            lambda _: self.decisions.get(name),
            lambda card, _: self.kept[name].append(card),
            Admissions(self.folder / name if self.folder else None),
        )
        context = new_context(node_number(name), {}, {})
        return partial(answer, node_app(lambda _: node), lambda _: context)

    def _sent(self, node: int, payload: Payload) -> Sent:
        message = codec.decode(payload.joined())
        config: Mapping[str, object] = message.content.config_records.get("config") or {}
        number = config.get("server-round", 0)
        assert isinstance(number, int)
        step = f".{config['step']}" if "step" in config else ""
        return Sent(message.metadata.message_type + step, self.partners[node], number)


def _dice(name: str) -> Callable[[str, int], SecureSampler]:
    return lambda job, number: SecureSampler(derive_key(bytes(32), name, job, number))


def now() -> datetime:
    return datetime.now(UTC)


def lost(kind: str, *partners: str, rounds: Sequence[int] = (0,)) -> Twist:
    """Answers of some partners to messages of a kind never arrive."""

    def twist(sent: Sent, answered: Answer) -> Answer:
        if sent.kind == kind and sent.partner in partners and sent.number in rounds:
            return TransportError("the node is gone")
        return answered

    return twist


def lost_once(kind: str, partner: str) -> Twist:
    """The first answer of a partner to a kind of message never arrives."""
    left = [partner]

    def twist(sent: Sent, answered: Answer) -> Answer:
        if sent.kind == kind and sent.partner in left:
            left.remove(sent.partner)
            return TransportError("the node is gone")
        return answered

    return twist


def edited(kind: str, partner: str, edit: Callable[[Message], None], number: int = 0) -> Twist:
    """A partner's answer to a kind of message (of one round) is changed on its way."""

    def twist(sent: Sent, answered: Answer) -> Answer:
        if sent != Sent(kind, partner, number) or isinstance(answered, TransportError):
            return answered
        reply = codec.decode(answered)
        edit(reply)
        return codec.encode(reply)

    return twist


def poisoned(partner: str, number: int) -> Twist:
    """A partner's contribution to a round arrives with a NaN in it."""

    def edit(reply: Message) -> None:
        arrays = {
            k: np.array(a) for k, a in named_arrays(reply.content.array_records["arrays"]).items()
        }
        arrays["output.bias"][0] = np.nan
        reply.content["arrays"] = array_record(arrays)

    return edited("train", partner, edit, number)


def permit_with(partner: str, changes: Mapping[str, object], *, signed: bool) -> Twist:
    """Some fields of a partner's permit are other ones, signed again by the partner or not."""

    def edit(reply: Message) -> None:
        config = reply.content.config_records["config"]
        record = json.loads(str(config["permit"]))
        record |= {k: v for k, v in changes.items() if k == "signature"}
        record["permit"] |= {k: v for k, v in changes.items() if k != "signature"}
        if signed:
            record["signature"] = signing_key(partner).sign(PERMIT, record["permit"])
        config["permit"] = json.dumps(record)

    return edited("query.propose", partner, edit)
