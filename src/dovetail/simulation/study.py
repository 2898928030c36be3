"""A study: which data, split how, which model, at which ε, how often."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Literal

from dovetail.agreement.party import require_name
from dovetail.agreement.record import positive, require
from dovetail.agreement.request import LocalOptimizer, ModelSpec, ServerOptimizer, TrainingTask
from dovetail.agreement.secure_aggregation import SecureAggregation
from dovetail.errors import SettingError

DataName = Literal["complete_journey", "hillstrom", "synthetic", "own"]
StudyProtection = Literal["local", "distributed"]
PartitionKind = Literal["column", "size", "files"]
PURPOSE = "study"
"""The one purpose in the terms of a study."""
DEFAULT_TEST_SHARE = 0.2
LONGEST_NAME = 100
"""Bytes of a results folder that is named after its study."""


@dataclass(frozen=True)
class StudyData:
    """Where the rows come from.

    Attributes:
        dataset: a built-in data set, or ``own`` files.
        file: the file, folder or glob that holds the rows; for ``own`` data that is not given per
            partner, and for ``hillstrom``; for ``complete_journey`` the mailings, where they are
            built already.
        schema: the schema file of ``own`` data.
        customers: how many ``synthetic`` customers to make.
        seed: of the ``synthetic`` rows.
        first_day: of ``own`` data, for the terms and the model card.
        last_day: likewise.
    """

    dataset: DataName
    file: Path | None = None
    schema: Path | None = None
    customers: int = 3000
    seed: int = 0
    first_day: date | None = None
    last_day: date | None = None

    def __post_init__(self) -> None:
        own = self.dataset == "own"
        require(self.customers >= 10, "[data]: customers must be at least 10")
        require(self.seed >= 0, "[data]: seed must not be negative")
        require(
            own == (self.schema is not None),
            "[data]: 'schema' names the schema file of your own data, and is for that only",
        )
        require(
            own == (self.first_day is not None and self.last_day is not None),
            "[data]: your own data needs 'first_day' and 'last_day', the days that it covers; "
            "data sets that come with Dovetail know theirs",
        )
        if self.first_day is not None and self.last_day is not None:
            require(self.first_day <= self.last_day, "[data]: last_day lies before first_day")
        if self.dataset == "hillstrom":
            require(self.file is not None, "[data]: 'file' must name hillstrom.csv.gz")


@dataclass(frozen=True)
class Partition:
    """Which customers belong to which partner.

    Attributes:
        kind: by the values of a ``column``, by ``size``, or one of the given ``files`` each.
        column: the column, for kind ``column``; a data set that has a natural one needs none.
        partners: for ``column``, the partners' names and the values that are theirs (empty: one
            partner per value); for ``files``, names and one path each; for ``size``, names only.
        skew: for ``size``, the concentration of the Dirichlet distribution that the partners'
            shares come from: 100 gives almost equal partners, 1 very unequal ones.
        seed: of the random shares.
    """

    kind: PartitionKind
    partners: tuple[tuple[str, tuple[str, ...]], ...] = ()
    column: str | None = None
    skew: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(positive(self.skew), "[partition]: skew must be above 0 and finite")
        require(self.seed >= 0, "[partition]: seed must not be negative")
        if self.kind != "column":
            require(bool(self.partners), "[partition]: 'partners' must name at least one")
        names = [name for name, _ in self.partners]
        require(len(set(names)) == len(names), "[partition]: two partners have the same name")
        for name in names:
            require_partner_name(name)


def require_partner_name(name: str) -> None:
    """Raise :class:`SettingError` unless a study's partner can have this name."""
    try:
        require_name(name)
    except SettingError as error:
        raise SettingError(f"[partition]: {error}; name the partners in 'partners'") from None
    require(name.lower() != "all", "[partition]: no partner can be named 'all'")


@dataclass(frozen=True)
class Training:
    """A :class:`~dovetail.agreement.request.TrainingTask` but for what a study fills in.

    The noise multiplier follows from each ε, the initial parameters from each seed. Fields mean
    what they mean there; ``features`` is empty for all columns of the schema.
    """

    model: ModelSpec
    rounds: int
    sampling_prob: float
    l2_clip_norm: float
    learning_rate: float
    features: tuple[str, ...] = ()
    local_steps: int = 1
    local_optimizer: LocalOptimizer = "sgd"
    momentum: float = 0.0
    server_optimizer: ServerOptimizer = "fedavg"
    server_learning_rate: float = 1.0
    proximal_mu: float = 0.0
    positive_weight: float = 1.0

    def __post_init__(self) -> None:
        try:
            self.task(("feature",), "label", noise_multiplier=1.0, seed=0)
        except SettingError as error:
            raise SettingError(str(error).replace("task: ", "[training]: ", 1)) from None

    def task(
        self, features: tuple[str, ...], label: str, *, noise_multiplier: float, seed: int
    ) -> TrainingTask:
        """The task for one run, over these columns."""
        settings = {k: v for k, v in vars(self).items() if k != "features"}
        return TrainingTask(
            purpose=PURPOSE,
            features=features,
            label=label,
            noise_multiplier=noise_multiplier,
            seed=seed,
            **settings,
        )

    def shared_task(
        self, features: tuple[str, ...], label: str, *, noise_multiplier: float, seed: int
    ) -> TrainingTask:
        """The same steps where the partners share the noise: each local step is a round of all.

        Momentum moves from the nodes to the server, where it is :data:`FEDAVGM_MOMENTUM`.
        """
        task = self.task(features, label, noise_multiplier=noise_multiplier, seed=seed)
        return replace(
            task,
            protection="distributed",
            rounds=task.steps,
            local_steps=1,
            momentum=0.0,
            server_optimizer="fedavgm" if task.momentum else task.server_optimizer,
        )


