"""A request as plain data: nothing can be asked that policy cannot read.

The task stands here and not in ``training`` because the coordinator, which may not import
``training``, draws it up, and because policy judges it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dovetail.privacy.event import SampledGaussian
from dovetail.schema import Schema

Family = Literal["logistic", "mlp", "embedding_mlp"]
ServerOptimizer = Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedprox"]
LocalOptimizer = Literal["sgd", "adam"]
Protection = Literal["local", "none"]


@dataclass(frozen=True)
class Parameter:
    """One array of a model's parameters.

    Attributes:
        name: its key in the model's ``state_dict``.
        shape: its shape.
        init_bound: initial values are uniform in ``[-init_bound, init_bound]``.
    """

    name: str
    shape: tuple[int, ...]
    init_bound: float


@dataclass(frozen=True)
class ModelSpec:
    """Which model to train.

    Attributes:
        family: ``logistic`` and ``mlp`` see categories one-hot; ``embedding_mlp`` embeds them.
        hidden: widths of the hidden layers; empty for ``logistic``.
        embedding_dim: width of each category's embedding; 0 but for ``embedding_mlp``.
    """

    family: Family
    hidden: tuple[int, ...] = ()
    embedding_dim: int = 0

    def parameters(self, schema: Schema) -> tuple[Parameter, ...]:
        """The parameter arrays of this model over ``schema``, in the order of its state dict.

        Names are ``embeddings.{i}.weight``, ``hidden.{i}.weight|bias``, ``output.weight|bias``.
        Weights of linear layers have shape ``(outputs, inputs)``; inputs are the number features
        followed by the categories (one-hot or embedded) in the schema's order.
        """
        cardinalities = [category.cardinality for category in schema.categories]
        embedded = self.family == "embedding_mlp"
        parameters = [
            Parameter(f"embeddings.{i}.weight", (cardinality, self.embedding_dim), 0.1)
            for i, cardinality in enumerate(cardinalities if embedded else [])
        ]
        width = len(schema.number_features)
        width += len(cardinalities) * self.embedding_dim if embedded else sum(cardinalities)
        for i, outputs in enumerate(self.hidden):
            bound = 1 / math.sqrt(max(width, 1))
            parameters.append(Parameter(f"hidden.{i}.weight", (outputs, width), bound))
            parameters.append(Parameter(f"hidden.{i}.bias", (outputs,), bound))
            width = outputs
        bound = 1 / math.sqrt(max(width, 1)) if self.hidden else 0.0
        parameters.append(Parameter("output.weight", (1, width), bound))
        parameters.append(Parameter("output.bias", (1,), 0.0))
        return tuple(parameters)


@dataclass(frozen=True)
class TrainingTask:
    """What to train and how, the same for every partner.

    Attributes:
        purpose: why, one of the purposes in the terms.
        features: the columns used, a subset of the schema's, in its order.
        label: the label column.
        model: the model.
        protection: who adds the noise; see ``docs/architecture.md`` section 4.
        rounds: rounds of the job, >= 1.
        local_steps: DP-SGD steps that each node takes in a round, >= 1.
        sampling_prob: probability with which a customer takes part in a step, in (0, 1].
        l2_clip_norm: bound on one customer's summed gradient, > 0.
        noise_multiplier: noise per unit of ``l2_clip_norm``, > 0.
        local_optimizer: what a node applies its noised gradients with.
        learning_rate: of the local optimiser, > 0.
        momentum: of local SGD, in [0, 1).
        server_optimizer: Flower's strategy that applies the mean update.
        server_learning_rate: of the server optimiser, > 0 (FedAvg and FedProx: 1).
        proximal_mu: weight of FedProx's proximal term, >= 0.
        positive_weight: weight of a positive row in the loss, > 0.
        seed: of the public initial parameters.
    """

    purpose: str
    features: tuple[str, ...]
    label: str
    model: ModelSpec
    rounds: int
    sampling_prob: float
    l2_clip_norm: float
    noise_multiplier: float
    learning_rate: float
    protection: Protection = "local"
    local_steps: int = 1
    local_optimizer: LocalOptimizer = "sgd"
    momentum: float = 0.0
    server_optimizer: ServerOptimizer = "fedavg"
    server_learning_rate: float = 1.0
    proximal_mu: float = 0.0
    positive_weight: float = 1.0
    seed: int = 0

    @property
    def event(self) -> SampledGaussian:
        """What one step of this task releases."""
        return SampledGaussian(
            sampling_prob=self.sampling_prob,
            l2_sensitivity=self.l2_clip_norm,
            noise_std=self.noise_multiplier * self.l2_clip_norm,
        )

    @property
    def steps(self) -> int:
        """Steps of the whole job at one partner: how often :attr:`event` is charged."""
        return self.rounds * self.local_steps


@dataclass(frozen=True)
class Request:
    """A task under a job's name, as a coordinator sends it to every partner."""

    job: str
    task: TrainingTask
