"""Seconds per simulated round with 3, 30 and 300 nodes, against Flower's Ray engine.

Both sides run the same coordinator, the same client app's training and the same data, each in a
process of its own. Dovetail's world runs its nodes in that process, and then in as many workers as
there are cores; Ray uses all cores. Dovetail's side also walks gate and ledger; Ray's side skips
both, which favours it. A round's time is the median after the first; what comes before the first
round has ended stands apart: starting the nodes, their permits, and the round itself. Ray listens
on every interface, so both sides run in a network namespace with nothing but loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import describe
from dovetail.agreement import request as requests
from dovetail.agreement.entry import GENESIS
from dovetail.agreement.permit import permit_of
from dovetail.agreement.request import ModelSpec, Request, TrainingTask
from dovetail.agreement.signing import permit_record, sign_permit
from dovetail.agreement.terms import Budget, Terms
from dovetail.coordinator.run import Run
from dovetail.crypto.prg import fresh_key
from dovetail.flower.actions import AggregationStep, Contribution, Record, node_app
from dovetail.node.app import parsed
from dovetail.node.runner import Runner
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Label, Number, Schema
from dovetail.simulation import identities
from dovetail.simulation.world import World
from dovetail.training.batch import Batch
from dovetail.training.threads import use_one_thread
from dovetail.wire.channel import Channel

CUSTOMERS, FEATURES = 2000, 64
SCHEMA = Schema(
    name="benchmark",
    key="id",
    unit="customer",
    columns=tuple(Number(f"x{i}", 0, 1) for i in range(FEATURES)),
    label=Label("y", 0.3),
    max_rows_per_customer=1,
)
SMALL = TrainingTask(
    purpose="benchmark",
    features=tuple(column.name for column in SCHEMA.columns),
    label="y",
    model=ModelSpec("logistic"),
    rounds=1,
    sampling_prob=0.128,
    l2_clip_norm=1.0,
    noise_multiplier=1.0,
    learning_rate=0.1,
)
WORK = {
    "logistic, 1 step": SMALL,
    "MLP 64-128-64-1, 5 steps": replace(SMALL, model=ModelSpec("mlp", (128, 64)), local_steps=5),
}
"""What a node does in a round; each step takes 256 customers on average."""
ALONE = ["unshare", "--net", "--map-root-user", "bash", "-c"]


class RandomCustomers:
    """Customers with one random row each."""

    def __init__(self, seed: int) -> None:
        dice = np.random.default_rng(seed)
        self._numbers = dice.uniform(-1, 1, (CUSTOMERS, 1, FEATURES)).astype(np.float32)
        self._labels = (dice.random((CUSTOMERS, 1)) < 0.3).astype(np.float32)

    def __len__(self) -> int:
        return CUSTOMERS

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        """Rows of these customers."""
        n = len(customers)
        codes = np.zeros((n, 1, 0), np.int64)
        mask = np.ones((n, 1), np.float32)
        return Batch(self._numbers[customers], codes, self._labels[customers], mask)


def terms(nodes: int) -> Terms:
    """Terms that allow the benchmark's task to ``nodes`` partners."""
    period = (date(2024, 1, 1), date(2024, 12, 31))
    return Terms(
        name="benchmark",
        version=1,
        previous="",
        valid_from=identities.FIRST_DAY,
        valid_until=identities.LAST_DAY,
        schema=SCHEMA,
        coordinator=identities.coordinator(),
        analysts=(),
        partners=tuple(
            identities.partner(f"p{i}", "partner", CUSTOMERS, *period) for i in range(nodes)
        ),
        purposes=("benchmark",),
        requests=("training",),
        approval="automatic",
        customers_overlap=False,
        minimum_cohort=1,
        budget=Budget(1000.0, 1e-4),
        model_families=("logistic", "mlp"),
        protections=("local",),
        max_epsilon_per_job=1000.0,
        max_concurrent_jobs=100,
        max_parameters=10**6,
        max_rounds=1000,
        max_steps=10**5,
    )


