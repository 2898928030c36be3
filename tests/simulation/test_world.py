from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement.request import ModelSpec, Request
from dovetail.agreement.terms import Budget
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.round import Arrays
from dovetail.errors import PolicyError
from dovetail.simulation.world import World
from tests.samples import TASK, customers, terms

REQUEST = Request("job-1", TASK)


def trained(request: Request, seed: int = 0) -> Arrays:
    with World(terms(), customers(), seed) as world:
        return world.run(request).value


def test_a_job_walks_the_whole_path() -> None:
    events: list[JobEvent] = []
    models: list[Arrays] = []
    with World(terms(), customers(), seed=0) as world:
        release = world.run(REQUEST, events.append, lambda _, arrays: models.append(arrays))
        spent = {name: ledger.refresh().spending() for name, ledger in world.ledgers.items()}
    assert [event.kind for event in events] == ["permitted"] * 3 + ["round"] * 3 + ["released"]
    assert spent == {name: {TASK.event: TASK.steps} for name in customers()}
    for name, array in models[-1].items():
        np.testing.assert_array_equal(release.value[name], array)


def test_worker_processes_change_neither_the_result_nor_the_ledgers(tmp_path: Path) -> None:
    with World(terms(), customers(), 0) as here:
        alone = here.run(REQUEST).value
    for folder in (None, tmp_path):
        with World(terms(), customers(), 0, folder, workers=2) as apart:
            together = apart.run(REQUEST).value
            spent = {name: book.refresh().spending() for name, book in apart.ledgers.items()}
        assert spent == {name: {TASK.event: TASK.steps} for name in customers()}
        for name, array in alone.items():
            np.testing.assert_array_equal(array, together[name])


def test_a_node_in_a_worker_refuses_as_it_does_here() -> None:
    poor = replace(terms(), budget=Budget(0.01, 1e-4))
    with World(poor, customers(), 0, workers=2) as world:
        with pytest.raises(PolicyError) as refused:
            world.run(REQUEST)
        assert not any(book.refresh().spending() for book in world.ledgers.values())
    assert refused.value.rule == "budget"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": ModelSpec("mlp", (8,))},
        {"model": ModelSpec("embedding_mlp", (8,), 3)},
        {"local_steps": 3, "momentum": 0.9},
        {"local_optimizer": "adam", "learning_rate": 0.01},
        {"server_optimizer": "fedadam", "server_learning_rate": 0.05},
        {"server_optimizer": "fedyogi", "server_learning_rate": 0.05},
        {"server_optimizer": "fedavgm"},
        {"server_optimizer": "fedprox", "proximal_mu": 0.1, "local_steps": 3},
        {"features": ("spend", "region")},
    ],
    ids=str,
)
def test_every_model_and_optimizer_repeats_itself_for_a_seed(changes: dict[str, object]) -> None:
    request = Request("job-1", replace(TASK, **changes))  # type: ignore[arg-type]
    once, again, other = trained(request), trained(request), trained(request, seed=1)
    for name, array in once.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, again[name])
    assert any(not np.array_equal(once[name], other[name]) for name in once)


def test_a_refusal_anywhere_stops_the_job_and_charges_nobody() -> None:
    parties = customers()
    parties["brand"] = type(parties["brand"])(20)
    with World(terms(), parties, seed=0) as world:
        with pytest.raises(PolicyError, match="brand refused") as caught:
            world.run(REQUEST)
        spent = [ledger.refresh().spending() for ledger in world.ledgers.values()]
    assert caught.value.rule == "cohort"
    assert spent == [{}, {}, {}]


def test_jobs_draw_on_one_ledger_until_it_is_empty(tmp_path: Path) -> None:
    dear = replace(TASK, noise_multiplier=0.6, rounds=20)
    with World(terms(), customers(), 0, ledger_folder=tmp_path) as world:
        world.run(Request("job-1", dear))
    with World(terms(), customers(), 0, ledger_folder=tmp_path) as world:
        with pytest.raises(PolicyError) as caught:
            world.run(Request("job-2", dear))
        assert caught.value.rule == "budget"
        assert all(ledger.refresh().length == 42 for ledger in world.ledgers.values())


def test_learning_happens_despite_the_noise() -> None:
    task = replace(TASK, rounds=30, learning_rate=2.0, sampling_prob=0.5)
    generous = terms(budget=Budget(30.0, 1e-3), max_epsilon_per_job=30.0)
    with World(generous, customers(), seed=0) as world:
        weights = world.run(Request("job-1", task)).value["output.weight"][0]
    assert weights[0] > 0.5
    assert weights[0] > 2 * np.abs(weights[1:]).max()
