from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import date
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.agreement import terms as agreed
from dovetail.agreement.signing import SignedTerms, chain_from_record, sign_terms
from dovetail.agreement.terms import Terms, parse_terms
from dovetail.agreement.trusted import TrustedTerms
from dovetail.errors import AgreementError
from tests.agreement.conftest import changed, key_of, read, signed_by_all

VECTORS = read("agreement.json")
GOOD = read("terms.json")["good"]


def next_of(held: Terms, **changes: Any) -> Terms:
    """The version after ``held``."""
    return replace(held, version=held.version + 1, previous=agreed.digest(held), **changes)


def holding(*chain: Terms) -> TrustedTerms:
    trusted = TrustedTerms()
    for terms in chain:
        assert trusted.update(signed_by_all(terms))
    return trusted


def with_key(terms: Terms, name: str, key: str) -> Terms:
    """The same terms with another key for a partner."""
    partners = [replace(p, key=key) if p.name == name else p for p in terms.partners]
    return replace(terms, partners=tuple(partners))


def test_nothing_is_trusted_at_first(terms: Terms) -> None:
    trusted = TrustedTerms()
    assert (trusted.newest, trusted.chain) == (None, ())
    with pytest.raises(AgreementError, match="no terms are in force here"):
        trusted.in_force(terms.valid_from)


def test_the_good_chain_is_followed() -> None:
    trusted, chain = TrustedTerms(), chain_from_record(VECTORS["good"])
    assert trusted.follow(chain)
    assert not trusted.follow(chain)
    assert trusted.chain == chain
    assert trusted.newest == parse_terms(GOOD[1]["record"])


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS["bad"] if v["refused"] == "trust"], ids=lambda v: v["name"]
)
def test_a_chain_that_cannot_be_trusted_is_refused(vector: dict[str, Any]) -> None:
    trusted = TrustedTerms()
    with pytest.raises(AgreementError) as caught:
        trusted.follow(chain_from_record(changed(VECTORS["good"], vector)))
    assert vector["message"] in str(caught.value)
    assert all(signed.missing() == () for signed in trusted.chain)


def test_terms_are_handed_out_only_in_force(terms: Terms) -> None:
    trusted = holding(terms)
    for day in (date(2024, 1, 1), date(2024, 12, 31)):
        assert trusted.in_force(day) is terms
    with pytest.raises(AgreementError, match="the terms begin on 2024-01-01"):
        trusted.in_force(date(2023, 12, 31))
    with pytest.raises(AgreementError, match="the terms ended on 2024-12-31"):
        trusted.in_force(date(2025, 1, 1))


def test_an_amendment_that_has_not_begun_stops_what_held_before(terms: Terms) -> None:
    trusted = holding(terms, next_of(terms, valid_from=date(2024, 7, 1)))
    with pytest.raises(AgreementError, match="the terms begin on 2024-07-01"):
        trusted.in_force(date(2024, 6, 1))


def test_the_same_terms_change_nothing(terms: Terms) -> None:
    trusted = holding(terms)
    assert not trusted.update(SignedTerms(terms, ()))
    assert [signed.missing() for signed in trusted.chain] == [()]


def test_no_way_leads_back(terms: Terms) -> None:
    second = next_of(terms, max_rounds=60)
    trusted = holding(terms, second)
    for old, message in (
        (terms, "version 1 is not newer than version 2"),
        (replace(second, max_rounds=70), "version 2 is not newer than version 2"),
        (next_of(next_of(second)), "version 3 is missing in between"),
        (replace(next_of(terms), version=3), "follow other ones"),
        (next_of(second, name="Autumn coupons"), "another collaboration"),
    ):
        with pytest.raises(AgreementError, match=message):
            trusted.update(signed_by_all(old))
        assert trusted.newest == second


@pytest.mark.parametrize("missing", ["coordinator", "analyst", "retailer", "platform"])
def test_every_party_must_sign(missing: str, terms: Terms) -> None:
    second = next_of(terms, max_rounds=60)
    for trusted, new in ((TrustedTerms(), terms), (holding(terms), second)):
        with pytest.raises(AgreementError, match=f"not signed by {missing}"):
            trusted.update(signed_by_all(new, but=[missing]))
        assert trusted.newest in (None, terms)


