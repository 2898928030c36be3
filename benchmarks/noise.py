"""Noise: our normal numbers against torch's generator and Opacus's ``secure_mode`` path.

And discrete Gaussian numbers, for sums over nodes, against exact rejection in numpy; with the part
of δ that their distance from normal ones costs.

Run with ``scripts/bench noise``. One thread; processor time per 2²⁰ numbers; the
median of interleaved repetitions of one run, so that ratios travel between machines.
"""

import math
import secrets
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers.optimizer import _generate_noise

from benchmarks import machine
from dovetail.crypto.prg import Prg, fresh_key
from dovetail.privacy.discrete_gaussian import DiscreteGaussian, DiscreteSampler
from dovetail.privacy.event import Gaussian, SharedGaussian
from dovetail.privacy.mechanism import add_noise
from dovetail.privacy.sampler import SecureSampler
from dovetail.privacy.shared_noise import distance

SIZE = 1 << 20
REPETITIONS = 25
STDS = (10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e9)
JOBS = ((10**3, 3e3), (10**6, 1e4), (10**6, 1e5), (10**6, 1e6))
"""Parameters, and std of the noise in units, of jobs of ten thousand steps on 64 nodes."""


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(machine.describe())
    measured = _measure(_ways())
    torch_time = measured["torch.normal_ (not cryptographic)"]
    print(f"{'per 2^20 float32 numbers, one thread':52s} {'ms':>8s} {'ratio':>7s}")
    for name, seconds in measured.items():
        print(f"{name:52s} {1e3 * seconds:8.2f} {seconds / torch_time:6.2f}x")
    price = measured["Dovetail add_noise, on the grid"] / measured["Dovetail normal + float add"]
    print(f"\nprice of the grid: {price:.2f}x the same noise added without it")
    _print_discrete()
    _print_distances()


def _print_discrete() -> None:
    ours, tensor = DiscreteSampler(fresh_key()), torch.empty(SIZE)
    generator = np.random.default_rng(1)  # PCG64: not cryptographic
    print(f"\n{'discrete Gaussian, million numbers a second':45s} {'ours':>7s} {'rejection':>10s}")
    for std in STDS:
        law = DiscreteGaussian(std)
        ways: dict[str, Callable[[], object]] = {
            "ours": partial(ours.draw, law, SIZE),
            "rejection": partial(_rejection, generator, std, SIZE),
            "torch": tensor.normal_,
        }
        rates = {name: SIZE / taken / 1e6 for name, taken in _measure(ways).items()}
        print(f"std {std:<41g} {rates['ours']:7.1f} {rates['rejection']:10.1f}")
    print(f"{'torch.normal_, in this last run':45s} {rates['torch']:7.1f}")


def _rejection(generator: np.random.Generator, std: float, n: int) -> npt.NDArray[np.int64]:
    """Canonne, Kamath and Steinke (2020), Alg. 3, in vectors of doubles: exact up to their 53 bits.

    Acceptance is about 0.76, so that one round of 4/3 n is mostly enough.
    """
    scale, kept = int(std) + 1, np.empty(0, dtype=np.int64)
    while len(kept) < n:
        more = int(1.35 * (n - len(kept))) + 64
        success = -np.expm1(-1 / scale)
        drawn = generator.geometric(success, more) - generator.geometric(success, more)
        excess = (np.abs(drawn) - std**2 / scale) ** 2 / (2 * std**2)
        kept = np.concatenate([kept, drawn[generator.random(more) < np.exp(-excess)]])
    return kept[:n]


def _print_distances() -> None:
    print(
        f"\n{'10,000 sums, 64 nodes: total variation distance':50s} {'of delta at epsilon 8':>22s}"
    )
    for size, std in JOBS:
        apart = 10_000 * distance(SharedGaussian(0.01, std, std, 64, 20, size))
        name = f"{size:,} numbers, noise of {std:,.0f} units: {apart:.1e}"
        print(f"{name:50s} {(1 + math.exp(8)) * apart:22.1e}")


def _ways() -> dict[str, Callable[[], object]]:
    tensor, plain = torch.empty(SIZE), torch.zeros(SIZE)
    out, total = np.empty(SIZE, dtype=np.float32), np.zeros(SIZE, dtype=np.float32)
    sampler, event = SecureSampler(fresh_key()), Gaussian(1.0, 1.5)
    words, keystream = np.empty(3 * SIZE // 2, dtype=np.uint32), Prg(fresh_key())
    # torchcsprng does not exist for this torch: Opacus's secure path (five draws, four of them
    # summed) runs on torch's own generator here, seeded from the system, which is faster.
    generator = torch.Generator().manual_seed(secrets.randbits(63))

    def naive() -> None:
        sampler.normal_into(out)
        np.multiply(out, np.float32(1.5), out=out)
        np.add(total, out, out=out)

    return {
        "torch.normal_ (not cryptographic)": lambda: tensor.normal_(),
        "Dovetail keystream only (AES-128-CTR)": lambda: keystream.fill(words),
        "Dovetail normal (AES-128-CTR, Box-Muller)": lambda: sampler.normal_into(out),
        "Dovetail normal + float add": naive,
        "Dovetail add_noise, on the grid": lambda: add_noise(total, event, sampler),
        "Opacus secure_mode path": lambda: _generate_noise(
            1.5, plain, generator=generator, secure_mode=True
        ),
        "numpy Generator(PCG64) (not cryptographic)": lambda: np.random.default_rng(
            1
        ).standard_normal(SIZE, dtype=np.float32),
    }


def _measure(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPETITIONS):
        for name, way in ways.items():
            start = time.thread_time()
            way()
            times[name].append(time.thread_time() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


if __name__ == "__main__":
    main()
