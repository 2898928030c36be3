"""Many nodes on one coordinator: 300 that idle, and 100 that take part in a small job.

The coordinator is ``dovetail coordinator serve`` in a process of its own, with its database and
checkpoints. On the wire the nodes are real: each has its own keys and its own connection over
mutual TLS. Behind it they are light: they permit everything, read no row, and answer a round with
the very arrays that it began with. A few client processes hold them all. The same job over the same
nodes in process, without TLS and without a database, is what it is compared with.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.machine import describe
from benchmarks.simulation import CUSTOMERS, request, terms
from dovetail.agreement.entry import GENESIS
from dovetail.agreement.files import read_access
from dovetail.agreement.permit import permit_of
from dovetail.agreement.request import Request, from_record
from dovetail.agreement.signing import permit_record, sign_permit
from dovetail.agreement.terms import Terms
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.run import Run
from dovetail.crypto.keyring import load_keyring
from dovetail.crypto.keys import SigningKey
from dovetail.crypto.prg import fresh_key
from dovetail.flower.actions import AggregationStep, Contribution, Record, node_app
from dovetail.flower.client import answer, new_context
from dovetail.flower.grid import MASKED
from dovetail.flower.records import NamedArrays
from dovetail.node.aggregating import Aggregating
from dovetail.node.app import parsed
from dovetail.privacy.discrete_gaussian import DiscreteSampler
from dovetail.simulation import identities
from dovetail.simulation.federation import COORDINATOR, START_SECONDS, Federation, Member
from dovetail.wire.attendance import Attendance, Handler
from dovetail.wire.memory import MemoryChannel
from dovetail.wire.peers import Access

WORK = "logistic, 1 step"
_TICKS = os.sysconf("SC_CLK_TCK")


class LightNode:
    """Permits everything and contributes what it was given; or nothing, with noise and masks."""

    def __init__(self, agreed: Terms, partner: str, key: SigningKey) -> None:
        self._terms, self._partner, self._key = agreed, partner, key
        self._aggregating = Aggregating(agreed, partner, key)

    def preview(self, signed: Record) -> Record:
        """Never asked here."""
        raise NotImplementedError(signed)

    def propose(self, signed: Record) -> Record:
        """Permits everything."""
        now = datetime.now(UTC)
        permit = permit_of(parsed(signed).request, self._terms, self._partner, now, GENESIS)
        return permit_record(sign_permit(permit, self._key))

    def train(
        self, request: Record, number: int, arrays: NamedArrays, _state: NamedArrays
    ) -> Contribution:
        """Contributes what it was given, or its share of the noise."""
        if request and (asked := from_record(request)).task.protection == "distributed":
            nothing = np.zeros(sum(array.size for array in arrays.values()))
            noise = DiscreteSampler(fresh_key())
            masked = self._aggregating.masked(asked, number, nothing, noise)
            return Contribution({MASKED: cast("Any", masked)}, float(CUSTOMERS), {})
        return Contribution(arrays, float(CUSTOMERS), {})

    def aggregate(self, step: AggregationStep, request: Record, body: Record) -> Record:
        """Takes its step."""
        return self._aggregating.step(step, from_record(request), body)

    def close(self, job: str) -> None:
        """Forgets nothing: there is nothing to forget."""

    def keep(self, card: Record, arrays: NamedArrays) -> None:
        """Keeps nothing."""


def handler(agreed: Terms, partner: str, key: SigningKey) -> Handler:
    """A light node, for a channel."""
    node, context = LightNode(agreed, partner, key), new_context(0, {}, {})
    return partial(answer, node_app(lambda _: node), lambda _: context)


def attend(federation: Path, agreed: Terms, names: Sequence[str], *, echo: bool) -> None:
    """A client process: some nodes, connected until they are killed.

    They are light nodes, or return the bytes that they are sent.
    """
    for name in names:
        home = federation / name / "keys"
        keyring, kept = load_keyring(home), read_access(home)
        access = Access(
            kept.address, kept.certificate.encode(), keyring.certificate, keyring.tls_key
        )
        light = handler(agreed, name, keyring.signing)
        node = Attendance(access, bytes if echo else light, lambda *_: None)
        threading.Thread(target=node.run, args=(threading.Event(),), daemon=True).start()
    signal.pause()


@contextmanager
def clients(federation: Federation, processes: int, *, echo: bool = False) -> Iterator[None]:
    """All partners of a federation, spread over some processes; they have yet to connect."""
    names = [partner.name for partner in federation.terms.partners]
    spawn = multiprocessing.get_context("spawn")
    started = [
        spawn.Process(
            target=attend,
            args=(federation.folder, federation.terms, names[i::processes]),
            kwargs={"echo": echo},
        )
        for i in range(processes)
    ]
    try:
        for process in started:
            process.start()
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


@contextmanager
def federated(agreed: Terms) -> Iterator[Federation]:
    """Keys for these partners, and terms that all signed; nothing runs."""
    with tempfile.TemporaryDirectory(prefix="dovetail-benchmark-") as folder:
        members = {partner.name: Member(Path("none.csv")) for partner in agreed.partners}
        with Federation(Path(folder), agreed, members) as federation:
            yield federation


@contextmanager
def coordinated(agreed: Terms) -> Iterator[tuple[Federation, int]]:
    """A running coordinator to which nobody has connected; and its process id."""
    with federated(agreed) as federation:
        federation.start_coordinator()
        end = time.monotonic() + START_SECONDS
        while not answers(federation):
            assert time.monotonic() < end, federation.log(COORDINATOR).read_text()
            time.sleep(0.1)
        yield federation, federation.processes[COORDINATOR].pid


def until_connected(federation: Federation) -> None:
    """Waits until every partner's node is connected to the coordinator."""
    federation.wait_until_connected([partner.name for partner in federation.terms.partners])


