"""A round under secure aggregation with 3 nodes over mutual TLS, beside the same round without.

Both go through the coordinator's real exchanges: codec, checks and sum, or masked input,
consistency check and unmasking. Nodes are processes of this machine, one each; they read no rows,
so that what is compared is protection alone: whole numbers, shares of the noise, masks, signatures
and the two further exchanges. Keys are shared once for 64 rounds; the first round of each block,
which shares them, is timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np

from benchmarks.machine import describe
from benchmarks.nodes import federated
from benchmarks.simulation import CUSTOMERS, SMALL, terms
from benchmarks.wire import DEADLINE, NODES, connected
from dovetail.agreement import request as requests
from dovetail.agreement.request import ModelSpec, Request
from dovetail.agreement.secure_aggregation import SecureAggregation
from dovetail.agreement.terms import Terms
from dovetail.coordinator.aggregating import ROUNDS_IN_A_BLOCK, Aggregation, stepped
from dovetail.coordinator.parties import node_number
from dovetail.coordinator.round import Round, initial_arrays
from dovetail.flower import actions
from dovetail.flower.grid import CheckedGrid, Expected
from dovetail.wire.server import FederationServer

MODELS = {10_000: (150,), 1_000_000: (968, 968)}
"""Hidden layers of a model of about so many parameters."""
GOALS = {10_000: 3.0, 1_000_000: 2.0}
REPEATS = {10_000: 63, 1_000_000: 25}

Seconds = tuple[float, float]


def plain(server: FederationServer, agreed: Terms, request: Request) -> Seconds:
    """Median seconds of a round without protection, and those of the first."""
    arrays = initial_arrays(request.task, agreed.schema)
    weights = dict.fromkeys(server.nodes(), float(CUSTOMERS))
    expected = Expected({name: array.shape for name, array in arrays.items()}, weights)
    record = requests.to_record(request)

    def once(number: int) -> None:
        grid = CheckedGrid(server, expected, quorum=NODES, deadline=DEADLINE)
        collected = Round(weights, NODES)
        for reply in grid.receive(actions.train_messages(weights, number, record, arrays)):
            collected.add(reply.metadata.src_node_id, actions.arrays_of(reply))
        collected.close()

    return timed(once, request)


def shared(server: FederationServer, agreed: Terms, request: Request) -> Seconds:
    """Median seconds of a round whose keys are shared, and those of one that shares them."""
    arrays = initial_arrays(request.task, agreed.schema)
    partners = {node_number(partner.name): partner.name for partner in agreed.partners}
    aggregation = Aggregation(request, agreed, server, partners, DEADLINE)

    def once(number: int) -> None:
        total = aggregation.round(number, arrays)
        stepped(request, agreed, arrays, total)

    return timed(once, request)


def timed(once: object, request: Request) -> Seconds:
    """Median of the rounds after the first, and the first."""
    seconds = []
    for number in range(1, request.task.rounds + 1):
        start = time.perf_counter()
        once(number)  # type: ignore[operator]
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), seconds[0]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(describe())
    print(f"\n{NODES} nodes, TLS on loopback; milliseconds a round, medians; keys for")
    print(f"{ROUNDS_IN_A_BLOCK} rounds at once")
    print("parameters     plain   protected   ratio   goal   round that shares keys")
    assumed = SecureAggregation(dropouts=0, colluders=1)
    agreed = replace(
        terms(NODES),
        protections=("distributed", "local"),
        secure_aggregation=assumed,
        max_parameters=10**7,
    )
    with federated(agreed) as federation, connected(federation, echo=False) as server:
        now = federation.terms
        for size, hidden in MODELS.items():
            model = ModelSpec("mlp", hidden)
            task = replace(SMALL, rounds=REPEATS[size] + 1, model=model, local_steps=1)
            shapes = model.parameters(now.schema.select(task.features))
            count = sum(int(np.prod(parameter.shape)) for parameter in shapes)
            base, _ = plain(server, now, Request(f"plain-{size}", task))
            masked = replace(task, protection="distributed")
            taken, first = shared(server, now, Request(f"shared-{size}", masked))
            print(f"{count:10,d} {base * 1e3:9.1f} {taken * 1e3:11.1f}", end="")
            print(f" {taken / base:7.2f} {GOALS[size]:6.1f} {first * 1e3:24.1f}", flush=True)


if __name__ == "__main__":
    main()
