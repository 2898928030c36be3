from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement.request import ModelSpec
from dovetail.coordinator.round import Round, calibrated, initial_arrays
from dovetail.errors import LocalProtocolError, TooManyDropouts
from tests.samples import SCHEMA, TASK


@given(
    st.dictionaries(st.integers(0, 50), st.floats(1, 1e6), min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_the_mean_is_weighted_by_public_weights(
    weights: dict[int, float], seed: int, data: st.DataObject
) -> None:
    dice = np.random.default_rng(seed)
    arrays = {node: dice.normal(size=(3, 2)).astype(np.float32) for node in weights}
    answering = data.draw(st.lists(st.sampled_from(sorted(weights)), min_size=1, unique=True))
    collected = Round(weights, quorum=1)
    for node in answering:
        collected.add(node, {"output.weight": arrays[node]})
    mean = collected.close()
    expected = np.average(
        [arrays[n] for n in answering], axis=0, weights=[weights[n] for n in answering]
    )
    np.testing.assert_allclose(mean.arrays["output.weight"], expected, rtol=1e-4, atol=1e-5)
    assert mean.arrays["output.weight"].dtype == np.float32
    assert mean.weight == pytest.approx(sum(weights[n] for n in answering))
    assert mean.nodes == tuple(sorted(answering))


def test_adding_leaves_the_contribution_as_it_was() -> None:
    array = np.ones(3, np.float32)
    collected = Round({1: 2.0, 2: 2.0}, quorum=2)
    collected.add(1, {"a": array})
    collected.add(2, {"a": array})
    np.testing.assert_array_equal(array, np.ones(3))


def test_nobody_counts_twice_and_no_stranger_counts() -> None:
    collected = Round({1: 1.0, 2: 1.0}, quorum=1)
    collected.add(1, {"a": np.zeros(1, np.float32)})
    for node in (1, 3):
        with pytest.raises(LocalProtocolError):
            collected.add(node, {"a": np.zeros(1, np.float32)})


def test_a_closed_round_accepts_nothing() -> None:
    collected = Round({1: 1.0, 2: 1.0}, quorum=1)
    collected.add(1, {"a": np.zeros(1, np.float32)})
    collected.close()
    with pytest.raises(LocalProtocolError):
        collected.add(2, {"a": np.zeros(1, np.float32)})


def test_below_quorum_nothing_counts() -> None:
    collected = Round({1: 1.0, 2: 1.0, 3: 1.0}, quorum=2)
    collected.add(2, {"a": np.zeros(1, np.float32)})
    with pytest.raises(TooManyDropouts, match="1 of 3"):
        collected.close()


@pytest.mark.parametrize(
    "spec", [ModelSpec("logistic"), ModelSpec("mlp", (8,)), ModelSpec("embedding_mlp", (8, 4), 3)]
)
def test_initial_arrays_are_public_and_repeatable(spec: ModelSpec) -> None:
    task = replace(TASK, model=spec, positive_weight=2.0)
    arrays = initial_arrays(task, SCHEMA)
    again = initial_arrays(task, SCHEMA)
    assert list(arrays) == [p.name for p in spec.parameters(SCHEMA)]
    for parameter in spec.parameters(SCHEMA):
        assert arrays[parameter.name].shape == parameter.shape
        assert arrays[parameter.name].dtype == np.float32
        np.testing.assert_array_equal(arrays[parameter.name], again[parameter.name])
    assert arrays["output.bias"][0] == pytest.approx(math.log(2 * 0.2 / 0.8))


def test_the_weight_of_positives_leaves_the_probabilities() -> None:
    task = replace(TASK, positive_weight=4.0)
    arrays = initial_arrays(task, SCHEMA)
    before = arrays["output.bias"].copy()
    model = calibrated(arrays, task.positive_weight)
    odds = math.exp(model["output.bias"][0])
    assert odds / (1 + odds) == pytest.approx(SCHEMA.label.prior)
    np.testing.assert_array_equal(arrays["output.bias"], before)
    np.testing.assert_array_equal(model["output.weight"], arrays["output.weight"])
