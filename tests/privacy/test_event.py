import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.crypto.canonical import canonical_bytes
from dovetail.errors import PrivacyError
from dovetail.privacy.event import (
    Event,
    Gaussian,
    SampledGaussian,
    SharedGaussian,
    from_record,
    to_record,
)

VECTORS = Path(__file__).parent.parent / "vectors"
GOOD = json.loads((VECTORS / "event_good.json").read_text())
BAD = json.loads((VECTORS / "event_bad.json").read_text())

POSITIVE = st.floats(1e-30, 1e30)
PROBS = st.floats(0, 1, exclude_min=True)
SHARED = st.integers(2, 64).flatmap(
    lambda nodes: st.builds(
        SharedGaussian,
        PROBS,
        POSITIVE,
        POSITIVE,
        st.just(nodes),
        st.integers(0, nodes - 1),
        st.integers(1, 2**53 - 1),
    )
)
EVENTS = (
    st.builds(Gaussian, POSITIVE, POSITIVE)
    | st.builds(SampledGaussian, PROBS, POSITIVE, POSITIVE)
    | SHARED
)


@pytest.mark.parametrize("vector", GOOD, ids=lambda v: v["why"])
def test_good_records_are_read_and_written_back(vector: dict[str, Any]) -> None:
    assert to_record(from_record(vector["record"])) == vector["record"]


@pytest.mark.parametrize("vector", BAD, ids=lambda v: v["why"])
def test_bad_records_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        from_record(vector["record"])


@given(EVENTS)
def test_records_survive_their_canonical_form(event: Event) -> None:
    assert from_record(json.loads(canonical_bytes(to_record(event)))) == event


def test_only_the_ratio_of_noise_to_sensitivity_counts() -> None:
    assert Gaussian(2.0, 3.0).noise_multiplier == 1.5
    assert SampledGaussian(0.1, 0.5, 0.25).noise_multiplier == 0.5
    assert SharedGaussian(0.1, 50.0, 25.0, 3, 1, 10).noise_multiplier == 0.5


@given(SHARED)
def test_counts_stay_whole_numbers(event: SharedGaussian) -> None:
    read = from_record(json.loads(canonical_bytes(to_record(event))))
    assert isinstance(read, SharedGaussian)
    assert {type(n) for n in (read.nodes, read.tolerated, read.size)} == {int}
    assert {type(x) for x in (read.sampling_prob, read.l2_sensitivity, read.noise_std)} == {float}


def test_the_shares_that_must_be_there_add_up_to_the_noise() -> None:
    event = SharedGaussian(0.1, 1.0, 1_000.0, nodes=7, tolerated=3, size=1)
    assert event.share_std == 500
    assert SharedGaussian(0.1, 1.0, 1_000.0, nodes=7, tolerated=6, size=1).share_std == 1_000
