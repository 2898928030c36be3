from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dovetail.crypto.certificates import (
    certificate_of,
    common_name,
    new_certificate,
    new_tls_key,
    pin_of,
    require_no_authority,
    require_self_signed,
    valid_until,
)
from dovetail.errors import SettingError

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def test_a_pin_belongs_to_the_key_and_not_to_the_certificate() -> None:
    key = new_tls_key()
    first = certificate_of(key, "retailer", NOW)
    renewed = certificate_of(key, "retailer", NOW + timedelta(days=700))
    other, _ = new_certificate("retailer", NOW)
    assert first != renewed
    assert pin_of(first) == pin_of(renewed) != pin_of(other)
    assert common_name(first) == "retailer"
    assert valid_until(first) == NOW + timedelta(days=730)
    require_self_signed(first)
    require_no_authority(first)


def test_what_is_no_certificate_is_refused() -> None:
    for read in (pin_of, common_name, valid_until, require_self_signed, require_no_authority):
        with pytest.raises(SettingError, match="no certificate"):
            read(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(SettingError, match="1 to 64"):
        new_certificate("x" * 65, NOW)
