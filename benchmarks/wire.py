"""A round over mutual TLS with 3 nodes, beside a stock SuperLink's; a coordinator's peak memory.

Three ways of a round trip, for updates of three sizes: nodes that return the very bytes they are
sent; a training round of arrays through codec, checks and sum, with nodes that contribute what they
were given; and Flower's SuperLink and SuperNodes with an app that answers as many bytes. The nodes
are processes of this machine, one each; medians after a first round that does not count.

Then ``dovetail coordinator serve`` runs whole jobs of a large model with ten such nodes, and the
most memory that its process ever held is read from ``/proc``.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from benchmarks import superlink
from benchmarks.machine import describe
from benchmarks.nodes import (
    clients,
    coordinated,
    federated,
    run_job,
    status,
    until_connected,
)
from benchmarks.simulation import CUSTOMERS, SMALL, terms
from dovetail.agreement.request import ModelSpec, Request
from dovetail.coordinator.parties import Parties
from dovetail.coordinator.round import Round
from dovetail.flower import actions
from dovetail.flower.grid import CheckedGrid, Expected
from dovetail.simulation.federation import COORDINATOR, START_SECONDS, Federation
from dovetail.wire.payload import Payload
from dovetail.wire.peers import Identity, Peer, Record
from dovetail.wire.server import FederationServer

NODES, DEADLINE = 3, 600.0
SIZES = {1_000: 0.010, 1_000_000: 0.020, 100_000_000: 1.5}
"""Bytes of an update, and the seconds aimed at."""
REPEATS = {1_000: 200, 1_000_000: 50, 100_000_000: 7}
MEMORY_NODES, MEMORY_GOAL_MB, WIDTH = 10, 600, 4967
"""An MLP of two hidden layers of this width over 64 numbers: 100 MB, nearly all in one array."""


class Nobody:
    """Control that nobody asks anything."""

    def call(self, method: str, _peer: Peer, _record: Record) -> Record:
        """Refuses."""
        raise NotImplementedError(method)

    def watch(self, _peer: Peer, _record: Record, _cancelled: threading.Event) -> Iterator[Record]:
        """Refuses."""
        raise NotImplementedError

    def fetch(self, _peer: Peer, _record: Record) -> tuple[Record, list[bytes]]:
        """Refuses."""
        raise NotImplementedError


@contextmanager
def connected(federation: Federation, *, echo: bool) -> Iterator[FederationServer]:
    """The wire's server in this process, with every partner's node connected."""
    own = federation.keyring
    directory = Parties(federation.home(COORDINATOR) / "parties", own)
    identity = Identity(own.certificate, own.tls_key)
    server = FederationServer(federation.address, identity, directory, Nobody(), lambda _: b"{}")
    server.start()
    try:
        with clients(federation, NODES, echo=echo):
            end = time.monotonic() + START_SECONDS
            while len(server.nodes()) < NODES and time.monotonic() < end:
                server.wait_for_change(1.0)
            assert len(server.nodes()) == NODES, "the nodes did not connect"
            yield server
    finally:
        server.stop()


def echoed(server: FederationServer, size: int) -> None:
    """One round trip of plain bytes."""
    request = Payload(bytes(size))
    answers = dict(server.exchange(dict.fromkeys(server.nodes(), request), DEADLINE))
    assert all(not isinstance(a, Exception) and len(a) == size for a in answers.values())


def trained(server: FederationServer, size: int) -> None:
    """One training round as a job has it, without judging and journal."""
    model = {"w": np.zeros(size // 4, np.float32)}
    weights = dict.fromkeys(server.nodes(), float(CUSTOMERS))
    expected = Expected({"w": model["w"].shape}, weights)
    grid = CheckedGrid(server, expected, quorum=NODES, deadline=DEADLINE)
    collected = Round(weights, NODES)
    for reply in grid.receive(actions.train_messages(weights, 1, {}, model)):
        collected.add(reply.metadata.src_node_id, actions.arrays_of(reply))
        del reply
    collected.close()


def timed(round_trip: Callable[[FederationServer, int], None], *, echo: bool) -> dict[int, float]:
    """Median seconds of a round trip, by size."""
    found = {}
    with federated(terms(NODES)) as federation, connected(federation, echo=echo) as server:
        for size, repeats in REPEATS.items():
            seconds = []
            for _ in range(repeats + 1):
                start = time.perf_counter()
                round_trip(server, size)
                seconds.append(time.perf_counter() - start)
            found[size] = statistics.median(seconds[1:])
    return found


def round_trips(stock: bool) -> None:
    """Prints the round trips."""
    print(f"\nround trip with {NODES} nodes, TLS on loopback; median seconds")
    print(f"{'update, bytes':>14s}  {'way':24s}{'s':>9s}{'goal':>7s}{'÷ goal':>8s}{'÷ echo':>9s}")
    ways = {
        "Dovetail, echo": timed(echoed, echo=True),
        "Dovetail, training round": timed(trained, echo=False),
    }
    if stock:
        ways["stock SuperLink, echo"] = superlink.seconds_per_round(list(SIZES), NODES)
    for size, goal in SIZES.items():
        for way, seconds in ways.items():
            taken, echo = seconds[size], ways["Dovetail, echo"][size]
            print(f"{size:14,d}  {way:24s}{taken:9.4f}{goal:7.3f}", end="")
            print(f"{taken / goal:8.2f}{taken / echo:9.1f}", flush=True)


def memory(rounds: int) -> None:
    """Prints the peak memory of a coordinator."""
    model = ModelSpec("mlp", (WIDTH, WIDTH))
    size = sum(4 * np.prod(p.shape) for p in model.parameters(terms(1).schema))
    print(f"\n{MEMORY_NODES} nodes x {rounds} rounds of a model of {size / 1e6:.0f} MB:")
    print("resident memory of the coordinator's process, MB")
    print(f"{'server optimiser':>18s}{'idle':>7s}{'peak':>7s}{'goal':>6s}", end="")
    print(f"{'÷ goal':>8s}{'s/round':>9s}")
    agreed = replace(terms(MEMORY_NODES), max_parameters=10**8)
    for name in ("fedavg", "fedadam"):
        task = replace(SMALL, rounds=rounds, model=model, server_optimizer=name)
        with coordinated(agreed) as (federation, pid), clients(federation, 2):
            until_connected(federation)
            idle = status(pid)["VmRSS"]
            taken = statistics.median(np.diff(run_job(federation, Request("job", task))))
            peak = status(pid)["VmHWM"]
        print(f"{name:>18s}{idle:7.0f}{peak:7.0f}{MEMORY_GOAL_MB:6d}", end="")
        print(f"{peak / MEMORY_GOAL_MB:8.2f}{taken:9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of the jobs of a large model")
    parser.add_argument("--no-superlink", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-round-trips", action="store_true")
    options = parser.parse_args()
    print(describe())
    if not options.no_round_trips:
        round_trips(stock=not options.no_superlink)
    if not options.no_memory:
        memory(options.rounds)


if __name__ == "__main__":
    main()
