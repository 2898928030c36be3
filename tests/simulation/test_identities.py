from __future__ import annotations

from datetime import date

import pytest

from dovetail.agreement.request import Request
from dovetail.agreement.signing import require_asked
from dovetail.errors import PolicyError
from dovetail.simulation.identities import COORDINATOR, asked, coordinator, partner, signing_key
from tests.samples import TASK, terms

DAYS = (date(2024, 1, 1), date(2024, 12, 31))


def test_a_name_has_the_same_keys_every_time_and_no_other_has_them() -> None:
    one, again = (partner("retailer", "shop", 100, *DAYS) for _ in range(2))
    other = partner("brand", "shop", 100, *DAYS)
    assert one == again
    keys = {one.key, one.certificate, other.key, other.certificate}
    assert len(keys | {coordinator().key, coordinator().certificate}) == 6
    assert one.key == signing_key("retailer").public


def test_what_the_simulated_coordinator_asks_passes_the_real_check() -> None:
    known, signed = terms(), asked(Request("job-1", TASK), terms())
    require_asked(signed, known)
    assert signed.asked_by == COORDINATOR == known.coordinator.name
    with pytest.raises(PolicyError):
        require_asked(signed, terms(minimum_cohort=40))
