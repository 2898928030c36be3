from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dovetail.agreement.request import ModelSpec
from dovetail.errors import SettingError
from dovetail.training.batch import Batch
from dovetail.training.book_keeping import BookKeeper, UnsupportedModel, supports
from dovetail.training.clipped_sum import clipped_sum
from dovetail.training.clipping import rows_of
from dovetail.training.model import build_model, load_arrays
from dovetail.training.opacus_hooks import OpacusHooks

FAMILIES = [
    ModelSpec("logistic"),
    ModelSpec("mlp", (16, 8)),
    ModelSpec("mlp", (2,)),
    ModelSpec("embedding_mlp", (16, 8), 4),
]
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


class MultiHot(nn.Module):
    """Several values of one vocabulary per row; duplicates count twice."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, padding_idx=padding)
        self.norm = nn.LayerNorm(3)
        self.each = nn.Linear(3, 4)
        self.last = nn.Linear(4, 1, bias=False)

    def forward(self, numbers: Any, codes: Any) -> Any:
        units = torch.tanh(self.each(self.norm(self.table(codes)))).sum(1)
        return self.last(units).squeeze(1)


class Normed(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, bias=bias)
        self.norm = nn.LayerNorm((2, 3), bias=bias)
        self.last = nn.Linear(6, 1, bias=bias)

    def forward(self, numbers: Any, codes: Any) -> Any:
        units = self.norm(self.first(numbers).view(-1, 2, 3)).flatten(1)
        return self.last(torch.tanh(units)).squeeze(1)


def seeded(model: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.8, 0.8)
    return model


def by_opacus(model: Any, batch: Any, clip: float, positive_weight: float = 1.0) -> Any:
    sums = {p: torch.zeros_like(p.detach()) for p in model.parameters()}
    hooks = OpacusHooks(model)
    hooks.add_clipped_sum(rows_of(batch), clip, positive_weight, sums)
    hooks.close()
    return {name: sums[p].numpy() for name, p in model.named_parameters()}


def by_autograd(model: Any, batch: Any, clip: float, positive_weight: float = 1.0) -> Any:
    """The definition: one customer at a time, in float64."""
    model = model.double()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(batch.mask)):
        real = torch.from_numpy(batch.mask[i] == 1)
        if not real.any():
            continue
        numbers, codes, labels = (
            torch.from_numpy(a[i])[real] for a in (batch.numbers, batch.codes, batch.labels)
        )
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(numbers.double(), codes),
            labels.double(),
            pos_weight=torch.tensor(positive_weight),
            reduction="sum",
        )
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
        for name, grad in zip(total, grads, strict=True):
            if grad is not None:
                total[name] += grad * min(1.0, clip / (norm.item() + 1e-6))
    model.float()
    return {name: t.numpy() for name, t in total.items()}


def by_hooks(model: Any, batch: Any, clip: float, positive_weight: float = 1.0) -> Any:
    """Book-keeping through autograd, which the families' own pass must equal."""
    sums = {p: torch.zeros_like(p.detach()) for p in model.parameters()}
    keeper = BookKeeper(model)
    keeper.add_clipped_sum(rows_of(batch), clip, positive_weight, sums)
    keeper.close()
    return {name: sums[p].numpy() for name, p in model.named_parameters()}


def assert_close(one: Any, other: Any, tolerance: Any) -> None:
    assert one.keys() == other.keys()
    size = np.sqrt(sum(np.square(a).sum() for a in other.values()))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=tolerance * max(1, size), rtol=0)


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e4])
@pytest.mark.parametrize("rows", [1, 2, 12])
@pytest.mark.parametrize("spec", FAMILIES, ids=str)
def test_families_equal_opacus_and_the_definition(
    world: Any, spec: ModelSpec, rows: int, clip: float
) -> None:
    schema = world.schema(5, (3, 6), rows)
    model = build_model(spec, schema)
    load_arrays(model, world.arrays(spec, schema))
    assert supports(model)
    batch = world.batch(schema, 25)
    ours = clipped_sum(model, batch, clip, 2.5)
    assert_close(ours, by_opacus(model, batch, clip, 2.5), 1e-6)
    assert_close(ours, by_hooks(model, batch, clip, 2.5), 1e-6)
    assert_close(ours, by_autograd(model, batch, clip, 2.5), 1e-6)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_equals_opacus_and_the_definition(world: Any, rows: int, bias: bool) -> None:
    model = seeded(Normed(bias=bias))
    batch = world.batch(world.schema(4, (), rows), 20)
    assert supports(model)
    ours = clipped_sum(model, batch, 0.7)
    if bias:  # Opacus 1.6 has no gradient for a normalisation without bias
        assert_close(ours, by_opacus(model, batch, 0.7), 1e-6)
    assert_close(ours, by_autograd(model, batch, 0.7), 1e-6)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("padding", [None, 0, 4])
def test_multi_hot_duplicates_and_padding_index_are_exact(
    world: Any, rows: int, padding: int | None
) -> None:
    model = seeded(MultiHot(padding))
    batch = world.batch(world.schema(1, (4,) * 5, rows), 20)
    batch.codes[..., 1] = batch.codes[..., 0]
    assert supports(model)
    ours = clipped_sum(model, batch, 0.7)
    assert_close(ours, by_opacus(model, batch, 0.7), 1e-6)
    assert_close(ours, by_autograd(model, batch, 0.7), 1e-6)
    if padding is not None:
        assert not ours["table.weight"][padding].any()


