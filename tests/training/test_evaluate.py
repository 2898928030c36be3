from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dovetail.agreement.request import ModelSpec
from dovetail.training import clipped_sum
from dovetail.training.evaluate import scores
from dovetail.training.model import build_model, load_arrays

SPEC = ModelSpec("mlp", (4,))


def test_scores_are_the_models_probabilities_by_row_and_customer(
    world: Any, monkeypatch: Any
) -> None:
    schema = world.schema(2, (3,), 3)
    table = world.table(schema, 20)
    arrays = world.arrays(SPEC, schema)
    monkeypatch.setattr(clipped_sum, "PHYSICAL_ROWS", 15)
    predicted, labels, owner = scores(arrays, SPEC, schema, table)
    real = table.whole.mask == 1
    model = build_model(SPEC, schema)
    load_arrays(model, arrays)
    with torch.no_grad():
        logits = model(
            torch.from_numpy(table.whole.numbers[real]), torch.from_numpy(table.whole.codes[real])
        )
    np.testing.assert_allclose(predicted, torch.sigmoid(logits).numpy(), atol=1e-6)
    np.testing.assert_array_equal(labels, table.whole.labels[real])
    np.testing.assert_array_equal(owner, np.nonzero(real)[0])


def test_nobody_has_no_scores(world: Any) -> None:
    schema = world.schema(2)
    predicted, labels, owner = scores(
        world.arrays(SPEC, schema), SPEC, schema, world.table(schema, 0)
    )
    assert len(predicted) == len(labels) == len(owner) == 0
    assert owner.dtype == np.int64
