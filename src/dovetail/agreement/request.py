"""A request as plain data: nothing can be asked that policy cannot read.

The task stands here and not in ``training`` because the coordinator, which may not import
``training``, draws it up, and because policy judges it.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Literal, get_args

from dovetail.agreement.record import LARGEST_WHOLE, Fields, positive, require
from dovetail.crypto import canonical
from dovetail.privacy.event import SampledGaussian
from dovetail.schema import Schema

Family = Literal["logistic", "mlp", "embedding_mlp"]
ServerOptimizer = Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedprox"]
LocalOptimizer = Literal["sgd", "adam"]
Protection = Literal["local", "distributed", "none"]
ROBUST = ("krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg")
"""Flower's strategies that compare single updates, which no server optimiser here does."""

MAX_LAYERS = 16
MAX_WIDTH = 65_536
MAX_STEPS = 10_000_000
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


CLIP_NORMS = (1e-3, 1e6)
"""Clip norms that float32 arithmetic can enforce: below, what it loses could exceed them."""


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

    Raises:
        SettingError: the fields do not fit each other.
    """

    family: Family
    hidden: tuple[int, ...] = ()
    embedding_dim: int = 0

    def __post_init__(self) -> None:
        layered, embedded = self.family != "logistic", self.family == "embedding_mlp"
        require(layered == bool(self.hidden), "model: hidden layers are for an MLP, and only there")
        require(len(self.hidden) <= MAX_LAYERS, f"model: at most {MAX_LAYERS} hidden layers")
        require(
            all(1 <= width <= MAX_WIDTH for width in self.hidden),
            f"model: a hidden layer has 1 to {MAX_WIDTH} units",
        )
        require(
            1 <= self.embedding_dim <= MAX_WIDTH if embedded else self.embedding_dim == 0,
            "model: embedding_dim is at least 1 for embedding_mlp, and 0 for others",
        )

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
        l2_clip_norm: bound on one customer's summed gradient, in :data:`CLIP_NORMS`.
        noise_multiplier: noise per unit of ``l2_clip_norm``, > 0; 0 only without protection.
        local_optimizer: what a node applies its noised gradients with.
        learning_rate: of the local optimiser, > 0.
        momentum: of local SGD, in [0, 1); 0 for others.
        server_optimizer: Flower's strategy that applies the mean update.
        server_learning_rate: of the server optimiser, > 0 (FedAvg and FedProx: 1).
        proximal_mu: weight of the proximal term, > 0 for FedProx and 0 for others.
        positive_weight: weight of a positive row in the loss, > 0; taken out of the released
            model's probabilities again.
        seed: of the public initial parameters, >= 0.

    Raises:
        SettingError: a field is out of its range, or does not fit another.
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

    def __post_init__(self) -> None:
        for name in ("learning_rate", "server_learning_rate", "positive_weight", "l2_clip_norm"):
            require(positive(getattr(self, name)), f"task: {name} must be above 0 and finite")
        require(0 < self.sampling_prob <= 1, "task: sampling_prob must lie in (0, 1]")
        require(0 <= self.momentum < 1, "task: momentum must lie in [0, 1)")
        require(0 <= self.seed <= LARGEST_WHOLE, "task: seed must lie in [0, 2^53)")
        require(self.rounds >= 1, "task: rounds must be at least 1")
        require(self.local_steps >= 1, "task: local_steps must be at least 1")
        require(self.steps <= MAX_STEPS, f"task: at most {MAX_STEPS} steps in all")
        self._check_features()
        self._check_noise()
        self._check_optimizers()

    def _check_features(self) -> None:
        require(bool(self.features), "task: features must name at least one column")
        require(len(set(self.features)) == len(self.features), "task: features names one twice")
        require(self.label not in self.features, "task: the label cannot be a feature")

    def _check_noise(self) -> None:
        low, high = CLIP_NORMS
        require(
            low <= self.l2_clip_norm <= high,
            f"task: l2_clip_norm must lie between {low:g} and {high:g}",
        )
        noisy = positive(self.noise_multiplier * self.l2_clip_norm)
        raw = self.protection == "none" and self.noise_multiplier == 0
        require(noisy or raw, "task: noise_multiplier must be above 0 and finite")

    def _check_optimizers(self) -> None:
        require(
            self.momentum == 0 or self.local_optimizer == "sgd",
            "task: momentum belongs to local_optimizer sgd",
        )
        proximal = self.server_optimizer == "fedprox"
        require(
            not (proximal and self.protection == "distributed" and self.local_steps == 1),
            "task: fedprox pulls local steps back; a single shared step has none (local_steps = 1)",
        )
        require(
            self.local_optimizer == "sgd" or self.protection != "distributed",
            "task: under protection distributed the server's optimiser may be adaptive "
            "(server_optimizer), and local_optimizer must be sgd",
        )
        require(
            positive(self.proximal_mu) if proximal else self.proximal_mu == 0,
            "task: proximal_mu must be above 0 for fedprox, and 0 for others",
        )
        require(
            self.server_learning_rate == 1 or self.server_optimizer not in ("fedavg", "fedprox"),
            "task: server_learning_rate must be 1 for fedavg and fedprox",
        )

    @property
    def event(self) -> SampledGaussian:
        """What one step of this task releases at a partner that adds all of its noise itself.

        What a job is charged, under any protection: :func:`dovetail.agreement.cost.cost_of`.
        """
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
    """A task under a job's name, as a coordinator sends it to every partner.

    Attributes:
        job: 1 to 64 letters, digits and ``._-``, beginning with a letter or digit.
        task: what to do.

    Raises:
        SettingError: ``job`` cannot be a job's name.
    """

    job: str
    task: TrainingTask

    def __post_init__(self) -> None:
        require_job(self.job)

    @cached_property
    def _digest(self) -> str:
        return canonical.digest(to_record(self))


def require_job(job: str) -> None:
    """Raise :class:`SettingError` unless ``job`` can name a job."""
    require(
        _JOB.fullmatch(job) is not None,
        "request: job must be 1 to 64 letters, digits and ._- and begin with a letter or digit",
    )


def to_record(request: Request) -> dict[str, object]:
    """The request as JSON-able data."""
    return {"kind": "training", "job": request.job, "task": asdict(request.task)}


def from_record(record: object) -> Request:
    """The request that :func:`to_record` wrote, from a file or from another company.

    Raises:
        SettingError: a field is missing, unknown, of another type, not finite or out of range; the
            message names it, and the field that was probably meant.
    """
    read = Fields(record, "request", ("kind", "job", "task"))
    read.choice("kind", ("training",))
    return Request(job=read.text("job"), task=_task(read.raw("task")))


def digest(request: Request) -> str:
    """SHA-256 of the request's canonical form, in hex: what a permit and a ledger are bound to."""
    return request._digest


