"""One DP-SGD step against one step of plain autograd SGD, on one thread.

    python benchmarks/dp_sgd.py [--quick]

A DP step is all of it: the batch's rows as tensors, clipped sum, cryptographic noise, optimiser.
Contenders take turns, so that a busy machine slows all of them alike, and what is measured is the
thread's processor time, so that waiting for a core does not count; ratios are of medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import opacus
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn

from dovetail.agreement.request import ModelSpec, TrainingTask
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Category, Label, Number, Schema
from dovetail.training.batch import Batch
from dovetail.training.clipping import rows_of
from dovetail.training.dp_sgd import noised_steps, train_round
from dovetail.training.model import arrays_of, build_model
from dovetail.training.tabular_pass import TabularClipper
from dovetail.training.threads import use_one_thread
from dovetail.training.vector import ParameterVector

Step = Callable[[], object]
LAZY_STEPS = 100
BCE = nn.functional.binary_cross_entropy_with_logits


class Plain(nn.Module):
    """The ordinary torch model of the same architecture."""

    def __init__(self, numbers: int, sizes: list[int], spec: ModelSpec, *, sparse: bool) -> None:
        super().__init__()
        dim = spec.embedding_dim
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim, sparse=sparse) for size in sizes)
        widths = [numbers + dim * len(sizes), *spec.hidden]
        layers = [
            module
            for i in range(len(spec.hidden))
            for module in (nn.Linear(widths[i], widths[i + 1]), nn.Tanh())
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        parts = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        logits: torch.Tensor = self.layers(torch.cat([numbers, *parts], 1)).squeeze(1)
        return logits


class Setting:
    """One model and one batch, and a step of each contender over them."""

    def __init__(self, numbers: int, sizes: list[int], spec: ModelSpec, rows: int) -> None:
        columns = [Number(f"n{i}", -1, 1) for i in range(numbers)]
        values = [tuple(map(str, range(size - 2))) for size in sizes]
        categories = [Category(f"c{i}", names) for i, names in enumerate(values)]
        self.schema = Schema("t", "id", "customer", (*columns, *categories), Label("y", 0.2), 1)
        self.sizes, self.spec, self.rows = sizes, spec, rows
        dice = np.random.default_rng(0)
        codes = [dice.integers(1, size, (rows, 1)) for size in sizes]
        self.batch = Batch(
            dice.uniform(-1, 1, (rows, 1, numbers)).astype(np.float32),
            np.stack(codes, -1) if codes else np.zeros((rows, 1, 0), np.int64),
            (dice.random((rows, 1)) < 0.2).astype(np.float32),
            np.ones((rows, 1), np.float32),
        )
        self.inputs = tuple(
            torch.from_numpy(a[:, 0]) for a in (self.batch.numbers, self.batch.codes)
        )
        self.labels = torch.from_numpy(self.batch.labels[:, 0])

    def model(self, *, sparse: bool = False) -> Plain:
        torch.manual_seed(0)
        return Plain(self.inputs[0].shape[1], self.sizes, self.spec, sparse=sparse)

    def plain(self) -> Step:
        model = self.model(sparse=bool(self.sizes))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step() -> None:
            optimizer.zero_grad()
            BCE(model(*self.inputs), self.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    def ours(self, local_steps: int = 1) -> Step:
        """One step as the node takes it; with several local steps the last also flushes."""
        task = TrainingTask(
            purpose="benchmark",
            features=tuple(column.name for column in self.schema.columns),
            label="y",
            model=self.spec,
            rounds=1,
            local_steps=local_steps,
            sampling_prob=0.01,
            l2_clip_norm=1.0,
            noise_multiplier=1.0,
            learning_rate=0.1,
        )
        vector = ParameterVector(build_model(self.spec, self.schema))
        _initialise(vector)
        steps = noised_steps(vector, self.schema, task, 100 * self.rows, SecureSampler(bytes(32)))
        clipper = TabularClipper(vector)

        def step() -> None:
            rows = rows_of(self.batch)
            steps.before_reading(rows)
            clipper.add_clipped_sum(rows, 1.0, 1.0, vector.sums_of)
            steps.take()

        self.flush = steps.finish
        return step

    def hooks(self) -> Step:
        model = GradSampleModule(self.model())
        optimizer = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=self.rows,
        )

        def step() -> None:
            optimizer.zero_grad()
            BCE(model(*self.inputs), self.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    def ghost(self) -> Step:
        model = GradSampleModuleFastGradientClipping(
            self.model(), max_grad_norm=1.0, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(model.parameters(), lr=0.1),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=self.rows,
        )
        loss_of = DPLossFastGradientClipping(model, optimizer, nn.BCEWithLogitsLoss())

        def step() -> None:
            optimizer.zero_grad()
            loss_of(model(*self.inputs), self.labels).backward()
            optimizer.step()

        return step


def _initialise(vector: ParameterVector) -> None:
    dice = torch.Generator().manual_seed(0)
    for parameter in vector.model.parameters():
        bound = parameter.shape[-1] ** -0.5
        parameter.detach().uniform_(-bound, bound, generator=dice)


def in_turn(steps: dict[str, Step], turns: int) -> dict[str, float]:
    """Median processor seconds of each, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 2):
        for name, step in steps.items():
            start = time.thread_time()
            step()
            if turn > 1:
                times[name].append(time.thread_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def rare(steps: dict[str, Step], base: Step, turns: int) -> dict[str, float]:
    """As ratios to ``base``, for contenders too slow (or too hungry) to take many turns."""
    ratios = {}
    for name, step in steps.items():
        medians = in_turn({"base": base, name: step}, turns)
        ratios[name] = medians[name] / medians["base"]
    return ratios


def mlp(turns: int) -> None:
    print("\n| batch | plain SGD | Dovetail | ratio | Opacus ghost | Opacus hooks |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for rows in (256, 1024, 4096):
        setting = Setting(64, [], ModelSpec("mlp", (128, 64)), rows)
        plain = setting.plain()
        medians = in_turn({"plain": plain, "ours": setting.ours()}, turns * 1024 // rows)
        others = {"ghost": setting.ghost(), "hooks": setting.hooks()}
        opacus_ratios = rare(others, plain, max(3, turns // 40))
        print(
            f"| {rows} | {medians['plain'] * 1e3:.2f} ms | {medians['ours'] * 1e3:.2f} ms "
            f"| {medians['ours'] / medians['plain']:.2f} | {opacus_ratios['ghost']:.1f} "
            f"| {opacus_ratios['hooks']:.0f} |"
        )


def embeddings(turns: int, *, hooks: bool) -> None:
    spec = ModelSpec("embedding_mlp", (128, 64), 16)
    setting = Setting(13, [10_000] * 26, spec, 1024)
    plain, dense = setting.plain(), setting.ours()
    lazy = setting.ours(LAZY_STEPS)
    flush = setting.flush
    medians = in_turn({"plain": plain, "dense": dense, "lazy": lazy}, turns)
    flushing = in_turn({"lazy": lazy, "flush": flush}, 5)["flush"]
    medians["lazy"] += flushing / LAZY_STEPS
    print("\n| 26 embeddings 10k x 16, 13 numbers, batch 1024 | ms | ratio |")
    print("| --- | ---: | ---: |")
    labels = {
        "plain": "plain SGD, sparse gradients",
        "dense": "Dovetail, dense noise",
        "lazy": f"Dovetail, lazy noise ({LAZY_STEPS} steps a round, flush included)",
    }
    for name, label in labels.items():
        ratio = medians[name] / medians["plain"]
        print(f"| {label} | {medians[name] * 1e3:.1f} | {ratio:.2f} |")
    print(f"| one flush | {flushing * 1e3:.1f} | {flushing / medians['plain']:.2f} |")
    print(f"| Opacus ghost | | {rare({'g': setting.ghost()}, plain, 5)['g']:.1f} |")
    if hooks:
        one = Setting(13, [10_000] * 26, spec, 64)
        ratio = rare({"h": one.hooks()}, one.plain(), 1)["h"]
        print(f"| Opacus hooks, at batch 64 (at 1024: 17 GB of gradients) | | {ratio:.0f} |")


def small_round() -> None:
    """What a round costs beside its steps: 300 simulated nodes pay it every round."""
    setting = Setting(20, [], ModelSpec("logistic"), 30)
    task = TrainingTask(
        purpose="benchmark",
        features=("n0",),
        label="y",
        model=setting.spec,
        rounds=1,
        sampling_prob=0.5,
        l2_clip_norm=1.0,
        noise_multiplier=1.0,
        learning_rate=0.1,
    )

    class Few:
        def __len__(self) -> int:
            return 30

        def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
            return Batch(*(array[customers] for array in vars(setting.batch).values()))

    arrays, few = arrays_of(build_model(setting.spec, setting.schema)), Few()
    sampler = SecureSampler(bytes(32))
    medians = in_turn(
        {"round": lambda: train_round(arrays, few, setting.schema, task, 30, sampler, {})}, 300
    )
    print(f"\nA whole round of one step, logistic, 30 customers: {medians['round'] * 1e3:.2f} ms")


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return (
        f"{processor}, {os.cpu_count()} cores, one thread; Python {platform.python_version()}, "
        f"torch {torch.__version__}, Opacus {opacus.__version__}, numpy {np.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns, no Opacus hooks last")
    quick = parser.parse_args().quick
    warnings.filterwarnings("ignore", message="Full backward hook")
    use_one_thread()
    print(machine())
    mlp(40 if quick else 200)
    embeddings(10 if quick else 30, hooks=not quick)
    small_round()


if __name__ == "__main__":
    main()
