"""One partner's part of a round whose noise is shared: a bounded vector, and no noise yet.

The vector lists the model's parameters end to end, in the order of ``ModelSpec.parameters``. It
must not leave the node as it is: whoever asks for it encodes it, adds this node's share of the
noise and masks it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from dovetail.agreement.request import TrainingTask
from dovetail.errors import RemoteProtocolError
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Schema
from dovetail.training.batch import Customers
from dovetail.training.clipped_sum import physical_batches
from dovetail.training.dp_sgd import missing_embeddings, train_round
from dovetail.training.exact_pass import ExactClipper
from dovetail.training.model import Arrays, blueprint, load_arrays, require_steady
from dovetail.training.vector import ParameterVector

Vector = npt.NDArray[np.float64]


def contribution(
    model_arrays: Arrays,
    customers: Customers,
    schema: Schema,
    task: TrainingTask,
    declared_customers: int,
    sampler: SecureSampler,
) -> Vector:
    """What this partner adds to a round's sum.

    Args:
        model_arrays: the round's global parameters.
        customers: this partner's customers.
        schema: of ``customers``: exactly the task's features, in order.
        task: the job's task.
        declared_customers: number of customers that this partner has declared, > 0; public.
        sampler: Poisson samples.

    Returns:
        float64 ``(parameters,)``. Of one step, the sum of the sampled customers' clipped
        gradients; of several, the update that they lead to, clipped to ``l2_clip_norm``.

    Raises:
        RemoteProtocolError: as :func:`~dovetail.training.dp_sgd.train_round`.

    Guarantees:
        Adding or removing one customer moves the vector in L2 norm by at most
        ``task.l2_clip_norm`` times ``1 + agreement.rounding.rounding_slack`` where
        ``task.local_steps`` is 1, and by at most twice ``task.l2_clip_norm`` otherwise. The first
        counts all that floating point does to what the *others* add, under the assumption of
        :class:`~dovetail.training.exact_pass.ExactClipper`.
    """
    if task.local_steps == 1:
        return _step_sum(model_arrays, customers, schema, task, sampler)
    return _clipped_update(model_arrays, customers, schema, task, declared_customers, sampler)


def _step_sum(
    model_arrays: Arrays,
    customers: Customers,
    schema: Schema,
    task: TrainingTask,
    sampler: SecureSampler,
) -> Vector:
    vector = ParameterVector(blueprint(task.model, schema), torch.float64)
    load_arrays(vector.model, model_arrays)
    require_steady(vector.model)
    clipper = ExactClipper(vector)
    chosen = sampler.poisson_sample(len(customers), task.sampling_prob)
    for rows in physical_batches(customers, chosen, schema.max_rows_per_customer):
        clipper.add_clipped_sum(rows, task.l2_clip_norm, task.positive_weight, vector.sums_of)
    for still in missing_embeddings(vector):
        vector.sums[still] = 0
    return np.ascontiguousarray(vector.sums.numpy())


def _clipped_update(
    model_arrays: Arrays,
    customers: Customers,
    schema: Schema,
    task: TrainingTask,
    declared_customers: int,
    sampler: SecureSampler,
) -> Vector:
    """Local steps without noise: nothing of them is seen but the update, clipped and noised.

    Only the model that came in may be refused. From the first step on the model depends on rows
    without noise, and so would a refusal: where it grows unsteady the update is nothing at all.
    """
    received = ParameterVector(blueprint(task.model, schema))
    load_arrays(received.model, model_arrays)
    require_steady(received.model)
    quiet = replace(task, protection="none", noise_multiplier=0.0)
    try:
        result = train_round(
            model_arrays, customers, schema, quiet, declared_customers, sampler, {}
        )
    except RemoteProtocolError:
        return received.sums.double().numpy()  # all 0
    update = np.concatenate(
        [
            (result.arrays[p.name] - model_arrays[p.name]).ravel()
            for p in task.model.parameters(schema)
        ]
    )
    return clipped(update, task.l2_clip_norm)


def clipped(vector: npt.NDArray[np.floating], l2_clip_norm: float) -> Vector:
    """The vector, shortened to a norm; one that is not finite becomes nothing.

    Shortened by more than rounding can lengthen it again.
    """
    exact = vector.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    if not np.isfinite(norm):
        return np.zeros_like(exact)
    factor = min(1.0, l2_clip_norm * (1 - 1e-6) / norm) if norm else 1.0
    return exact * factor
