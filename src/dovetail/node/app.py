"""A partner's node as a Flower client app: propose → permit, round → contribution, close."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dovetail.agreement import request as requests
from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    SignedRequest,
    permit_record,
    request_from_record,
    sign_permit,
)
from dovetail.agreement.terms import Terms
from dovetail.crypto.keys import SigningKey
from dovetail.crypto.prg import fresh_key
from dovetail.errors import (
    AgreementError,
    LocalProtocolError,
    RemoteProtocolError,
    SettingError,
)
from dovetail.flower.actions import AggregationStep, Contribution, Record
from dovetail.flower.grid import MASKED
from dovetail.node.aggregating import Aggregating
from dovetail.node.gate import Clock, Decisions, Gate
from dovetail.privacy.discrete_gaussian import DiscreteSampler
from dovetail.schema import Schema
from dovetail.store.admissions import Admissions
from dovetail.store.ledger import LedgerStore
from dovetail.training.round_result import RoundResult

Arrays = Mapping[str, npt.NDArray[np.float32]]
Keep = Callable[[Record, Arrays], None]
"""Keeps a released model and its card."""
NoiseOf = Callable[[str, int], DiscreteSampler]
"""The noise that a node shares in one (job, round)."""


class Contributor(Protocol):
    """Computes contributions: :class:`~dovetail.node.runner.Runner`, or a process that runs one."""

    def contribute(
        self, request: Request, number: int, arrays: Arrays, optimizer_state: Arrays
    ) -> RoundResult:
        """See :meth:`dovetail.node.runner.Runner.contribute`."""
        ...


class Node:
    """One partner's node: implements :class:`dovetail.flower.actions.Actions`.

    Guarantees: a row is read for a job only after the gate has charged this partner's ledger, and
    a contribution is returned only after the ledger has recorded that it leaves.
    """

    def __init__(
        self,
        terms: Terms,
        partner: str,
        key: SigningKey,
        cohort: int,
        contributor: Contributor,
        ledger: LedgerStore,
        clock: Clock,
        policy: NodePolicy = NOTHING_MORE,
        decisions: Decisions = lambda _: None,
        keep: Keep = lambda _card, _arrays: None,
        admissions: Admissions | None = None,
        noise: NoiseOf = lambda _job, _number: DiscreteSampler(fresh_key()),
    ) -> None:
        """Puts a node together.

        Args:
            terms: what the partners agreed.
            partner: the name in the terms of the partner that this node belongs to.
            key: that partner's, with which it signs permits.
            cohort: its number of customers; private.
            contributor: computes from its rows, in the columns of the terms' schema.
            ledger: its ledger.
            clock: the time, with its zone.
            policy: its own, stricter rules.
            decisions: what people at the partner said to requests.
            keep: keeps released models.
            admissions: who asked for the jobs that are admitted; by default known to this object
                alone, so that no other goes on with them.
            noise: where this node's share of a round's noise comes from; only a simulation
                repeats itself.

        Raises:
            AgreementError: the terms do not know the partner.
        """
        self._key, self._schema = key, terms.schema
        self._weight = declared_customers(terms, partner)
        admissions = admissions or Admissions(None)
        self._gate = Gate(terms, partner, ledger, cohort, policy, clock, decisions, admissions)
        self._contributor = contributor
        self._keep = keep
        self._noise = noise
        self._aggregating = Aggregating(terms, partner, key)

    def preview(self, signed: Record) -> Record:
        """Judges a request and charges nothing."""
        return vars(self._gate.preview(parsed(signed)))

    def propose(self, signed: Record) -> Record:
        """Judges a request, reserves its cost and signs the permit."""
        return permit_record(sign_permit(self._gate.admit(parsed(signed)), self._key))

    def train(self, request: Record, number: int, arrays: Arrays, state: Arrays) -> Contribution:
        """Contributes to one round: charged, computed, recorded, then returned."""
        admitted = _request(request)
        shared = admitted.task.protection == "distributed"

        def fits() -> None:
            require_model(admitted, self._schema, arrays)
            if shared:
                self._aggregating.require_block(admitted, number)

        self._gate.begin(admitted, number, fits)
        result = self._contributor.contribute(admitted, number, arrays, state)
        leaving = self._masked(admitted, number, result) if shared else result.arrays
        self._gate.commit(admitted, number)
        return Contribution(leaving, float(self._weight), result.optimizer_state)

    def _masked(
        self, request: Request, number: int, result: RoundResult
    ) -> Mapping[str, npt.NDArray[Any]]:
        if result.total is None:
            raise LocalProtocolError("a round of a shared job ended without a total")
        noise = self._noise(request.job, number)
        return {MASKED: self._aggregating.masked(request, number, result.total, noise)}

    def aggregate(self, step: AggregationStep, request: Record, body: Record) -> Record:
        """Takes a step of secure aggregation for a job that was admitted."""
        admitted = _request(request)
        self._gate.require_open(admitted)
        self._aggregating.forget_all_but(self._gate.open_jobs())
        return self._aggregating.step(step, admitted, body)

    def close(self, job: str) -> None:
        """Ends a job; what it never began is free again."""
        self._gate.close(job)
        self._aggregating.forget_all_but(self._gate.open_jobs())

    def keep(self, card: Record, arrays: Arrays) -> None:
        """Keeps a released model."""
        self._keep(card, arrays)


def require_model(request: Request, schema: Schema, arrays: Arrays) -> None:
    """Do nothing if these arrays are finite parameters of the model that a request names.

    Asked before a round is charged: what could not be trained on costs nothing.

    Raises:
        RemoteProtocolError: they are not.
        SchemaError: the request names columns that the schema does not have.
    """
    wanted = request.task.model.parameters(schema.select(request.task.features))
    if {p.name: p.shape for p in wanted} != {name: a.shape for name, a in arrays.items()}:
        raise RemoteProtocolError("the arrays are not those of the model that was asked for")
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise RemoteProtocolError(f"array {name!r} is not float32, or not finite")


def declared_customers(terms: Terms, partner: str) -> int:
    """The public number of customers that a partner declared.

    Raises:
        AgreementError: the terms do not know the partner.
    """
    for known in terms.partners:
        if known.name == partner:
            return known.customers
    raise AgreementError(f"the terms know no partner {partner!r}")


def parsed(record: Record) -> SignedRequest:
    """A signed request from another company.

    Raises:
        RemoteProtocolError: it is none; says which field is wrong.
    """
    try:
        return request_from_record(record)
    except SettingError as error:
        raise RemoteProtocolError(str(error)) from None


def _request(record: Record) -> Request:
    try:
        return _read(json.dumps(record))
    except SettingError as error:
        raise RemoteProtocolError(str(error)) from None


@lru_cache(maxsize=16)
def _read(text: str) -> Request:
    """The request in a text; every round of a job brings the same one, to be read once."""
    return requests.from_record(json.loads(text))
