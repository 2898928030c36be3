"""Whether a request may run at one partner: every rule, in order, or the name of the one it broke.

The terms say what partners allow each other. A node's own :class:`NodePolicy` can only add
refusals to them, and without terms there is nothing to judge by, so nothing runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from dovetail.agreement.cost import cost_of
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.record import LARGEST_WHOLE, require
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Approval, Terms
from dovetail.errors import PolicyError, PrivacyError, SettingError
from dovetail.schema import did_you_mean

RULES = (
    "paused",
    "clock",
    "terms",
    "party",
    "role",
    "partner",
    "dates",
    "kind",
    "purpose",
    "label",
    "column",
    "model",
    "protection",
    "rounds",
    "steps",
    "sample",
    "cohort",
    "delta",
    "epsilon",
    "jobs",
    "budget",
    "approval",
    "refusal",
    "request",
    "permit",
    "limits",
)
"""The rules, in the order in which they are judged.

``paused`` and ``clock`` are the node's state, ``party`` and ``role`` are about who asks
(:func:`dovetail.agreement.signing.require_asked`), ``approval`` waits for a person, who may answer
with ``refusal``. The last three are for rounds: one that asks for anything else than the job's
permit names, that comes after the permit expired, or that takes more time or memory than allowed.
"""

LARGEST_SAMPLE = 100_000
"""Most customers that a step may be expected to sample: sums of more can round, in float32, by so
much that one customer moves them by more than the clip norm (see ``privacy.mechanism``)."""
MOST_UNDECLARED = 2
"""A node with more than this many times its declared customers does not open. So a request can be
judged by the declared number alone: a rule that held the private number against anything that the
asker chooses would let it be found by bisection."""


@dataclass(frozen=True)
class NodePolicy:
    """What one partner refuses beyond the terms.

    Attributes:
        max_epsilon_per_job: the most ε that one job alone may cost, > 0; infinite adds nothing.
        max_concurrent_jobs: most jobs open here at once, >= 1; ``None`` adds nothing.
        refused_purposes: purposes that the terms allow and this partner does not.
        refused_columns: columns that the terms declare, the label included, and this partner does
            not let anyone use.
        approval: ``manual`` asks a person here even where the terms do not.

    Raises:
        SettingError: a limit is out of range.
    """

    max_epsilon_per_job: float = math.inf
    max_concurrent_jobs: int | None = None
    refused_purposes: tuple[str, ...] = ()
    refused_columns: tuple[str, ...] = ()
    approval: Approval = "automatic"

    def __post_init__(self) -> None:
        require(self.max_epsilon_per_job > 0, "policy: max_epsilon_per_job must be above 0")
        most = self.max_concurrent_jobs
        require(most is None or most >= 1, "policy: max_concurrent_jobs must be at least 1")


NOTHING_MORE = NodePolicy()
"""The terms alone."""


@dataclass(frozen=True)
class _Case:
    request: Request
    terms: Terms
    partner: str
    cohort: int = field(repr=False)
    own: NodePolicy
    today: date


def judge(
    request: Request,
    terms: Terms | None,
    partner: str,
    cohort: int,
    ledger: Ledger,
    own: NodePolicy,
    now: datetime,
    *,
    reserved: bool = False,
) -> None:
    """Do nothing if a request may run at one partner, as far as rules and budget go.

    Nothing is charged: the ledger checks the budget again when the job is reserved. Who asks
    is checked by :func:`dovetail.agreement.signing.require_asked`.

    Args:
        request: what is asked.
        terms: what was agreed; ``None`` refuses.
        partner: the name in the terms of the partner that judges.
        cohort: how many customers it really has. Private.
        ledger: what it has charged so far.
        own: what it refuses beyond the terms.
        now: the time at the partner.
        reserved: whether the ledger has reserved its cost already, as one of the jobs that are
            open: of the rules on cost, only what one job may cost is judged again.

    Raises:
        PolicyError: the request breaks a rule of :data:`RULES`; the first one is named. The message
            holds nothing of ``cohort`` beyond that the rule was broken.
    """
    case = _allowed(request, terms, partner, cohort, own, now)
    for rule, costs in _COST_RULES.items():
        if reserved and rule != "epsilon":
            continue
        if complaint := costs(case, ledger, now):
            raise PolicyError(rule, complaint)


def needs_approval(terms: Terms, own: NodePolicy) -> bool:
    """Whether a person must say yes to each job at this partner."""
    return "manual" in (terms.approval, own.approval)


def require_allowed(
    request: Request,
    terms: Terms | None,
    partner: str,
    cohort: int,
    own: NodePolicy,
    now: datetime,
) -> None:
    """Every rule but those on cost: what must still hold when an admitted job's next round begins.

    Terms and a partner's own policy may have become stricter since the job was admitted.

    Arguments and errors are those of :func:`judge`.
    """
    _allowed(request, terms, partner, cohort, own, now)


def _allowed(
    request: Request,
    terms: Terms | None,
    partner: str,
    cohort: int,
    own: NodePolicy,
    now: datetime,
) -> _Case:
    if terms is None:
        raise PolicyError("terms", "no terms are in force here, so nothing may run")
    case = _Case(request, terms, partner, cohort, own, now.astimezone(UTC).date())
    for rule, allows in _REQUEST_RULES.items():
        if complaint := allows(case):
            raise PolicyError(rule, complaint)
    return case


def _partner(case: _Case) -> str:
    known = [partner.name for partner in case.terms.partners]
    return "" if case.partner in known else "this node is not a partner in the terms"


def _dates(case: _Case) -> str:
    first, last = case.terms.valid_from, case.terms.valid_until
    if first <= case.today <= last:
        return ""
    return f"the terms hold from {first.isoformat()} to {last.isoformat()}"


def _kind(case: _Case) -> str:
    return "" if "training" in case.terms.requests else "the terms allow no training"


def _purpose(case: _Case) -> str:
    purpose, allowed = case.request.task.purpose, case.terms.purposes
    if purpose not in allowed:
        return f"the terms do not allow this purpose{did_you_mean(purpose, allowed)}"
    return "this partner refuses this purpose" if purpose in case.own.refused_purposes else ""


def _label(case: _Case) -> str:
    label = case.terms.schema.label.name
    if case.request.task.label != label:
        return f"the terms declare the label {label!r}"
    return f"this partner lets nobody use {label!r}" if label in case.own.refused_columns else ""


def _column(case: _Case) -> str:
    declared = [column.name for column in case.terms.schema.columns]
    asked = list(case.request.task.features)
    for name in asked:
        if name not in declared:
            return f"{name[:80]!r} is not declared in the terms{did_you_mean(name, declared)}"
        if name in case.own.refused_columns:
            return f"this partner lets nobody use {name!r}"
    in_order = [name for name in declared if name in asked]
    return "" if asked == in_order else "features must stand in the order of the schema"


def _model(case: _Case) -> str:
    model, terms = case.request.task.model, case.terms
    if model.family not in terms.model_families:
        return f"the terms allow {', '.join(terms.model_families)}"
    arrays = model.parameters(terms.schema.select(case.request.task.features))
    size = sum(math.prod(array.shape) for array in arrays)
    return "" if size <= terms.max_parameters else f"more than {terms.max_parameters} parameters"


def _protection(case: _Case) -> str:
    protection, allowed = case.request.task.protection, case.terms.protections
    if protection == "none":
        return "a node never answers without noise"
    if protection not in allowed:
        return f"the terms allow {', '.join(allowed)}"
    try:
        cost_of(case.request.task, case.terms)
    except SettingError as error:
        return str(error)
    return ""


def _rounds(case: _Case) -> str:
    most = case.terms.max_rounds
    return "" if case.request.task.rounds <= most else f"the terms allow {most} rounds"


def _steps(case: _Case) -> str:
    most = case.terms.max_steps
    return "" if case.request.task.steps <= most else f"the terms allow {most} steps"


def _sample(case: _Case) -> str:
    declared, most = case.terms.partner(case.partner).customers, LARGEST_SAMPLE // MOST_UNDECLARED
    small = case.request.task.sampling_prob * declared <= most
    return "" if small else f"a step may sample {most:,} declared customers; lower sampling_prob"


def _cohort(case: _Case) -> str:
    enough = case.cohort >= case.terms.minimum_cohort
    return "" if enough else "fewer customers than the terms' minimum cohort"


def _delta(case: _Case) -> str:
    safe = case.terms.budget.delta * case.cohort < 1
    return "" if safe else "the budget's delta is not below one in this partner's customers"


def _epsilon(case: _Case, ledger: Ledger, now: datetime) -> str:  # noqa: ARG001 - a rule's shape
    own = case.own.max_epsilon_per_job
    most = min(case.terms.max_epsilon_per_job, own)
    cost = cost_of(case.request.task, case.terms)
    try:
        fits = ledger.fits_alone(cost.event, cost.count, most)
    except PrivacyError as error:  # so little noise, or so much, that no ε can be stated
        return str(error)
    who = "this partner allows" if most == own else "the terms allow"
    return "" if fits else f"{who} {most:g} for one job"


def _jobs(case: _Case, ledger: Ledger, now: datetime) -> str:  # noqa: ARG001 - a rule's shape
    most = min(case.terms.max_concurrent_jobs, case.own.max_concurrent_jobs or LARGEST_WHOLE)
    return "" if len(ledger.open_jobs()) < most else f"{most} jobs are open here already"


def _budget(case: _Case, ledger: Ledger, now: datetime) -> str:
    cost = cost_of(case.request.task, case.terms)
    if ledger.budget != case.terms.budget:
        return "the ledger is kept under another budget than the terms'"
    try:
        if ledger.would_fit(cost.event, cost.count, now):
            return ""
    except PrivacyError as error:  # for all that is charged together no ε can be stated
        return str(error)
    return "what is left of the privacy budget does not cover this job"


_REQUEST_RULES: dict[str, Callable[[_Case], str]] = {
    "partner": _partner,
    "dates": _dates,
    "kind": _kind,
    "purpose": _purpose,
    "label": _label,
    "column": _column,
    "model": _model,
    "protection": _protection,
    "rounds": _rounds,
    "steps": _steps,
    "sample": _sample,
    "cohort": _cohort,
    "delta": _delta,
}
_COST_RULES: dict[str, Callable[[_Case, Ledger, datetime], str]] = {
    "epsilon": _epsilon,
    "jobs": _jobs,
    "budget": _budget,
}
COST_RULES = tuple(_COST_RULES)
"""The rules on what a request costs, which are judged after all others."""
