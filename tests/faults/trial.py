"""A federation of real processes on this machine that tests kill, freeze, cut off and restart."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Self

from dovetail.agreement import terms as agreements
from dovetail.agreement.enrolment import request_enrolment
from dovetail.agreement.request import Request, TrainingTask
from dovetail.agreement.signing import request_record, sign_request
from dovetail.agreement.terms import Budget, Terms
from dovetail.coordinator.docket import OPEN_STATES
from dovetail.coordinator.parties import Parties
from dovetail.crypto.keyring import Keyring, load_keyring, make_keyring
from dovetail.errors import SettingError, TransportError
from dovetail.simulation.federation import COORDINATOR, Federation, Member
from dovetail.store.jobs import JobStore
from dovetail.store.records import EventRecord, JobRecord
from dovetail.wire.control import ControlClient
from dovetail.wire.peers import Access
from tests.faults.host import Host
from tests.faults.points import Doom
from tests.faults.process import Setting, command
from tests.node.homes import SIZES, write_csv
from tests.samples import TASK, terms

PARTNERS = tuple(SIZES)
PATIENCE = 120.0
"""Seconds after which a test that waits has failed."""
CHEAP = replace(TASK, noise_multiplier=4.0, local_steps=2)
"""A task of three rounds of two steps, many of which fit into :data:`RICH`."""
RICH = Budget(epsilon=50.0, delta=1e-3)


class Trial(Federation):
    """Coordinator and three partners with tables of a few hundred customers.

    Attributes:
        settings: how a party's process differs from one in production, from its next start on.
    """

    def __init__(
        self,
        folder: Path,
        host: Host | None = None,
        agreed: Terms | None = None,
        members: Mapping[str, Member] | None = None,
        settings: Mapping[str, Setting] | None = None,
        analysts: Sequence[str] = (),
    ) -> None:
        """Makes keys and has all sign; starts nothing.

        Args:
            folder: new or empty.
            host: forks the processes; fresh interpreters where ``None``.
            agreed: the terms; by default with a budget for many jobs.
            members: each partner's table; by default a small one.
            settings: how a party's process differs from one in production.
            analysts: who may ask for jobs besides the coordinator.
        """
        self._host = host
        self.settings = dict(settings or {})
        given = members or tables(folder)
        super().__init__(folder / "federation", agreed or terms(budget=RICH), given, self._fresh)
        self.partners = tuple(given)
        for party in (COORDINATOR, *given):
            self.notes(party).mkdir(exist_ok=True)
        if analysts:
            self._add_analysts(analysts)

    def notes(self, party: str) -> Path:
        """The folder of what a party's process notes for the tests, and of its doom."""
        return self.folder / f"{party}.notes"

    def doom(self, party: str, doom: Doom) -> None:
        """Has a party's running process killed at a point."""
        doom.write(self.notes(party))

    def until_killed(self, party: str) -> None:
        """Waits until a party's process was killed."""
        assert self.processes[party].wait(PATIENCE) == -9

    def kill(self, *parties: str) -> None:
        """Kills processes, and starts none."""
        for party in parties:
            self.processes[party].kill()
        for party in parties:
            self.processes[party].wait(PATIENCE)

    def restart(self, *parties: str) -> None:
        """Starts parties' processes again and waits until all partners are connected."""
        for party in parties:
            self.start_party(party)
        self.wait_until_connected(self.partners)

    def start_party(self, party: str) -> None:
        """Starts a party's process, or starts it again."""
        self.start_coordinator() if party == COORDINATOR else self.start_node(party)

    def hand_in(self, request: Request, *, quorum: int = 2, deadline: float = PATIENCE) -> None:
        """Submits a job as an analyst does who hears nothing if the coordinator dies meanwhile."""
        with suppress(TransportError):
            self.submit(request, quorum=quorum, deadline=deadline)

    def client_of(self, party: str) -> ControlClient:
        """A client of an analyst or of the operator."""
        own = self._keyring(party)
        certificate = self.keyring.certificate
        return ControlClient(Access(self.address, certificate, own.certificate, own.tls_key))

    def submit_as(self, party: str, request: Request, client: ControlClient) -> None:
        """Hands a job in as an analyst or the operator."""
        key = self._keyring(party).signing
        signed = sign_request(request, agreements.digest(self.terms), party, key)
        record = {"signed": request_record(signed), "quorum": 2, "deadline": PATIENCE}
        client.call("Submit", record)

    def ended(self, request: Request) -> JobRecord:
        """Waits until a job has ended; hands it in again where the coordinator never kept it."""

        def over() -> bool:
            if not self.knows(request):
                self.hand_in(request)
            return self.has_ended(request)

        eventually(over)
        return self.job(request.job)

    def knows(self, request: Request) -> bool:
        """Whether the coordinator has kept a job."""
        with suppress(SettingError):
            return bool(self.job(request.job))
        return False

    def has_ended(self, request: Request) -> bool:
        """Whether a job has ended, as the coordinator's database has it."""
        return self.knows(request) and self.job(request.job).state not in OPEN_STATES

    def job(self, job: str) -> JobRecord:
        """A job as the coordinator's database has it."""
        return self.store.get(job)

    @cached_property
    def store(self) -> JobStore:
        """The coordinator's database, to read."""
        return JobStore.open(self.home(COORDINATOR) / "jobs.sqlite", utc_now)

    def told(self, request: Request, kind: str) -> list[EventRecord]:
        """What the coordinator told of a job."""
        return [event for event in self.store.events(request.job) if event.kind == kind]

    def worker(self, partner: str) -> int:
        """The process id of a node's worker, once it has one."""
        found: list[int] = []

        def living() -> bool:
            found[:] = self._workers(partner)
            return bool(found)

        eventually(living)
        return found[0]

    def has_worker(self, partner: str) -> bool:
        """Whether a node has one now; it replaces a dead one when it is next asked for a round."""
        return bool(self._workers(partner))

    def _workers(self, partner: str) -> list[int]:
        own = children(self.processes[partner].pid)
        if self._host is None:
            return own
        return [worker for nursery in own for worker in children(nursery)]

    def kill_worker(self, partner: str) -> None:
        """Kills a node's worker and waits until it is dead."""
        worker = os.pidfd_open(self.worker(partner))
        signal.pidfd_send_signal(worker, signal.SIGKILL)
        select.select([worker], [], [])
        os.close(worker)

    def until_settled(self) -> None:
        """Waits until every partner knows of every job's end."""
        eventually(lambda: not self.store.unsettled())

    def stop(self) -> None:
        """Ends all processes."""
        if "store" in vars(self):
            self.store.close()
        super().stop()

    def __enter__(self) -> Self:
        return self

    def _keyring(self, party: str) -> Keyring:
        return load_keyring(self.home(party) / "keys")

    def _add_analysts(self, names: Sequence[str]) -> None:
        """Enrols analysts, and has all sign terms that name them."""
        parties = Parties(self.home(COORDINATOR) / "parties", self.keyring)
        named = []
        for name in names:
            invitation = parties.invite(name, "analyst", self.address)
            keyring = make_keyring(self.home(name) / "keys", name, utc_now())
            named.append(parties.enrol(request_enrolment(invitation, keyring)))
        self.terms = replace(self.terms, analysts=tuple(named))
        signers = (COORDINATOR, *self.partners, *names)
        self.sign(self.terms, {name: self._keyring(name) for name in signers})

    def _start(self, party: str, arguments: Sequence[str]) -> None:
        if self._host is None:
            super()._start(party, arguments)
        else:
            started = self._host.start(party, self._setting(party), arguments, self.log(party))
            self.processes[party] = started

    def _fresh(self, party: str, arguments: Sequence[str]) -> Sequence[str]:
        return command(party, self._setting(party), arguments)

    def _setting(self, party: str) -> Setting:
        return replace(self.settings.get(party, Setting()), notes=str(self.notes(party)))


def children(parent: int) -> list[int]:
    """The living children of a process."""
    listed: list[str] = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            listed += task.read_text().split()
    alive = []
    for child in listed:
        with suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes():  # the dead have none
                alive.append(int(child))
    return alive


def tables(folder: Path) -> dict[str, Member]:
    """A small table for each partner."""
    members = {}
    for seed, (name, customers) in enumerate(SIZES.items()):
        write_csv(folder / f"{name}.csv", customers, seed)
        members[name] = Member(folder / f"{name}.csv")
    return members


def request(job: str, rounds: int = 3, task: TrainingTask = CHEAP) -> Request:
    """A job of so many rounds."""
    return Request(job, replace(task, rounds=rounds))


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for something of which nothing gives notice."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)
