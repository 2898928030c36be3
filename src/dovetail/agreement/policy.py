"""Whether a request may run at one partner: every rule, in order, or the name of the one it broke.

The terms say what partners allow each other. A node's own :class:`NodePolicy` can only add
refusals to them, and without terms there is nothing to judge by, so nothing runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.record import require
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.errors import PolicyError
from dovetail.privacy.event import Event
from dovetail.schema import did_you_mean

RULES = (
    "terms",
    "partner",
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
    "budget",
    "request",
)
"""The rules, in the order in which they are judged; ``request`` is for the gate, when a round asks
for anything else than the job's permit names."""


LARGEST_SAMPLE = 100_000
"""Most customers that a step may be expected to sample: sums of more can round, in float32, by so
much that one customer moves them by more than the clip norm (see ``privacy.mechanism``)."""


@dataclass(frozen=True)
class NodePolicy:
    """What one partner refuses beyond the terms.

    Attributes:
        max_epsilon_per_job: the most ε that one job alone may cost, > 0; infinite adds nothing.
        refused_purposes: purposes that the terms allow and this partner does not.

    Raises:
        SettingError: the limit is not above 0.
    """

    max_epsilon_per_job: float = math.inf
    refused_purposes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.max_epsilon_per_job > 0, "policy: max_epsilon_per_job must be above 0")


NOTHING_MORE = NodePolicy()
"""The terms alone."""


@dataclass(frozen=True)
class Permit:
    """One partner's yes to one request, under one version of the terms.

    Attributes:
        job: of the request.
        partner: who permits.
        request_digest: which request, exactly.
        terms_digest: under which terms, exactly.
        event: what each step releases, and is charged.
        steps: how often, over the whole job.
    """

    job: str
    partner: str
    request_digest: str
    terms_digest: str
    event: Event
    steps: int


@dataclass(frozen=True)
class _Case:
    request: Request
    terms: Terms
    partner: str
    cohort: int = field(repr=False)
    own: NodePolicy


def judge(
    request: Request,
    terms: Terms | None,
    partner: str,
    cohort: int,
    ledger: Ledger,
    own: NodePolicy = NOTHING_MORE,
) -> Permit:
    """Permit a request at one partner.

    Nothing is charged: the ledger checks the budget again when the permit's job is reserved.

    Args:
        request: what is asked.
        terms: what was agreed; ``None`` refuses.
        partner: the name in the terms of the partner that judges.
        cohort: how many customers it really has. Private.
        ledger: what it has charged so far.
        own: what it refuses beyond the terms.

    Raises:
        PolicyError: the request breaks a rule of :data:`RULES`; the first one is named. The message
            holds nothing of ``cohort`` beyond that the rule was broken.
    """
    case = _allowed(request, terms, partner, cohort, own)
    for rule, costs in _COST_RULES.items():
        if complaint := costs(case, ledger):
            raise PolicyError(rule, complaint)
    return Permit(
        job=request.job,
        partner=partner,
        request_digest=requests.digest(request),
        terms_digest=agreed.digest(case.terms),
        event=request.task.event,
        steps=request.task.steps,
    )


def require_allowed(
    request: Request,
    terms: Terms | None,
    partner: str,
    cohort: int,
    own: NodePolicy = NOTHING_MORE,
) -> None:
    """Every rule but those on cost: what must still hold when an admitted job's next round begins.

    Terms and a partner's own policy may have become stricter since the job was admitted.

    Arguments and errors are those of :func:`judge`.
    """
    _allowed(request, terms, partner, cohort, own)


def _allowed(
    request: Request, terms: Terms | None, partner: str, cohort: int, own: NodePolicy
) -> _Case:
    if terms is None:
        raise PolicyError("terms", "no terms are in force here, so nothing may run")
    case = _Case(request, terms, partner, cohort, own)
    for rule, allows in _REQUEST_RULES.items():
        if complaint := allows(case):
            raise PolicyError(rule, complaint)
    return case


def _partner(case: _Case) -> str:
    known = [partner.name for partner in case.terms.partners]
    return "" if case.partner in known else "this node is not a partner in the terms"


def _purpose(case: _Case) -> str:
    purpose, allowed = case.request.task.purpose, case.terms.purposes
    if purpose not in allowed:
        return f"the terms do not allow this purpose{did_you_mean(purpose, allowed)}"
    return "this partner refuses this purpose" if purpose in case.own.refused_purposes else ""


def _label(case: _Case) -> str:
    label = case.terms.schema.label.name
    return "" if case.request.task.label == label else f"the terms declare the label {label!r}"


def _column(case: _Case) -> str:
    declared = [column.name for column in case.terms.schema.columns]
    asked = list(case.request.task.features)
    for name in asked:
        if name not in declared:
            return f"{name[:80]!r} is not declared in the terms{did_you_mean(name, declared)}"
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
    return "" if protection in allowed else f"the terms allow {', '.join(allowed)}"


def _rounds(case: _Case) -> str:
    most = case.terms.max_rounds
    return "" if case.request.task.rounds <= most else f"the terms allow {most} rounds"


def _steps(case: _Case) -> str:
    most = case.terms.max_steps
    return "" if case.request.task.steps <= most else f"the terms allow {most} steps"


def _sample(case: _Case) -> str:
    customers = max(case.cohort, case.terms.partner(case.partner).customers)
    small = case.request.task.sampling_prob * customers <= LARGEST_SAMPLE
    return "" if small else f"a step may sample {LARGEST_SAMPLE:,} customers; lower sampling_prob"


def _cohort(case: _Case) -> str:
    enough = case.cohort >= case.terms.minimum_cohort
    return "" if enough else "fewer customers than the terms' minimum cohort"


def _delta(case: _Case) -> str:
    safe = case.terms.budget.delta * case.cohort < 1
    return "" if safe else "the budget's delta is not below one in this partner's customers"


def _epsilon(case: _Case, ledger: Ledger) -> str:
    task, budget = case.request.task, case.terms.budget
    alone = ledger.epsilon_of({task.event: task.steps}, budget.delta)
    if not alone <= budget.epsilon:
        return f"this job alone costs more than the budget of {budget.epsilon:g}"
    most = case.own.max_epsilon_per_job
    return "" if alone <= most else f"this partner allows {most:g} for one job"


def _budget(case: _Case, ledger: Ledger) -> str:
    task = case.request.task
    if ledger.budget != case.terms.budget:
        return "the ledger is kept under another budget than the terms'"
    together = ledger.epsilon_with(task.event, task.steps)
    if together <= ledger.budget.epsilon:
        return ""
    return "what is left of the privacy budget does not cover this job"


_REQUEST_RULES: dict[str, Callable[[_Case], str]] = {
    "partner": _partner,
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
_COST_RULES: dict[str, Callable[[_Case, Ledger], str]] = {"epsilon": _epsilon, "budget": _budget}
