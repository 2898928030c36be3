import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail import errors
from dovetail.errors import LocalProtocolError, PrivacyError, SettingError
from dovetail.secagg.encoding import Encoding
from tests.secagg.transcript import VECTORS

CASES = json.loads((VECTORS / "encoding.json").read_text())
FLOATS = st.floats(-1e6, 1e6, width=32)
SCALES = st.one_of(st.sampled_from([2.0**k for k in range(-8, 20)]), st.floats(1e-3, 1e5))


@pytest.mark.parametrize("case", CASES["good"], ids=lambda case: case["name"])
def test_good_vectors(case: dict[str, Any]) -> None:
    encoding = Encoding(**case["encoding"])
    units = encoding.encode(np.array(case["vector"]))
    assert units.tolist() == case["units"]
    assert encoding.wrap(units).tolist() == case["words"]
    assert encoding.decode(encoding.wrap(units)).tolist() == case["decoded"]


@pytest.mark.parametrize("case", CASES["bad"], ids=lambda case: case["name"])
def test_bad_vectors_meet_their_errors(case: dict[str, Any]) -> None:
    def run() -> None:
        encoding = Encoding(**case["encoding"])
        encoding.check_room(case.get("nodes", 1), case.get("noise", 0))
        encoding.encode(np.array(case.get("vector", [0.0]), dtype=np.float64))

    with pytest.raises(getattr(errors, case["error"]), match=case["message"]):
        run()


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size = draw(st.integers(1, 30))
    one, other = (draw(st.lists(FLOATS, min_size=size, max_size=size)) for _ in range(2))
    near = np.array(one) + np.array(other) * draw(st.sampled_from([1.0, 1e-3, 1e-6]))
    return np.array(one), near


def apart(encoding: Encoding, one: np.ndarray, other: np.ndarray) -> float:
    difference = encoding.encode(one) - encoding.encode(other)
    return math.sqrt(sum(int(d) ** 2 for d in difference))


@given(neighbours(), SCALES, st.floats(1e-3, 1e4))
def test_neighbours_stay_within_the_sensitivity(
    pair: tuple[np.ndarray, np.ndarray], scale: float, bound: float
) -> None:
    """Also for vectors far outside the bound: projecting never moves two apart."""
    encoding = Encoding(bound, scale, 64, pair[0].size)
    distance = math.dist(*pair)
    assert apart(encoding, *pair) <= encoding.sensitivity(distance)
    if math.frexp(scale)[0] == 0.5:
        assert apart(encoding, *pair) <= (scale * distance + math.sqrt(pair[0].size)) * (1 + 2**-40)


def test_rounding_can_cost_all_of_the_root() -> None:
    """The bound is tight: two vectors a hair apart that are rounded away from each other."""
    encoding = Encoding(1.0, 2.0, 32, 4)
    below, above = np.full(4, 0.25 - 2**-40), np.full(4, 0.25 + 2**-40)
    assert apart(encoding, below, above) == 2.0 == math.sqrt(4)


def test_the_clip_norm_alone_is_no_bound() -> None:
    """scale * C alone is not a bound on what is encoded: the root is needed."""
    encoding = Encoding(1.0, 2.0, 32, 4)
    below, above = np.full(4, 0.25 - 2**-40), np.full(4, 0.25 + 2**-40)
    assert apart(encoding, below, above) > 2.0 * math.dist(below, above)


@given(st.lists(FLOATS, min_size=1, max_size=20), SCALES, st.floats(1e-3, 1e4))
def test_numbers_in_bounds_come_back_within_half_a_unit(
    numbers: list[float], scale: float, bound: float
) -> None:
    encoding = Encoding(bound, scale, 64, len(numbers))
    vector = np.clip(np.array(numbers), -bound, bound)
    back = encoding.decode(encoding.wrap(encoding.encode(vector)))
    assert np.abs(back - vector).max() <= 0.5 / scale * (1 + 1e-6) + bound * 1e-15


@given(st.integers(2, 64), st.integers(0, 10**6), st.sampled_from([32, 64]), st.data())
def test_a_sum_that_has_room_never_overflows(
    nodes: int, noise: int, bits: int, data: st.DataObject
) -> None:
    """The largest vectors and the largest noise of one sign, right at the limit."""
    room = (2 ** (bits - 1) - 1) // nodes - noise - 1
    units = data.draw(st.integers(1, max(1, min(room, 2**50))))
    encoding = Encoding(float(units), 1.0, bits, 1)
    if nodes * (units + 1 + noise) >= 2 ** (bits - 1):
        with pytest.raises(SettingError, match="the sum could overflow"):
            encoding.check_room(nodes, noise)
        return
    encoding.check_room(nodes, noise)
    for sign in (1, -1):
        one = encoding.encode(np.array([sign * 1e300])) + sign * noise
        total = sum((encoding.wrap(one) for _ in range(nodes)), start=encoding.wrap(one * 0))
        assert encoding.decode(total)[0] == sign * nodes * (units + noise)


def test_one_step_past_the_limit_is_refused_and_would_overflow() -> None:
    """nodes * (bound * scale + 1 + noise) = 2^31: 2^31 - 2 units fit, 2^31 do not."""
    encoding = Encoding(2.0**30 - 1, 1.0, 32, 1)
    with pytest.raises(SettingError, match=r"must stay below 2\^31"):
        encoding.check_room(2, 0)
    encoding.check_room(1, 0)
    over = encoding.wrap(encoding.encode(np.array([1e300]))) + np.uint32(2**30 + 1)
    assert encoding.decode(over)[0] < 0


@pytest.mark.parametrize(
    "vector", [np.zeros(2), np.zeros((1, 1)), np.zeros(1, dtype=np.int64)], ids=str
)
def test_only_a_vector_of_floats_is_encoded(vector: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError):
        Encoding(1.0, 1.0, 32, 1).encode(vector)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_not_shown(number: float) -> None:
    with pytest.raises(PrivacyError, match="not finite") as caught:
        Encoding(1.0, 1.0, 32, 2).encode(np.array([1.5, number]))
    assert "1.5" not in str(caught.value)


@pytest.mark.parametrize("total", [np.zeros(2, np.uint64), np.zeros(1, np.uint32)], ids=str)
def test_only_a_sum_of_its_own_form_is_decoded(total: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError):
        Encoding(1.0, 1.0, 32, 2).decode(total)


def test_float32_and_float64_are_encoded_alike_where_they_are_equal() -> None:
    vector = np.linspace(-2, 2, 101).astype(np.float32)
    encoding = Encoding(1.5, 1000.0, 32, 101)
    assert (encoding.encode(vector) == encoding.encode(vector.astype(np.float64))).all()
