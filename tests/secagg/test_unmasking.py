from itertools import combinations

import pytest

from dovetail.secagg.shamir import PRIME, lagrange_weights, split
from dovetail.secagg.unmasking import Answer, Opened, _subsets, open_secrets
from tests.secagg.transcript import dice, group_of

NAMES = ("p0", "p1", "p2", "p3", "p4")
GROUP = group_of(NAMES, 2, 0)
SECRETS = {name: dice("secret", name)(32) for name in NAMES}
OPEN = Opened(SECRETS, frozenset(), {})

Shares = dict[str, dict[str, int]]
"""By who holds them and by owner."""


def shares() -> Shares:
    """Every member's share of every secret, as it was dealt."""
    dealt = {
        owner: split(secret, GROUP.threshold, range(1, 6), dice("split", owner))
        for owner, secret in SECRETS.items()
    }
    return {name: {owner: dealt[owner][i] for owner in NAMES} for i, name in enumerate(NAMES)}


def opened(held: Shares) -> Opened:
    """What is opened where ``p4`` did not survive."""
    answers = {
        name: Answer(
            {owner: share for owner, share in of.items() if owner != "p4"}, {"p4": of["p4"]}
        )
        for name, of in held.items()
    }
    return open_secrets(answers, GROUP, lambda owner, secret: secret == SECRETS[owner])


def changed(held: Shares, *wrong: tuple[str, str]) -> Shares:
    """With other shares in some places: who holds it, and whose it is."""
    for name, owner in wrong:
        held[name][owner] = int.from_bytes(dice(name, owner)(32), "big")
    return held


def fault(owner: str) -> str:
    return f"its share of a secret of {owner} does not fit the others'"


@pytest.mark.parametrize("count", [3, 4, 5])
def test_any_answers_that_are_enough_open_everything(count: int) -> None:
    for chosen in combinations(NAMES, count):
        assert opened({name: shares()[name] for name in chosen}) == OPEN


@pytest.mark.parametrize("wrong", NAMES)
def test_one_wrong_share_is_survived_by_one_spare_answer(wrong: str) -> None:
    for missing in set(NAMES) - {wrong}:
        held = {name: of for name, of in shares().items() if name != missing}
        assert opened(changed(held, (wrong, "p4"))) == Opened(
            SECRETS, frozenset(), {wrong: fault("p4")}
        )


def test_two_wrong_answers_are_survived_by_two_spare_ones() -> None:
    for one, two in combinations(NAMES, 2):
        wrong = [(name, owner) for name in (one, two) for owner in ("p1", "p4")]
        faults = {one: fault("p1"), two: fault("p1")}
        assert opened(changed(shares(), *wrong)) == Opened(SECRETS, frozenset(), faults)


def test_every_secret_may_have_a_wrong_share_at_another_member() -> None:
    wrong = [("p0", "p1"), ("p1", "p2"), ("p2", "p3"), ("p3", "p4"), ("p4", "p0")]
    faults = {name: fault(owner) for name, owner in wrong}
    assert opened(changed(shares(), *wrong)) == Opened(SECRETS, frozenset(), faults)


def test_more_wrong_shares_than_spare_answers_close_their_secret_alone() -> None:
    found = opened(changed(shares(), ("p0", "p2"), ("p1", "p2"), ("p3", "p2")))
    rest = {owner: secret for owner, secret in SECRETS.items() if owner != "p2"}
    assert found == Opened(rest, frozenset({"p2"}), {})


def test_a_secret_that_was_never_dealt_is_closed() -> None:
    held = shares()
    for name in NAMES:
        held[name]["p0"] = 2**256 + 5  # shares of a number above every secret
    assert opened(held).closed == {"p0"}


def test_two_that_lie_together_can_blame_another_and_change_nothing() -> None:
    """Their errors cancel out among the first three answers."""
    weights = lagrange_weights([1, 2, 3])
    held = shares()
    held["p0"]["p0"] = (held["p0"]["p0"] + weights[1]) % PRIME
    held["p1"]["p0"] = (held["p1"]["p0"] - weights[0]) % PRIME
    found = opened(held)
    assert (found.secrets, found.closed) == (SECRETS, frozenset())
    assert found.faults == {"p3": fault("p0"), "p4": fault("p0")}


def test_so_many_subsets_are_tried_and_each_once() -> None:
    members = [f"p{i:02}" for i in range(64)]
    counts = {}
    for threshold in (33, 48, 61, 62, 63, 64):
        tried = list(_subsets(members, threshold))
        assert len(set(tried)) == len(tried)
        assert tried[0] == tuple(members[:threshold])
        counts[threshold] = len(tried)
    assert max(counts.values()) == counts[62] == 2016
    assert counts[64] == 1
