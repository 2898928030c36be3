from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from dovetail.agreement import terms as agreed
from dovetail.agreement.permit import permit_of
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    PERMIT,
    PREVIEW,
    TERMS,
    SignedPermit,
    SignedTerms,
    chain_from_record,
    chain_record,
    permit_record,
    request_from_record,
    request_record,
    require_asked,
    require_permitted,
    sign_permit,
    sign_request,
    sign_terms,
    signature_from_record,
    signed_permit_from_record,
    signed_terms_from_record,
    signed_terms_record,
)
from dovetail.agreement.terms import Terms, parse_terms
from dovetail.errors import AgreementError, PolicyError, RemoteProtocolError, SettingError
from tests.agreement.conftest import changed, key_of, read, signed_by_all

VECTORS = read("agreement.json")
NOW = datetime(2024, 5, 31, tzinfo=UTC)


def through_json(record: object) -> Any:
    return json.loads(json.dumps(record))


def test_the_good_chain_reads_back_and_is_signed_by_all() -> None:
    chain = chain_from_record(VECTORS["good"])
    assert chain_record(chain) == VECTORS["good"]
    assert [signed.missing() for signed in chain] == [(), ()]
    for signed in chain:
        assert signed_terms_from_record(through_json(signed_terms_record(signed))) == signed


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS["bad"] if v["refused"] == "form"], ids=lambda v: v["name"]
)
def test_a_chain_of_another_form_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as caught:
        chain_from_record(changed(VECTORS["good"], vector))
    assert vector["message"] in str(caught.value)


def test_who_has_not_signed_is_named(terms: Terms) -> None:
    assert SignedTerms(terms, ()).missing() == ("coordinator", "analyst", "retailer", "platform")
    assert signed_by_all(terms, but=["retailer"]).missing() == ("retailer",)
    assert signed_by_all(terms).missing() == ()


def test_a_bad_signature_does_not_hide_a_good_one(terms: Terms) -> None:
    good = signed_by_all(terms)
    bad = tuple(replace(signature, signature="00" * 64) for signature in good.signatures)
    assert SignedTerms(terms, (*bad, *good.signatures)).missing() == ()
    assert SignedTerms(terms, bad).missing() == tuple(s.party for s in good.signatures)


def test_a_party_signs_for_itself_only(terms: Terms) -> None:
    with pytest.raises(AgreementError, match="the terms name no party 'brand'"):
        sign_terms(terms, "brand", key_of("brand"))
    with pytest.raises(AgreementError, match="another key for 'retailer'"):
        sign_terms(terms, "retailer", key_of("platform"))


def test_a_key_that_is_replaced_signs_its_successor(terms: Terms) -> None:
    retailer = replace(terms.partners[0], key=key_of("new retailer").public)
    second = replace(
        terms,
        version=2,
        previous=agreed.digest(terms),
        partners=(retailer, *terms.partners[1:]),
    )
    with pytest.raises(AgreementError, match="another key for 'retailer'"):
        sign_terms(second, "retailer", key_of("retailer"))
    former = sign_terms(second, "retailer", key_of("retailer"), previous=terms)
    assert SignedTerms(second, (former,)).signed_by(key_of("retailer").public)
    assert "retailer" in SignedTerms(second, (former,)).missing()
    with pytest.raises(AgreementError, match="another key for 'retailer'"):
        sign_terms(second, "retailer", key_of("thief"), previous=terms)


def test_what_is_signed_for_one_purpose_counts_for_no_other(asked: Request, terms: Terms) -> None:
    permit = permit_of(asked, terms, "retailer", NOW, "c" * 64)
    signed = sign_permit(permit, key_of("retailer"))
    crossed = key_of("retailer").sign(TERMS, permit_record(signed)["permit"])
    require_permitted(signed, terms.partner("retailer"))
    for wrong in (crossed, key_of("platform").sign(PERMIT, permit_record(signed)["permit"])):
        with pytest.raises(RemoteProtocolError, match="the signature of the permit"):
            require_permitted(SignedPermit(permit, wrong), terms.partner("retailer"))


@pytest.mark.parametrize(
    "change", [{"steps": 41}, {"partner": "platform"}, {"expires": "2030-01-01T00:00:00+00:00"}]
)
def test_a_permit_that_was_changed_is_refused(
    change: dict[str, Any], asked: Request, terms: Terms
) -> None:
    signed = sign_permit(permit_of(asked, terms, "retailer", NOW, "c" * 64), key_of("retailer"))
    forged = replace(signed, permit=replace(signed.permit, **change))
    with pytest.raises(RemoteProtocolError):
        require_permitted(forged, terms.partner("retailer"))


@pytest.mark.parametrize("asker", ["coordinator", "analyst"])
def test_coordinator_and_analysts_may_ask(asker: str, asked: Request, terms: Terms) -> None:
    signed = sign_request(asked, agreed.digest(terms), asker, key_of(asker))
    require_asked(signed, terms)
    require_asked(request_from_record(through_json(request_record(signed))), terms)


def test_what_was_signed_to_be_priced_does_not_run(asked: Request, terms: Terms) -> None:
    key, digest = key_of("analyst"), agreed.digest(terms)
    priced = sign_request(asked, digest, "analyst", key, PREVIEW)
    require_asked(priced, terms, PREVIEW)
    with pytest.raises(PolicyError, match="signed this request to be priced, not to run") as caught:
        require_asked(priced, terms)
    assert caught.value.rule == "party"
    require_asked(sign_request(asked, digest, "analyst", key), terms, PREVIEW)
    forged = sign_request(asked, digest, "analyst", key_of("coordinator"), PREVIEW)
    with pytest.raises(PolicyError, match="did not sign this request"):
        require_asked(forged, terms, PREVIEW)


def test_a_request_names_the_terms_it_was_made_under(asked: Request, terms: Terms) -> None:
    signed = sign_request(asked, agreed.digest(terms), "analyst", key_of("analyst"))
    for other in (replace(terms, approval="manual"), parse_terms(_second())):
        with pytest.raises(PolicyError) as caught:
            require_asked(signed, other)
        assert caught.value.rule == "terms"


def test_signed_records_survive_a_round_trip(asked: Request, terms: Terms) -> None:
    request = sign_request(asked, agreed.digest(terms), "analyst", key_of("analyst"))
    assert request_from_record(through_json(request_record(request))) == request
    permit = sign_permit(permit_of(asked, terms, "retailer", NOW, "c" * 64), key_of("retailer"))
    assert signed_permit_from_record(through_json(permit_record(permit))) == permit
    signature = sign_terms(terms, "retailer", key_of("retailer"))
    assert signature_from_record(through_json(vars(signature))) == signature


def _unsigned(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "signature"}


def test_a_record_without_its_signature_is_refused(asked: Request, terms: Terms) -> None:
    request = sign_request(asked, agreed.digest(terms), "analyst", key_of("analyst"))
    permit = sign_permit(permit_of(asked, terms, "retailer", NOW, "c" * 64), key_of("retailer"))
    readers: list[tuple[Callable[[object], object], dict[str, Any]]] = [
        (request_from_record, request_record(request)),
        (signed_permit_from_record, permit_record(permit)),
        (signature_from_record, vars(sign_terms(terms, "retailer", key_of("retailer")))),
    ]
    for reader, record in readers:
        with pytest.raises((SettingError, RemoteProtocolError), match="'signature' is missing"):
            reader(_unsigned(record))


def _second() -> Any:
    return read("terms.json")["good"][1]["record"]
