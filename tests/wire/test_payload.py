import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.wire.payload import Payload


@given(st.lists(st.binary(max_size=7), max_size=6), st.integers(0, 50), st.integers(0, 50))
def test_a_payload_is_its_parts_in_order(parts: list[bytes], offset: int, size: int) -> None:
    payload, whole = Payload(*parts), b"".join(parts)
    assert len(payload) == len(whole)
    assert payload.joined() == whole
    assert b"".join(payload.slices(offset, size)) == whole[offset : offset + size]


def test_nothing_is_copied_that_need_not_be() -> None:
    whole = b"abc"
    assert Payload(whole).joined() is whole
    (view,) = Payload(b"", whole, b"").slices(1, 2)
    assert view.obj is whole


@pytest.mark.parametrize("part", [bytearray(b"abc"), memoryview(b"abc")])
def test_parts_of_any_kind(part: bytearray | memoryview) -> None:
    assert Payload(part).joined() == b"abc"
