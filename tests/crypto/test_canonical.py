import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.crypto.canonical import canonical_bytes, digest
from dovetail.errors import LocalProtocolError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.text(max_size=8),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def test_rfc_8785_section_3_2_2_example() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"\u002f",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_bytes(value) == expected.encode()


@given(VALUES)
def test_canonical_bytes_are_json_of_the_same_value(value: Any) -> None:
    """A whole float is written as its shortest digits, which only a float reader undoes."""
    as_floats = json.loads(json.dumps(value), parse_int=float)
    assert json.loads(canonical_bytes(value), parse_int=float) == as_floats


@given(st.dictionaries(st.text(max_size=5), SCALARS, max_size=6))
def test_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_digest_is_sha256_of_the_bytes() -> None:
    assert digest({"b": 1, "a": (1.0, 2)}) == hashlib.sha256(b'{"a":[1,2],"b":1}').hexdigest()


@given(VALUES, VALUES)
def test_different_values_have_different_bytes(one: Any, other: Any) -> None:
    if canonical_bytes(one) == canonical_bytes(other):
        texts = (json.dumps(one), json.dumps(other))
        assert json.loads(texts[0], parse_int=float) == json.loads(texts[1], parse_int=float)


@pytest.mark.parametrize(
    "value",
    [{1: 2}, float("nan"), float("inf"), 2**53, object(), b"x", {1, 2}, "\ud800", {"a": [1j]}],
)
def test_values_without_a_form_are_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        canonical_bytes(value)
    assert str(refused.value) == "a value has no canonical JSON form"
    assert refused.value.__suppress_context__
