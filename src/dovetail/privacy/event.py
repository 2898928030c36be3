"""What was released, as plain data; what it cost is computed later.

A ledger stores events and never epsilons, so that a better accountant makes old ledgers tighter
and a wrong one can be corrected (the idea of ``DpEvent`` in dp_accounting).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

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


Event = Gaussian | SampledGaussian
Spending = Mapping[Event, int]
"""How often each event happened."""

_KINDS: dict[str, type[Gaussian] | type[SampledGaussian]] = {
    "gaussian": Gaussian,
    "sampled_gaussian": SampledGaussian,
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
    fields = dict(record)
    kind = _KINDS.get(str(fields.pop("kind", "")))
    if kind is None:
        raise PrivacyError("unknown kind of privacy event")
    if set(fields) != set(kind.__dataclass_fields__):
        raise PrivacyError(f"a {_NAMES[kind]} event has exactly {list(kind.__dataclass_fields__)}")
    return kind(**{name: _as_float(name, value) for name, value in fields.items()})


def _as_float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PrivacyError(f"{name} must be a number")
    try:
        return float(value)
    except OverflowError:
        raise PrivacyError(f"{name} must be finite") from None


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise PrivacyError(f"{name} must be positive and finite")
