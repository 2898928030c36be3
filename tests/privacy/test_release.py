import pickle
from dataclasses import replace

import numpy as np
import pytest

from dovetail.crypto.canonical import canonical_bytes
from dovetail.errors import PrivacyError
from dovetail.privacy.accountant import epsilon
from dovetail.privacy.event import SampledGaussian, SharedGaussian, Spending
from dovetail.privacy.overlap import joint_parts
from dovetail.privacy.release import Provenance, Release, release

STEP = SampledGaussian(0.1, 1.0, 2.0)
SPENDING: dict[str, Spending] = {"retailer": {STEP: 30}, "brand": {STEP: 10}}
PROVENANCE = Provenance("spring", "aa", "bb", 3)
DELTA = 1e-5


def _value() -> dict[str, np.ndarray]:
    return {"weight": np.ones((2, 3), dtype=np.float32)}


def _release(overlap: bool = False) -> Release:
    return release(_value(), SPENDING, DELTA, PROVENANCE, customers_overlap=overlap)


def test_direct_construction_is_refused() -> None:
    with pytest.raises(PrivacyError, match="made by"):
        Release(_value(), SPENDING, SPENDING, DELTA, {"retailer": 0.0}, 0.0, PROVENANCE)


def test_a_release_is_not_made_out_of_another() -> None:
    with pytest.raises(PrivacyError, match="made by"):
        replace(_release(), epsilon={"retailer": 0.1, "brand": 0.1})


def test_epsilon_is_computed_from_what_was_charged() -> None:
    made = _release()
    assert made.epsilon["retailer"] == epsilon({STEP: 30}, DELTA)
    assert made.epsilon["brand"] == epsilon({STEP: 10}, DELTA) < made.epsilon["retailer"]
    assert made.joint_epsilon == made.epsilon["retailer"]


def test_a_shared_customer_pays_at_every_partner() -> None:
    assert _release(overlap=True).joint_epsilon == epsilon({STEP: 40}, DELTA)


SHARED = SharedGaussian(0.1, 1e5, 3e5, nodes=2, tolerated=0, size=6)


def _joint(retailer: Spending, brand: Spending) -> float:
    spending = {"retailer": retailer, "brand": brand}
    return release(_value(), spending, DELTA, PROVENANCE, customers_overlap=True).joint_epsilon


def test_a_shared_sum_is_one_event_for_all() -> None:
    once = epsilon({SHARED: 30}, DELTA)
    assert _joint({SHARED: 30}, {SHARED: 30}) == once < epsilon({SHARED: 60}, DELTA)
    assert _joint({SHARED: 30, STEP: 0}, {SHARED: 30, STEP: 7}) == epsilon(
        {SHARED: 30, STEP: 7}, DELTA
    )
    assert _joint({SHARED: 30, STEP: 2}, {SHARED: 30, STEP: 5}) == epsilon(
        {SHARED: 30, STEP: 7}, DELTA
    )


def test_sums_that_not_all_took_part_in_are_added_up() -> None:
    other = replace(SHARED, noise_std=4e5)
    assert _joint({SHARED: 30}, {SHARED: 31}) == epsilon({SHARED: 61}, DELTA)
    assert _joint({SHARED: 30}, {STEP: 5}) == epsilon({SHARED: 30, STEP: 5}, DELTA)
    assert _joint({SHARED: 30}, {other: 30}) == epsilon({SHARED: 30, other: 30}, DELTA)


def _of_one(alone: dict[str, Spending]) -> Release:
    part, count = joint_parts(SHARED, 2)
    charged: dict[str, Spending] = {name: {part: 30 * count} for name in SPENDING}
    return release(_value(), charged, DELTA, PROVENANCE, customers_overlap=True, alone=alone)


def test_a_customer_of_one_partner_pays_less_than_one_of_all() -> None:
    made = _of_one({name: {SHARED: 30} for name in SPENDING})
    assert made.epsilon == dict.fromkeys(SPENDING, epsilon({SHARED: 30}, DELTA))
    assert made.joint_epsilon == epsilon(made.spending["brand"], DELTA) > made.epsilon["brand"]
    assert made.to_record()["alone"] != made.to_record()["spending"]
    assert _release().alone == SPENDING


@pytest.mark.parametrize(
    ("alone", "why"),
    [
        ({"retailer": {SHARED: 30}}, "for the partners charged"),
        ({"retailer": {SHARED: 30}, "brand": {}}, "for the partners charged"),
        ({"retailer": {SHARED: 30}, "brand": {SHARED: 3000}}, "more than was charged"),
    ],
)
def test_what_one_partners_customers_pay_fits_what_was_charged(
    alone: dict[str, Spending], why: str
) -> None:
    with pytest.raises(PrivacyError, match=why):
        _of_one(alone)


def test_the_value_is_a_read_only_copy() -> None:
    value = _value()
    made = release(value, SPENDING, DELTA, PROVENANCE, customers_overlap=False)
    value["weight"][:] = 5
    assert made.value["weight"].max() == 1
    with pytest.raises(ValueError, match="read-only"):
        made.value["weight"][0, 0] = 2


def test_record_is_canonical_json_without_the_value() -> None:
    record = _release().to_record()
    assert b"weight" not in canonical_bytes(record)
    assert (record["job"], record["rounds"], record["delta"]) == ("spring", 3, DELTA)


def test_a_release_crosses_a_process_boundary() -> None:
    made = _release()
    copy = pickle.loads(pickle.dumps(made))
    assert copy.to_record() == made.to_record()
    assert np.array_equal(copy.value["weight"], made.value["weight"])


def test_error_bars_match_the_value() -> None:
    bars = {"weight": np.full((2, 3), 0.5, dtype=np.float32)}
    made = release(_value(), SPENDING, DELTA, PROVENANCE, customers_overlap=False, error_bars=bars)
    assert made.error_bars is not None
    assert made.error_bars["weight"].shape == (2, 3)
    for wrong in ({}, {"other": bars["weight"]}, {"weight": bars["weight"][:1]}):
        with pytest.raises(PrivacyError, match="error bars"):
            release(
                _value(), SPENDING, DELTA, PROVENANCE, customers_overlap=False, error_bars=wrong
            )


@pytest.mark.parametrize("spending", [{}, {"retailer": {}}, {"retailer": {STEP: 0}}])
def test_nothing_is_released_that_nobody_was_charged_for(spending: dict[str, Spending]) -> None:
    with pytest.raises(PrivacyError, match="charged"):
        release(_value(), spending, DELTA, PROVENANCE, customers_overlap=False)


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(entry: float) -> None:
    value = {"weight": np.array([0.0, entry], dtype=np.float32)}
    with pytest.raises(PrivacyError, match="finite"):
        release(value, SPENDING, DELTA, PROVENANCE, customers_overlap=False)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, float("nan")])
def test_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        release(_value(), SPENDING, delta, PROVENANCE, customers_overlap=False)


def test_an_empty_value_is_refused() -> None:
    with pytest.raises(PrivacyError, match="nothing"):
        release({}, SPENDING, DELTA, PROVENANCE, customers_overlap=False)
