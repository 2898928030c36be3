from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.agreement.request import ModelSpec
from dovetail.errors import RemoteProtocolError
from dovetail.schema import MISSING_CODE
from dovetail.training.model import arrays_of, build_model, load_arrays

WIDTHS = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
SPECS = st.one_of(
    st.just(ModelSpec("logistic")),
    st.builds(ModelSpec, st.just("mlp"), WIDTHS),
    st.builds(ModelSpec, st.just("embedding_mlp"), WIDTHS, st.integers(1, 4)),
)
SIZES = st.lists(st.integers(1, 5), max_size=3)


@settings(max_examples=60, deadline=None)
@given(spec=SPECS, numbers=st.integers(1, 4), sizes=SIZES, rows=st.integers(0, 5))
def test_names_shapes_and_logits_are_as_the_spec_says(
    world: Any, spec: ModelSpec, numbers: int, sizes: Any, rows: int
) -> None:
    schema = world.schema(numbers, sizes)
    model = build_model(spec, schema)
    declared = [(p.name, p.shape) for p in spec.parameters(schema)]
    assert [(name, tuple(t.shape)) for name, t in model.state_dict().items()] == declared
    assert model(torch.zeros(rows, numbers), torch.zeros(rows, len(sizes)).long()).shape == (rows,)


def test_categories_enter_one_hot_behind_the_numbers(world: Any) -> None:
    schema = world.schema(2, (3, 1))
    model = build_model(ModelSpec("logistic"), schema)
    weights = np.arange(2 + 5 + 3, dtype=np.float32).reshape(1, -1)
    load_arrays(model, {"output.weight": weights, "output.bias": np.ones(1, np.float32)})
    logits = model(torch.tensor([[0.5, -1.0]]), torch.tensor([[4, 2]]))
    assert logits.item() == pytest.approx(1 + 0.5 * 0 - 1.0 * 1 + (2 + 4) + (2 + 5 + 2))


def test_hidden_layers_are_tanh_and_embeddings_sit_behind_the_numbers(world: Any) -> None:
    schema = world.schema(1, (2,))
    spec = ModelSpec("embedding_mlp", (3,), 2)
    arrays = world.arrays(spec, schema)
    model = build_model(spec, schema)
    load_arrays(model, arrays)
    inputs = np.concatenate([[0.3], arrays["embeddings.0.weight"][3]])
    hidden = np.tanh(arrays["hidden.0.weight"] @ inputs + arrays["hidden.0.bias"])
    logit = arrays["output.weight"] @ hidden + arrays["output.bias"]
    assert model(torch.tensor([[0.3]]), torch.tensor([[3]])).item() == pytest.approx(logit[0], 1e-5)


def test_a_missing_value_is_not_learnt(world: Any) -> None:
    schema = world.schema(1, (2,))
    model = build_model(ModelSpec("embedding_mlp", (3,), 2), schema)
    load_arrays(model, world.arrays(ModelSpec("embedding_mlp", (3,), 2), schema))
    model(torch.ones(2, 1), torch.full((2, 1), MISSING_CODE)).sum().backward()
    assert not next(model.embeddings.parameters()).grad.any()  # type: ignore[union-attr]


def test_arrays_come_back_as_copies(world: Any) -> None:
    schema = world.schema(2)
    model = build_model(ModelSpec("logistic"), schema)
    arrays = world.arrays(ModelSpec("logistic"), schema)
    load_arrays(model, arrays)
    arrays_of(model)["output.bias"][:] = 99
    for name, array in arrays_of(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    "change",
    [
        {"output.bias": np.zeros(2, np.float32)},
        {"output.bias": np.array([np.nan], np.float32)},
        {"surplus": np.zeros(1, np.float32)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(world: Any, change: Any) -> None:
    schema = world.schema(2)
    model = build_model(ModelSpec("logistic"), schema)
    with pytest.raises(RemoteProtocolError):
        load_arrays(model, {**world.arrays(ModelSpec("logistic"), schema), **change})
