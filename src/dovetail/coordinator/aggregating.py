"""The coordinator's part in a round whose noise is shared: it adds up what it cannot read.

Keys are advertised and shared once for a block of rounds; a round then takes three exchanges:
masked input, consistency check, unmasking (Bonawitz et al. 2017, figure 4). A partner that answers
nothing, or nothing that can be used, is left out from then on, and the round goes on without it.
After a round in which anybody failed, the next one begins a new block, with fresh keys and
everybody who is there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dovetail.agreement import request as requests
from dovetail.agreement.record import LARGEST_WHOLE
from dovetail.agreement.request import Request
from dovetail.agreement.sharing import Sharing, sharing_of, sum_digest
from dovetail.agreement.terms import Terms
from dovetail.coordinator.round import Arrays
from dovetail.errors import DovetailError, RemoteProtocolError
from dovetail.flower import actions
from dovetail.flower.actions import AggregationStep, Record
from dovetail.flower.grid import MaskedExpected, ask
from dovetail.secagg.group import Block
from dovetail.secagg.messages import Step, require
from dovetail.secagg.server import RoundSum, Server
from dovetail.wire.channel import Channel

ROUNDS_IN_A_BLOCK = 64
"""Rounds whose keys are shared at once: some kilobytes for each two partners."""


@dataclass(frozen=True)
class Total:
    """What came of a round.

    Attributes:
        vector: the noised sum of the contributions, float64 ``(parameters,)``.
        partners: who contributed, ascending.
        faults: why others did not, by partner; or what was wrong with what somebody sent later,
            in a sum that came right without it.
    """

    vector: npt.NDArray[np.float64]
    partners: tuple[str, ...]
    faults: Mapping[str, str]


@dataclass
class Aggregation:
    """Secure aggregation of one job.

    Attributes:
        request: what was asked and admitted.
        terms: under which terms.
        channel: where the nodes are.
        partners: the partner behind each node.
        deadline: seconds for each exchange.
        new_number: makes blocks' numbers, none of them twice.
        faults: why partners failed in the last round, by name.
    """

    request: Request
    terms: Terms
    channel: Channel
    partners: Mapping[int, str]
    deadline: float
    new_number: Callable[[], int] = lambda: secrets.randbelow(LARGEST_WHOLE)
    faults: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sharing: Sharing = sharing_of(self.request.task, self.terms)
        self._nodes = {partner: node for node, partner in self.partners.items()}
        self._record = requests.to_record(self.request)
        self._server: Server | None = None
        self._sharing_keys: tuple[str, ...] = ()
        self._block: Block | None = None

    def round(self, number: int, arrays: Arrays) -> Total:
        """Asks one round of everybody.

        Args:
            number: of the round; never asked before.
            arrays: the model that it starts from.

        Raises:
            TooManyDropouts: too few took part, or stayed; ``faults`` says why, and nothing of
                what was sent can be read.
        """
        self.faults = {}
        try:
            server = self._ready(number)
            total = self._summed(server, number, arrays)
        except DovetailError:
            self._server = None
            raise
        if self.faults:
            self._server = None
        return total

    def _ready(self, number: int) -> Server:
        """The server of the block that a round lies in; begins a new block where there is none."""
        block = self._block
        if self._server and block and number < block.first_round + block.rounds:
            return self._server
        encoding, left = self._sharing.encoding, self.request.task.rounds - number + 1
        self._block = Block(
            job=sum_digest(self.request, self.terms),
            number=self.new_number(),
            first_round=number,
            rounds=min(ROUNDS_IN_A_BLOCK, left),
            size=encoding.size,
            bits=encoding.bits,
        )
        self._server = self._share_keys(self._block)
        return self._server

    def _share_keys(self, block: Block) -> Server:
        server = Server(self._sharing.group, block)
        begin = {n: getattr(block, a) for n, a in _BLOCK.items()}
        said = self._asked("advertise_keys", dict.fromkeys(self._nodes, begin))
        with self._noting(server):
            adverts = server.adverts(said)
        bodies: dict[str, Record] = {
            str(advert["member"]): {"adverts": adverts} for advert in adverts
        }
        shared = {
            name: self._bytes_of(name, body)
            for name, body in self._asked("share_keys", bodies).items()
        }
        with self._noting(server):
            routed = server.route_shares({n: s for n, s in shared.items() if s is not None})
        bodies = {
            name: {"shares": {sender: share.hex() for sender, share in shares.items()}}
            for name, shares in routed.items()
        }
        received = self._asked("receive_shares", bodies)
        require(self._sharing.group, received, Step.RECEIVE_SHARES)
        self._sharing_keys = tuple(received)
        return server

    def _summed(self, server: Server, number: int, arrays: Arrays) -> Total:
        total = server.round(number)
        nodes = {self._nodes[name]: 1.0 for name in self._sharing_keys}
        expected = MaskedExpected(self._sharing.encoding.size, self._sharing.encoding.bits)
        messages = actions.train_messages(nodes, number, self._record, arrays)
        for node, reply in ask(self.channel, messages, self.deadline):
            try:
                if isinstance(reply, DovetailError):
                    raise reply
                total.add(self.partners[node], expected.masked(reply.content))
            except DovetailError as error:
                self.faults[self.partners[node]] = str(error)
            del reply
        survivors = total.survivors()
        checked = self._asked(
            "check_consistency",
            {name: {"round": number, "survivors": list(survivors)} for name in survivors},
        )
        signatures = {name: str(body.get("signature", "")) for name, body in checked.items()}
        with self._noting(total):
            signed = total.signed(signatures)
        answers = self._asked(
            "unmask", {name: {"round": number, "signatures": signed} for name in signed}
        )
        with self._noting(total):
            vector = self._sharing.encoding.decode(total.unmask(answers))
        return Total(vector, survivors, self.faults)

    @contextmanager
    def _noting(self, side: Server | RoundSum) -> Iterator[None]:
        """Takes over why one step of it left partners out, whether the step succeeds or not."""
        try:
            yield
        finally:
            self.faults |= side.faults

    def _asked(
        self, step: AggregationStep, bodies: Mapping[str, Record]
    ) -> dict[str, dict[str, Any]]:
        """What each partner answered to one step; why others did not goes into ``faults``."""
        messages = [
            actions.aggregate_message(self._nodes[name], step, self._record, body)
            for name, body in bodies.items()
        ]
        found: dict[str, dict[str, Any]] = {}
        for node, reply in ask(self.channel, messages, self.deadline):
            try:
                if isinstance(reply, DovetailError):
                    raise reply
                found[self.partners[node]] = dict(actions.body_of(reply))
            except DovetailError as error:
                self.faults[self.partners[node]] = str(error)
        return found

    def _bytes_of(self, name: str, body: Record) -> dict[str, bytes] | None:
        shares = body.get("shares")
        try:
            if not isinstance(shares, Mapping):
                raise TypeError
            return {str(to): bytes.fromhex(share) for to, share in shares.items()}
        except (TypeError, ValueError):
            self.faults[name] = str(RemoteProtocolError("the node's shares cannot be read"))
            return None


_BLOCK = {"block": "number", "first_round": "first_round", "rounds": "rounds"}


def stepped(
    request: Request,
    terms: Terms,
    arrays: Arrays,
    total: Total,
) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
    """The model that a server optimiser takes for the round's mean, and its weight.

    One local step: the global model, moved against the noised mean gradient over the sampled
    customers that were to be expected (a public number) by the learning rate. Several: moved by
    the mean of the partners' clipped updates.
    """
    task = request.task
    declared = {partner.name: partner.customers for partner in terms.partners}
    weight = float(sum(declared[name] for name in total.partners))
    if task.local_steps == 1:
        factor = -task.learning_rate / (task.sampling_prob * weight)
    else:
        factor = 1 / len(total.partners)
    moved: dict[str, npt.NDArray[np.float32]] = {}
    start = 0
    for parameter in task.model.parameters(terms.schema.select(task.features)):
        array = arrays[parameter.name]
        part = total.vector[start : start + array.size].reshape(array.shape)
        moved[parameter.name] = (array + factor * part).astype(np.float32)
        start += array.size
    return moved, weight
