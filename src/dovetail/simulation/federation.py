"""A coordinator and its partners' nodes as processes of this machine, over mutual TLS.

Everything is real: keys made for the occasion, invitations, enrolment, an agreement that all sign,
and the very commands that partners run. Only the machine is one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dovetail.agreement import terms as agreed
from dovetail.agreement.draft import as_toml
from dovetail.agreement.enrolment import Access as SavedAccess
from dovetail.agreement.enrolment import request_enrolment
from dovetail.agreement.files import ACCESS, signature_path
from dovetail.agreement.party import Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, request_record, sign_request, sign_terms
from dovetail.agreement.terms import Terms
from dovetail.coordinator.parties import Parties
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.settings import write_settings
from dovetail.crypto.keyring import Keyring, make_keyring
from dovetail.errors import DataError, TransportError
from dovetail.node.template import write_settings as write_node_settings
from dovetail.store.card import ModelCard
from dovetail.store.model import save_fetched
from dovetail.wire.control import ControlClient
from dovetail.wire.peers import Access

COORDINATOR = "coordinator"
HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
SETTLE_SECONDS = 30.0

Command = Callable[[str, Sequence[str]], Sequence[str]]
"""How to run ``dovetail`` with some arguments, for the party of this name."""


def dovetail(_party: str, arguments: Sequence[str]) -> Sequence[str]:
    """The installed command, by this interpreter."""
    return [sys.executable, "-m", "dovetail", *arguments]


@dataclass(frozen=True)
class Member:
    """One partner of a federation.

    Attributes:
        table: its rows, a file.
        settings: further lines of its node.toml.
    """

    table: Path
    settings: str = ""


class Federation:
    """A running federation; a context manager that stops its processes.

    Attributes:
        folder: holds ``coordinator/`` and a folder for each partner.
        terms: what all parties signed.
        address: of the coordinator.
        processes: the running ones, by party.
    """

    def __init__(
        self,
        folder: Path,
        terms: Terms,
        members: Mapping[str, Member],
        command: Command = dovetail,
    ) -> None:
        """Makes keys, enrols everybody, and has all sign; starts nothing.

        Args:
            folder: new or empty.
            terms: whose parties' keys are replaced by fresh ones; the coordinator asks for jobs.
            members: each partner's own table.
            command: how to run a party's process.

        Raises:
            DovetailError: a file cannot be written.
        """
        self.folder, self._members, self._command = folder, members, command
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"{HOST}:{_free_port()}"
        self._open = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        self.keyring = self._make_coordinator()
        keyrings = {COORDINATOR: self.keyring}
        parties = Parties(self.home(COORDINATOR) / "parties", self.keyring)
        for name in members:
            keyrings[name] = self._enrol(parties, name)
        self.terms = _with_keys(terms, keyrings)
        self.sign(self.terms, keyrings)

    def home(self, party: str) -> Path:
        """A party's folder."""
        return self.folder / party

    def log(self, party: str) -> Path:
        """What a party's process said."""
        return self.home(party) / "log.txt"

    def sign(self, terms: Terms, keyrings: Mapping[str, Keyring]) -> None:
        """Has all parties sign terms, and gives them to the coordinator."""
        path = self.home(COORDINATOR) / "agreement.toml"
        path.write_text(as_toml(terms), encoding="utf-8")
        for name, keyring in keyrings.items():
            signature = sign_terms(terms, name, keyring.signing)
            signed = json.dumps(vars(signature), indent=2)
            signature_path(path, signature, terms).write_text(signed, encoding="utf-8")

    def start(self) -> None:
        """Starts all processes and waits until every node is connected.

        Raises:
            TransportError: one ended, or did not come up in time; its log says why.
        """
        self.start_coordinator()
        for name in self._members:
            self.start_node(name)
        self.wait_until_connected(self._members)

    def start_coordinator(self) -> None:
        """Starts the coordinator, or starts it again."""
        self._start(COORDINATOR, ["coordinator", "serve", "--folder", str(self.home(COORDINATOR))])

    def start_node(self, name: str) -> None:
        """Starts a partner's node, or starts it again."""
        self._start(name, ["node", "serve", "--node", str(self.home(name) / "node.toml")])

    def wait_until_connected(self, names: Sequence[str] | Mapping[str, Member]) -> None:
        """Waits until these nodes are connected.

        Raises:
            TransportError: a process ended, or they did not come in time.
        """
        end = time.monotonic() + START_SECONDS
        while not set(names) <= self.connected():
            self._require_alive()
            if time.monotonic() > end:
                raise TransportError(f"not all nodes connected; see {self.log(COORDINATOR)}")
            time.sleep(0.1)

    def connected(self) -> set[str]:
        """The nodes that the coordinator says are connected; none where it does not answer."""
        with suppress(TransportError), self.client(timeout=5.0) as client:
            parties = client.call("Nodes", {})["parties"]
            return {party["name"] for party in parties if party["connected"]}
        return set()

    def client(self, timeout: float = 60.0) -> ControlClient:
        """The coordinator's operator, connected."""
        own = self.keyring
        return ControlClient(
            Access(self.address, own.certificate, own.certificate, own.tls_key), timeout=timeout
        )

    def signed(self, request: Request) -> SignedRequest:
        """A request as the coordinator asks it."""
        return sign_request(request, agreed.digest(self.terms), COORDINATOR, self.keyring.signing)

    def submit(self, request: Request, *, quorum: int = 0, deadline: float = 600.0) -> None:
        """Hands a job in."""
        signed = request_record(self.signed(request))
        with self.client() as client:
            client.call("Submit", {"signed": signed, "quorum": quorum, "deadline": deadline})

    def watch(self, job: str, on_event: Callable[[JobEvent], None], rounds: int) -> str:
        """Follows a job until it has ended and all partners know that; returns its state.

        Raises:
            TransportError: the connection was lost.
        """
        with self.client() as client:
            for event in client.watch({"job": job, "after": 0}):
                kind, number = event["kind"], event["round"]
                on_event(JobEvent(job, kind, number, rounds, event["partner"], event["text"]))
            shown, end = client.call("Show", {"job": job}), time.monotonic() + SETTLE_SECONDS
            while shown["settled"] != shown["permitted"] and time.monotonic() < end:
                time.sleep(0.1)
                shown = client.call("Show", {"job": job})
        return str(shown["state"])

    def fetch(self, job: str, output: Path) -> ModelCard:
        """Fetches what a job released."""
        pieces: list[bytes] = []
        with self.client() as client:
            card = client.fetch({"job": job}, pieces.append)
        return save_fetched(output, card, b"".join(pieces))

    def stop(self) -> None:
        """Ends all processes: asks first, then kills."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        self._open.close()

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _make_coordinator(self) -> Keyring:
        home = self.home(COORDINATOR)
        write_settings(home, COORDINATOR, self.address, self.address)
        return make_keyring(home / "keys", COORDINATOR, _now(), ["localhost", HOST])

    def _enrol(self, parties: Parties, name: str) -> Keyring:
        """What ``coordinator invite``, ``node init`` and ``coordinator enrol`` do."""
        home, member = self.home(name), self._members[name]
        invitation = parties.invite(name, "partner", self.address)
        keyring = make_keyring(home / "keys", name, _now())
        access = SavedAccess(self.address, invitation.coordinator, invitation.certificate)
        (home / "keys" / ACCESS).write_text(json.dumps(vars(access)), encoding="utf-8")
        write_node_settings(home / "node.toml", name, member.table, member.settings)
        parties.enrol(request_enrolment(invitation, keyring))
        return keyring

    def _start(self, party: str, arguments: Sequence[str]) -> None:
        log = self._open.enter_context(self.log(party).open("ab"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.processes[party] = subprocess.Popen(  # noqa: S603 - our own command
            self._command(party, arguments), stdout=log, stderr=log, env=environment
        )

    def _require_alive(self) -> None:
        for party, process in self.processes.items():
            if process.poll() is not None:
                raise TransportError(f"the process of {party!r} ended; see {self.log(party)}")


def _with_keys(terms: Terms, keyrings: Mapping[str, Keyring]) -> Terms:
    own = keyrings[COORDINATOR]
    partners = tuple(
        replace(p, key=keyrings[p.name].signing.public, certificate=keyrings[p.name].pin)
        for p in terms.partners
    )
    coordinator = Party(COORDINATOR, own.signing.public, own.pin)
    return replace(terms, coordinator=coordinator, analysts=(), partners=partners)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def _now() -> datetime:
    return datetime.now(UTC)


def require_ended_well(state: str, folder: Path) -> None:
    """Raise :class:`DataError` unless a job was released."""
    if state != "released":
        raise DataError(f"the job ended as {state}; the logs in {folder} say why")