def test_a_party_that_leaves_or_comes_signs_what_names_it(terms: Terms) -> None:
    alone = next_of(terms, partners=terms.partners[:1], analysts=())
    trusted = holding(terms, alone)
    assert trusted.newest == alone
    back = next_of(alone, partners=terms.partners)
    with pytest.raises(AgreementError, match="not signed by platform"):
        trusted.update(signed_by_all(back, but=["platform"]))
    assert trusted.update(signed_by_all(back))


def test_nobodys_key_is_replaced_without_its_owner(terms: Terms) -> None:
    thief = key_of("thief")
    second = with_key(next_of(terms), "retailer", thief.public)
    others = signed_by_all(second, but=["retailer"]).signatures
    stolen = sign_terms(second, "retailer", thief)
    trusted = holding(terms)
    with pytest.raises(AgreementError, match="not signed with the key held until now by retailer"):
        trusted.update(SignedTerms(second, (*others, stolen)))
    assert trusted.newest == terms
    owner = sign_terms(second, "retailer", key_of("retailer"), previous=terms)
    assert trusted.update(SignedTerms(second, (*others, stolen, owner)))


def test_a_node_accepts_no_terms_that_leave_it_out_or_change_its_key(terms: Terms) -> None:
    key = key_of("platform").public
    trusted = TrustedTerms("platform", key)
    trusted.update(signed_by_all(terms))
    with pytest.raises(AgreementError, match="the terms no longer name 'platform'"):
        trusted.update(signed_by_all(next_of(terms, partners=terms.partners[:1])))
    with pytest.raises(AgreementError, match="another key for 'retailer' than it has"):
        TrustedTerms("retailer", key).update(signed_by_all(terms))
    assert trusted.newest == terms


def test_a_latecomer_follows_the_whole_chain_and_others_what_is_new(terms: Terms) -> None:
    second = next_of(terms, max_rounds=60)
    third = next_of(second, max_rounds=70)
    chain = [signed_by_all(version) for version in (terms, second, third)]
    for trusted in (TrustedTerms(), holding(terms), holding(terms, second), holding(third)):
        new = trusted.newest != third
        assert trusted.follow(chain) == new
        assert trusted.newest == third


def test_an_older_or_another_history_is_refused(terms: Terms) -> None:
    second = next_of(terms, max_rounds=60)
    other = next_of(terms, max_rounds=99)
    trusted = holding(terms, second)
    for shown in ([], [terms], [terms, other], [second, terms]):
        with pytest.raises(AgreementError, match="an older or another agreement was shown"):
            trusted.follow([signed_by_all(version) for version in shown])
        assert trusted.newest == second


def test_a_history_is_accepted_as_a_whole_or_not_at_all(terms: Terms) -> None:
    second = next_of(terms, max_rounds=60)
    third = next_of(second, max_rounds=70)
    unsigned = signed_by_all(third, but=["retailer"])
    for trusted, before in ((TrustedTerms(), ()), (holding(terms), (terms,))):
        with pytest.raises(AgreementError, match="not signed by retailer"):
            trusted.follow([signed_by_all(terms), signed_by_all(second), unsigned])
        assert tuple(signed.terms for signed in trusted.chain) == before


def handed_over(terms: Terms) -> tuple[SignedTerms, SignedTerms]:
    """Terms, and the version after in which the retailer has a new key; all signed both."""
    new = key_of("new retailer")
    second = with_key(next_of(terms), "retailer", new.public)
    others = signed_by_all(second, but=["retailer"]).signatures
    own = sign_terms(second, "retailer", new)
    former = sign_terms(second, "retailer", key_of("retailer"), previous=terms)
    return signed_by_all(terms), SignedTerms(second, (*others, own, former))


