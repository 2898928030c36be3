from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dovetail.agreement.request import ModelSpec, TrainingTask
from dovetail.errors import LocalProtocolError, RemoteProtocolError
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import MISSING_CODE
from dovetail.training import clipped_sum as parts
from dovetail.training.clipped_sum import clipped_sum
from dovetail.training.dp_sgd import train_round
from dovetail.training.model import build_model, load_arrays

KEY = bytes(range(32))
DECLARED = 37
TASK = TrainingTask(
    purpose="test",
    features=("n0",),
    label="y",
    model=ModelSpec("embedding_mlp", (8,), 3),
    rounds=4,
    sampling_prob=0.3,
    l2_clip_norm=0.5,
    noise_multiplier=1.1,
    learning_rate=0.2,
    positive_weight=2.0,
)
SILENT = replace(TASK, protection="none", noise_multiplier=0.0)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "adam": {"local_optimizer": "adam", "learning_rate": 0.01},
}


@pytest.fixture
def setting(world: Any) -> Any:
    schema = world.schema(4, (3, 5), 3)
    return schema, world.table(schema, 40), world.arrays(TASK.model, schema)


def run(setting: Any, task: Any, arrays: Any = None, state: Any = None, sampler: Any = None) -> Any:
    schema, table, first = setting
    sampler = sampler or SecureSampler(KEY)
    return train_round(arrays or first, table, schema, task, DECLARED, sampler, state or {})


