import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.crypto.canonical import canonical_bytes
from dovetail.errors import PrivacyError
from dovetail.privacy.event import Event, Gaussian, SampledGaussian, from_record, to_record

VECTORS = Path(__file__).parent.parent / "vectors"
GOOD = json.loads((VECTORS / "event_good.json").read_text())
BAD = json.loads((VECTORS / "event_bad.json").read_text())

POSITIVE = st.floats(1e-30, 1e30)
EVENTS = st.builds(Gaussian, POSITIVE, POSITIVE) | st.builds(
    SampledGaussian, st.floats(0, 1, exclude_min=True), POSITIVE, POSITIVE
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