def answers(federation: Federation) -> bool:
    """Whether the coordinator can be asked."""
    try:
        with federation.client(timeout=2.0) as client:
            client.call("Nodes", {})
    except Exception:  # noqa: BLE001 - whatever it is, it does not answer yet
        return False
    return True


def run_job(federation: Federation, asked: Request) -> list[float]:
    """Runs a job; returns when each of its rounds had ended, and first when all had permitted."""
    ends: list[float] = []

    def note(event: JobEvent) -> None:
        if event.kind == "permitted":
            ends[:] = [time.perf_counter()]
        if event.kind in ("round", "lost"):
            ends.append(time.perf_counter())

    federation.submit(asked)
    state = federation.watch(asked.job, note, asked.task.rounds)
    if state != "released":
        raise SystemExit(f"the job ended as {state}:\n{federation.log(COORDINATOR).read_text()}")
    return ends


def run_in_process(agreed: Terms, asked: Request) -> list[float]:
    """The same job and nodes, by function calls."""
    partners = {i: partner.name for i, partner in enumerate(agreed.partners)}
    keys = {name: identities.signing_key(name) for name in partners.values()}
    channel = MemoryChannel({i: handler(agreed, n, keys[n]) for i, n in partners.items()})
    ends: list[float] = []
    job = Run(identities.asked(asked, agreed), agreed, channel, partners)
    job.on_event = lambda _: ends.append(time.perf_counter())
    job.run()
    return ends[len(partners) - 1 : len(partners) + asked.task.rounds]


def status(pid: int) -> Mapping[str, float]:
    """What a process's memory is, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(size) / 1000 for name, size, _ in sizes}


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_percent(pid: int, seconds: float) -> float:
    """Of one core, while so many seconds pass."""
    began, before = time.perf_counter(), cpu_seconds(pid)
    time.sleep(seconds)
    return 100 * (cpu_seconds(pid) - before) / (time.perf_counter() - began)


def idle(nodes: int, processes: int, seconds: float) -> None:
    """Prints what a coordinator takes while nothing happens, with and without nodes."""
    print(f"\nidle, over {seconds:.0f} s: the coordinator's process")
    print(f"{'nodes':>6s}{'CPU, % of a core':>18s}{'resident MB':>13s}{'KB a node':>11s}")
    with coordinated(terms(nodes)) as (federation, pid):
        alone = cpu_percent(pid, seconds), status(pid)["VmRSS"]
        print(f"{0:6d}{alone[0]:18.2f}{alone[1]:13.0f}", flush=True)
        with clients(federation, processes):
            until_connected(federation)
            time.sleep(10)  # until what connecting cost is over
            cpu, resident = cpu_percent(pid, seconds), status(pid)["VmRSS"]
            each = 1000 * (resident - alone[1]) / nodes
            print(f"{nodes:6d}{cpu:18.2f}{resident:13.0f}{each:11.0f}", flush=True)


def small_job(nodes: int, rounds: int, processes: int) -> None:
    """Prints seconds per round of a small job, over mutual TLS and in process."""
    asked, agreed = request(WORK, rounds), terms(nodes)
    print(f"\n{nodes} nodes x {rounds} rounds of a {WORK.partition(',')[0]} model; s/round: median")
    print(f"{'channel':>24s}{'s/round':>9s}{'ratio':>7s}{'all rounds, s':>15s}{'peak MB':>9s}")
    ours = np.diff(run_in_process(agreed, asked))
    in_process = statistics.median(ours)
    print(f"{'in process':>24s}{in_process:9.3f}{1:7.1f}{ours.sum():15.1f}", flush=True)
    with coordinated(agreed) as (federation, pid), clients(federation, processes):
        until_connected(federation)
        taken = np.diff(run_job(federation, asked))
        each, peak = statistics.median(taken), status(pid)["VmHWM"]
    print(f"{'coordinator, mutual TLS':>24s}{each:9.3f}{each / in_process:7.1f}", end="")
    print(f"{taken.sum():15.1f}{peak:9.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=300, help="nodes that idle; 0 for none")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--nodes", type=int, default=100, help="nodes of the job; 0 for none")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=3, help="that hold the nodes")
    options = parser.parse_args()
    print(describe())
    if options.idle:
        idle(options.idle, options.processes, options.seconds)
    if options.nodes:
        small_job(options.nodes, options.rounds, options.processes)


if __name__ == "__main__":
    main()
