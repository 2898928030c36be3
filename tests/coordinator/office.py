"""A coordinator's jobs over a real database and real nodes, without a wire between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dovetail.agreement import terms as agreed
from dovetail.agreement.party import Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, SignedTerms, sign_request, sign_terms
from dovetail.agreement.terms import Terms
from dovetail.agreement.trusted import TrustedTerms
from dovetail.coordinator.docket import Docket
from dovetail.coordinator.progress import JobEvent
from dovetail.simulation.identities import COORDINATOR, signing_key
from dovetail.store.database import LOCK_TIMEOUT
from dovetail.store.jobs import JobStore
from tests.coordinator.nodes import Nodes, now
from tests.samples import TASK, terms

PATIENCE = 60.0
ANALYST = "analyst"
REQUEST = Request("job-1", TASK)


def with_analyst(**changes: Any) -> Terms:
    """The terms, and an analyst who may ask."""
    pin = signing_key(f"certificate of {ANALYST}").public
    return terms(analysts=(Party(ANALYST, signing_key(ANALYST).public, pin),), **changes)


def signed_by_all(signed: Terms) -> SignedTerms:
    """Terms with the signatures of all simulated parties."""
    names = [party.name for party, _ in signed.parties]
    return SignedTerms(signed, tuple(sign_terms(signed, n, signing_key(n)) for n in names))


def trusting(*versions: Terms) -> TrustedTerms:
    trusted = TrustedTerms(COORDINATOR, signing_key(COORDINATOR).public)
    for version in versions:
        trusted.update(signed_by_all(version))
    return trusted


def asked_by(
    name: str, under: Terms, request: Request = REQUEST, key: str | None = None
) -> SignedRequest:
    """A request as somebody asks it, with the key of somebody (of the same, usually)."""
    return sign_request(request, agreed.digest(under), name, signing_key(key or name))


@dataclass
class Heard:
    """What was told of jobs; tests wait for it."""

    events: list[JobEvent] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: JobEvent) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def until(self, kind: str, job: str = "job-1", times: int = 1) -> list[JobEvent]:
        """All of these events, once there are enough."""

        def found() -> list[JobEvent]:
            return [e for e in self.events if (e.kind, e.job) == (kind, job)]

        with self._news:
            assert self._news.wait_for(lambda: len(found()) >= times, PATIENCE), self.events
            return found()

    def kinds(self, job: str = "job-1") -> list[str]:
        return [event.kind for event in self.events if event.job == job]


@dataclass
class Office:
    """One life of a coordinator over a folder.

    Attributes:
        folder: with the database, checkpoints and releases.
        nodes: where the jobs go.
        trusted: the terms; those of the nodes.
        store: the database.
        docket: the jobs.
        heard: what it told.
    """

    folder: Path
    nodes: Nodes
    trusted: TrustedTerms
    store: JobStore
    docket: Docket
    heard: Heard

    def submit(self, asker: str = COORDINATOR, request: Request = REQUEST) -> str:
        signed = asked_by(asker, self.nodes.terms, request)
        return self.docket.submit(signed, 0, PATIENCE).state

    def done(self) -> None:
        """Returns when all jobs have come to rest."""
        self.nodes.nudge()
        self.docket.suspend(PATIENCE)


@contextmanager
def office(
    folder: Path,
    nodes: Nodes,
    trusted: TrustedTerms | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> Iterator[Office]:
    """An office that is closed in good order."""
    opened = opened_office(folder, nodes, trusted, lock_timeout)
    with opened.store:
        yield opened
        opened.done()


def opened_office(
    folder: Path,
    nodes: Nodes,
    trusted: TrustedTerms | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> Office:
    """An office that nobody closes."""
    trusted, heard = trusted or trusting(nodes.terms), Heard()
    store = JobStore.open(folder / "jobs.sqlite", now, lock_timeout)
    docket = Docket(store, folder, COORDINATOR, trusted, nodes, nodes.wait_for_change, now, heard)
    return Office(folder, nodes, trusted, store, docket, heard)
