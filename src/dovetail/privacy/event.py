"""What was released, as plain data; what it cost is computed later.

A ledger stores events and never epsilons, so that a better accountant makes old ledgers tighter
and a wrong one can be corrected (the idea of ``DpEvent`` in dp_accounting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dovetail.errors import PrivacyError


@dataclass(frozen=True)
class Gaussian:
    """One Gaussian mechanism over all customers.

    Attributes:
        l2_sensitivity: how far adding or removing one customer moves the vector, > 0.
        noise_std: standard deviation of the noise in each coordinate, > 0.
    """

    l2_sensitivity: float
    noise_std: float

    def __post_init__(self) -> None:
        _require_positive("l2_sensitivity", self.l2_sensitivity)
        _require_positive("noise_std", self.noise_std)

    @property
    def noise_multiplier(self) -> float:
        """Noise per unit of sensitivity: all that the cost depends on."""
        return self.noise_std / self.l2_sensitivity


@dataclass(frozen=True)
class SampledGaussian:
    """A Gaussian mechanism over a Poisson sample of the customers: one step of DP-SGD.

    Attributes:
        sampling_prob: probability in (0, 1] with which each customer takes part, independently.
        l2_sensitivity: as in :class:`Gaussian`; for DP-SGD the clip norm.
        noise_std: as in :class:`Gaussian`.
    """

    sampling_prob: float
    l2_sensitivity: float
    noise_std: float

    def __post_init__(self) -> None:
        if not 0 < self.sampling_prob <= 1:
            raise PrivacyError("sampling_prob must lie in (0, 1]")
        _require_positive("l2_sensitivity", self.l2_sensitivity)
        _require_positive("noise_std", self.noise_std)

    @property
    def noise_multiplier(self) -> float:
        """Noise per unit of sensitivity."""
        return self.noise_std / self.l2_sensitivity


@dataclass(frozen=True)
class SharedGaussian:
    """One vector of whole numbers, summed over nodes that each add a share of its noise.

    Every customer takes part with ``sampling_prob``, independently. Each of ``nodes`` nodes rounds
    its part of the vector and adds discrete Gaussian noise of :attr:`share_std`, drawn by
    ``privacy.discrete_gaussian``; only the sum is seen. ``tolerated`` nodes may drop out, or tell
    others the share they added: the shares of those that are left still add up to ``noise_std``.

    What the sum costs is computed from the event by ``privacy.shared_noise``.

    Attributes:
        sampling_prob: probability in (0, 1] with which each customer takes part.
        l2_sensitivity: how far adding or removing one customer moves the sum of the rounded
            vectors, in units (the whole numbers' steps), > 0; rounding included.
        noise_std: of the noise that ``nodes - tolerated`` shares add up to, in units, > 0.
        nodes: how many add a share, >= 2.
        tolerated: how many of their shares may be missing or known, in [0, nodes).
        size: length of the vector, >= 1.

    Raises:
        PrivacyError: a number is out of range, or a count is no whole one.
    """

    sampling_prob: float
    l2_sensitivity: float
    noise_std: float
    nodes: int
    tolerated: int
    size: int

    def __post_init__(self) -> None:
        if not 0 < self.sampling_prob <= 1:
            raise PrivacyError("sampling_prob must lie in (0, 1]")
        _require_positive("l2_sensitivity", self.l2_sensitivity)
        _require_positive("noise_std", self.noise_std)
        _require_whole("nodes", self.nodes, 2, LARGEST_COUNT)
        _require_whole("tolerated", self.tolerated, 0, self.nodes - 1)
        _require_whole("size", self.size, 1, LARGEST_COUNT)

    @property
    def noise_multiplier(self) -> float:
        """Noise per unit of sensitivity."""
        return self.noise_std / self.l2_sensitivity

    @property
    def share_std(self) -> float:
        """What each node adds, in units: ``noise_std / sqrt(nodes - tolerated)``."""
        return self.noise_std / math.sqrt(self.nodes - self.tolerated)


Event = Gaussian | SampledGaussian | SharedGaussian
Spending = Mapping[Event, int]
"""How often each event happened."""

LARGEST_COUNT = 2**53 - 1
"""What every reader of JSON takes for a whole number."""

_KINDS: dict[str, type[Event]] = {
    "gaussian": Gaussian,
    "sampled_gaussian": SampledGaussian,
    "shared_gaussian": SharedGaussian,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_record(event: Event) -> dict[str, str | float]:
    """The event as JSON-able data, with its kind under ``"kind"``."""
    return {"kind": _NAMES[type(event)], **asdict(event)}


def from_record(record: Mapping[str, object]) -> Event:
    """The event that :func:`to_record` wrote.

    Raises:
        PrivacyError: the kind is unknown, or a field is missing, surplus or out of range.
    """
    given = dict(record)
    kind = _KINDS.get(str(given.pop("kind", "")))
    if kind is None:
        raise PrivacyError("unknown kind of privacy event")
    wanted = {field.name: _READERS[str(field.type)] for field in fields(kind)}
    if set(given) != set(wanted):
        raise PrivacyError(f"a {_NAMES[kind]} event has exactly {list(wanted)}")
    return kind(**{name: read(name, given[name]) for name, read in wanted.items()})


def _as_float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PrivacyError(f"{name} must be a number")
    try:
        return float(value)
    except OverflowError:
        raise PrivacyError(f"{name} must be finite") from None


def _as_whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PrivacyError(f"{name} must be a whole number")
    return value


_READERS: dict[str, Callable[[str, object], Any]] = {"float": _as_float, "int": _as_whole}


def _require_whole(name: str, value: int, least: int, most: int) -> None:
    if not least <= _as_whole(name, value) <= most:
        raise PrivacyError(f"{name} must lie between {least} and {most}")


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise PrivacyError(f"{name} must be positive and finite")
