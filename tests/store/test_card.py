"""A released model's card: what it states follows from what it rests on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from dovetail.agreement.cost import cost_of
from dovetail.agreement.request import Request
from dovetail.errors import SettingError
from dovetail.privacy import accountant
from dovetail.store.card import ModelCard, card_from_record, card_with_arrays, page
from tests.samples import SHARED_TASK, TASK, sharing_terms, terms

DIGEST = "a" * 64
CHARGED = {"retailer": 3, "platform": 3, "brand": 2}
CARD = ModelCard(Request("job-1", TASK), terms(), CHARGED, date(2026, 5, 1), ("A note.",))
STATED = ("format", "released", "request", "terms", "charged", "simulated", "notes")
DERIVED = ("request_digest", "terms_digest", "unit", "privacy", "not_protected", "use")


def record(card: ModelCard = CARD) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(card_with_arrays(card, DIGEST)))
    return made


@pytest.mark.parametrize(
    "card",
    [
        CARD,
        replace(CARD, simulated=True, notes=()),
        replace(CARD, charged={"brand": 1}),
        replace(CARD, terms=terms(customers_overlap=True)),
    ],
)
def test_a_card_that_travelled_is_the_same_card(card: ModelCard) -> None:
    assert card_from_record(record(card)) == (card, DIGEST)


def test_what_follows_is_computed_anew_and_never_believed() -> None:
    lying = record()
    lying["privacy"] = {"epsilon": {"retailer": 0.001}}
    lying["unit"] = "nothing of anybody"
    lying["not_protected"] = []
    card, _ = card_from_record(lying)
    assert card.to_record() == CARD.to_record()
    assert card.epsilon("retailer") == accountant.epsilon({TASK.event: 3}, 1e-3)


@pytest.mark.parametrize("field", [*STATED, *DERIVED, "arrays_sha256"])
def test_every_field_must_be_there(field: str) -> None:
    short = record()
    del short[field]
    with pytest.raises(SettingError, match=field):
        card_from_record(short)


@pytest.mark.parametrize("value", [[], {}, None, 7, "text", True])
@pytest.mark.parametrize("field", ["request", "terms", "charged", "released", "arrays_sha256"])
def test_fields_of_another_type_are_refused(field: str, value: object) -> None:
    if (field, value) == ("arrays_sha256", "text"):
        return  # whoever has the arrays compares it with theirs
    with pytest.raises(SettingError):
        card_from_record({**record(), field: value})


def test_epsilon_is_of_what_was_charged_and_joint_of_all_together() -> None:
    overlapping = replace(CARD, terms=terms(customers_overlap=True))
    assert CARD.epsilon("brand") < CARD.epsilon("retailer")
    assert CARD.joint_epsilon() == CARD.epsilon("retailer")
    assert overlapping.joint_epsilon() == accountant.epsilon({TASK.event: 8}, 1e-3)


def test_a_page_cannot_be_broken_by_what_parties_write() -> None:
    wild = replace(CARD, notes=("a | b <script>",), terms=terms(name="a|b"))
    text = page(wild)
    assert "<script>" not in text
    assert "a \\| b &lt;script>" in text


@pytest.mark.parametrize("name", ["retailer", "platform", "brand"])
def test_the_page_names_every_partner_with_its_epsilon(name: str) -> None:
    (row,) = [line for line in page(CARD).splitlines() if line.startswith(f"| {name} ")]
    assert row.endswith(f"| {CARD.epsilon(name):.2f} |")


def shared(steps: int = 1, overlap: bool = False) -> ModelCard:
    task = replace(SHARED_TASK, local_steps=steps)
    agreed = sharing_terms(customers_overlap=overlap)
    count = cost_of(task, agreed).count
    charged = dict.fromkeys(("retailer", "platform", "brand"), count)
    return ModelCard(Request("job-1", task), agreed, charged, date(2026, 5, 1))


def test_of_shared_noise_a_card_states_one_partners_customers_and_everybodys() -> None:
    card, agreed = shared(overlap=True), sharing_terms(customers_overlap=True)
    cost = cost_of(SHARED_TASK, agreed)
    assert card.epsilon("brand") == accountant.epsilon(cost.alone(), 1e-3)
    assert card.joint_epsilon() == accountant.epsilon(cost.spending, 1e-3) > card.epsilon("brand")
    assert f"the ε of this job is {card.joint_epsilon():.2f}" in page(card)
    apart = shared()
    assert apart.joint_epsilon() == apart.epsilon("brand")


def test_a_page_says_what_was_clipped_and_on_whom_shared_noise_rests() -> None:
    step, update = page(shared()), page(shared(steps=3))
    assert "the summed gradient of each clipped to 1, noise multiplier 1" in step
    assert "each partner's update over all its steps clipped to 1 as a whole" in update
    assert "sampled with probability" not in update
    for text in (step, update):
        assert "of 3 partners at most 0 leave a round before its end" in text
        assert "at most 1 tell others what they know; the noise of the other 2 is" in text
    several = page(replace(CARD, request=Request("job-1", replace(TASK, local_steps=3))))
    assert "the summed gradient of each clipped to 1" in several, "each node noises each step"
    assert "shared noise" not in several