def sum_at(setting: Any, arrays: Any, chosen: Any) -> Any:
    schema, table, _ = setting
    model = build_model(TASK.model, schema)
    load_arrays(model, arrays)
    return clipped_sum(model, table.batch(chosen), TASK.l2_clip_norm, TASK.positive_weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_rounds_of_one_step_are_one_round_of_two(setting: Any, name: str) -> None:
    task = replace(TASK, **OPTIMIZERS[name])
    both = run(setting, replace(task, local_steps=2))
    sampler = SecureSampler(KEY)
    first = run(setting, task, sampler=sampler)
    second = run(setting, task, first.arrays, first.optimizer_state, sampler)
    for array in both.arrays:
        np.testing.assert_array_equal(both.arrays[array], second.arrays[array])
    assert both.optimizer_state.keys() == second.optimizer_state.keys()
    for array in both.optimizer_state:
        np.testing.assert_array_equal(both.optimizer_state[array], second.optimizer_state[array])


def test_state_is_needed_where_it_matters(setting: Any) -> None:
    for name in ("momentum", "adam"):
        task = replace(TASK, **OPTIMIZERS[name])
        sampler = SecureSampler(KEY)
        first = run(setting, task, sampler=sampler)
        forgotten = run(setting, task, first.arrays, {}, sampler)
        both = run(setting, replace(task, local_steps=2))
        assert any((both.arrays[n] != forgotten.arrays[n]).any() for n in both.arrays)


def test_state_is_plain_arrays_and_empty_for_plain_sgd(setting: Any) -> None:
    assert run(setting, TASK).optimizer_state == {}
    size = sum(a.size for a in setting[2].values())
    shapes = {
        "momentum": {"momentum_buffer": (size,)},
        "adam": {"step": (), "exp_avg": (size,), "exp_avg_sq": (size,)},
    }
    for name, expected in shapes.items():
        state = run(setting, replace(TASK, **OPTIMIZERS[name])).optimizer_state
        assert {n: a.shape for n, a in state.items()} == expected
        assert all(type(a) is np.ndarray and a.dtype == np.float32 for a in state.values())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_state_of_another_optimizer_is_refused(setting: Any, name: str) -> None:
    state = run(setting, replace(TASK, momentum=0.5)).optimizer_state
    with pytest.raises(LocalProtocolError):
        run(setting, replace(TASK, **OPTIMIZERS[name]), state=state)


def test_a_state_of_another_size_is_refused(setting: Any) -> None:
    with pytest.raises(LocalProtocolError):
        run(setting, replace(TASK, momentum=0.5), state={"momentum_buffer": np.zeros(3)})


def test_the_sum_is_divided_by_the_public_expected_batch_size_unrounded(setting: Any) -> None:
    """0.3 * 37 = 11.1: neither its floor nor the 40 customers there are nor those sampled."""
    chosen = SecureSampler(KEY).poisson_sample(40, 0.3)
    total = sum_at(setting, setting[2], chosen)
    after = run(setting, SILENT).arrays
    for name, before in setting[2].items():
        expected = before - 0.2 * total[name] / (0.3 * DECLARED)
        np.testing.assert_allclose(after[name], expected, atol=1e-7)


def test_adam_gets_the_normalised_sum(setting: Any) -> None:
    chosen = SecureSampler(KEY).poisson_sample(40, 0.3)
    total = sum_at(setting, setting[2], chosen)
    after = run(setting, replace(SILENT, **OPTIMIZERS["adam"])).arrays
    for name, before in setting[2].items():
        parameter = torch.nn.Parameter(torch.tensor(before))
        parameter.grad = torch.tensor(total[name]) / (0.3 * DECLARED)
        torch.optim.Adam([parameter], lr=0.01).step()
        np.testing.assert_allclose(after[name], parameter.detach().numpy(), atol=1e-6)


def test_fedprox_pulls_towards_the_rounds_first_parameters(setting: Any) -> None:
    task = replace(SILENT, server_optimizer="fedprox", proximal_mu=0.7, local_steps=2)
    sampler, arrays, first = SecureSampler(KEY), setting[2], setting[2]
    for _ in range(2):
        total = sum_at(setting, arrays, sampler.poisson_sample(40, 0.3))
        arrays = {
            n: a - np.float32(0.2) * (total[n] / (0.3 * DECLARED) + 0.7 * (a - first[n]))
            for n, a in arrays.items()
        }
    after = run(setting, task).arrays
    for name, array in arrays.items():
        np.testing.assert_allclose(after[name], array, atol=1e-6)


def test_a_large_batch_in_parts_is_the_same_step(setting: Any, monkeypatch: Any) -> None:
    whole = run(setting, TASK).arrays
    monkeypatch.setattr(parts, "PHYSICAL_ROWS", 7)
    for name, array in run(setting, TASK).arrays.items():
        np.testing.assert_allclose(array, whole[name], atol=1e-6)


def test_an_empty_sample_or_partner_still_takes_its_noised_steps(setting: Any, world: Any) -> None:
    schema = setting[0]
    for customers in (0, 5):
        nobody = world.table(schema, customers, fill=0.0)
        after = run((schema, nobody, setting[2]), replace(TASK, local_steps=2)).arrays
        assert (after["output.weight"] != setting[2]["output.weight"]).mean() > 0.7


def test_the_embedding_of_a_missing_value_stays(setting: Any) -> None:
    for task in (TASK, replace(TASK, momentum=0.9, local_steps=3)):
        after = run(setting, task).arrays["embeddings.1.weight"]
        before = setting[2]["embeddings.1.weight"]
        np.testing.assert_array_equal(after[MISSING_CODE], before[MISSING_CODE])
        assert (after[MISSING_CODE + 1 :] != before[MISSING_CODE + 1 :]).any(1).all()


def test_inputs_are_left_alone(setting: Any) -> None:
    before = {name: array.copy() for name, array in setting[2].items()}
    state = run(setting, replace(TASK, momentum=0.9)).optimizer_state
    kept = state["momentum_buffer"].copy()
    run(setting, replace(TASK, momentum=0.9), state=state)
    np.testing.assert_array_equal(state["momentum_buffer"], kept)
    for name, array in before.items():
        np.testing.assert_array_equal(setting[2][name], array)


def test_parameters_that_are_not_finite_are_refused(setting: Any) -> None:
    bad = {**setting[2], "output.bias": np.array([np.inf], np.float32)}
    with pytest.raises(RemoteProtocolError, match="finite"):
        run(setting, TASK, arrays=bad)


@pytest.mark.parametrize(
    "huge", ["embeddings.0.weight", "hidden.0.weight", "hidden.0.bias", "output.weight"]
)
def test_canary_parameters_that_magnify_rounding_are_refused(setting: Any, huge: str) -> None:
    bad = {**setting[2], huge: np.full_like(setting[2][huge], 1e12)}
    with pytest.raises(RemoteProtocolError, match="too large"):
        run(setting, TASK, arrays=bad)


@pytest.mark.parametrize("family", [ModelSpec("logistic"), ModelSpec("mlp", (64, 64, 32))], ids=str)
def test_parameters_of_any_model_that_predicts_are_accepted(world: Any, family: ModelSpec) -> None:
    schema = world.schema(4, (30, 50), 1)
    arrays = world.arrays(family, schema, scale=0.7)
    task = replace(TASK, model=family)
    table, sampler = world.table(schema, 5), SecureSampler(KEY)
    after = train_round(arrays, table, schema, task, DECLARED, sampler, {}).arrays
    assert all(np.isfinite(array).all() for array in after.values())


def test_it_learns(world: Any) -> None:
    """A sanity check on a separable task, not a benchmark."""
    schema = world.schema(3, (), 1)
    table = world.table(schema, 2000, fill=1.0)
    table.whole.labels[:] = table.whole.numbers[..., 0] > 0
    task = replace(
        TASK, model=ModelSpec("logistic"), local_steps=60, learning_rate=2.0, positive_weight=1.0
    )
    first = world.arrays(task.model, schema, scale=0.0)
    result = train_round(first, table, schema, task, 2000, SecureSampler(KEY), {})
    weights = result.arrays["output.weight"][0]
    assert weights[0] > 3 * np.abs(weights[1:]).max()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_model_that_grows_too_large_within_a_round_is_trained_on_no_further(
    momentum: float, world: Any
) -> None:
    schema = world.schema(2, (3,), 2)
    table = world.table(schema, 60)
    spec = ModelSpec("logistic")
    task = replace(
        TASK,
        model=spec,
        features=tuple(c.name for c in schema.columns),
        learning_rate=1e12,
        local_steps=2,
        momentum=momentum,
    )
    with pytest.raises(RemoteProtocolError, match="too large"):
        train_round(world.arrays(spec, schema), table, schema, task, 60, SecureSampler(KEY), {})
    once = replace(task, local_steps=1)
    train_round(world.arrays(spec, schema), table, schema, once, 60, SecureSampler(KEY), {})
