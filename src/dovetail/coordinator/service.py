"""What analysts and operators can do: each call reads a record, asks the docket, answers one.

Whoever is enrolled may read the agreement. All else is for the operator, and for analysts whom the
newest terms name.

============ =================================================== ==========================
call         asks                                                 answers
============ =================================================== ==========================
Preview      signed                                               partners, joint ε
Submit       signed, quorum, deadline                             the job
Approve      job (operator only)                                  the job
Cancel       job                                                  the job
List         states, limit, before                                jobs, newest first
Show         job                                                  the job, who permitted it, who
                                                                  is awaited, who knows its end
Permits      job                                                  the signed permits
Nodes        –                                                    who is connected
Agreement    –                                                    all signed versions
Watch        job (or all), after                                  events, until the job ends
Fetch        job                                                  card, then the model's bytes
============ =================================================== ==========================
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dovetail.agreement import terms as agreed
from dovetail.agreement.cost import cost_of
from dovetail.agreement.record import Fields
from dovetail.agreement.signing import (
    PREVIEW,
    REQUEST,
    Asking,
    SignedRequest,
    chain_record,
    request_from_record,
    require_asked,
)
from dovetail.agreement.trusted import TrustedTerms
from dovetail.coordinator.docket import OPEN_STATES, Docket
from dovetail.coordinator.parties import Parties
from dovetail.errors import DataError, PolicyError, SettingError
from dovetail.privacy import accountant
from dovetail.store.card import ARRAYS_FILE
from dovetail.store.jobs import ENDED, JobStore
from dovetail.store.records import JobRecord
from dovetail.wire.peers import NodeLink, Peer

Record = Mapping[str, Any]
_PIECE = 1 << 20
_WATCH_SECONDS = 1.0
_MOST_JOBS_LISTED = 1000


class Service:
    """Implements :class:`dovetail.wire.peers.ControlHandler`."""

    def __init__(
        self,
        docket: Docket,
        store: JobStore,
        trusted: TrustedTerms,
        parties: Parties,
        links: Callable[[], Iterable[NodeLink]],
        folder: Path,
    ) -> None:
        """Answers from these."""
        self._docket, self._store, self._trusted = docket, store, trusted
        self._parties, self._links, self._folder = parties, links, folder
        self._calls: dict[str, Callable[[Peer, Record], dict[str, Any]]] = {
            "Preview": self._preview,
            "Submit": self._submit,
            "Approve": self._approve,
            "Cancel": self._cancel,
            "List": self._list,
            "Show": self._show,
            "Permits": self._permits,
            "Nodes": self._nodes,
            "Agreement": self._agreement,
        }

    def call(self, method: str, peer: Peer, record: dict[str, Any]) -> dict[str, Any]:
        """Answers one call.

        Raises:
            DovetailError: says why not; its text goes to the caller.
        """
        if method != "Agreement":  # read before it is signed, or by who is to be named
            self._require_named(peer)
        return self._calls[method](peer, record)

    def watch(
        self, peer: Peer, record: dict[str, Any], cancelled: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """Events of one job until it has ended, or of all jobs until cancelled."""
        self._require_named(peer)
        read = Fields(record, "watch", ("job", "after"))
        job = read.text("job") if read.raw("job") else None
        after, told, ended = read.whole("after"), False, False
        if job is not None:
            self._store.get(job)
        while not cancelled.is_set():
            newest = self._store.wait_for_events(after=-1, timeout=0)
            events = self._store.events(job, after)
            for event in events:
                yield vars(event)
                after, told = event.sequence, event.kind in ENDED and not event.partner
            if events:
                continue
            if ended:
                return
            ended = job is not None and self._store.get(job).state in ENDED
            if not (ended and told):  # the end is told right after it is noted
                self._store.wait_for_events(newest, _WATCH_SECONDS)

    def fetch(self, peer: Peer, record: dict[str, Any]) -> tuple[dict[str, Any], Iterable[bytes]]:
        """The card of a released model, and the bytes of its arrays."""
        self._require_named(peer)
        job = _job(record)
        kept = self._store.release(job)
        if kept is None or self._store.get(job).state != "released":
            raise SettingError(f"job {job!r} has released nothing")
        path = self._folder / kept.folder / ARRAYS_FILE
        if not path.is_file():
            raise DataError(f"the model of job {job!r} is missing at the coordinator")
        return dict(kept.record), _pieces(path)

    def _require_named(self, peer: Peer) -> None:
        """Do nothing if an analyst is named by the newest terms that all signed."""
        terms = self._trusted.newest
        named = [analyst.name for analyst in terms.analysts] if terms else []
        if peer.role == "analyst" and peer.name not in named:
            raise PolicyError("party", f"no agreement that all signed names {peer.name!r}")

    def _preview(self, peer: Peer, record: Record) -> dict[str, Any]:
        asked = Fields(record, "preview", ("signed",)).raw("signed")
        signed = self._signed_by(peer, asked, PREVIEW)
        partners = self._docket.preview(signed)
        terms, task = self._trusted.newest, signed.request.task
        assert terms is not None  # noqa: S101 - the docket judged by them
        delta, cost = terms.budget.delta, cost_of(task, terms)
        adds_up = terms.customers_overlap and task.protection != "distributed"
        counts = len(terms.partners) if adds_up else 1
        within = task.steps <= terms.max_steps  # beyond, an exact answer could take minutes
        joint_of = accountant.epsilon if within else accountant.epsilon_rdp
        joint = joint_of({cost.event: cost.count * counts}, delta)
        return {
            "partners": {name: dict(found) for name, found in partners.items()},
            "delta": delta,
            "joint_epsilon": joint,
            "customers_overlap": terms.customers_overlap,
            "approval": terms.approval,
        }

    def _submit(self, peer: Peer, record: Record) -> dict[str, Any]:
        read = Fields(record, "submit", ("signed", "quorum", "deadline"))
        signed = self._signed_by(peer, read.raw("signed"), REQUEST)
        job = self._docket.submit(signed, read.whole("quorum"), read.number("deadline"))
        return _shown(job)

    def _signed_by(self, peer: Peer, record: object, purpose: Asking) -> SignedRequest:
        signed = request_from_record(record)
        if signed.asked_by != peer.name:
            raise PolicyError("party", "a request is handed in by whoever signed it")
        if self._trusted.newest is not None:
            require_asked(signed, self._trusted.newest, purpose)
        return signed

    def _approve(self, peer: Peer, record: Record) -> dict[str, Any]:
        if peer.role != "operator":
            raise PolicyError("role", "only the coordinator's operator approves jobs")
        return _shown(self._docket.approve(_job(record)))

    def _cancel(self, peer: Peer, record: Record) -> dict[str, Any]:
        job = _job(record)
        if peer.role != "operator" and self._store.get(job).asked_by != peer.name:
            raise PolicyError("role", "a job is cancelled by who asked for it, or by the operator")
        return _shown(self._docket.cancel(job))

    def _list(self, _peer: Peer, record: Record) -> dict[str, Any]:
        read = Fields(record, "list", ("states", "limit", "before"))
        states = read.texts("states") or None
        limit = max(1, min(read.whole("limit"), _MOST_JOBS_LISTED))
        before = read.text("before") if read.raw("before") else None
        return {"jobs": [_shown(job) for job in self._store.list(states, limit, before)]}

    def _show(self, _peer: Peer, record: Record) -> dict[str, Any]:
        job = self._store.get(_job(record))
        permits = self._store.permits(job.job)
        terms = next(
            (s.terms for s in self._trusted.chain if agreed.digest(s.terms) == job.terms_digest),
            None,
        )
        partners = [partner.name for partner in terms.partners] if terms else []
        return {
            **_shown(job),
            "request": dict(job.request),
            "permitted": sorted(permits),
            "settled": sorted(name for name, permit in permits.items() if permit.settled),
            "awaited": [p for p in partners if p not in permits] if not _done(job) else [],
        }

    def _permits(self, _peer: Peer, record: Record) -> dict[str, Any]:
        permits = self._store.permits(self._store.get(_job(record)).job)
        return {
            "permits": [
                {"permit": dict(permit.record), "signature": permit.signature, "time": permit.time}
                for permit in permits.values()
            ]
        }

    def _nodes(self, _peer: Peer, record: Record) -> dict[str, Any]:
        Fields(record, "nodes", ())
        links = {link.name: link for link in self._links()}
        return {
            "parties": [
                {
                    "name": party.name,
                    "duty": party.duty,
                    **_link(links.get(party.name)),
                }
                for party in self._parties.enrolled()
            ],
            "revoked": list(self._parties.revoked()),
        }

    def _agreement(self, _peer: Peer, record: Record) -> dict[str, Any]:
        Fields(record, "agreement", ())
        return chain_record(self._trusted.chain)


def _link(link: NodeLink | None) -> dict[str, Any]:
    if link is None:
        return {"connected": False}
    return {
        "connected": True,
        "since": link.since,
        "heard": link.heard,
        "clock_ahead": link.clock_ahead,
        "address": link.address,
    }


def _shown(job: JobRecord) -> dict[str, Any]:
    hidden = ("request", "signature", "owner", "checkpoint", "checkpoint_round")
    return {name: value for name, value in vars(job).items() if name not in hidden}


def _done(job: JobRecord) -> bool:
    return job.state not in OPEN_STATES


def _job(record: Record) -> str:
    return Fields(record, "job", ("job",)).text("job")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