@dataclass(frozen=True)
class StudyPrivacy:
    """What is promised to every customer of every partner.

    Attributes:
        epsilons: the ε of each whole job, each > 0, ascending.
        delta: the δ that belongs to them; below one in the customers of the smallest partner.
        protection: how the partners' noise is added when they train together; ``distributed`` is
            compared with ``local``.
        dropouts: where they share it, how many may leave a round before its end.
        colluders: where they share it, how many may pool what they know, >= 1.
        minimum_cohort: fewest training customers with which a partner takes part.
        customers_overlap: whether one person may be a customer of several partners.
    """

    epsilons: tuple[float, ...]
    delta: float
    protection: StudyProtection = "local"
    dropouts: int = 0
    colluders: int = 1
    minimum_cohort: int = 50
    customers_overlap: bool = False

    def __post_init__(self) -> None:
        require(bool(self.epsilons), "[privacy]: epsilons must name at least one")
        for epsilon in self.epsilons:
            require(positive(epsilon), "[privacy]: every epsilon must be above 0 and finite")
        require(
            list(self.epsilons) == sorted(set(self.epsilons)),
            "[privacy]: epsilons must ascend, each once",
        )
        require(0 < self.delta < 1, "[privacy]: delta must lie in (0, 1)")
        SecureAggregation(self.dropouts, self.colluders)
        require(self.minimum_cohort >= 1, "[privacy]: minimum_cohort must be at least 1")


@dataclass(frozen=True)
class Evaluation:
    """What is held out, and how often the joint model is looked at.

    Attributes:
        test_share: share of the customers held out, in (0, 1), each with all its rows; by default
            the data set's own test customers, or :data:`DEFAULT_TEST_SHARE` where it marks none.
        seed: of the split, the same for every run.
        every_rounds: rounds between two points of the learning curve.
    """

    test_share: float | None = None
    seed: int = 0
    every_rounds: int = 5

    def __post_init__(self) -> None:
        require(
            self.test_share is None or 0 < self.test_share < 1,
            "[evaluation]: test_share must lie in (0, 1)",
        )
        require(self.seed >= 0, "[evaluation]: seed must not be negative")
        require(self.every_rounds >= 1, "[evaluation]: every_rounds must be at least 1")


@dataclass(frozen=True)
class Study:
    """A comparison of training alone, together and pooled, over ε and seeds.

    Attributes:
        name: for people, and of the results' folder.
        data: where the rows come from.
        partition: which partner has which of them.
        training: what is trained and how, the same for everyone.
        privacy: at which ε and δ.
        seeds: one run each: initial parameters, samples and noise come from it.
        evaluation: what is held out and measured.

    Raises:
        SettingError: the parts do not fit each other.
    """

    name: str
    data: StudyData
    partition: Partition
    training: Training
    privacy: StudyPrivacy
    seeds: tuple[int, ...]
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        require(bool(self.seeds), "seeds must name at least one")
        require(len(set(self.seeds)) == len(self.seeds), "seeds names one twice")
        require(all(0 <= seed < 2**53 for seed in self.seeds), "a seed must lie in [0, 2^53)")
        if self.data.dataset == "own":
            per_partner = self.partition.kind == "files"
            require(
                per_partner != (self.data.file is not None),
                "[data]: give either 'file', or one file per partner in [partition.partners]",
            )
        else:
            require(
                self.partition.kind != "files",
                "[partition]: kind 'files' is for your own data",
            )

    @property
    def default_output(self) -> Path:
        """Where results go unless told otherwise: named after the study, in the current folder."""
        name = "-".join(re.findall(r"[\w.]+", self.name.lower()))
        short = name.encode()[:LONGEST_NAME].decode(errors="ignore").strip(".-")
        return Path(f"{short or 'study'}-results")

    def to_record(self) -> dict[str, object]:
        """The study as JSON-able data, for results and reports."""
        return {
            **asdict(self),
            "data": {
                key: str(value) if isinstance(value, Path | date) else value
                for key, value in asdict(self.data).items()
            },
        }
