"""A member of a secure sum: what it says at each step, and what it refuses to be told.

It is the user of Bonawitz et al. (2017), figure 4, with three things added. The keys of all rounds
of a block are advertised and shared at once, each round's its own. Pairwise masks are bound to what
the member was told of its partners. And seeds of self masks are committed to, so that a wrong share
is found out.

A step is done once, and only after the one before:

=================  ==================================================
done               what may follow
=================  ==================================================
nothing            advertise keys
advertise keys     share keys
share keys         receive shares
receive shares     masked input
masked input       consistency check, or masked input of a later round
consistency check  unmasking, or masked input of a later round
unmasking          masked input of a later round
=================  ==================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dovetail.crypto.key_exchange import EXCHANGE_BYTES, ExchangeKey
from dovetail.crypto.prg import Prg
from dovetail.crypto.sealed import seal, unseal
from dovetail.errors import LocalProtocolError, RemoteProtocolError, SettingError
from dovetail.secagg import masks
from dovetail.secagg.group import Block, Group
from dovetail.secagg.masks import Words
from dovetail.secagg.messages import (
    KEY_ADVERT,
    SURVIVORS,
    Advert,
    Record,
    Roster,
    Step,
    blaming,
    check_names,
    check_signatures,
    packet_of_shares,
    read_packet,
    read_roster,
    read_sealed,
    read_survivors,
    require,
    share_key,
    survivors_statement,
)
from dovetail.secagg.shamir import SECRET_BYTES, split
from dovetail.secagg.unmasking import Answer

Sign = Callable[[str, object], str]
"""Signs a JSON value for a purpose, as ``SigningKey.sign`` does."""

_FOLLOWS = {
    None: {Step.ADVERTISE_KEYS},
    Step.ADVERTISE_KEYS: {Step.SHARE_KEYS},
    Step.SHARE_KEYS: {Step.RECEIVE_SHARES},
    Step.RECEIVE_SHARES: {Step.MASKED_INPUT},
    Step.MASKED_INPUT: {Step.MASKED_INPUT, Step.CONSISTENCY_CHECK},
    Step.CONSISTENCY_CHECK: {Step.MASKED_INPUT, Step.UNMASKING},
    Step.UNMASKING: {Step.MASKED_INPUT},
}


@dataclass(frozen=True)
class _Secrets:
    """A member's own secrets of one round."""

    key: bytes = field(repr=False)
    seed: bytes = field(repr=False)


