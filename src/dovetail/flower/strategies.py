"""Flower's strategies as server optimisers, fed with one mean instead of many replies.

With secure aggregation the server sees only a sum. So that every server optimiser works there as
it does elsewhere, a strategy is handed a single synthetic reply that holds the weighted mean of the
models and their total weight; for averaging strategies that is the same as handing it all replies.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from dovetail.errors import LocalProtocolError, SettingError
from dovetail.flower._compat import new_message
from dovetail.flower.grid import ARRAYS, METRICS, WEIGHT
from dovetail.flower.records import (
    NamedArrays,
    all_finite,
    borrowed_record,
    named_arrays,
)

FEDAVGM_MOMENTUM = 0.9
"""Server momentum of ``fedavgm`` (Hsu et al. 2019, section 4.3)."""

State = Mapping[str, npt.NDArray[np.generic]]
"""What a server optimiser carries from round to round, by name."""

_ADAPTIVE_STATE = ("m_t", "v_t")
_MOMENTUM = "momentum"


def server_optimizer(
    name: str, *, nodes: int, learning_rate: float = 1.0, proximal_mu: float = 0.0
) -> FedAvg:
    """One of Flower's strategies by one word.

    Args:
        name: ``fedavg``, ``fedavgm``, ``fedadam``, ``fedyogi`` or ``fedprox``. The adaptive ones
            are Reddi et al. (2021), Alg. 2, with Flower's own decay rates and tau.
        nodes: how many nodes a round asks: all of them, and no fewer.
        learning_rate: of the server, > 0; ``fedavg`` and ``fedprox`` know no other than 1.
        proximal_mu: >= 0; ``fedprox`` sends it to the nodes as ``proximal-mu``.

    Raises:
        SettingError: the name is unknown, or a setting does not fit it.
    """
    build = _BUILDERS.get(name)
    if build is None:
        raise SettingError(f"unknown server optimiser {name!r}{_nearest(name)}")
    if not learning_rate > 0 or not proximal_mu >= 0:
        raise SettingError("server_learning_rate must be positive and proximal_mu not negative")
    if name in ("fedavg", "fedprox") and learning_rate != 1:
        raise SettingError(f"{name} replaces the model: its server_learning_rate must be 1")
    if name != "fedprox" and proximal_mu:
        raise SettingError(f"{name} has no proximal_mu; fedprox has")
    sampling: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": nodes,
        "min_available_nodes": nodes,
        "weighted_by_key": WEIGHT,
        "arrayrecord_key": ARRAYS,
    }
    return build(sampling, learning_rate, proximal_mu)


def apply_mean(
    strategy: FedAvg,
    server_round: int,
    global_arrays: NamedArrays,
    mean_arrays: NamedArrays,
    total_weight: float,
) -> dict[str, npt.NDArray[np.float32]]:
    """The next global model: one step of the server optimiser towards the mean.

    ``fedavg`` and ``fedprox`` step onto the mean: its very arrays are returned, not copies.

    Args:
        strategy: of :func:`server_optimizer`; its momentum moves on.
        server_round: from 1.
        global_arrays: the model that the nodes started from, by name, float32.
        mean_arrays: weighted mean of the models they came back with; same names and shapes.
        total_weight: sum of their public weights, > 0.

    Raises:
        LocalProtocolError: names or shapes of the two models differ, or a value is not finite.
    """
    if {k: v.shape for k, v in global_arrays.items()} != {
        k: v.shape for k, v in mean_arrays.items()
    }:
        raise LocalProtocolError("the mean does not have the arrays of the global model")
    model = {name: np.asarray(mean_arrays[name], np.float32) for name in global_arrays}
    if type(strategy) not in (FedAvg, FedProx):
        model = _stepped(strategy, server_round, global_arrays, model, total_weight)
    if not all(map(all_finite, model.values())):
        raise LocalProtocolError("the server optimiser left the finite numbers")
    return model


def strategy_state(strategy: FedAvg) -> dict[str, npt.NDArray[np.generic]]:
    """What the strategy carries from round to round, by name; empty before the first.

    The global model itself is not part of it: :func:`apply_mean` is given that each time.
    """
    state: dict[str, npt.NDArray[np.generic]] = {}
    for moment in _ADAPTIVE_STATE:
        for name, array in (getattr(strategy, moment, None) or {}).items():
            state[f"{moment}/{name}"] = array
    for i, array in enumerate(getattr(strategy, "momentum_vector", None) or []):
        state[f"{_MOMENTUM}/{i:06}"] = array
    return state


def restore_strategy_state(strategy: FedAvg, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Puts back what :func:`strategy_state` gave, into a strategy of the same name.

    Raises:
        LocalProtocolError: the state belongs to another strategy.
    """
    groups: dict[str, dict[str, npt.NDArray[np.generic]]] = {}
    for key in sorted(state):
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = state[key]
    expected = {_MOMENTUM} if isinstance(strategy, FedAvgM) else set()
    if isinstance(strategy, FedAdam | FedYogi):
        expected = set(_ADAPTIVE_STATE)
    if groups and set(groups) != expected:
        raise LocalProtocolError("the state belongs to another server optimiser")
    for group, arrays in groups.items():
        if group == _MOMENTUM:
            vars(strategy)["momentum_vector"] = list(arrays.values())
        else:
            vars(strategy)[group] = arrays


def _stepped(
    strategy: FedAvg,
    server_round: int,
    global_arrays: NamedArrays,
    mean: NamedArrays,
    weight: float,
) -> dict[str, npt.NDArray[np.float32]]:
    """What the strategy makes of a single reply that holds the mean."""
    _start_from(strategy, global_arrays)
    arrays, metrics = borrowed_record(mean), MetricRecord({WEIGHT: float(weight)})
    reply = _synthetic_reply(RecordDict({ARRAYS: arrays, METRICS: metrics}))
    stepped, _ = strategy.aggregate_train(server_round, [reply])
    arrays.clear()  # Flower reads it through objects that live until garbage is collected
    if stepped is None:
        raise LocalProtocolError("the server optimiser returned no model")
    return {name: np.array(array, np.float32) for name, array in named_arrays(stepped).items()}


def _start_from(strategy: FedAvg, arrays: NamedArrays) -> None:
    """Tells the strategy the current global model, as its ``configure_train`` would."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = borrowed_record(arrays)
    elif isinstance(strategy, FedAdam | FedYogi):
        strategy.current_arrays = dict(arrays)


def _synthetic_reply(content: RecordDict) -> Message:
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type="train",
    )
    return new_message(metadata, content)


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, _BUILDERS, n=1, cutoff=0)
    return f"; did you mean {close[0]!r}?"


class _FedAdam(FedAdam):
    """FedAdam whose model stays float32: Flower's turns float64 by its bias correction."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        model = {name: array.astype(np.float32) for name, array in named_arrays(arrays).items()}
        return borrowed_record(model), metrics


_Build = Callable[[dict[str, Any], float, float], FedAvg]
_BUILDERS: dict[str, _Build] = {
    "fedavg": lambda sampling, _rate, _mu: FedAvg(**sampling),
    "fedavgm": lambda sampling, rate, _mu: FedAvgM(
        **sampling, server_learning_rate=rate, server_momentum=FEDAVGM_MOMENTUM
    ),
    "fedadam": lambda sampling, rate, _mu: _FedAdam(**sampling, eta=rate),
    "fedyogi": lambda sampling, rate, _mu: FedYogi(**sampling, eta=rate),
    "fedprox": lambda sampling, _rate, mu: FedProx(**sampling, proximal_mu=mu),
}