def test_whose_key_was_replaced_follows_the_history_with_the_new_one(terms: Terms) -> None:
    first, second = chain = handed_over(terms)
    new, old = key_of("new retailer").public, key_of("retailer").public
    for kept in ((), (first,), chain):
        trusted = TrustedTerms("retailer", new, kept)
        assert trusted.follow(chain) == (kept != chain)
        assert trusted.in_force(terms.valid_from) is second.terms
    former = TrustedTerms("retailer", old, (first,))
    with pytest.raises(AgreementError, match="another key for 'retailer' than it has"):
        former.follow(chain)
    assert former.in_force(terms.valid_from) is terms


def test_under_terms_that_pin_a_key_held_before_nothing_is_in_force(terms: Terms) -> None:
    first, second = handed_over(terms)
    for key, kept in (("new retailer", (first,)), ("retailer", (first, second))):
        trusted = TrustedTerms("retailer", key_of(key).public, kept)
        assert not trusted.follow(kept)
        with pytest.raises(AgreementError, match="another key for 'retailer' than it has"):
            trusted.in_force(terms.valid_from)
    with pytest.raises(AgreementError, match="an older or another agreement was shown"):
        trusted.follow([first])


def test_what_was_kept_is_a_history_that_all_signed(terms: Terms) -> None:
    second = next_of(terms, max_rounds=60)
    for kept, message in (
        ([signed_by_all(terms, but=["platform"])], "not signed by platform"),
        ([signed_by_all(second), signed_by_all(terms)], "version 1 is not newer than version 2"),
    ):
        with pytest.raises(AgreementError, match=message):
            TrustedTerms(kept=kept)


NAMES = ("coordinator", "analyst", "retailer", "platform")
FAULTS = ("", "", "again", "skips", "skips", "renamed", "absent", "stolen", "joins unasked")
STEPS = st.tuples(st.sampled_from(FAULTS), st.integers(0, 2), st.integers(1, 3), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=12))
def test_whatever_comes_versions_never_go_back_and_all_have_signed(
    steps: list[tuple[str, int, int, bool]],
) -> None:
    """Random updates, good or with one fault, on the terms held or older ones."""
    trusted, held = holding(parse_terms(GOOD[0]["record"])), 1
    for fault, back, rounds, history in steps:
        chain = [signed.terms for signed in trusted.chain]
        shown = _shown(fault, chain[-1 - back % len(chain)], rounds)
        with contextlib.suppress(AgreementError):
            if history:
                trusted.follow([*trusted.chain[:1], shown])
            else:
                trusted.update(shown)
        assert trusted.newest is not None
        assert trusted.newest.version in (held, held + 1)
        held = trusted.newest.version
    _require_sound(trusted.chain)


def _shown(fault: str, base: Terms, rounds: int) -> SignedTerms:
    """Terms after ``base``, signed by all: but for one fault."""
    if fault == "again":
        return SignedTerms(base, ())
    terms = next_of(base, max_rounds=rounds, name="Autumn" if fault == "renamed" else base.name)
    if fault == "skips":
        terms = replace(terms, version=terms.version + 1)
    keys = {name: key_of(name) for name in (*NAMES, "brand")}
    if fault == "stolen":
        keys["retailer"] = key_of("thief")
        terms = with_key(terms, "retailer", keys["retailer"].public)
    signing = [name for name in NAMES if fault != "absent" or name != NAMES[rounds]]
    if fault == "joins unasked":
        pin, key = "ab" * 32, keys["brand"].public
        brand = replace(terms.partners[0], name="brand", key=key, certificate=pin)
        terms = replace(terms, partners=(*terms.partners, brand))
    return SignedTerms(terms, tuple(sign_terms(terms, name, keys[name]) for name in signing))


def _require_sound(chain: tuple[SignedTerms, ...]) -> None:
    for signed in chain:
        assert signed.missing() == ()
    for earlier, later in pairwise(chain):
        assert later.terms.version == earlier.terms.version + 1
        assert later.terms.previous == agreed.digest(earlier.terms)
        assert later.terms.name == earlier.terms.name
        assert all(later.signed_by(party.key) for party, _ in earlier.terms.parties)