@pytest.mark.parametrize("spec", FAMILIES, ids=str)
def test_padding_adds_exactly_nothing(world: Any, spec: ModelSpec) -> None:
    wide, narrow = world.schema(5, (3, 6), 4), world.schema(5, (3, 6), 1)
    model = build_model(spec, wide)
    load_arrays(model, world.arrays(spec, wide))
    one = world.batch(narrow, 9, fill=1.0)
    padded = world.batch(wide, 9, seed=1, fill=0.0)
    for name in ("numbers", "codes", "labels", "mask"):
        getattr(padded, name)[:, 2] = getattr(one, name)[:, 0]
    assert_close(clipped_sum(model, padded, 1.0), clipped_sum(model, one, 1.0), 1e-6)


@pytest.mark.parametrize("customers", [0, 5])
@pytest.mark.parametrize("spec", FAMILIES, ids=str)
def test_no_rows_give_a_sum_of_zeros(world: Any, spec: ModelSpec, customers: Any) -> None:
    schema = world.schema(5, (3, 6), 2)
    model = build_model(spec, schema)
    load_arrays(model, world.arrays(spec, schema))
    sums = clipped_sum(model, world.batch(schema, customers, fill=0.0), 1.0)
    assert {n: a.shape for n, a in sums.items()} == {
        p.name: p.shape for p in spec.parameters(schema)
    }
    assert not any(a.any() for a in sums.values())


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 1)

    def forward(self, numbers: Any, codes: Any) -> Any:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(numbers))))).squeeze(1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, numbers: Any, codes: Any) -> Any:
        return self.last(torch.tanh(self.first(torch.tanh(self.first(numbers))))).squeeze(1)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, numbers: Any, codes: Any) -> Any:
        return self.last(self.first(numbers).relu_()).squeeze(1)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 3, 2), nn.Linear(9, 1)

    def forward(self, numbers: Any, codes: Any) -> Any:
        return self.last(torch.tanh(self.conv(numbers.unsqueeze(1))).flatten(1)).squeeze(1)


class Scale(nn.Module):
    """A layer that Opacus has no rule of its own for."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, numbers: Any) -> Any:
        return numbers * self.factor.exp()


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = Scale(), nn.Linear(4, 1)
        self.unused = nn.Linear(4, 2)

    def forward(self, numbers: Any, codes: Any) -> Any:
        return self.last(torch.tanh(self.scale(numbers))).squeeze(1)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, numbers: Any, codes: Any) -> Any:
        return self.last(self.norm(numbers)).squeeze(1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", [Twice, Convolution, Custom])
def test_what_the_closed_forms_cannot_do_falls_back_and_is_right(
    world: Any, kind: Any, rows: int
) -> None:
    model = seeded(kind())
    batch = world.batch(world.schema(4, (), rows), 20)
    for clip in (0.5, 100.0):
        assert_close(clipped_sum(model, batch, clip), by_autograd(model, batch, clip), 1e-6)


@pytest.mark.parametrize("kind", [InPlace, Mixed])
def test_what_nobody_can_differentiate_by_row_is_refused(world: Any, kind: Any) -> None:
    with pytest.raises(SettingError):
        clipped_sum(seeded(kind()), world.batch(world.schema(4), 5), 1.0)


def test_support_is_told_from_the_structure() -> None:
    assert not supports(Shared())
    assert not supports(Convolution())
    assert not supports(Custom())
    assert not supports(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)))
    assert not supports(nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)))
    assert not supports(nn.Sequential(nn.Linear(2, 2).requires_grad_(requires_grad=False)))
    assert supports(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.LayerNorm(2), nn.Dropout()))


@pytest.mark.parametrize("kind", [Twice, InPlace])
def test_a_pass_beyond_the_closed_forms_is_noticed(world: Any, kind: Any) -> None:
    model = seeded(kind())
    rows = rows_of(world.batch(world.schema(4), 3, fill=1.0))
    with pytest.raises(UnsupportedModel):
        BookKeeper(model).add_clipped_sum(rows, 1.0, 1.0, {})


def test_an_unused_layer_has_a_sum_of_zeros(world: Any) -> Any:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.idle = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, numbers: Any, codes: Any) -> Any:
            self.idle(numbers)
            return self.used(numbers).squeeze(1)

    model = seeded(Unused())
    batch = world.batch(world.schema(4), 8)
    assert_close(clipped_sum(model, batch, 1.0), by_autograd(model, batch, 1.0), 1e-6)


def test_hooks_are_gone_afterwards(world: Any) -> None:
    model = seeded(Normed())
    clipped_sum(model, world.batch(world.schema(4), 3), 1.0)
    assert not any(m._forward_hooks for m in model.modules())


def test_rows_of_one_customer_may_cancel_and_still_be_bounded() -> Any:
    """Two huge rows whose gradients nearly cancel: float32 loses the norm, never the bound."""
    first, last = nn.Linear(8, 32), nn.Linear(32, 1)
    model = seeded(nn.Sequential(first, nn.Tanh(), last))

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, numbers: Any, codes: Any) -> Any:
            return self.inner(numbers).squeeze(1)

    dice = np.random.default_rng(1)
    numbers = np.repeat(dice.uniform(-1e-3, 1e-3, (40, 1, 8)), 2, axis=1).astype(np.float32)
    with torch.no_grad():
        first.bias.zero_()
        first.weight.mul_(1e-3)
        last.weight.mul_(1e6)
        last.bias.zero_()
    labels = np.tile(np.array([0, 1], np.float32), (40, 1))
    for i in range(40):
        one = Batch(
            numbers[i : i + 1],
            np.zeros((1, 2, 0), np.int64),
            labels[i : i + 1],
            np.ones((1, 2), np.float32),
        )
        sums = clipped_sum(Squeezed(), one, 0.01)
        assert np.sqrt(sum(np.square(a).sum() for a in sums.values())) <= 0.01 * (1 + 1e-3)
