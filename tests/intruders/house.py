"""A coordinator, an analyst and three partners: real keys, real enrolment, terms that all signed.

One partner's table holds canaries: values and counts that nothing which leaves it may contain.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.agreement import terms as agreed
from dovetail.agreement.draft import as_toml
from dovetail.agreement.enrolment import Access as SavedAccess
from dovetail.agreement.enrolment import InvitedDuty, access_of, request_enrolment
from dovetail.agreement.files import ACCESS, signature_path
from dovetail.agreement.party import Partner, Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    SignedRequest,
    SignedTerms,
    chain_record,
    sign_request,
    sign_terms,
)
from dovetail.agreement.terms import Budget, Terms
from dovetail.coordinator.parties import Parties
from dovetail.coordinator.settings import write_settings
from dovetail.crypto.keyring import Keyring, make_keyring
from dovetail.node.template import write_settings as write_node_settings
from dovetail.store.ledger import LedgerStore
from dovetail.wire.peers import Access
from tests.samples import TASK, terms

COORDINATOR, ANALYST = "coordinator", "analyst"
PARTNERS = ("retailer", "platform", "brand")
HOST = "127.0.0.1"
REQUEST = Request("job-1", TASK)

COHORT = 1207
"""How many customers the retailer really has: it declares 1,200."""
CANARY_ID, CANARY_AGE, CANARY_SPEND = "canary-9c41e7", 47.618393, 713.904827
_ENCODED_AGE = CANARY_AGE / 50 - 1  # ages from 0 to 100 become -1 to 1
_TEXTS = (CANARY_ID, str(CANARY_AGE), str(CANARY_SPEND))
_COUNT = re.compile(rb"(?<![0-9A-Za-z.])1[,.]?207(?![0-9A-Za-z])")


def leaks(data: bytes) -> list[str]:
    """What of the canaries stands in some bytes: texts, numbers as machines write them, counts."""
    values = (CANARY_AGE, CANARY_SPEND, _ENCODED_AGE, float(COHORT))
    numbers = [struct.pack("<f", value) for value in values]
    numbers += [struct.pack("<d", value) for value in values]
    found = [text for text in _TEXTS if text.encode() in data]
    found += [repr(number) for number in numbers if number in data]
    return found + (["the cohort"] if _COUNT.search(data) else [])


class House:
    """Folders of everybody, as the commands leave them.

    Attributes:
        folder: holds one folder for each party.
        address: where the coordinator is to listen.
        keys: everybody's.
        terms: what all signed; the newest version.
        versions: all of them.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.address = folder, f"{HOST}:{_free_port()}"
        self.keys = {COORDINATOR: self._coordinator()}
        self.enrol(ANALYST, "analyst")
        for seed, name in enumerate(PARTNERS):
            self.enrol(name, "partner")
            table = self.home(name) / "customers.csv"
            _write_table(table, COHORT if name == "retailer" else 210, seed)
            write_node_settings(self.home(name) / "node.toml", name, table)
        self.terms = self._drawn_up(changes)
        self.versions = [self.terms]
        self.sign(self.terms)

    def home(self, party: str) -> Path:
        """A party's folder."""
        return self.folder / party

    @property
    def parties(self) -> Parties:
        """Who may connect."""
        return Parties(self.home(COORDINATOR) / "parties", self.keys[COORDINATOR])

    def enrol(self, name: str, duty: InvitedDuty, keyring: Keyring | None = None) -> Keyring:
        """Invites a party, which answers with its keys; returns them."""
        invitation = self.parties.invite(name, duty, self.address)
        keyring = keyring or make_keyring(self.home(name) / "keys", name, now())
        saved = self.home(name) / "keys" / ACCESS
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(vars(access_of(invitation))))
        self.parties.enrol(request_enrolment(invitation, keyring))
        self.keys[name] = keyring
        return keyring

    def sign(self, known: Terms) -> None:
        """Has all parties sign terms, for the coordinator to adopt."""
        path = self.home(COORDINATOR) / "agreement.toml"
        path.write_text(as_toml(known))
        for signature in self.signed(known).signatures:
            signature_path(path, signature, known).write_text(json.dumps(vars(signature)))

    def amend(self, **changes: Any) -> Terms:
        """The next version of the terms, for the coordinator to adopt."""
        self.terms = amended(self.terms, **changes)
        self.versions.append(self.terms)
        self.sign(self.terms)
        return self.terms

    def signed(self, known: Terms) -> SignedTerms:
        """Terms with everybody's signature."""
        names = [party.name for party, _ in known.parties]
        signatures = [sign_terms(known, name, self.keys[name].signing) for name in names]
        return SignedTerms(known, tuple(signatures))

    def document(self, *chain: Terms | SignedTerms) -> bytes:
        """What a coordinator shows: these versions, signed by all where they are not signed yet."""
        signed = [c if isinstance(c, SignedTerms) else self.signed(c) for c in chain]
        return json.dumps(chain_record(signed)).encode()

    def asked(
        self,
        request: Request = REQUEST,
        by: str = ANALYST,
        *,
        key: str | None = None,
        under: Terms | None = None,
    ) -> SignedRequest:
        """A request as somebody asks it, with the key of somebody (of the same, usually)."""
        digest = agreed.digest(under or self.terms)
        return sign_request(request, digest, by, self.keys[key or by].signing)

    def access(self, keyring: Keyring, port: int | None = None) -> Access:
        """How somebody with these keys reaches the coordinator."""
        address = f"{HOST}:{port}" if port else self.address
        certificate = self.keys[COORDINATOR].certificate
        return Access(address, certificate, keyring.certificate, keyring.tls_key)

    def reached_through(self, name: str, port: int) -> None:
        """Lets a node dial another port than the coordinator's own."""
        saved = SavedAccess(
            f"{HOST}:{port}", COORDINATOR, self.keys[COORDINATOR].certificate.decode()
        )
        (self.home(name) / "keys" / ACCESS).write_text(json.dumps(vars(saved)))

    def ledger(self, name: str) -> LedgerStore:
        """A partner's ledger, as another process of that partner sees it."""
        return LedgerStore(self.home(name) / f"{name}.ledger", self.terms.budget, now)

    def head(self, name: str) -> str:
        """What stands in a partner's ledger, in one digest."""
        with closing(self.ledger(name)) as ledger:
            return ledger.refresh().head

    def kinds(self, name: str, job: str = "job-1") -> list[str]:
        """The kinds of a job's entries in a partner's ledger."""
        with closing(self.ledger(name)) as ledger:
            return [entry.kind for entry in ledger.entries() if entry.job == job]

    def spent(self, name: str) -> int:
        """How many steps are charged at a partner, over all jobs."""
        with closing(self.ledger(name)) as ledger:
            return sum(ledger.refresh().spending().values())

    def _coordinator(self) -> Keyring:
        home = self.home(COORDINATOR)
        write_settings(home, COORDINATOR, self.address, self.address)
        return make_keyring(home / "keys", COORDINATOR, now(), ["localhost", HOST])

    def _drawn_up(self, changes: dict[str, Any]) -> Terms:
        sizes = {"retailer": 1200, "platform": 200, "brand": 200}
        samples = {partner.name: partner for partner in terms().partners}
        standard: dict[str, Any] = {
            "coordinator": self.party(COORDINATOR),
            "analysts": (self.party(ANALYST),),
            "partners": tuple(self._partner(samples[name], sizes[name]) for name in PARTNERS),
            "budget": Budget(epsilon=8.0, delta=1e-4),
        }
        return terms(**(standard | changes))

    def party(self, name: str) -> Party:
        """A party, as terms name it."""
        return Party(name, self.keys[name].signing.public, self.keys[name].pin)

    def _partner(self, sample: Partner, customers: int) -> Partner:
        own = self.party(sample.name)
        return replace(sample, key=own.key, certificate=own.certificate, customers=customers)


def amended(known: Terms, **changes: Any) -> Terms:
    """The version after these terms."""
    return replace(known, version=known.version + 1, previous=agreed.digest(known), **changes)


def with_task(job: str = "job-1", **changes: Any) -> Request:
    """A request with some fields of the sample task changed."""
    return Request(job, replace(TASK, **changes))


def now() -> datetime:
    return datetime.now(UTC)


def _write_table(path: Path, customers: int, seed: int) -> None:
    """One or two rows per customer; the first customer is a canary."""
    dice = np.random.default_rng(seed)
    rows = ["id,age,spend,region,bought", f"{CANARY_ID},{CANARY_AGE},{CANARY_SPEND},south,1"]
    for customer in range(1, customers):
        for _ in range(dice.integers(1, 3)):
            age, spend = dice.uniform(0, 100), dice.uniform(0, 900)
            bought = dice.integers(2)
            rows.append(f"{customer},{age:.3f},{spend:.2f},{_region(dice)},{bought}")
    path.write_text("\n".join(rows) + "\n")


def _region(dice: np.random.Generator) -> str:
    regions: Sequence[str] = ("north", "south", "abroad")
    return regions[int(dice.integers(len(regions)))]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])
