"""Folders of three real partners: keys, a signed agreement, node.toml and a CSV file each."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    SignedRequest,
    SignedTerms,
    chain_from_record,
    chain_record,
    sign_request,
    sign_terms,
)
from dovetail.agreement.terms import Terms
from dovetail.coordinator.round import Arrays, initial_arrays
from dovetail.crypto.keyring import Keyring, load_keyring, make_keyring
from dovetail.crypto.keys import SigningKey
from dovetail.privacy.event import Spending
from dovetail.privacy.release import Provenance, Release, release
from dovetail.simulation.identities import COORDINATOR, signing_key
from dovetail.store.card import ModelCard
from dovetail.store.model import card_for
from tests.samples import TASK, terms

SIZES = {"brand": 100, "platform": 200, "retailer": 300}
NODE = """
name = "{name}"
[source]
files = "customers.csv"
"""
REQUEST = Request("job-1", TASK)


def write_csv(path: Path, customers: int, seed: int) -> None:
    """A few rows per customer, some with an empty age."""
    dice = np.random.default_rng(seed)
    rows = ["id,age,spend,region,bought"]
    for customer in range(customers):
        for _ in range(dice.integers(1, 5)):
            age = "" if dice.random() < 0.1 else f"{dice.uniform(0, 110):.1f}"
            region = dice.choice(["north", "south", "abroad"])
            rows.append(f"{customer},{age},{dice.uniform(0, 900):.2f},{region},{dice.integers(2)}")
    path.write_text("\n".join(rows) + "\n")


def write_homes(folder: Path, **changes: Any) -> Path:
    """Writes one folder per partner, all of them under terms that all signed; returns ``folder``.

    The coordinator is a simulated one, so that tests can sign for it.
    """
    for seed, (name, customers) in enumerate(SIZES.items()):
        home = folder / name
        home.mkdir()
        (home / "node.toml").write_text(NODE.format(name=name))
        write_csv(home / "customers.csv", customers, seed)
        make_keyring(home / "keys", name, datetime.now(UTC))
    agree(folder, pinned(folder, terms(**changes)))
    return folder


def pinned(folder: Path, known: Terms) -> Terms:
    """Terms that pin the keys in the partners' folders."""
    keys = {name: keyring(folder / name) for name in SIZES}
    partners = tuple(
        replace(p, key=keys[p.name].signing.public, certificate=keys[p.name].pin)
        for p in known.partners
    )
    return replace(known, partners=partners)


def keyring(home: Path) -> Keyring:
    return load_keyring(home / "keys")


def key_of(folder: Path, party: str) -> SigningKey:
    """A party's own key; simulated for who has no folder."""
    home = folder / party
    return keyring(home).signing if home.is_dir() else signing_key(party)


def signed(folder: Path, known: Terms) -> SignedTerms:
    """Terms that all parties signed with their own keys."""
    names = [party.name for party, _ in known.parties]
    return SignedTerms(known, tuple(sign_terms(known, n, key_of(folder, n)) for n in names))


def agree(folder: Path, *versions: Terms) -> None:
    """Gives every partner all versions of the terms, signed."""
    record = chain_record(signed(folder, version) for version in versions)
    for name in SIZES:
        (folder / name / "agreement.json").write_text(json.dumps(record))


def terms_of(home: Path) -> Terms:
    """The newest terms in a partner's folder."""
    record = json.loads((home / "agreement.json").read_text())
    return chain_from_record(record)[-1].terms


def amended(known: Terms, **changes: Any) -> Terms:
    """The version after these terms."""
    return replace(known, version=known.version + 1, previous=agreed.digest(known), **changes)


def replaced(folder: Path, known: Terms, new: Keyring) -> tuple[SignedTerms, SignedTerms]:
    """Terms, and the version after in which a partner has new keys; signed by all, and by both."""
    partners = tuple(
        replace(p, key=new.signing.public, certificate=new.pin) if p.name == new.name else p
        for p in known.partners
    )
    second = amended(known, partners=partners)
    others = [p.name for p, _ in second.parties if p.name != new.name]
    signatures = [sign_terms(second, name, key_of(folder, name)) for name in others]
    keys = (new.signing, key_of(folder, new.name))
    signatures += [sign_terms(second, new.name, key, known) for key in keys]
    return signed(folder, known), SignedTerms(second, tuple(signatures))


def asked(known: Terms, request: Request = REQUEST) -> SignedRequest:
    """A request as the simulated coordinator asks it."""
    key = signing_key(COORDINATOR)
    return sign_request(request, agreed.digest(known), COORDINATOR, key)


def released(
    known: Terms, request: Request = REQUEST, arrays: Arrays | None = None
) -> tuple[dict[str, object], Release]:
    """A model as a coordinator would hand it out, with its card."""
    task = request.task
    origin = Provenance(request.job, requests.digest(request), agreed.digest(known), task.rounds)
    charged: dict[str, Spending] = {name: {task.event: task.steps} for name in SIZES}
    start = initial_arrays(task, known.schema.select(task.features))
    made = release(arrays or start, charged, known.budget.delta, origin, customers_overlap=False)
    card = ModelCard(request, known, dict.fromkeys(SIZES, task.steps), date(2026, 5, 1))
    return card_for(made, card), made
