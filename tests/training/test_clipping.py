"""The bound itself: not that two implementations agree, but that neither exceeds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.agreement.request import ModelSpec
from dovetail.errors import SchemaError
from dovetail.training import clipped_sum as module
from dovetail.training.batch import Batch
from dovetail.training.clipped_sum import ClippedSums, clipped_sum, physical_batches
from dovetail.training.clipping import clip_factors, logit_gradient, rounded_up, rows_of
from dovetail.training.model import build_model, load_arrays

FAMILIES = [
    ModelSpec("logistic"),
    ModelSpec("mlp", (16, 8)),
    ModelSpec("embedding_mlp", (16, 8), 4),
]
ROUNDING = 1 + 1e-4


def norm(arrays: Any) -> Any:
    return float(np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays.values())))


def difference(one: Any, other: Any) -> Any:
    return {name: one[name].astype(np.float64) - other[name] for name in one}


def loaded(world: Any, spec: ModelSpec, schema: Any, seed: int, scale: float) -> Any:
    model = build_model(spec, schema)
    load_arrays(model, world.arrays(spec, schema, seed, scale))
    return model


def without(batch: Batch, i: int) -> Batch:
    return Batch(*(np.delete(a, i, axis=0) for a in vars(batch).values()))


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(FAMILIES),
    rows=st.integers(1, 6),
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e12, 1e25]),
    weights=st.sampled_from([0.1, 1.0, 30.0]),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    positive_weight=st.sampled_from([1.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_one_customer_adds_at_most_the_clip_norm(
    world: Any,
    spec: ModelSpec,
    rows: int,
    scale: float,
    weights: float,
    clip: float,
    positive_weight: float,
    seed: int,
) -> None:
    schema = world.schema(4, (3, 5), rows)
    model = loaded(world, spec, schema, seed, weights)
    one = world.batch(schema, 1, seed, fill=0.9, scale=scale)
    assert norm(clipped_sum(model, one, clip, positive_weight)) <= clip * ROUNDING


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(FAMILIES),
    rows=st.integers(1, 4),
    customers=st.integers(1, 12),
    scale=st.sampled_from([1.0, 1e3]),
    clip=st.sampled_from([0.1, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_canary_removing_a_customer_changes_the_sum_by_at_most_the_clip_norm(
    world: Any, spec: ModelSpec, rows: int, customers: Any, scale: float, clip: float, seed: int
) -> None:
    schema = world.schema(4, (3, 5), rows)
    model = loaded(world, spec, schema, seed, 1.0)
    batch = world.batch(schema, customers, seed, scale=scale)
    whole = clipped_sum(model, batch, clip)
    for i in range(customers):
        assert norm(difference(whole, clipped_sum(model, without(batch, i), clip))) <= clip * (
            ROUNDING + 1e-5 * customers
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("spec", FAMILIES, ids=str)
def test_a_gradient_that_is_not_finite_counts_as_nothing(
    world: Any, spec: ModelSpec, bad: float
) -> None:
    schema = world.schema(4, (3, 5), 2)
    model = loaded(world, spec, schema, 0, 1.0)
    batch = world.batch(schema, 6, fill=1.0)
    batch.numbers[2, 1, 0] = bad
    whole = clipped_sum(model, batch, 1.0)
    assert np.isfinite(norm(whole))
    assert norm(difference(whole, clipped_sum(model, without(batch, 2), 1.0))) <= ROUNDING


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("embedding", [3e8, 3e12, 3e18, 1e20])
@pytest.mark.parametrize("clip", [1e-6, 1e-3])
def test_canary_parameters_cannot_hide_a_gradient_in_an_underflow(
    world: Any, rows: int, embedding: float, clip: float
) -> None:
    schema, spec = world.schema(1, (3,), rows), ModelSpec("embedding_mlp", (64,), 8)
    arrays = world.arrays(spec, schema, scale=0.0)
    arrays["embeddings.0.weight"][:] = embedding
    arrays["output.weight"][:] = 0.1
    arrays["output.bias"][:] = -50  # of a row without a label: derivatives of about 2e-22
    model = build_model(spec, schema)
    load_arrays(model, arrays)
    shape = (1, rows)
    one = Batch(
        np.zeros((*shape, 1), np.float32),
        np.full((*shape, 1), 2),
        np.zeros(shape, np.float32),
        np.ones(shape, np.float32),
    )
    assert norm(clipped_sum(model, one, clip)) <= clip * ROUNDING


@pytest.mark.parametrize("code", [-1, 7])
def test_a_code_outside_its_table_is_refused_before_it_reads_anothers_row(
    world: Any, code: int
) -> None:
    schema = world.schema(4, (3, 5), 1)
    batch = world.batch(schema, 6, fill=1.0)
    batch.codes[2, 0, 1] = code
    with pytest.raises(SchemaError) as refused:
        clipped_sum(loaded(world, FAMILIES[2], schema, 0, 1.0), batch, 1.0)
    assert str(code) not in str(refused.value)


def test_logits_are_a_vector_so_that_no_loss_can_broadcast(world: Any) -> None:
    schema = world.schema(4)
    model = loaded(world, FAMILIES[1], schema, 0, 1.0)
    rows = rows_of(world.batch(schema, 7, fill=1.0))
    logits = model(rows.numbers, rows.codes)
    assert logits.shape == rows.labels.shape == (7,)
    assert logit_gradient(logits, rows.labels, 1.0).shape == (7,)


@settings(deadline=None)
@given(st.floats(-8, 8), st.sampled_from([0.0, 1.0]), st.floats(0.1, 50))
def test_the_logit_gradient_is_that_of_weighted_cross_entropy(
    logit: float, label: float, positive_weight: float
) -> None:
    logits = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([label], dtype=torch.float64)
    torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=torch.tensor(positive_weight)
    ).backward()
    ours = logit_gradient(logits, labels, positive_weight)
    assert ours.item() == pytest.approx(float(logits.grad or 0), rel=1e-6, abs=1e-12)


def test_factors_are_opacus_ones() -> None:
    norms = torch.tensor([0.0, 0.5, 1.0, 2.0, 1e10])
    expected = (1.0 / (norms + 1e-6)).clamp(max=1.0)
    torch.testing.assert_close(clip_factors(norms.square(), 1.0), expected)
    odd = torch.tensor([torch.nan, torch.inf, -1e-9])
    assert clip_factors(odd, 1.0).tolist() == [0.0, 0.0, 1.0]


def test_rounding_up_never_lowers_and_hardly_moves_an_ordinary_norm() -> None:
    squared = torch.tensor([4.0, -1.0])
    raised = rounded_up(squared, torch.tensor([2.0, 2.0]))
    assert (raised >= squared).all()
    assert raised[0].item() == pytest.approx(4.0, rel=1e-6)
    assert raised[1].item() > 0


def test_a_batch_in_parts_gives_the_same_sum(world: Any, monkeypatch: Any) -> None:
    schema = world.schema(4, (3, 5), 3)
    model = loaded(world, FAMILIES[2], schema, 0, 1.0)
    table = world.table(schema, 50)
    whole = clipped_sum(model, table.whole, 1.0)
    monkeypatch.setattr(module, "PHYSICAL_ROWS", 20)
    parts = list(physical_batches(table, np.arange(50), 3))
    assert len(parts) == 9
    sums = {p: torch.zeros_like(p.detach()) for p in model.parameters()}
    with ClippedSums(model) as clipped:
        for rows in parts:
            clipped.add(rows, 1.0, 1.0, sums)
    assert norm(difference(whole, {n: sums[p].numpy() for n, p in model.named_parameters()})) < 1e-4


def test_rows_keep_order_owner_and_place(world: Any) -> None:
    batch = world.batch(world.schema(2, (3,), 3), 4)
    batch.mask[:] = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    batch.numbers[..., 0] = np.arange(12).reshape(4, 3)
    rows = rows_of(batch)
    assert rows.numbers[:, 0].tolist() == [0, 2, 6, 7, 8, 10]
    assert rows.customer is not None
    assert rows.customer.tolist() == [0, 0, 2, 2, 2, 3]
    assert rows.grouped(rows.numbers[:, 0]).tolist() == [[0, 0, 2], [0] * 3, [6, 7, 8], [0, 10, 0]]
    assert rows.per_customer(rows.numbers[:, 0]).tolist() == [2, 0, 21, 10]
