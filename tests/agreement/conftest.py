"""The vectors as records to start from, what they parse to, and the keys that they pin."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement import request as requests
from dovetail.agreement.enrolment import EnrolmentRequest, InvitedDuty
from dovetail.agreement.files import Parties
from dovetail.agreement.party import Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedTerms, sign_terms
from dovetail.agreement.terms import Terms, parse_terms
from dovetail.crypto.certificates import new_certificate
from dovetail.crypto.keys import SigningKey, signing_key_of

VECTORS = Path(__file__).parent.parent / "vectors"
Change = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def read(name: str) -> Any:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def key_of(party: str) -> SigningKey:
    """The key that the vectors pin for a party of this name."""
    return signing_key_of(hashlib.sha256(party.encode()).digest())


def signed_by_all(terms: Terms, but: Iterable[str] = ()) -> SignedTerms:
    """Terms with the signatures of all parties, or of all ``but`` some."""
    names = [party.name for party, _ in terms.parties if party.name not in but]
    return SignedTerms(terms, tuple(sign_terms(terms, name, key_of(name)) for name in names))


def parties(partners: Iterable[str], analysts: Iterable[str] = ()) -> Parties:
    """The public keys of a coordinator, and of partners and analysts, as files brought them."""
    duties: list[tuple[str, InvitedDuty]] = [(name, "analyst") for name in analysts]
    duties += [(name, "partner") for name in partners]
    enrolled = []
    for name, duty in duties:
        pem = new_certificate(name, datetime(2026, 11, 24, tzinfo=UTC))[0].decode()
        enrolled.append(EnrolmentRequest(name, duty, key_of(name).public, pem, "5f", "ab"))
    coordinator = Party("coordinator", key_of("coordinator").public, "c0" * 32)
    return Parties(coordinator, tuple(enrolled))


@pytest.fixture
def request_record() -> dict[str, Any]:
    record: dict[str, Any] = read("request.json")["good"][0]["record"]
    return record


@pytest.fixture
def terms_record() -> dict[str, Any]:
    record: dict[str, Any] = read("terms.json")["good"][0]["record"]
    return record


@pytest.fixture
def asked(request_record: dict[str, Any]) -> Request:
    return requests.from_record(request_record)


@pytest.fixture
def terms(terms_record: dict[str, Any]) -> Terms:
    return parse_terms(terms_record)


@pytest.fixture(name="changed")
def changed_fixture() -> Change:
    return changed


def changed(record: dict[str, Any], vector: dict[str, Any]) -> dict[str, Any]:
    """A record with the fields that a vector names by dotted paths; ``null`` stays ``null``."""
    made = copy.deepcopy(record)
    for path, value in vector.get("set", {}).items():
        place, last = _place(made, path)
        place[last] = value
    for path, (value, times) in vector.get("repeat", {}).items():
        place, last = _place(made, path)
        place[last] = [value] * times
    for path in vector.get("unset", []):
        place, last = _place(made, path)
        del place[last]
    return made


def _place(record: Any, path: str) -> tuple[Any, Any]:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        record = record[step]
    return record, last
