"""The coordinator's side of a secure sum: it passes messages on, adds up, and takes masks out.

Nothing here protects anybody's vector: the members do that, by what they refuse
(:mod:`~dovetail.secagg.client`). What is checked here protects the sum, and says who broke it.
Source: Bonawitz et al. (2017), figure 4, the server's part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dovetail.crypto.key_exchange import ExchangeKey
from dovetail.crypto.prg import Prg
from dovetail.errors import LocalProtocolError, RemoteProtocolError
from dovetail.secagg import masks
from dovetail.secagg.group import Block, Group
from dovetail.secagg.masks import Words
from dovetail.secagg.messages import (
    Answer,
    Record,
    Roster,
    Step,
    check_names,
    check_signatures,
    read_answer,
    read_roster,
    read_sealed,
    require,
    survivors_statement,
)
from dovetail.secagg.shamir import lagrange_weights, recover


class Server:
    """One block: rounds 0 and 1 for all of its sums, then one :class:`RoundSum` for each.

    Memory does not grow with the vectors: between sums it holds public keys and names alone.
    """

    def __init__(self, group: Group, block: Block) -> None:
        """A block that nobody was asked about yet."""
        self._group, self._block = group, block
        self._done: Step | None = None
        self._number = block.first_round - 1

    def adverts(self, received: Mapping[str, Record]) -> list[Record]:
        """Round 0: the adverts that every member of the set U1 is sent.

        Args:
            received: by the member whose channel it came through.

        Raises:
            RemoteProtocolError: as :func:`read_roster`; or a member sends another's advert.
            TooManyDropouts: there are fewer than the threshold.
        """
        self._expect(None)
        check_names(received, self._group.members, "adverts")
        adverts = [received[member] for member in sorted(received)]
        self._roster = read_roster(adverts, self._group, self._block)
        for member, record in received.items():
            if record["member"] != member:
                raise RemoteProtocolError(f"{member}: sends the advert of another member")
        self._done = Step.ADVERTISE_KEYS
        return adverts

    def route_shares(
        self, received: Mapping[str, Mapping[str, bytes]]
    ) -> dict[str, dict[str, bytes]]:
        """Round 1: what every member of the set U2 is sent, by recipient and sender.

        Args:
            received: by sender and recipient.

        Raises:
            RemoteProtocolError: a sender advertised no keys, or does not send every other member
                of U1 sealed shares of the right length.
            TooManyDropouts: fewer than the threshold shared their keys.
        """
        self._expect(Step.ADVERTISE_KEYS)
        check_names(received, self._roster.adverts, "sealed shares")
        for sender, sealed in received.items():
            others = self._roster.adverts.keys() - {sender}
            for packet in check_names(sealed, others, f"{sender}: shares", every=True).values():
                read_sealed(packet, self._block, sender)
        require(self._group, received, Step.SHARE_KEYS)
        self._shared, self._done = tuple(sorted(received)), Step.SHARE_KEYS
        return {
            recipient: {s: received[s][recipient] for s in self._shared if s != recipient}
            for recipient in self._shared
        }

    def round(self, number: int) -> RoundSum:
        """Rounds 2 to 4 of one sum.

        Raises:
            LocalProtocolError: the block is not set up, the round is not of it, or no later than
                the last one.
        """
        self._expect(Step.SHARE_KEYS)
        if number not in self._block.numbers or number <= self._number:
            raise LocalProtocolError("a sum is of a round of its block, later than the last one")
        self._number = number
        return RoundSum(self._group, self._block, self._roster, self._shared, number)

    def _expect(self, done: Step | None) -> None:
        if self._done is not done:
            raise LocalProtocolError("a block takes its steps in order, and each once")


class RoundSum:
    """One sum under way: rounds 2 to 4 of the paper.

    Holds one vector, whatever the number of members: the sum of those that came so far.
    """

    def __init__(
        self, group: Group, block: Block, roster: Roster, shared: Sequence[str], number: int
    ) -> None:
        """A sum that nobody has added to; made by :meth:`Server.round`."""
        self._group, self._block, self._roster, self._number = group, block, roster, number
        self._shared, self._view = tuple(shared), roster.view(shared)
        self._added: set[str] = set()
        self._total: Words = np.zeros(block.size, dtype=f"u{block.bits // 8}")
        self._next: Step | None = Step.MASKED_INPUT

    def add(self, member: str, masked: Words) -> None:
        """Round 2: adds one member's masked vector, and keeps nothing else of it.

        Raises:
            RemoteProtocolError: the member shared no keys, or sends a second one, or the vector
                is of another shape or dtype.
            LocalProtocolError: the survivors were named already.
        """
        self._expect(Step.MASKED_INPUT)
        if member not in self._shared:
            raise RemoteProtocolError("masked input: from somebody who shared no keys")
        if member in self._added:
            raise RemoteProtocolError(f"{member}: sends a second masked input")
        form = (self._total.shape, self._total.dtype)
        if not isinstance(masked, np.ndarray) or (masked.shape, masked.dtype) != form:
            raise RemoteProtocolError(f"{member}: its masked input has another size or dtype")
        np.add(self._total, masked, out=self._total)
        self._added.add(member)

    def survivors(self) -> tuple[str, ...]:
        """The set U3, sorted; nothing can be added any more.

        Raises:
            TooManyDropouts: it has fewer than the threshold.
        """
        if self._next is Step.MASKED_INPUT:
            require(self._group, self._added, Step.MASKED_INPUT)
            self._next = Step.CONSISTENCY_CHECK
        return tuple(sorted(self._added))

    def signed(self, signatures: Mapping[str, str]) -> dict[str, str]:
        """Round 3: the signatures that every member that signed (the set U4) is sent.

        Raises:
            RemoteProtocolError: somebody is no survivor, or signed something else.
            TooManyDropouts: there are fewer than the threshold.
        """
        self._expect(Step.CONSISTENCY_CHECK)
        checked = check_signatures(signatures, self._statement(), self._group)
        self._next = Step.UNMASKING
        return checked

    def unmask(self, answers: Mapping[str, Record]) -> Words:
        """Round 4: the sum of the survivors' vectors, modulo 2^bits.

        Every recovered secret is compared with what its owner advertised.

        Args:
            answers: by member; any ``threshold`` of the survivors will do.

        Raises:
            RemoteProtocolError: an answer is malformed, for another round or of no survivor, or
                the shares of somebody's secret do not fit together.
            TooManyDropouts: there are fewer than the threshold.
        """
        self._expect(Step.UNMASKING)
        check_names(answers, self._added, "answers")
        others = [member for member in self._shared if member not in self._added]
        read = {
            member: read_answer(record, member, self._statement(), others)
            for member, record in answers.items()
        }
        require(self._group, read, Step.UNMASKING)
        seeds, keys = self._recover(read)
        plus, minus = self._streams(seeds, keys)
        self._next = None
        masks.apply(self._total, plus, minus)
        return self._total

    def _expect(self, step: Step) -> None:
        if self._next is not step:
            raise LocalProtocolError(f"{step}: a sum takes its steps in order, and each once")

    def _statement(self) -> Record:
        return survivors_statement(self._view, self._number, sorted(self._added))

    def _recover(self, read: Mapping[str, Answer]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Seeds of the survivors and round keys of the others, from ``threshold`` answers."""
        answers = [read[member] for member in sorted(read)[: self._group.threshold]]
        points = [self._group.point(member) for member in sorted(read)[: self._group.threshold]]
        weights = lagrange_weights(points)
        seeds = {
            member: recover((answer.self_masks[member] for answer in answers), weights)
            for member in answers[0].self_masks
        }
        keys = {
            member: recover((answer.round_keys[member] for answer in answers), weights)
            for member in answers[0].round_keys
        }
        self._check_recovered(seeds, keys)
        return seeds, keys

    def _check_recovered(self, seeds: Mapping[str, bytes], keys: Mapping[str, bytes]) -> None:
        index, context = self._block.numbers.index(self._number), self._block.context(self._group)
        wrong = [
            member
            for member, seed in seeds.items()
            if masks.commitment(seed, context, self._number, member)
            != self._roster.adverts[member].commitments[index]
        ]
        wrong += [
            member
            for member, key in keys.items()
            if ExchangeKey(key).public != self._roster.adverts[member].round_keys[index]
        ]
        if wrong:
            raise RemoteProtocolError(f"{wrong[0]}: shares do not fit what it advertised")

    def _streams(
        self, seeds: Mapping[str, bytes], keys: Mapping[str, bytes]
    ) -> tuple[list[Prg], list[Prg]]:
        """What to add to the sum and what to subtract, so that no mask is left in it."""
        context = self._block.context(self._group)
        minus = [masks.self_mask(s, context, self._number, m) for m, s in seeds.items()]
        left = [pair for gone, key in keys.items() for pair in self._left_behind(gone, key)]
        plus = [prg for added, prg in left if not added]
        return plus, minus + [prg for added, prg in left if added]

    def _left_behind(self, gone: str, key: bytes) -> Iterator[tuple[bool, Prg]]:
        """The masks that survivors share with one who left, and whether they added them."""
        exchange, index = ExchangeKey(key), self._block.numbers.index(self._number)
        for survivor in sorted(self._added):
            secret = exchange.secret_with(self._roster.adverts[survivor].round_keys[index])
            prg = masks.pairwise_mask(secret, self._view, self._number, gone, survivor)
            yield survivor < gone, prg