class Client:
    """One member, for one block; holds its secrets in memory and nowhere else.

    Guarantees:
        Let the coordinator and up to ``group.colluders`` members do what they like. Of the
        vectors that the other members mask in a round, they learn at most the sum of one set of
        them, of at least ``threshold - colluders`` members: everything else they see is, to
        anybody who cannot break X25519, HKDF or AES, uniform. That rests on the threshold
        (:class:`~dovetail.secagg.group.Group`), and on these rules:

        - shares are revealed once per round, against ``threshold`` signatures over one list of
          survivors: for a survivor the share of its self mask, for every other the share of its
          round key, never both;
        - keys are believed only under signatures of the agreement's keys;
        - pairwise masks and signatures are bound to the view (:meth:`Roster.view`): members who
          were told different things never cancel each other's masks, so that whatever comes out
          is of one view, and the others' vectors stay hidden in it;
        - every round has secrets of its own, drawn for this object. Revealing those of one says
          nothing of another, and no mask is ever used twice.

        A round that is over, or that a later one has overtaken, is forgotten. (Python cannot
        promise to wipe memory: what was forgotten may be in the process's memory a while.)
        Anybody in the group can spoil a sum, by masking nonsense; that is not prevented.

    Not safe to share between threads.
    """

    def __init__(
        self,
        group: Group,
        block: Block,
        me: str,
        sign: Sign,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """A member that has said nothing yet.

        Args:
            group: as the agreement has it.
            block: as the coordinator asks for, after policy permitted it.
            me: name of this member.
            sign: with this member's key in the agreement.
            random: so many secret, uniform bytes.

        Raises:
            SettingError: ``me`` is no member.
        """
        if me not in group.members:
            raise SettingError("only a member of the group takes part in its sums")
        self._group, self._block, self._me = group, block, me
        self._sign, self._random = sign, random
        self._context = block.context(group)
        self._done: Step | None = None
        self._number = block.first_round - 1
        self._survivors: tuple[str, ...] = ()
        self._own: dict[int, _Secrets] = {}
        self._held: dict[int, dict[str, tuple[int, int]]] = {n: {} for n in block.numbers}

    def can_mask(self, number: int) -> bool:
        """Whether a vector can be masked for this round now."""
        ready = Step.MASKED_INPUT in _FOLLOWS[self._done]
        return ready and number in self._block.numbers and number > self._number

    def advertise_keys(self) -> Record:
        """Round 0: fresh keys for every round of the block, signed.

        Raises:
            RemoteProtocolError: they were advertised before.
        """
        self._expect(Step.ADVERTISE_KEYS)
        for number in self._block.numbers:
            self._own[number] = _Secrets(self._random(EXCHANGE_BYTES), self._random(SECRET_BYTES))
        self._sealing = ExchangeKey(self._random(EXCHANGE_BYTES))
        self._advert = Advert(
            self._sealing.public,
            tuple(ExchangeKey(own.key).public for own in self._own.values()),
            tuple(
                masks.commitment(own.seed, self._context, number, self._me)
                for number, own in self._own.items()
            ),
        )
        statement = self._advert.statement(self._context, self._me)
        self._done = Step.ADVERTISE_KEYS
        return {**statement, "signature": self._sign(KEY_ADVERT, statement)}

    def share_keys(self, adverts: Sequence[Record]) -> dict[str, bytes]:
        """Round 1: to each other member its shares of all own secrets, sealed.

        Args:
            adverts: those of the members that advertised keys (the set U1), this one among them.

        Raises:
            RemoteProtocolError: as :func:`read_roster`; or the own advert is missing or another.
            TooManyDropouts: there are fewer than the threshold.
        """
        self._expect(Step.SHARE_KEYS)
        roster = read_roster(adverts, self._group, self._block)
        if roster.adverts.get(self._me) != self._advert:
            raise RemoteProtocolError("adverts: this node's own is missing or was replaced")
        packets = self._deal(sorted(roster.adverts))
        sealed = {
            member: seal(self._share_key(roster, self._me, member), packet, _about(roster))
            for member, packet in packets.items()
            if member != self._me
        }
        self._hold(self._me, read_packet(packets[self._me], self._me))
        self._roster, self._done = roster, Step.SHARE_KEYS
        return sealed

    def receive_shares(self, ciphertexts: Mapping[str, bytes]) -> None:
        """Round 2, first half: the shares of the others; who sent some is in the set U2.

        Args:
            ciphertexts: by sender.

        Raises:
            RemoteProtocolError: a sender advertised no keys, or its shares do not open.
            TooManyDropouts: fewer than the threshold shared keys, this member included.
        """
        self._expect(Step.RECEIVE_SHARES)
        check_names(ciphertexts, self._roster.adverts.keys() - {self._me}, "sealed shares")
        shared = tuple(sorted({self._me, *ciphertexts}))
        require(self._group, shared, Step.SHARE_KEYS)
        dealt = {sender: self._open(sender, sealed) for sender, sealed in ciphertexts.items()}
        for sender, pairs in dealt.items():
            self._hold(sender, pairs)
        self._shared, self._view = shared, self._roster.view(shared)
        self._done = Step.RECEIVE_SHARES
        del self._sealing

    def mask(self, number: int, vector: Words) -> None:
        """Round 2, second half: adds the masks of a round to a vector, in place.

        Args:
            number: of the round, later than every one before. Earlier ones are forgotten.
            vector: ``block.size`` words of ``block.bits`` bits, contiguous and writable.

        Raises:
            RemoteProtocolError: the round is not of this block, or no later than the last.
            LocalProtocolError: the vector is of another shape or dtype.
        """
        self._expect(Step.MASKED_INPUT)
        self._check_vector(vector)
        if type(number) is not int or number not in self._block.numbers or number <= self._number:
            raise RemoteProtocolError("masked input: the round is over, or not of this block")
        plus, minus = self._streams(number)
        self._number, self._done = number, Step.MASKED_INPUT
        self._forget_before(number)
        masks.apply(vector, plus, minus)

    def check_consistency(self, number: int, survivors: Sequence[str]) -> str:
        """Round 3: signs whose vectors the coordinator says to have received.

        Args:
            number: of the round that was masked last.
            survivors: the set U3.

        Raises:
            RemoteProtocolError: another round or step, or a list that cannot be: not of members
                that shared keys, one there twice, or without this one.
            TooManyDropouts: the list has fewer than the threshold.
        """
        self._expect_round(Step.CONSISTENCY_CHECK, number)
        names = read_survivors(survivors, self._shared, self._group)
        if self._me not in names:
            raise RemoteProtocolError("survivors: this node is missing, and its vector was sent")
        self._survivors, self._done = names, Step.CONSISTENCY_CHECK
        return self._sign(SURVIVORS, survivors_statement(self._view, number, names))

    def unmask(self, number: int, signatures: Mapping[str, str]) -> Record:
        """Round 4: reveals shares of what unmasks the sum, and forgets the round.

        Args:
            number: of the round whose survivors were signed last.
            signatures: by survivor, over the same survivors as this member signed.

        Raises:
            RemoteProtocolError: another round or step, or a signature of nobody who survived or
                over anything else.
            TooManyDropouts: there are fewer signatures than the threshold.
        """
        self._expect_round(Step.UNMASKING, number)
        statement = survivors_statement(self._view, number, self._survivors)
        check_signatures(signatures, statement, self._group)
        held = self._held[number]
        answer = Answer(
            {member: held[member][1] for member in self._survivors},
            {member: held[member][0] for member in self._shared if member not in self._survivors},
        )
        self._done = Step.UNMASKING
        self._forget_before(number + 1)
        return answer.record(self._view, number)

    def _deal(self, members: Sequence[str]) -> dict[str, bytes]:
        """For each member, itself included, a packet of its shares of every round's secrets."""
        points = [self._group.point(member) for member in members]
        threshold = self._group.threshold
        keys = [split(own.key, threshold, points, self._random) for own in self._own.values()]
        seeds = [split(own.seed, threshold, points, self._random) for own in self._own.values()]
        return {
            member: packet_of_shares(
                (key[i], seed[i]) for key, seed in zip(keys, seeds, strict=True)
            )
            for i, member in enumerate(members)
        }

    def _open(self, sender: str, sealed: bytes) -> list[tuple[int, int]]:
        key = self._share_key(self._roster, sender, self._me)
        packet = read_sealed(sealed, self._block, sender)
        with blaming(sender):
            packet = unseal(key, packet, _about(self._roster))
        return read_packet(packet, sender)

    def _hold(self, sender: str, pairs: list[tuple[int, int]]) -> None:
        for number, pair in zip(self._block.numbers, pairs, strict=True):
            self._held[number][sender] = pair

    def _share_key(self, roster: Roster, sender: str, recipient: str) -> bytes:
        other = recipient if sender == self._me else sender
        theirs = roster.adverts[other].share_key
        return share_key(self._sealing, theirs, roster, sender, recipient)

    def _streams(self, number: int) -> tuple[list[Prg], list[Prg]]:
        """The streams to add, the self mask among them, and those to subtract."""
        own = self._own[number]
        plus = [masks.self_mask(own.seed, self._context, number, self._me)]
        pairwise = list(self._pairwise(number, own))
        plus += [prg for other, prg in pairwise if self._me < other]
        return plus, [prg for other, prg in pairwise if self._me > other]

    def _pairwise(self, number: int, own: _Secrets) -> Iterator[tuple[str, Prg]]:
        key, index = ExchangeKey(own.key), self._block.numbers.index(number)
        for other in self._shared:
            if other != self._me:
                secret = key.secret_with(self._roster.adverts[other].round_keys[index])
                yield other, masks.pairwise_mask(secret, self._view, number, self._me, other)

    def _check_vector(self, vector: Words) -> None:
        flags = vector.flags
        if vector.shape != (self._block.size,) or vector.dtype != f"u{self._block.bits // 8}":
            raise LocalProtocolError("only a vector of the block's size and bits is masked")
        if not (flags.c_contiguous and flags.writeable):
            raise LocalProtocolError("only a contiguous, writable vector is masked in place")

    def _expect(self, step: Step) -> None:
        if step not in _FOLLOWS[self._done]:
            raise RemoteProtocolError(f"{step}: cannot be asked now, or was asked before")

    def _expect_round(self, step: Step, number: int) -> None:
        self._expect(step)
        if type(number) is not int or number != self._number:
            raise RemoteProtocolError(f"{step}: asked for another round than the one under way")

    def _forget_before(self, number: int) -> None:
        for earlier in [n for n in self._held if n < number]:
            del self._held[earlier], self._own[earlier]


def _about(roster: Roster) -> bytes:
    return roster.digest.encode("ascii")
