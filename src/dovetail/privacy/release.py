"""The only thing a reader ever receives, and the only place that makes one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import InitVar, dataclass

import numpy as np
import numpy.typing as npt

from dovetail.errors import PrivacyError
from dovetail.privacy import accountant
from dovetail.privacy.event import Event, SharedGaussian, Spending, to_record

Arrays = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Provenance:
    """Where a release comes from.

    Attributes:
        job: its name.
        request_digest: what was asked, exactly.
        terms_digest: under which terms, exactly.
        rounds: finished rounds.
    """

    job: str
    request_digest: str
    terms_digest: str
    rounds: int


@dataclass(frozen=True)
class Release:
    """A value that may be read, and what it cost. Made by :func:`release` only.

    A value without its cost must not reach a reader by accident: whoever builds one directly, or
    another out of one (``dataclasses.replace``), is stopped. That is a guard rail for honest code,
    not a defence against hostile code in the same process.

    Attributes:
        value: read-only arrays by name.
        spending: what each partner's customers were charged for it, by partner.
        delta: the δ at which ``epsilon`` is stated.
        alone: what somebody pays who is a customer of that partner only, by partner: the same,
            where the charge does not also cover what the person is at other partners.
        epsilon: of each partner's customers alone, against everyone, for this release.
        joint_epsilon: of a person who may be a customer of every partner; the largest of
            ``epsilon`` where nobody is a customer of two.
        provenance: where it comes from.
        error_bars: standard error of each value where the value is a statistic.
    """

    value: Arrays
    spending: Mapping[str, Spending]
    alone: Mapping[str, Spending]
    delta: float
    epsilon: Mapping[str, float]
    joint_epsilon: float
    provenance: Provenance
    error_bars: Arrays | None = None
    made_here: InitVar[object] = None

    def __post_init__(self, made_here: object) -> None:
        if made_here is not _KEY:
            raise PrivacyError("a release is made by dovetail.privacy.release.release only")

    def to_record(self) -> dict[str, object]:
        """Everything but the value and its error bars, JSON-able."""
        return {
            "delta": self.delta,
            "epsilon": dict(self.epsilon),
            "joint_epsilon": self.joint_epsilon,
            "spending": _records(self.spending),
            "alone": _records(self.alone),
            **vars(self.provenance),
        }


_KEY = object()


def release(
    value: Arrays,
    spending: Mapping[str, Spending],
    delta: float,
    provenance: Provenance,
    *,
    customers_overlap: bool,
    alone: Mapping[str, Spending] | None = None,
    error_bars: Arrays | None = None,
) -> Release:
    """States what a value cost and lets it out.

    Args:
        value: arrays by name, made of noised sums only; copied.
        spending: what each partner was charged, by partner.
        delta: at which to state ε, in (0, 1).
        provenance: where it comes from.
        customers_overlap: whether one person may be a customer of several partners; then all
            partners' events compose for that person. Events with shared noise are then those of
            ``privacy.overlap``, calibrated to what all partners do together.
        alone: what somebody pays who is a customer of one partner only, by partner; ``None``
            where that is what was charged.
        error_bars: standard error of each value, of the same names and shapes.

    Raises:
        PrivacyError: no partner, another set of partners in ``alone``, or more paid there than was
            charged, a partner that was charged nothing, nothing to release, a value
            or error bar that is not finite, error bars of another shape, or a δ outside (0, 1).

    Guarantees:
        ``epsilon`` and ``joint_epsilon`` are computed here from the events, by
        ``privacy.accountant``; nobody can state them. They hold if ``value`` is computed from the
        noised sums of these events and from public data alone, and ``epsilon`` if ``alone`` is
        what these sums are to a customer of one partner. Noise is taken to be independent
        per partner, except in a :class:`SharedGaussian`, which is one event for all: where all
        partners were charged the same of them, as often, they count once. Where they were not,
        some partner took part in a sum without the others, nothing says in which, and all are
        added up.
    """
    if not spending or not all(sum(spent.values()) > 0 for spent in spending.values()):
        raise PrivacyError("a release needs partners, each of which was charged for it")
    paid = spending if alone is None else alone
    if paid.keys() != spending.keys() or not all(
        sum(spent.values()) > 0 for spent in paid.values()
    ):
        raise PrivacyError("what one partner's customers pay is stated for the partners charged")
    if not value:
        raise PrivacyError("there is nothing to release")
    if error_bars is not None and _shapes(error_bars) != _shapes(value):
        raise PrivacyError("error bars must have the names and shapes of the value")
    charged = {p: accountant.epsilon(spent, delta) for p, spent in spending.items()}
    epsilon = charged
    if alone is not None:
        epsilon = {p: accountant.epsilon(spent, delta) for p, spent in alone.items()}
        if any(epsilon[p] > charged[p] for p in epsilon):
            raise PrivacyError("a customer of one partner cannot pay more than was charged")
    joint = max(charged.values())
    if customers_overlap and len(spending) > 1:
        joint = accountant.epsilon(_together(spending), delta)
    return Release(
        value=_frozen(value),
        spending={partner: dict(spent) for partner, spent in spending.items()},
        alone={partner: dict(spent) for partner, spent in paid.items()},
        delta=delta,
        epsilon=epsilon,
        joint_epsilon=joint,
        provenance=provenance,
        error_bars=None if error_bars is None else _frozen(error_bars),
        made_here=_KEY,
    )


def _together(spending: Mapping[str, Spending]) -> Spending:
    """What one person was charged who is a customer of every partner."""
    shared = [_shared(spent) for spent in spending.values()]
    once = all(each == shared[0] for each in shared)
    total: Counter[Event] = Counter(shared[0] if once else {})
    for spent in spending.values():
        total.update({e: n for e, n in spent.items() if not (once and e in shared[0])})
    return total


def _shared(spent: Spending) -> Spending:
    return {e: n for e, n in spent.items() if isinstance(e, SharedGaussian) and n}


def _records(spending: Mapping[str, Spending]) -> dict[str, list[dict[str, str | float]]]:
    return {
        partner: [{**to_record(event), "count": n} for event, n in spent.items()]
        for partner, spent in spending.items()
    }


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _frozen(arrays: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """Read-only copies, so that what was charged for is what is read."""
    copies = {name: np.array(array, copy=True) for name, array in arrays.items()}
    for copy in copies.values():
        if not np.isfinite(copy).all():
            raise PrivacyError("a value that is not finite is not released")
        copy.setflags(write=False)
    return copies
