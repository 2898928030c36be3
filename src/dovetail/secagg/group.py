"""Who sums, what may go wrong, and what one block of sums is for: all that both sides agree on.

Source: Bonawitz et al. (2017), section 6.2 for the threshold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dovetail.crypto.canonical import digest
from dovetail.errors import SettingError

MOST_MEMBERS = 64
MOST_ROUNDS = 256
"""Rounds of a block; the keys of all of them are in memory at once."""
MOST_ELEMENTS = 2**31
LONGEST_NAME = 500
_LARGEST_WHOLE = 2**53 - 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Group:
    """The partners of a sum, with the faults that it survives.

    Attributes:
        members: names, sorted, 2 to 64 of them.
        keys: each member's public signing key, 64 hexadecimal digits, as the agreement pins it.
        dropouts: how many members may be missing from a sum, or leave half-way.
        colluders: how many members may work together with a dishonest coordinator.

    Guarantees:
        ``members > 2 * dropouts + colluders``. A coordinator needs the signatures of
        ``threshold`` members under a list of survivors before anybody reveals a share. For two
        different lists it would need ``2 * threshold - colluders`` honest members, which is more
        than there are: of one member, nobody learns both its self mask and its round key.
    """

    members: tuple[str, ...]
    keys: Mapping[str, str] = field(hash=False)
    dropouts: int
    colluders: int

    def __post_init__(self) -> None:
        """Checks everything.

        Raises:
            SettingError: which of the limits is broken.
        """
        _check_members(self.members)
        if set(self.keys) != set(self.members):
            raise SettingError("a group needs one public key for each member and no other")
        if not all(isinstance(k, str) and _DIGEST.fullmatch(k) for k in self.keys.values()):
            raise SettingError("a member's public key is 64 hexadecimal digits in lower case")
        if len(set(self.keys.values())) != len(self.members):
            raise SettingError("two members of a group have the same public key")
        _check_whole("dropouts", self.dropouts, 0, MOST_MEMBERS)
        _check_whole("colluders", self.colluders, 0, MOST_MEMBERS)
        if len(self.members) <= 2 * self.dropouts + self.colluders:
            raise SettingError(
                f"{len(self.members)} partners cannot bear {self.dropouts} dropouts and "
                f"{self.colluders} colluders: partners must exceed 2 * dropouts + colluders"
            )

    @property
    def threshold(self) -> int:
        """Shares that recover a secret, and members that every step needs: n - dropouts."""
        return len(self.members) - self.dropouts

    @property
    def tolerated(self) -> int:
        """Members whose noise the sum must be able to do without: dropouts + colluders."""
        return self.dropouts + self.colluders

    def point(self, member: str) -> int:
        """Where a member's shares lie on the polynomial: 1 to n."""
        return self.members.index(member) + 1


@dataclass(frozen=True)
class Block:
    """A run of rounds whose keys are advertised and shared at once.

    Attributes:
        job: digest of what the sums belong to, request and terms, 64 hexadecimal digits.
        number: of the block, which the coordinator never uses twice.
        first_round: number of its first round.
        rounds: how many it has, 1 to 256.
        size: elements of each vector.
        bits: of each element, 32 or 64; sums are taken modulo 2 to that power.
    """

    job: str
    number: int
    first_round: int
    rounds: int
    size: int
    bits: int

    def __post_init__(self) -> None:
        """Checks everything.

        Raises:
            SettingError: which of the limits is broken.
        """
        if not isinstance(self.job, str) or not _DIGEST.fullmatch(self.job):
            raise SettingError("a block's job is a digest of 64 hexadecimal digits")
        _check_whole("number", self.number, 0, _LARGEST_WHOLE)
        _check_whole("first_round", self.first_round, 0, _LARGEST_WHOLE - MOST_ROUNDS)
        _check_whole("rounds", self.rounds, 1, MOST_ROUNDS)
        _check_whole("size", self.size, 1, MOST_ELEMENTS)
        if type(self.bits) is not int or self.bits not in (32, 64):
            raise SettingError("a block's elements have 32 or 64 bits")

    @property
    def numbers(self) -> range:
        """The numbers of its rounds."""
        return range(self.first_round, self.first_round + self.rounds)

    def context(self, group: Group) -> str:
        """A digest of the block and of the group: what every signature, key and seal is bound to.

        Two parties who believe anything different of either, a threshold or somebody's key
        among it, derive unrelated keys and refuse each other's signatures.
        """
        about = {
            "job": self.job,
            "number": self.number,
            "first_round": self.first_round,
            "rounds": self.rounds,
            "size": self.size,
            "bits": self.bits,
            "keys": dict(group.keys),
            "dropouts": group.dropouts,
            "colluders": group.colluders,
        }
        return digest({"secure aggregation block": about})


def _check_members(members: tuple[str, ...]) -> None:
    if not isinstance(members, tuple) or not 2 <= len(members) <= MOST_MEMBERS:
        raise SettingError(f"a group has 2 to {MOST_MEMBERS} members")
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in members):
        raise SettingError(f"a member's name has 1 to {LONGEST_NAME} letters")
    if list(members) != sorted(set(members)):
        raise SettingError("a group's members are sorted, and each is there once")


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise SettingError(f"{name} must be a whole number from {least} to {most}")
