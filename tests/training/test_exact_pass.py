"""Nobody else in a batch changes what a customer adds; nothing of it is a matter of tolerance."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dovetail.agreement.request import ModelSpec
from dovetail.training.batch import Batch
from dovetail.training.clipping import rows_of
from dovetail.training.closed_forms import RULES
from dovetail.training.exact_pass import ExactClipper, digits, evenly, on_grid
from dovetail.training.model import blueprint, load_arrays
from dovetail.training.tabular_pass import TabularClipper
from dovetail.training.vector import ParameterVector

FAMILIES = [ModelSpec("logistic"), ModelSpec("mlp", (16, 8)), ModelSpec("embedding_mlp", (16,), 4)]
Each = list[list[torch.Tensor]]


def clipper_of(world: Any, spec: ModelSpec, schema: Any) -> ExactClipper:
    vector = ParameterVector(blueprint(spec, schema), torch.float64)
    load_arrays(vector.model, world.arrays(spec, schema, scale=3.0))
    return ExactClipper(vector)


def some(batch: Batch, customers: Any) -> Batch:
    return Batch(*(array[customers] for array in vars(batch).values()))


def each_row(clipper: TabularClipper, batch: Batch) -> Each:
    """Of each layer: inputs, gradients and the customers' squared norms."""
    rows = rows_of(batch)
    rows = type(rows)(**{**vars(rows), "numbers": rows.numbers.double()})
    with torch.inference_mode():
        records = clipper._records(rows, 1.5)
        return [[r.inputs, r.grads, RULES[type(r.layer)].squared_norms(r, rows)] for r in records]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: spec.family)
def test_a_customer_adds_the_same_whoever_is_beside_it(
    world: Any, spec: ModelSpec, most: int
) -> None:
    schema = world.schema(37, (3, 5), most)
    clipper = clipper_of(world, spec, schema)
    batch = world.batch(schema, 1500, fill=1.0)
    whole = each_row(clipper, batch)
    for chosen in (np.arange(1, 1500), np.arange(0, 1500, 7), np.array([0, 700, 1499]), [1234]):
        part = each_row(clipper, some(batch, chosen))
        for all_of, those in zip(whole, part, strict=True):
            for one, other in zip(all_of, those, strict=True):
                wanted = one.reshape(1500, -1)[chosen]
                assert torch.equal(wanted, other.reshape(len(chosen), -1))


def test_canary_in_float32_others_do_change_it(world: Any) -> None:
    schema, spec = world.schema(37, (3, 5)), FAMILIES[1]
    vector = ParameterVector(blueprint(spec, schema))
    load_arrays(vector.model, world.arrays(spec, schema, scale=3.0))
    batch = world.batch(schema, 1500, fill=1.0)
    clipper = TabularClipper(vector)

    def gradients(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            return clipper._records(rows_of(batch), 1.5)[-1].grads

    assert not torch.equal(gradients(batch)[:1], gradients(some(batch, [0])))


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, torch.sqrt, torch.reciprocal])
def test_functions_answer_alike_wherever_a_number_stands(function: Any) -> None:
    for value in np.random.default_rng(0).uniform(0, 4, 50):
        for n in (1, 3, 63, 64, 65, 1000, 5001):
            answers = evenly(function, torch.full((n,), value, dtype=torch.float64))
            assert (answers == function(torch.full((64,), value, dtype=torch.float64))[0]).all()


@given(
    arrays.arrays(np.float64, (3, 40), elements=st.floats(-1e30, 1e30)),
    arrays.arrays(np.float64, (3, 40), elements=st.floats(-1e30, 1e30)),
)
def test_products_add_up_exactly_in_any_order(left: Any, right: Any) -> None:
    one, other = (
        on_grid(t, t.abs().amax(1, keepdim=True), digits(40))
        for t in (torch.from_numpy(left), torch.from_numpy(right))
    )
    for a, b in zip(one, other, strict=True):
        true = sum(Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
        if true == 0 or abs(true) > Fraction(1e-200):
            assert Fraction(torch.dot(a, b).item()) == true
            assert Fraction(torch.dot(a.flip(0), b.flip(0)).item()) == true


@given(arrays.arrays(np.float64, (1, 9), elements=st.floats(-1e30, 1e30)), st.integers(8, 26))
def test_rounding_moves_a_number_by_little(values: Any, most: int) -> None:
    tensor = torch.from_numpy(values)
    largest = tensor.abs().amax(1, keepdim=True)
    off = (on_grid(tensor, largest, most) - tensor).abs()
    assert (off <= largest * 2.0**-most).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.7e308])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    values = torch.tensor([[1.0, bad], [1.0, 2.0]], dtype=torch.float64)
    low, high = values.aminmax(dim=1, keepdim=True)
    rounded = on_grid(values, torch.maximum(high, -low), 24)
    assert not rounded[0].isfinite().all()
    assert rounded[1].tolist() == [1.0, 2.0]


def test_digits_leave_room_for_the_sum() -> None:
    assert [digits(n) for n in (1, 2, 3, 64, 65, 2**20)] == [26, 26, 25, 23, 23, 16]
    assert all(n * 4 ** digits(n) <= 2**53 for n in range(1, 5000))
