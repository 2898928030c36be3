"""Unmasking: the shares that survivors reveal, and the secrets that come of them.

Any ``threshold`` right shares open a secret, and whoever recovers one can tell whether it is the
right one. So answers beyond the threshold are a reserve: where some hold wrong shares, others take
their place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from dovetail.errors import RemoteProtocolError
from dovetail.secagg.group import Group
from dovetail.secagg.messages import Record, check_fields, check_names, unhex
from dovetail.secagg.shamir import PRIME, SHARE_BYTES, lagrange_weights, recover

MOST_WRONG = 2
"""Answers with wrong shares of one secret that are done without, where so many are spare.

All ways to leave so many out are tried: at most 2,016, of 64 answers.
"""


@dataclass(frozen=True)
class Answer:
    """The shares with which a member helps to unmask one round; by whose secret it is.

    Attributes:
        self_masks: of the seeds of all survivors.
        round_keys: of the round keys of those who shared keys and did not survive.
    """

    self_masks: Mapping[str, int]
    round_keys: Mapping[str, int]

    def record(self, view: str, number: int) -> Record:
        """The answer as it is sent."""
        return {
            "view": view,
            "round": number,
            "self_masks": {v: _share_text(s) for v, s in self.self_masks.items()},
            "round_keys": {v: _share_text(s) for v, s in self.round_keys.items()},
        }


def read_answer(record: Record, member: str, statement: Record, others: Collection[str]) -> Answer:
    """The shares of one member for the round and the survivors of ``statement``.

    Args:
        record: as it was sent.
        member: who sent it.
        statement: what the survivors signed.
        others: who shared keys and did not survive.

    Raises:
        RemoteProtocolError: it is malformed, for another round, or has shares of other secrets
            than it must.
    """
    what = f"{member}: its answer"
    check_fields(record, ("view", "round", "self_masks", "round_keys"), what)
    number = record["round"]
    if record["view"] != statement["view"] or type(number) is not int:
        raise RemoteProtocolError(f"{what} is for another block")
    if number != statement["round"]:
        raise RemoteProtocolError(f"{what} is for another round")
    return Answer(
        _read_shares(record["self_masks"], statement["survivors"], f"{what}: self_masks"),
        _read_shares(record["round_keys"], others, f"{what}: round_keys"),
    )


@dataclass(frozen=True)
class Opened:
    """What came of some answers.

    Attributes:
        secrets: the seed of each survivor, the round key of each other, by owner.
        closed: whose secrets no shares open.
        faults: who revealed a share that does not fit the other shares of an opened secret.
    """

    secrets: Mapping[str, bytes]
    closed: frozenset[str]
    faults: Mapping[str, str]


def open_secrets(
    answers: Mapping[str, Answer], group: Group, fits: Callable[[str, bytes], bool]
) -> Opened:
    """Recovers every secret from ``threshold`` answers that agree on it, and checks the others.

    With more than ``threshold`` answers one wrong share of a secret is survived, and with more
    than one to spare, two (:data:`MOST_WRONG`). Whose share does not fit the others was told a
    wrong one by the owner, or changed it, or is made to look so by two that changed theirs
    together: nobody can tell from outside.

    Args:
        answers: by member, at least ``threshold``; all of shares of the same secrets.
        group: whose threshold it is.
        fits: whether an owner's recovered secret is the one that it advertised.
    """
    shares = {name: {**a.self_masks, **a.round_keys} for name, a in sorted(answers.items())}
    closed = set(next(iter(shares.values())))
    secrets: dict[str, bytes] = {}
    faults: dict[str, str] = {}
    for chosen in _subsets(tuple(shares), group.threshold):
        tried = _recovered({name: shares[name] for name in chosen}, closed, group)
        found = {owner: secret for owner, secret in tried.items() if fits(owner, secret)}
        faults = _misfits(shares, chosen, found, group) | faults
        secrets |= found
        closed -= found.keys()
        if not closed:
            break
    return Opened(secrets, frozenset(closed), faults)


def _subsets(members: Sequence[str], threshold: int) -> Iterator[tuple[str, ...]]:
    """Each ``threshold`` of the members that leaving up to :data:`MOST_WRONG` of them out gives."""
    seen = set()
    for wrong in range(min(MOST_WRONG, len(members) - threshold) + 1):
        for out in combinations(members, wrong):
            chosen = tuple(name for name in members if name not in out)[:threshold]
            if chosen not in seen:
                seen.add(chosen)
                yield chosen


def _recovered(
    shares: Mapping[str, Mapping[str, int]], owners: Collection[str], group: Group
) -> dict[str, bytes]:
    """What the shares of these members give, by owner; nothing where that is no secret."""
    weights = lagrange_weights([group.point(name) for name in shares])
    found: dict[str, bytes] = {}
    for owner in owners:
        try:
            found[owner] = recover((held[owner] for held in shares.values()), weights)
        except RemoteProtocolError:
            continue
    return found


def _misfits(
    shares: Mapping[str, Mapping[str, int]],
    chosen: Sequence[str],
    found: Mapping[str, bytes],
    group: Group,
) -> dict[str, str]:
    """Who, put in the place of one of the chosen, would have changed a secret that they opened."""
    faults: dict[str, str] = {}
    for other in sorted(shares.keys() - set(chosen)) if found else ():
        swapped = _recovered({name: shares[name] for name in (*chosen[1:], other)}, found, group)
        wrong = sorted(owner for owner in found if swapped.get(owner) != found[owner])
        if wrong:
            faults[other] = f"its share of a secret of {wrong[0]} does not fit the others'"
    return faults


def _read_shares(shares: object, owners: Collection[str], what: str) -> dict[str, int]:
    named = check_names(shares, owners, what, every=True)
    read = {owner: _read_share(named[owner], what) for owner in owners}
    if any(share >= PRIME for share in read.values()):
        raise RemoteProtocolError(f"{what} holds a share outside the field")
    return read


def _read_share(digits: object, what: str) -> int:
    return int.from_bytes(unhex(digits, SHARE_BYTES, 1, what)[0], "big")


def _share_text(share: int) -> str:
    return share.to_bytes(SHARE_BYTES, "big").hex()
