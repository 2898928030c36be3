"""Noise: our normal numbers against torch's generator and Opacus's ``secure_mode`` path.

Run with ``scripts/bench noise``. One thread; processor time per 2²⁰ numbers; the
median of interleaved repetitions of one run, so that ratios travel between machines.
"""

import secrets
import time
from collections.abc import Callable

import numpy as np
import torch
from opacus.optimizers.optimizer import _generate_noise

from benchmarks import machine
from dovetail.crypto.prg import Prg, fresh_key
from dovetail.privacy.event import Gaussian
from dovetail.privacy.mechanism import add_noise
from dovetail.privacy.sampler import SecureSampler

SIZE = 1 << 20
REPETITIONS = 25


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
