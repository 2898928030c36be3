"""The agreement that a party keeps: it moves forward only, whoever of its processes moves it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement import terms as agreed
from dovetail.agreement.signing import SignedTerms, chain_record, sign_terms
from dovetail.agreement.terms import Terms
from dovetail.errors import AgreementError, SettingError
from dovetail.simulation.identities import signing_key
from dovetail.store.agreement import KeptTerms
from tests.samples import terms

KEY = signing_key("retailer").public
DAY = date(2026, 5, 1)


def signed(known: Terms, former: Terms | None = None) -> SignedTerms:
    """Terms with the signatures of all; of who had another key in ``former``, with both."""
    names = [party.name for party, _ in known.parties]
    both = [sign_terms(known, name, _key(known, name)) for name in names]
    if former is not None:
        both += [sign_terms(known, name, signing_key(name), former) for name in names]
    return SignedTerms(known, tuple(both))


def _key(known: Terms, name: str) -> Any:
    keys = (signing_key(name), signing_key(f"new {name}"))
    return next(key for key in keys if key.public == known.party(name)[0].key)


def amended(known: Terms, **changes: Any) -> Terms:
    return replace(known, version=known.version + 1, previous=agreed.digest(known), **changes)


FIRST = terms()
SECOND = amended(FIRST, max_rounds=10)
THIRD = amended(SECOND, max_rounds=5)
CHAIN = (signed(FIRST), signed(SECOND), signed(THIRD))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agreement.json"


def kept(path: Path, key: str = KEY) -> KeptTerms:
    return KeptTerms(path, "retailer", key)


def newest(path: Path) -> Terms | None:
    """As another process finds it."""
    return kept(path).trusted.newest


def test_what_is_followed_is_there_the_next_time(path: Path) -> None:
    one = kept(path)
    assert one.trusted.newest is None
    assert one.follow(CHAIN[:2])
    assert kept(path).trusted.chain == CHAIN[:2]
    assert not one.follow(CHAIN[:2])
    with pytest.raises(AgreementError, match="an older or another agreement"):
        kept(path).follow(CHAIN[:1])


def test_what_another_process_accepted_is_noticed_and_never_lost(path: Path) -> None:
    one, other = kept(path), kept(path)
    one.follow(CHAIN[:1])
    assert other.look()
    assert not other.look()
    other.follow(CHAIN)
    with pytest.raises(AgreementError, match="an older or another agreement"):
        one.follow(CHAIN[:2])
    assert (one.trusted.newest, newest(path)) == (THIRD, THIRD)


def test_of_processes_that_move_on_at_once_the_furthest_one_stands(path: Path) -> None:
    def follow(versions: int) -> None:
        try:
            kept(path).follow(CHAIN[:versions])
        except AgreementError:
            assert versions < 3

    threads = [threading.Thread(target=follow, args=(n,)) for n in (1, 2, 3) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert newest(path) == THIRD


def test_nothing_is_kept_of_what_cannot_follow(path: Path) -> None:
    one = kept(path)
    one.follow(CHAIN[:1])
    before = path.read_bytes()
    unsigned = replace(CHAIN[2], signatures=CHAIN[2].signatures[1:])
    for chain in ((*CHAIN[:2], unsigned), (CHAIN[0], CHAIN[2]), ()):
        with pytest.raises(AgreementError):
            one.follow(chain)
    assert path.read_bytes() == before
    assert one.trusted.newest == FIRST


@pytest.mark.parametrize("other", [CHAIN[:1], (signed(replace(FIRST, name="other club")),)])
def test_an_older_or_another_file_in_its_place_changes_nothing(
    other: tuple[SignedTerms, ...], path: Path
) -> None:
    one = kept(path)
    one.follow(CHAIN[:2])
    path.write_text(json.dumps(chain_record(other)))
    with pytest.raises(AgreementError, match="an older or another agreement"):
        one.look()
    assert one.trusted.newest == SECOND
    assert one.follow(CHAIN)
    assert newest(path) == THIRD


def test_a_file_that_is_damaged_or_gone_leaves_what_is_held(path: Path) -> None:
    one = kept(path)
    one.follow(CHAIN[:1])
    path.write_text("{")
    with pytest.raises(SettingError, match=r"agreement\.json: cannot be read"):
        one.look()
    path.unlink()
    assert not one.look()
    assert one.trusted.newest == FIRST


def test_what_cannot_be_written_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "not there yet" / "agreement.json"
    one = kept(path)
    with pytest.raises(SettingError, match=r"agreement\.json: cannot be written"):
        one.follow(CHAIN[:1])
    assert one.trusted.newest is None
    path.parent.mkdir()
    assert one.follow(CHAIN[:1])


def test_a_key_that_was_replaced_is_in_force_nowhere_and_the_new_one_is(path: Path) -> None:
    new = signing_key("new retailer").public
    partners = tuple(replace(p, key=new) if p.name == "retailer" else p for p in FIRST.partners)
    second = amended(FIRST, partners=partners)
    chain = (CHAIN[0], signed(second, former=FIRST))
    old = kept(path)
    old.follow(chain[:1])
    with pytest.raises(AgreementError, match="another key for 'retailer' than it has"):
        old.follow(chain)
    assert old.trusted.in_force(DAY) == FIRST
    renewed = kept(path, new)
    with pytest.raises(AgreementError, match="another key for 'retailer' than it has"):
        renewed.trusted.in_force(DAY)
    assert renewed.follow(chain)
    assert renewed.trusted.in_force(DAY) == second
    assert old.look(), "a process that goes on with the old key learns of it"
    with pytest.raises(AgreementError, match="another key for 'retailer' than it has"):
        old.trusted.in_force(DAY)