def _task(record: object) -> TrainingTask:
    read = Fields(record, "request.task", [field.name for field in fields(TrainingTask)])
    return TrainingTask(
        purpose=read.text("purpose"),
        features=read.texts("features"),
        label=read.text("label"),
        model=_model(read.raw("model")),
        protection=read.choice("protection", get_args(Protection)),
        rounds=read.whole("rounds"),
        local_steps=read.whole("local_steps"),
        sampling_prob=read.number("sampling_prob"),
        l2_clip_norm=read.number("l2_clip_norm"),
        noise_multiplier=read.number("noise_multiplier"),
        local_optimizer=read.choice("local_optimizer", get_args(LocalOptimizer)),
        learning_rate=read.number("learning_rate"),
        momentum=read.number("momentum"),
        server_optimizer=_server_optimizer(read),
        server_learning_rate=read.number("server_learning_rate"),
        proximal_mu=read.number("proximal_mu"),
        positive_weight=read.number("positive_weight"),
        seed=read.whole("seed"),
    )


def _server_optimizer(read: Fields) -> ServerOptimizer:
    if str(read.raw("server_optimizer")).lower() in ROBUST:
        raise read.error(
            "server_optimizer",
            "is a robust strategy: it compares single updates, which protection distributed hides, "
            "and is not offered under any other",
        )
    found: ServerOptimizer = read.choice("server_optimizer", get_args(ServerOptimizer))
    return found


def _model(record: object) -> ModelSpec:
    read = Fields(record, "request.task.model", [field.name for field in fields(ModelSpec)])
    return ModelSpec(
        family=read.choice("family", get_args(Family)),
        hidden=read.wholes("hidden"),
        embedding_dim=read.whole("embedding_dim"),
    )
