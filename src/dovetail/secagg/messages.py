"""What the parties say to each other, read strictly and bound to one block.

Everything here comes from another company: types, lengths, names and numbers are checked before
anything is done with them. What is refused is named, never shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from dovetail.crypto.canonical import digest
from dovetail.crypto.key_exchange import EXCHANGE_BYTES, ExchangeKey, check_public
from dovetail.crypto.keys import verify
from dovetail.crypto.prg import KEY_BYTES, derive_key
from dovetail.crypto.sealed import SEAL_BYTES
from dovetail.errors import RemoteProtocolError, TooManyDropouts
from dovetail.secagg.group import Block, Group
from dovetail.secagg.shamir import PRIME, SHARE_BYTES

Record = dict[str, Any]
"""What JSON carries; its signature is over its RFC 8785 form."""

KEY_ADVERT = "key advert"
SURVIVORS = "secagg survivors"
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


class Step(IntEnum):
    """The rounds of Bonawitz et al. (2017), figure 4; its round 2 in two."""

    ADVERTISE_KEYS = 0
    SHARE_KEYS = 1
    RECEIVE_SHARES = 2
    MASKED_INPUT = 3
    CONSISTENCY_CHECK = 4
    UNMASKING = 5

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Advert:
    """The public keys of one member for one block.

    Attributes:
        share_key: for the shares that are sent to it, 32 bytes.
        round_keys: for its pairwise masks, one for each round.
        commitments: to its self mask's seed, one for each round.
    """

    share_key: bytes
    round_keys: tuple[bytes, ...]
    commitments: tuple[bytes, ...]

    @property
    def public_keys(self) -> tuple[bytes, ...]:
        """All keys in it, none of which may be there twice."""
        return (self.share_key, *self.round_keys)

    def statement(self, context: str, member: str) -> Record:
        """What its member signs, as :data:`KEY_ADVERT`."""
        return {
            "context": context,
            "member": member,
            "share_key": self.share_key.hex(),
            "round_keys": b"".join(self.round_keys).hex(),
            "commitments": b"".join(self.commitments).hex(),
        }


@dataclass(frozen=True)
class Roster:
    """Whose adverts a party was shown: the set U1 of the paper.

    Attributes:
        adverts: by member.
        digest: of all of them; parties with the same one were shown the same.
    """

    adverts: Mapping[str, Advert]
    digest: str

    def view(self, members: Iterable[str]) -> str:
        """Digest of the roster and of those who shared their keys: the set U2 of the paper.

        Pairwise masks and signatures are bound to it. A coordinator that shows two members
        different adverts or different partners gets masks from them that never cancel, and
        signatures that never count together.
        """
        return digest({"roster": self.digest, "shared": sorted(members)})


def read_roster(records: Sequence[Record], group: Group, block: Block) -> Roster:
    """The adverts of a block, each signed by its member.

    Raises:
        RemoteProtocolError: one is malformed, forged, for another block, of a stranger or there
            twice, holds a key that cannot be used, or two hold the same key.
        TooManyDropouts: there are fewer than the threshold.
    """
    if not isinstance(records, list | tuple) or len(records) > len(group.members):
        raise RemoteProtocolError("adverts: expected a list with at most one for each member")
    adverts: dict[str, Advert] = {}
    for record in records:
        member, advert = read_advert(record, group, block)
        if member in adverts:
            raise RemoteProtocolError(f"{member}: advertises keys twice")
        adverts[member] = advert
    if same_keys(adverts):
        raise RemoteProtocolError("adverts: a public key is there twice")
    return roster_of(records, adverts, group)


def read_advert(record: Record, group: Group, block: Block) -> tuple[str, Advert]:
    """The member whose advert it is, and its keys, before anything is shared with them.

    Raises:
        RemoteProtocolError: it is malformed, forged, for another block or of a stranger, or holds
            a key with which anybody would know the secret.
    """
    names = ("context", "member", "share_key", "round_keys", "commitments", "signature")
    check_fields(record, names, "advert")
    member = record["member"]
    if not isinstance(member, str) or member not in group.members:
        raise RemoteProtocolError("advert: is of nobody in the group")
    if record["context"] != block.context(group):
        raise RemoteProtocolError(f"{member}: its advert is for another block or group")
    advert = Advert(
        unhex(record["share_key"], EXCHANGE_BYTES, 1, f"{member}: share_key")[0],
        unhex(record["round_keys"], EXCHANGE_BYTES, block.rounds, f"{member}: round_keys"),
        unhex(record["commitments"], KEY_BYTES, block.rounds, f"{member}: commitments"),
    )
    statement = {name: record[name] for name in names[:-1]}
    _check_signature(group, member, record["signature"], KEY_ADVERT, statement)
    with blaming(member):
        for key in advert.public_keys:
            check_public(key)
    return member, advert


def same_keys(adverts: Mapping[str, Advert]) -> frozenset[str]:
    """The members who advertise a public key that is there twice, with them or with another."""
    held = Counter(key for advert in adverts.values() for key in advert.public_keys)
    return frozenset(m for m, a in adverts.items() if any(held[key] > 1 for key in a.public_keys))


def roster_of(records: Iterable[Record], adverts: Mapping[str, Advert], group: Group) -> Roster:
    """The roster of adverts that were read, and of the records that they were read from.

    Raises:
        TooManyDropouts: there are fewer than the threshold.
    """
    require(group, adverts, Step.ADVERTISE_KEYS)
    return Roster(adverts, digest(sorted(records, key=lambda record: str(record["member"]))))


def share_key(
    mine: ExchangeKey, theirs: bytes, roster: Roster, sender: str, recipient: str
) -> bytes:
    """The key that seals the shares which one member deals to another in one block."""
    return derive_key(mine.secret_with(theirs), "secagg shares", roster.digest, sender, recipient)


def packet_of_shares(shares: Iterable[tuple[int, int]]) -> bytes:
    """Shares of a round key and of a self-mask seed, round by round, in one message."""
    return b"".join(part.to_bytes(SHARE_BYTES, "big") for pair in shares for part in pair)


def read_packet(packet: bytes, sender: str) -> list[tuple[int, int]]:
    """What :func:`packet_of_shares` was given.

    Raises:
        RemoteProtocolError: a share lies outside the field.
    """
    parts = [
        int.from_bytes(packet[start : start + SHARE_BYTES], "big")
        for start in range(0, len(packet), SHARE_BYTES)
    ]
    if max(parts) >= PRIME:
        raise RemoteProtocolError(f"{sender}: deals a share outside the field")
    return list(zip(parts[::2], parts[1::2], strict=True))


def read_sealed(sealed: object, block: Block, sender: str) -> bytes:
    """A sealed packet, of the one length that it can have."""
    length = 2 * SHARE_BYTES * block.rounds + SEAL_BYTES
    if not isinstance(sealed, bytes) or len(sealed) != length:
        raise RemoteProtocolError(f"{sender}: its sealed shares are not bytes of the right length")
    return sealed


def survivors_statement(view: str, number: int, survivors: Sequence[str]) -> Record:
    """What a survivor signs, as :data:`SURVIVORS`: the set U3 of the paper."""
    return {"view": view, "round": number, "survivors": list(survivors)}


def read_survivors(names: Sequence[str], among: Collection[str], group: Group) -> tuple[str, ...]:
    """A list of survivors, sorted.

    Raises:
        RemoteProtocolError: it is no list of distinct members who shared their keys.
        TooManyDropouts: it has fewer than the threshold.
    """
    if not isinstance(names, list | tuple) or len(names) > len(group.members):
        raise RemoteProtocolError("survivors: expected a list of at most all members")
    if not all(isinstance(name, str) and name in among for name in names):
        raise RemoteProtocolError("survivors: names somebody who shared no keys")
    if len(set(names)) != len(names):
        raise RemoteProtocolError("survivors: names somebody twice")
    require(group, names, Step.MASKED_INPUT)
    return tuple(sorted(names))


def check_signatures(
    signatures: Mapping[str, str], statement: Record, group: Group
) -> dict[str, str]:
    """Do nothing if enough survivors signed the same list of survivors.

    Raises:
        RemoteProtocolError: one who signs is no survivor, or signed something else.
        TooManyDropouts: there are fewer than the threshold.
    """
    check_names(signatures, statement["survivors"], "signatures")
    for member, signature in signatures.items():
        check_signed(member, signature, statement, group)
    require(group, signatures, Step.CONSISTENCY_CHECK)
    return dict(signatures)


def check_signed(member: str, signature: str, statement: Record, group: Group) -> None:
    """Do nothing if this member signed this list of survivors.

    Raises:
        RemoteProtocolError: it did not.
    """
    _check_signature(group, member, signature, SURVIVORS, statement)


def check_names(
    named: object, allowed: Collection[str], what: str, *, every: bool = False
) -> Mapping[str, Any]:
    """What came, if it is a mapping from some, or ``every``, of the allowed names.

    Raises:
        RemoteProtocolError: it is not.
    """
    if not isinstance(named, Mapping) or len(named) > len(allowed):
        raise RemoteProtocolError(f"{what}: expected one for each member at most")
    if not all(isinstance(name, str) and name in allowed for name in named):
        raise RemoteProtocolError(f"{what}: names somebody who has no part in it")
    if every and len(named) < len(allowed):
        raise RemoteProtocolError(f"{what}: somebody is missing")
    return named


def require(group: Group, members: Collection[str], step: Step) -> None:
    """Do nothing if enough members have done a step.

    Raises:
        TooManyDropouts: they are fewer than the threshold.
    """
    if len(members) < group.threshold:
        raise TooManyDropouts(f"{step}: fewer than {group.threshold} partners are left")


@contextmanager
def blaming(member: str) -> Iterator[None]:
    """Names a member in what is found wrong with something of its."""
    try:
        yield
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"{member}: {error}") from None


def check_fields(record: object, names: Sequence[str], what: str) -> None:
    """Do nothing if what came is a mapping from just these names.

    Raises:
        RemoteProtocolError: it is not.
    """
    if not isinstance(record, Mapping) or set(record) != set(names):
        raise RemoteProtocolError(f"{what}: expected the fields {', '.join(names)} and no other")


def _check_signature(
    group: Group, member: str, signature: object, purpose: str, statement: Record
) -> None:
    try:
        if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
            raise RemoteProtocolError("no signature")
        verify(group.keys[member], signature, purpose, statement)
    except RemoteProtocolError:
        raise RemoteProtocolError(f"{member}: has not signed this {purpose}") from None


def unhex(digits: object, length: int, count: int, what: str) -> tuple[bytes, ...]:
    """``count`` strings of ``length`` bytes from lower-case hexadecimal digits.

    Raises:
        RemoteProtocolError: it is anything else.
    """
    if not isinstance(digits, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length * count}}}", digits):
        raise RemoteProtocolError(f"{what}: expected {2 * length * count} hexadecimal digits")
    value = bytes.fromhex(digits)
    return tuple(value[start : start + length] for start in range(0, len(value), length))
