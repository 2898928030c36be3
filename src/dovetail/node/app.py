"""A partner's node as a Flower client app: propose → permit, round → contribution, close."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.errors import AgreementError, RemoteProtocolError, SettingError
from dovetail.flower.actions import Contribution, Record
from dovetail.node.gate import Gate
from dovetail.node.runner import Dice, Runner
from dovetail.privacy.event import to_record
from dovetail.store.ledger import LedgerStore
from dovetail.training.batch import Customers

Arrays = Mapping[str, npt.NDArray[np.float32]]


class Node:
    """One partner's node: implements :class:`dovetail.flower.actions.Actions`.

    Guarantees: a row is read for a job only after the gate has charged this partner's ledger, and
    a contribution is returned only after the ledger has recorded that it leaves.
    """

    def __init__(
        self,
        terms: Terms,
        partner: str,
        customers: Customers,
        ledger: LedgerStore,
        dice: Dice,
        policy: NodePolicy = NOTHING_MORE,
    ) -> None:
        """Puts a node together.

        Args:
            terms: what the partners agreed.
            partner: the name in the terms of the partner that this node belongs to.
            customers: its rows, in the columns of the terms' schema.
            ledger: its ledger.
            dice: the randomness of a (job, round).
            policy: its own, stricter rules.

        Raises:
            AgreementError: the terms do not know the partner.
        """
        self._terms_digest = agreed.digest(terms)
        self._weight = declared_customers(terms, partner)
        self._gate = Gate(terms, partner, ledger, len(customers), policy)
        self._runner = Runner(customers, terms.schema, self._weight, dice)

    def propose(self, request: Record, terms_digest: str) -> Record:
        """Judges a request under these terms and no others, and reserves its cost."""
        if terms_digest != self._terms_digest:
            raise AgreementError("the coordinator works under other terms than this node")
        permit = self._gate.admit(_parsed(request))
        return {**asdict(permit), "event": to_record(permit.event)}

    def train(self, request: Record, number: int, arrays: Arrays, state: Arrays) -> Contribution:
        """Contributes to one round: charged, computed, recorded, then returned."""
        admitted = _parsed(request)
        self._gate.begin(admitted, number)
        result = self._runner.contribute(admitted, number, arrays, state)
        self._gate.commit(admitted, number)
        return Contribution(result.arrays, float(self._weight), result.optimizer_state)

    def close(self, job: str) -> None:
        """Ends a job; what it never began is free again."""
        self._gate.close(job)


def declared_customers(terms: Terms, partner: str) -> int:
    """The public number of customers that a partner declared.

    Raises:
        AgreementError: the terms do not know the partner.
    """
    for known in terms.partners:
        if known.name == partner:
            return known.customers
    raise AgreementError(f"the terms know no partner {partner!r}")


def _parsed(record: Record) -> Request:
    try:
        return _read(json.dumps(record))
    except SettingError as error:
        raise RemoteProtocolError(str(error)) from None


@lru_cache(maxsize=16)
def _read(text: str) -> Request:
    """The request in a text; every round of a job brings the same one, to be read once."""
    return requests.from_record(json.loads(text))
