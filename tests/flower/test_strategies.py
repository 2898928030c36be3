from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import LocalProtocolError, SettingError
from dovetail.flower.client import answer, client_app, new_context
from dovetail.flower.grid import CheckedGrid, Expected
from dovetail.flower.records import array_record, named_arrays
from dovetail.flower.strategies import (
    apply_mean,
    restore_strategy_state,
    server_optimizer,
    strategy_state,
)
from dovetail.wire.memory import Handler, MemoryChannel

NAMES = ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedprox"]
RATES = {"fedavg": 1.0, "fedprox": 1.0, "fedavgm": 0.7, "fedadam": 0.05, "fedyogi": 0.02}
Model = dict[str, npt.NDArray[np.float32]]


def build(name: str, nodes: int = 3) -> FedAvg:
    mu = 0.1 if name == "fedprox" else 0.0
    return server_optimizer(name, nodes=nodes, learning_rate=RATES[name], proximal_mu=mu)


def model(source: np.random.Generator) -> Model:
    return {
        "w": source.normal(size=(3, 4)).astype(np.float32),
        "b": source.normal(size=1).astype(np.float32),
    }


def mean(updates: list[tuple[Model, float]]) -> Model:
    total = sum(weight for _, weight in updates)
    names = updates[0][0]
    return {
        name: np.sum([u[name].astype(np.float64) * (w / total) for u, w in updates], axis=0).astype(
            np.float32
        )
        for name in names
    }


def stock_round(strategy: FedAvg, r: int, start: Any, updates: list[tuple[Model, float]]) -> Any:
    nodes = range(1, len(updates) + 1)
    grid = CheckedGrid(
        MemoryChannel(dict.fromkeys(nodes, bytes)), Expected({}, {}), quorum=1, deadline=60
    )
    requests = list(strategy.configure_train(r, start, _config(), grid))
    replies = [
        Message(
            RecordDict({"arrays": array_record(u), "metrics": MetricRecord({"weight": w})}),
            reply_to=request,
        )
        for request, (u, w) in zip(requests, updates, strict=True)
    ]
    arrays, _ = strategy.aggregate_train(r, replies)
    return arrays


def _config() -> Any:
    from flwr.app import ConfigRecord

    return ConfigRecord()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    weights=st.lists(st.floats(0.5, 1e5), min_size=2, max_size=4),
)
def test_one_mean_equals_all_replies(name: str, seed: int, weights: list[float]) -> None:
    source = np.random.default_rng(seed)
    stock, ours = build(name, len(weights)), build(name, len(weights))
    start = model(source)
    stock_model, our_model = array_record(start), start
    for r in (1, 2, 3):
        updates = [(model(source), weight) for weight in weights]
        stock_model = stock_round(stock, r, stock_model, updates)
        our_model = apply_mean(ours, r, our_model, mean(updates), sum(weights))
        for key, array in named_arrays(stock_model).items():
            np.testing.assert_allclose(our_model[key], array, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_float32_and_the_inputs_untouched(name: str) -> None:
    source = np.random.default_rng(1)
    start, target = model(source), model(source)
    copies = {key: value.copy() for key, value in (start | target).items()}
    strategy = build(name)
    result = apply_mean(strategy, 1, start, target, 3.0)
    result = apply_mean(strategy, 2, result, target, 3.0)
    assert list(result) == ["w", "b"]
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    assert all(array.flags.writeable for array in result.values())
    for key, value in (start | target).items():
        np.testing.assert_array_equal(value, copies[key])


def test_fedavg_takes_the_mean() -> None:
    source = np.random.default_rng(2)
    start, target = model(source), model(source)
    result = apply_mean(build("fedavg"), 1, start, target, 12.5)
    for key, value in target.items():
        np.testing.assert_array_equal(result[key], value)


def test_names_may_come_in_another_order() -> None:
    source = np.random.default_rng(3)
    start, target = model(source), model(source)
    turned = dict(reversed(target.items()))
    for name in NAMES:
        first = apply_mean(build(name), 1, start, target, 2.0)
        second = apply_mean(build(name), 1, start, turned, 2.0)
        assert all((first[key] == second[key]).all() for key in start)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_strategy_goes_on_where_it_stopped(name: str) -> None:
    source = np.random.default_rng(4)
    rounds = [model(source) for _ in range(5)]
    whole, before = build(name), build(name)
    expected, arrays = rounds[0], rounds[0]
    for r, target in enumerate(rounds[1:], start=1):
        expected = apply_mean(whole, r, expected, target, 2.0)
        if r == 3:
            after = build(name)
            restore_strategy_state(after, strategy_state(before))
            before = after
        arrays = apply_mean(before, r, arrays, target, 2.0)
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[key], value)


