"""Customer-level DP-SGD: one partner's part of one round.

Abadi et al. (2016), "Deep learning with differential privacy", Alg. 1, with customers in the place
of examples. Opacus's ``DPOptimizer`` keeps the order of its stages (clip, add noise, normalise,
step); the clipped sums come from book-keeping and the noise from a cryptographic generator.

Torch's number of threads is left alone; whoever owns the process sets it (the node sets 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dovetail.agreement.request import TrainingTask
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import MISSING_CODE, Schema
from dovetail.training.batch import Customers
from dovetail.training.clipped_sum import physical_batches
from dovetail.training.clipping import Rows
from dovetail.training.lazy_noise import LazyTables, lazy_growth, lazy_pays
from dovetail.training.model import (
    Arrays,
    arrays_of,
    blueprint,
    largest_in_tables,
    load_arrays,
    require_steady,
)
from dovetail.training.noised_optimizer import (
    NoisedSumOptimizer,
    OptimizerState,
    restore,
    state_of,
)
from dovetail.training.round_result import RoundResult
from dovetail.training.tabular_pass import TabularClipper
from dovetail.training.vector import ParameterVector


def train_round(
    model_arrays: Arrays,
    customers: Customers,
    schema: Schema,
    task: TrainingTask,
    declared_customers: int,
    sampler: SecureSampler,
    optimizer_state: OptimizerState,
) -> RoundResult:
    """Take ``task.local_steps`` steps of DP-SGD from the given parameters.

    Args:
        model_arrays: the round's global parameters.
        customers: this partner's customers.
        schema: of ``customers``: exactly the task's features, in order.
        task: the job's task.
        declared_customers: number of customers that this partner has *declared*, > 0; public.
        sampler: noise and Poisson samples.
        optimizer_state: of this node's last round in this job; empty in its first.

    Raises:
        RemoteProtocolError: the arrays are not finite parameters of this model, or so large that
            its arithmetic would be unsteady.
        LocalProtocolError: the state is not one of this task's optimiser.

    Guarantees:
        Exactly ``task.event`` happens ``task.local_steps`` times, and nothing else in the result
        depends on a row: not even the normalisation, which uses declared numbers. Neighbouring
        data sets differ by one customer with all their rows.
    """
    vector = ParameterVector(blueprint(task.model, schema))
    load_arrays(vector.model, model_arrays)
    steps = noised_steps(vector, schema, task, declared_customers, sampler)
    restore(steps.optimizer, steps.values, task, optimizer_state)
    clipper = TabularClipper(vector)
    embeddings = None
    if steps.tables is not None:  # what they hold before the end depends on which rows were read
        embeddings = largest_in_tables(vector.model) + lazy_growth(task, declared_customers)
    for _ in range(task.local_steps):
        require_steady(vector.model, embeddings)
        chosen = sampler.poisson_sample(len(customers), task.sampling_prob)
        for rows in physical_batches(customers, chosen, schema.max_rows_per_customer):
            steps.before_reading(rows)
            clipper.add_clipped_sum(rows, task.l2_clip_norm, task.positive_weight, vector.sums_of)
        steps.take()
    steps.finish()
    return RoundResult(arrays_of(vector.model), state_of(steps.optimizer, steps.values))


@dataclass(frozen=True)
class Steps:
    """How gathered sums become steps: all by the optimiser, or the embeddings' lazily.

    Attributes:
        optimizer: takes dense steps.
        values: what it optimises: all parameters, or those behind the embeddings.
        tables: the embeddings, where their noise is lazy.
    """

    optimizer: NoisedSumOptimizer
    values: nn.Parameter
    tables: LazyTables | None

    def before_reading(self, rows: Rows) -> None:
        """Bring what these rows read up to date."""
        if self.tables:
            self.tables.settle(rows.codes)

    def take(self) -> None:
        """Noise and apply what has been gathered."""
        self.optimizer.step()
        if self.tables:
            self.tables.step()

    def finish(self) -> None:
        """Bring everything up to date; only now may the parameters leave."""
        if self.tables:
            self.tables.flush()


def noised_steps(
    vector: ParameterVector,
    schema: Schema,
    task: TrainingTask,
    declared_customers: int,
    sampler: SecureSampler,
) -> Steps:
    """The steps of one round: lazy where that is exact and pays."""
    values, sums, tables = vector.values, vector.sums, None
    if lazy_pays(task, schema, declared_customers):
        sizes = [category.cardinality for category in schema.categories]
        table = vector.tables.detach()
        tables = LazyTables(
            table, vector.sums_of[vector.tables], sizes, task, declared_customers, sampler
        )
        end = table.numel()
        values, sums = nn.Parameter(values.detach()[end:]), sums[end:]
    optimizer = NoisedSumOptimizer(values, sums, task, declared_customers, sampler)
    still = [] if tables else missing_embeddings(vector)
    optimizer.attach_step_hook(_after_noise(values, still, task.proximal_mu))
    return Steps(optimizer, values, tables)


def missing_embeddings(vector: ParameterVector) -> list[slice]:
    """Where the embeddings of missing values are in the vector."""
    width = vector.model.embedding_dim
    starts = [
        vector.parts[f"embeddings.{i}.weight"].start + MISSING_CODE * width
        for i in range(len(vector.model.embeddings))
    ]
    return [slice(start, start + width) for start in starts]


def _after_noise(
    values: nn.Parameter, still: list[slice], proximal_mu: float
) -> Callable[[NoisedSumOptimizer], None]:
    """What a step does to its noised gradient: nothing here reads a row.

    The embeddings of missing values keep their values. FedProx (Li et al. 2020, "Federated
    optimization in heterogeneous networks", MLSys) pulls towards the round's first parameters.
    """
    anchor = values.detach().clone() if proximal_mu else None

    def adjust(_optimizer: Any) -> None:
        gradient: Tensor = values.grad  # type: ignore[assignment]
        if anchor is not None:
            gradient.add_(values.detach() - anchor, alpha=proximal_mu)
        for part in still:
            gradient[part] = 0

    return adjust
