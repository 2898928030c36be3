from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dovetail.agreement.request import ModelSpec
from dovetail.training.evaluate import scores
from dovetail.training.plain import train_plain


def separable(world: Any, schema: Any, customers: Any = 300) -> Any:
    """Labels follow the first number, with noise."""
    table = world.table(schema, customers, seed=3)
    dice = np.random.default_rng(0)
    logits = 3 * np.nan_to_num(table.whole.numbers[..., 0])
    table.whole.labels[:] = dice.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return table


def test_logistic_regression_equals_scikit_learns(world: Any) -> None:
    schema = world.schema(3, (2,), 2)
    table = separable(world, schema)
    rows = table.whole.mask == 1
    one_hot = np.eye(4)[table.whole.codes[rows][:, 0]]
    inputs = np.concatenate([table.whole.numbers[rows], one_hot], 1)
    l2 = 1e-2
    theirs = LogisticRegression(C=1 / (l2 * len(inputs)), tol=1e-8).fit(
        inputs, table.whole.labels[rows]
    )
    ours = train_plain(table, schema, ModelSpec("logistic"), l2=l2)
    np.testing.assert_allclose(ours["output.weight"], theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(ours["output.bias"], theirs.intercept_, atol=2e-3)


@pytest.mark.parametrize("spec", [ModelSpec("mlp", (8,)), ModelSpec("embedding_mlp", (8,), 2)])
def test_networks_learn_and_repeat_themselves(world: Any, spec: ModelSpec) -> None:
    schema = world.schema(3, (2,), 2)
    table = separable(world, schema)
    fitted = train_plain(table, schema, spec, epochs=30, learning_rate=1e-2, seed=1)
    again = train_plain(table, schema, spec, epochs=30, learning_rate=1e-2, seed=1)
    assert all((fitted[name] == again[name]).all() for name in fitted)
    predicted, labels, _ = scores(fitted, spec, schema, table)
    assert ((predicted > 0.5) == labels).mean() > 0.7


def test_no_customers_give_the_initial_model(world: Any) -> None:
    schema = world.schema(2)
    fitted = train_plain(world.table(schema, 0), schema, ModelSpec("logistic"))
    assert not any(array.any() for array in fitted.values())
