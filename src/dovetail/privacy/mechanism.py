"""The one place where noise meets a bounded sum.

A sum that is noised naively in floating point can betray its input by *which* numbers its outputs
can be at all: Mironov (2012), "On significance of the least significant bits for differential
privacy", section 4. Here the noised value is rounded to a grid of a power of two, 1/32 to 1/16 of
the noise's standard deviation, which depends on the event only. Rounding after the noise is
post-processing: it costs no sensitivity, adds at most 0.033 % to the variance, and makes the
outputs multiples of the same number for every input.

What is left:

- *Granularity* (low): the noise that is rounded is itself float32, so that the probability of a
  grid point is off by a relative 2⁻¹⁷ or so (estimated from the rounding, not proven).
- *Rounding of the sum itself* (low for samples up to 10⁵ customers, high beyond 10⁶): the sum is
  float32, and one customer more or less changes how all others are added up: Casacuberta et al.
  (2022), "Widespread underestimation of sensitivity in differentially private libraries and how to
  fix it". With all gradients in one direction, the worst that was tried, leaving one customer out
  moved the sum by 1.00 clip norms among 10⁵, 1.02 among 10⁶ and 4 among 10⁷ sampled customers.
  ``agreement.policy`` refuses tasks that are expected to sample more than 10⁵.

What is summed over nodes before anybody sees it is whole numbers, and so is its noise, of which
each node adds a share (:func:`add_noise_share`): nothing of the above applies there, and what
rounding does to a node's part before it is whole is counted (``agreement.rounding``).

``tests/privacy/test_mechanism.py`` keeps the grid; ``benchmarks/noise.py`` prints its price.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dovetail.errors import PrivacyError
from dovetail.privacy.discrete_gaussian import DiscreteGaussian, DiscreteSampler
from dovetail.privacy.event import Event, Gaussian, SampledGaussian, SharedGaussian
from dovetail.privacy.sampler import SecureSampler

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

NOISE_STDS = (2.0**-60, 2.0**60)
"""Standard deviations for which the grid and its inverse are ordinary float32 numbers."""

_FINENESS = 4  # binary digits of the grid below the noise's leading one
_CHUNK = 1 << 15


def noised_sum(vector: Floats, event: Event, sampler: SecureSampler) -> Floats:
    """The vector plus the event's noise, as a new array on the event's grid.

    Args:
        vector: float32, any shape: a sum that adding or removing one customer moves by at most
            ``event.l2_sensitivity`` in L2 norm. Nothing here can check that.
        event: what is released, and charged by the caller.
        sampler: source of the noise.

    Raises:
        PrivacyError: as in :func:`add_noise`.

    Guarantees:
        As in :func:`add_noise`.
    """
    noised = np.array(vector, order="C", copy=True)
    add_noise(noised, event, sampler)
    return noised


def add_noise(total: Floats, event: Event, sampler: SecureSampler) -> None:
    """Turn a bounded sum into the release that the event describes, in place.

    One release may lie in several arrays (a model's parameters): call this for each with the same
    event, whose sensitivity then bounds all of them together.

    Args:
        total: float32, C-contiguous, writable, any shape; see :func:`noised_sum`. After an error
            it holds nothing useful and is to be thrown away.
        event: what is released, and charged by the caller.
        sampler: source of the noise.

    Raises:
        PrivacyError: the array is of another kind, the sum is not finite, or the event is not a
            Gaussian one with a standard deviation inside :data:`NOISE_STDS`.

    Guarantees:
        Every coordinate becomes the grid point nearest to ``sum + noise_std * z``, ``z`` standard
        normal and independent of all else: a post-processed Gaussian mechanism, up to the limits
        stated at the head of this module and of ``privacy.sampler``.
    """
    grid = grid_of(event)
    if total.dtype != np.float32 or not (total.flags.c_contiguous and total.flags.writeable):
        raise PrivacyError("noise needs a contiguous, writable float32 array")
    flat = total.reshape(-1)
    scale = np.float32(event.noise_std / grid)
    noise = np.empty(min(_CHUNK, flat.size), dtype=np.float32)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        drawn = noise[: part.size]
        sampler.normal_into(drawn)
        np.multiply(drawn, scale, out=drawn)
        _add_on_grid(part, drawn, grid)


def add_delayed_noise(
    sums: Floats, steps: npt.NDArray[np.int64], event: Event, sampler: SecureSampler
) -> None:
    """Add to each row, in place, the noise of all the steps it sums over; nothing is rounded yet.

    For noise that is put off until a row is read. When that happens is private: the results stay
    inside the node and are added up per row, and only their totals leave, through :func:`to_grid`.
    Rounding each result instead would show in the totals how often a row was read.

    Args:
        sums: float32 ``(n, d)``, writable; row ``i`` is the sum over ``steps[i]`` steps of its part
            of the vector that ``event`` bounds.
        steps: ``(n,)``, >= 1.
        event: one step; each step is charged by the caller.
        sampler: source of the noise.

    Raises:
        PrivacyError: shapes do not fit, or a row has no step.
    """
    if sums.ndim != 2 or steps.shape != sums.shape[:1] or (steps < 1).any():
        raise PrivacyError("rows (n, d) need as many numbers of steps, each at least 1")
    noise = sampler.normal(sums.size).reshape(sums.shape)
    noise *= (np.sqrt(steps) * event.noise_std).astype(np.float32)[:, np.newaxis]
    sums += noise


def to_grid(total: Floats, event: Event) -> None:
    """Round, in place, sums that carry their noise to the event's grid; then they may leave.

    Args:
        total: float32, writable: results of :func:`add_delayed_noise`, added up per row.
        event: one step of those that they sum over.

    Raises:
        PrivacyError: a total is not finite, or the event has no grid.

    Guarantees:
        The distribution of a total does not depend on how it was put together out of delayed
        noise, up to the rounding of float32 additions, which is 2⁻²⁴ of the total at each.
    """
    _add_on_grid(total, np.zeros((), np.float32), grid_of(event))


def add_noise_share(units: Whole, event: SharedGaussian, sampler: DiscreteSampler) -> None:
    """Add one node's share of a sum's noise, in place, modulo 2⁶⁴.

    Args:
        units: int64, C-contiguous, writable, any shape of ``event.size`` numbers: this node's part
            of a sum that adding or removing one customer moves by at most
            ``event.l2_sensitivity`` units in L2 norm. Nothing here can check that.
        event: the sum, charged by the caller.
        sampler: source of the noise.

    Raises:
        PrivacyError: the array is of another kind or size, or the share's std is none that can be
            drawn.

    Guarantees:
        The sum over nodes, with ``event.nodes - event.tolerated`` shares or more, is the mechanism
        that ``privacy.shared_noise`` accounts for. The numbers of one node by themselves carry
        less noise than was charged for: they leave it under a mask only.
    """
    if units.size != event.size:
        raise PrivacyError("a share of noise needs a vector of the size that was charged for")
    sampler.add_to(units, DiscreteGaussian(event.share_std))


def grid_of(event: Event) -> float:
    """Of what number every coordinate of the noised sum is a multiple: a power of two.

    Raises:
        PrivacyError: the event is not a Gaussian one, or its noise is out of range.
    """
    if not isinstance(event, Gaussian | SampledGaussian):
        raise PrivacyError("only Gaussian events say how a sum is to be noised")
    if not NOISE_STDS[0] <= event.noise_std <= NOISE_STDS[1]:
        raise PrivacyError("noise_std is too small or too large for float32 sums")
    return 2.0 ** (math.floor(math.log2(event.noise_std)) - _FINENESS)


def _add_on_grid(part: Floats, noise: Floats, grid: float) -> None:
    """Replace ``part`` by the grid point nearest to ``part + noise * grid``.

    A large sum would swallow digits of the noise, so its whole cells are set apart first. Setting
    them apart is exact, and so is adding them again below 2²⁴ cells; beyond, the sum of two whole
    numbers is rounded, which is post-processing.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        np.multiply(part, np.float32(1 / grid), out=part)
        whole = np.rint(part)
        np.subtract(part, whole, out=part)
        np.add(part, noise, out=part)
        np.rint(part, out=part)
        np.add(part, whole, out=part)
        np.multiply(part, np.float32(grid), out=part)
    if not np.isfinite(part).all():
        raise PrivacyError("a sum that is not finite has no bound and is not released")