class UngatedNode:
    """The runner alone, as Ray's nodes run it."""

    def __init__(self, partition: int, nodes: int) -> None:
        use_one_thread()
        self._nodes = nodes
        self._partner = f"p{partition}"
        self._runner = Runner(
            RandomCustomers(partition), SCHEMA, CUSTOMERS, lambda *_: SecureSampler(fresh_key())
        )

    def preview(self, signed: Record) -> Record:
        """Never asked here."""
        raise NotImplementedError(signed)

    def propose(self, signed: Record) -> Record:
        """Permits everything."""
        asked = parsed(signed).request
        permit = permit_of(asked, terms(self._nodes), self._partner, datetime.now(UTC), GENESIS)
        return permit_record(sign_permit(permit, identities.signing_key(self._partner)))

    def train(
        self, request: Record, number: int, arrays: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Contribution:
        """Contributes."""
        result = self._runner.contribute(requests.from_record(request), number, arrays, state)
        return Contribution(result.arrays, float(CUSTOMERS), result.optimizer_state)

    def aggregate(self, step: AggregationStep, request: Record, body: Record) -> Record:
        """Never asked here."""
        raise NotImplementedError(step)

    def close(self, job: str) -> None:
        """Forgets nothing: there is nothing to forget."""

    def keep(self, card: Record, arrays: Mapping[str, Any]) -> None:
        """Keeps nothing."""


@cache
def _ungated(nodes: int) -> list[UngatedNode]:
    """All nodes, as each of Ray's processes holds them: it is asked for any."""
    return [UngatedNode(partition, nodes) for partition in range(nodes)]


def _node_of(context: Any) -> UngatedNode:
    config = context.node_config
    return _ungated(int(config["num-partitions"]))[int(config["partition-id"])]


ray_app = node_app(_node_of)


def request(work: str, rounds: int) -> Request:
    """The job of ``rounds`` rounds."""
    return Request("job", replace(WORK[work], rounds=rounds))


def timed(start: float, run: Callable[[Callable[[int, Any], None]], Any]) -> dict[str, float]:
    """Seconds before the first round has ended, and the median of the rounds after it."""
    ends: list[float] = []
    run(lambda _number, _arrays: ends.append(time.perf_counter()))
    rounds = np.diff(ends)
    return {"start": ends[0] - start, "round": statistics.median(rounds)}


def ours(work: str, nodes: int, rounds: int, workers: int) -> dict[str, float]:
    """Dovetail's world."""
    use_one_thread()
    customers = {f"p{i}": RandomCustomers(i) for i in range(nodes)}
    start = time.perf_counter()
    with World(terms(nodes), customers, seed=0, workers=workers) as world:
        return timed(start, lambda on_round: world.run(request(work, rounds), on_round=on_round))


def theirs(work: str, nodes: int, rounds: int) -> dict[str, float]:
    """Flower's Ray engine."""
    from dovetail.flower.engine import run_on_ray

    found: dict[str, float] = {}
    start = time.perf_counter()

    def coordinate(channel: Channel, _context: object) -> None:
        partners = {node: f"p{i}" for i, node in enumerate(channel.nodes())}
        run = Run(
            identities.asked(request(work, rounds), terms(nodes)), terms(nodes), channel, partners
        )

        def go(on_round: Callable[[int, Any], None]) -> None:
            run.on_round = on_round
            run.run()

        found.update(timed(start, go))

    run_on_ray(coordinate, ray_app, nodes)
    return found


def apart(side: str, *arguments: str | int) -> dict[str, float]:
    """One of the two sides in a process and network namespace of its own."""
    script = f"from benchmarks.simulation import *; print(json.dumps({side}{arguments}))"
    command = ['ip link set lo up && exec "$@"', "bash", sys.executable, "-Wignore", "-c", script]
    done = subprocess.run([*ALONE, *command], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 30, 300])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    expected = CUSTOMERS * SMALL.sampling_prob
    print(describe())
    print(f"{CUSTOMERS} customers x {FEATURES} numbers a node, {expected:.0f} customers a step;")
    print(f"seconds per round: median of {options.rounds - 1}; first: until round 1 has ended")
    print(f"{'work':26s}{'nodes':>6s}{'engine':>22s}{'s/round':>9s}{'ray ÷':>8s}{'first':>8s}")
    for work in WORK:
        for nodes in options.nodes:
            job = (work, nodes, options.rounds)
            engines = {
                "ray": apart("theirs", *job),
                "dovetail": apart("ours", *job, 1),
                f"dovetail, {cores} workers": apart("ours", *job, cores),
            }
            for name, found in engines.items():
                ratio = engines["ray"]["round"] / found["round"]
                print(f"{work:26s}{nodes:6d}{name:>22s}{found['round']:9.3f}", end="")
                print(f"{ratio:7.1f}x{found['start']:8.1f}", flush=True)


if __name__ == "__main__":
    main()
