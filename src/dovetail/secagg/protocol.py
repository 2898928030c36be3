"""The whole protocol in one place, every role played here; for tests, examples and readers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dovetail.secagg.client import Client, Sign
from dovetail.secagg.group import Block, Group
from dovetail.secagg.masks import Words
from dovetail.secagg.messages import Step
from dovetail.secagg.server import Server

Leaves = Mapping[str, Step]
"""By member, the first step that it no longer takes."""

NOBODY_LEAVES: Leaves = MappingProxyType({})


def run_secagg(
    group: Group,
    block: Block,
    signers: Mapping[str, Sign],
    vectors: Mapping[str, Words],
    leaves: Leaves = NOBODY_LEAVES,
) -> tuple[tuple[str, ...], Words]:
    """The first sum of a block.

    Args:
        group: who sums.
        block: what it is about.
        signers: by member, signs with its key in the group.
        vectors: by member; left as they are.
        leaves: who drops out, and when.

    Returns:
        Whose vectors are in the sum, and the sum modulo 2^bits.
    """
    server, clients = share_keys(group, block, signers, leaves)
    return sum_round(server, clients, block.first_round, vectors, leaves)


def share_keys(
    group: Group, block: Block, signers: Mapping[str, Sign], leaves: Leaves = NOBODY_LEAVES
) -> tuple[Server, dict[str, Client]]:
    """Rounds 0 and 1, for all rounds of a block: the server, and the members that are left."""
    server = Server(group, block)
    clients = {name: Client(group, block, name, signers[name]) for name in group.members}

    clients = _staying(clients, leaves, Step.ADVERTISE_KEYS)
    adverts = server.adverts({name: client.advertise_keys() for name, client in clients.items()})

    clients = _staying(clients, leaves, Step.SHARE_KEYS)
    sealed = {name: client.share_keys(adverts) for name, client in clients.items()}
    routed = server.route_shares(sealed)

    clients = _staying(clients, leaves, Step.RECEIVE_SHARES)
    for name, client in clients.items():
        client.receive_shares(routed[name])
    return server, clients


def sum_round(
    server: Server,
    clients: Mapping[str, Client],
    number: int,
    vectors: Mapping[str, Words],
    leaves: Leaves = NOBODY_LEAVES,
) -> tuple[tuple[str, ...], Words]:
    """Rounds 2 to 4, for one sum: who is in it, and the sum modulo 2^bits."""
    round_sum = server.round(number)

    clients = _staying(clients, leaves, Step.MASKED_INPUT)
    for name, client in clients.items():
        masked = vectors[name].copy()
        client.mask(number, masked)
        round_sum.add(name, masked)
    survivors = round_sum.survivors()

    clients = _staying(clients, leaves, Step.CONSISTENCY_CHECK)
    signatures = round_sum.signed(
        {name: client.check_consistency(number, survivors) for name, client in clients.items()}
    )

    clients = _staying(clients, leaves, Step.UNMASKING)
    answers = {name: client.unmask(number, signatures) for name, client in clients.items()}
    return survivors, round_sum.unmask(answers)


def _staying(clients: Mapping[str, Client], leaves: Leaves, step: Step) -> dict[str, Client]:
    """Those who still take a step."""
    return {
        name: client
        for name, client in clients.items()
        if name not in leaves or step < leaves[name]
    }