def test_state_is_there_where_it_matters() -> None:
    source = np.random.default_rng(5)
    sizes = {}
    for name in NAMES:
        strategy = build(name)
        assert strategy_state(strategy) == {}
        apply_mean(strategy, 1, model(source), model(source), 1.0)
        sizes[name] = len(strategy_state(strategy))
    assert sizes == {"fedavg": 0, "fedavgm": 2, "fedadam": 4, "fedyogi": 4, "fedprox": 0}


def test_state_of_another_strategy_is_refused() -> None:
    source = np.random.default_rng(6)
    adam = build("fedadam")
    apply_mean(adam, 1, model(source), model(source), 1.0)
    for name in ("fedavg", "fedavgm"):
        with pytest.raises(LocalProtocolError):
            restore_strategy_state(build(name), strategy_state(adam))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_another_shape_or_with_nan_is_refused(name: str) -> None:
    source = np.random.default_rng(7)
    start = model(source)
    with pytest.raises(LocalProtocolError):
        apply_mean(build(name), 1, start, {"w": start["w"]}, 1.0)
    with pytest.raises(LocalProtocolError):
        apply_mean(build(name), 1, start, start | {"w": start["w"].T}, 1.0)
    with pytest.raises(LocalProtocolError):
        apply_mean(build(name), 1, start, start | {"b": np.array([np.nan], np.float32)}, 1.0)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("fedadm", "fedadam"), ("FedAvg", "fedavg"), ("yogi", "fedyogi"), ("prox", "fedprox")],
)
def test_an_unknown_name_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"did you mean '{meant}'"):
        server_optimizer(typed, nodes=3)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "fedavg", "learning_rate": 0.5},
        {"name": "fedprox", "learning_rate": 0.5},
        {"name": "fedadam", "learning_rate": 0.0},
        {"name": "fedadam", "learning_rate": float("nan")},
        {"name": "fedprox", "proximal_mu": -0.1},
        {"name": "fedavg", "proximal_mu": 0.1},
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        server_optimizer(**options, nodes=3)


@pytest.mark.parametrize("name", NAMES)
def test_flowers_own_loop_runs_over_the_checked_grid(name: str) -> None:
    start = model(np.random.default_rng(9))

    def train(message: Message, context: Context) -> Message:
        arrays = named_arrays(message.content.array_records["arrays"])
        moved = {key: array + np.float32(1) for key, array in arrays.items()}
        records = {"arrays": array_record(moved), "metrics": MetricRecord({"weight": 1.0})}
        return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]

    def handler(node: int) -> Handler:
        app = client_app({"train": train})
        return lambda data: answer(app, lambda _: new_context(node, {}, {}), data)

    nodes = (1, 2, 3)
    shapes = {key: array.shape for key, array in start.items()}
    grid = CheckedGrid(
        MemoryChannel({node: handler(node) for node in nodes}),
        Expected(shapes, dict.fromkeys(nodes, 1.0)),
        quorum=3,
        deadline=60,
    )
    result = build(name).start(grid, array_record(start), num_rounds=3)
    assert {array.dtype for array in result.arrays.values()} == {"float32"}
    assert all((array > start[key]).all() for key, array in named_arrays(result.arrays).items())


def test_fedprox_tells_the_nodes_its_mu() -> None:
    grid = CheckedGrid(
        MemoryChannel(dict.fromkeys((1, 2, 3), bytes)), Expected({}, {}), quorum=1, deadline=60
    )
    arrays = array_record(model(np.random.default_rng(8)))
    (first, *_) = build("fedprox").configure_train(1, arrays, _config(), grid)
    assert first.content.config_records["config"]["proximal-mu"] == 0.1
