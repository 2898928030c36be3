"""The coordinator's side of a secure sum: it passes messages on, adds up, and takes masks out.

Nothing here protects anybody's vector: the members do that, by what they refuse
(:mod:`~dovetail.secagg.client`). What is checked here protects the sum, and says who broke it: a
member whose message cannot be used is one who did not send any, and the step goes on with the
others, as long as they are enough. The server checks them, and not who hands them in, because it
alone knows what each must say. Whom a step left out is in ``faults``, until the next one; who sent
nothing is known to whoever asked.

Source: Bonawitz et al. (2017), figure 4, the server's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from dovetail.crypto.key_exchange import ExchangeKey
from dovetail.crypto.prg import Prg
from dovetail.errors import LocalProtocolError, RemoteProtocolError
from dovetail.secagg import masks
from dovetail.secagg.group import Block, Group
from dovetail.secagg.masks import Words
from dovetail.secagg.messages import (
    Advert,
    Record,
    Roster,
    Step,
    check_names,
    check_signed,
    read_advert,
    read_sealed,
    require,
    roster_of,
    same_keys,
    survivors_statement,
)
from dovetail.secagg.unmasking import Answer, open_secrets, read_answer

Said = TypeVar("Said")
Read = TypeVar("Read")


class Server:
    """One block: rounds 0 and 1 for all of its sums, then one :class:`RoundSum` for each.

    Memory does not grow with the vectors: between sums it holds public keys and names alone.
    """

    def __init__(self, group: Group, block: Block) -> None:
        """A block that nobody was asked about yet."""
        self._group, self._block = group, block
        self._done: Step | None = None
        self._number = block.first_round - 1
        self.faults: dict[str, str] = {}
        """Who was left out of the last step, and why."""

    def adverts(self, received: Mapping[str, Record]) -> list[Record]:
        """Round 0: the adverts that every member of the set U1 is sent.

        Nobody shares keys with a member that is left out: one whose advert cannot be used, or is
        another's, or holds a key that is there twice.

        Args:
            received: by the member whose channel it came through.

        Raises:
            RemoteProtocolError: something came through the channel of no member.
            TooManyDropouts: fewer than the threshold are left.
        """
        self._expect(None)
        check_names(received, self._group.members, "adverts")
        self.faults = {}
        read = _sifted(received, self._read_advert, self.faults)
        for member in same_keys(read):
            self.faults[member] = "a public key in its advert is there twice"
            del read[member]
        adverts = [received[member] for member in sorted(read)]
        self._roster = roster_of(adverts, read, self._group)
        self._done = Step.ADVERTISE_KEYS
        return adverts

    def route_shares(
        self, received: Mapping[str, Mapping[str, bytes]]
    ) -> dict[str, dict[str, bytes]]:
        """Round 1: what every member of the set U2 is sent, by recipient and sender.

        Left out is who does not send every other member of U1 sealed shares of the right length.

        Args:
            received: by sender and recipient.

        Raises:
            RemoteProtocolError: something came from somebody outside U1.
            TooManyDropouts: fewer than the threshold shared their keys.
        """
        self._expect(Step.ADVERTISE_KEYS)
        check_names(received, self._roster.adverts, "sealed shares")
        self.faults = {}
        sealed = _sifted(received, self._read_sealed, self.faults)
        require(self._group, sealed, Step.SHARE_KEYS)
        self._shared, self._done = tuple(sorted(sealed)), Step.SHARE_KEYS
        return {
            recipient: {s: sealed[s][recipient] for s in self._shared if s != recipient}
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

    def _read_advert(self, member: str, record: Record) -> Advert:
        owner, advert = read_advert(record, self._group, self._block)
        if owner != member:
            raise RemoteProtocolError("sends the advert of another member")
        return advert

    def _read_sealed(self, sender: str, sealed: Mapping[str, bytes]) -> Mapping[str, bytes]:
        others = self._roster.adverts.keys() - {sender}
        for packet in check_names(sealed, others, "shares", every=True).values():
            read_sealed(packet, self._block, sender)
        return sealed

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
        self._context, self._index = block.context(group), block.numbers.index(number)
        self._added: set[str] = set()
        self._total: Words = np.zeros(block.size, dtype=f"u{block.bits // 8}")
        self._next: Step | None = Step.MASKED_INPUT
        self.faults: dict[str, str] = {}
        """Who was left out of the last step, or sent something wrong that was spare, and why."""

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

        Left out is who signed something else.

        Raises:
            RemoteProtocolError: something came from somebody who is no survivor.
            TooManyDropouts: there are fewer than the threshold.
        """
        self._expect(Step.CONSISTENCY_CHECK)
        check_names(signatures, self._added, "signatures")
        self.faults = {}
        checked = _sifted(signatures, self._read_signature, self.faults)
        require(self._group, checked, Step.CONSISTENCY_CHECK)
        self._next = Step.UNMASKING
        return checked

    def unmask(self, answers: Mapping[str, Record]) -> Words:
        """Round 4: the sum of the survivors' vectors, modulo 2^bits.

        Every recovered secret is compared with what its owner advertised. Answers that cannot be
        read are left out; wrong shares are done without, as far as
        :func:`~dovetail.secagg.unmasking.open_secrets` can.

        Args:
            answers: by member; any ``threshold`` of the survivors will do.

        Raises:
            RemoteProtocolError: something came from somebody who is no survivor; or no answers
                open somebody's secret.
            TooManyDropouts: there are fewer than the threshold.
        """
        self._expect(Step.UNMASKING)
        check_names(answers, self._added, "answers")
        self.faults = {}
        read = _sifted(answers, self._read_answer, self.faults)
        require(self._group, read, Step.UNMASKING)
        opened = open_secrets(read, self._group, self._fits)
        self.faults |= opened.faults
        if opened.closed:
            raise RemoteProtocolError(
                f"{min(opened.closed)}: shares of its secret do not fit what it advertised"
            )
        plus, minus = self._streams(opened.secrets)
        self._next = None
        masks.apply(self._total, plus, minus)
        return self._total

    def _expect(self, step: Step) -> None:
        if self._next is not step:
            raise LocalProtocolError(f"{step}: a sum takes its steps in order, and each once")

    def _statement(self) -> Record:
        return survivors_statement(self._view, self._number, sorted(self._added))

    def _read_signature(self, member: str, signature: str) -> str:
        check_signed(member, signature, self._statement(), self._group)
        return signature

    def _read_answer(self, member: str, record: Record) -> Answer:
        gone = [name for name in self._shared if name not in self._added]
        return read_answer(record, member, self._statement(), gone)

    def _fits(self, owner: str, secret: bytes) -> bool:
        """Whether a recovered seed, or a round key of one who left, is what was advertised."""
        advert = self._roster.adverts[owner]
        if owner in self._added:
            committed = masks.commitment(secret, self._context, self._number, owner)
            return committed == advert.commitments[self._index]
        return ExchangeKey(secret).public == advert.round_keys[self._index]

    def _streams(self, secrets: Mapping[str, bytes]) -> tuple[list[Prg], list[Prg]]:
        """What to add to the sum and what to subtract, so that no mask is left in it."""
        minus = [
            masks.self_mask(secrets[name], self._context, self._number, name)
            for name in sorted(self._added)
        ]
        gone = secrets.keys() - self._added
        left = [pair for name in gone for pair in self._left_behind(name, secrets[name])]
        plus = [prg for added, prg in left if not added]
        return plus, minus + [prg for added, prg in left if added]

    def _left_behind(self, gone: str, key: bytes) -> Iterator[tuple[bool, Prg]]:
        """The masks that survivors share with one who left, and whether they added them."""
        exchange = ExchangeKey(key)
        for survivor in sorted(self._added):
            secret = exchange.secret_with(self._roster.adverts[survivor].round_keys[self._index])
            prg = masks.pairwise_mask(secret, self._view, self._number, gone, survivor)
            yield survivor < gone, prg


def _sifted(
    received: Mapping[str, Said],
    read: Callable[[str, Said], Read],
    faults: dict[str, str],
) -> dict[str, Read]:
    """What each member's message says, of those that can be used; why others cannot, as faults."""
    found: dict[str, Read] = {}
    for member, message in received.items():
        try:
            found[member] = read(member, message)
        except RemoteProtocolError as error:
            faults[member] = str(error).removeprefix(f"{member}: ")
    return found
