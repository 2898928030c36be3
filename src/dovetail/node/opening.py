"""A node opened under terms: its customers prepared, its ledger checked, its worker ready."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from dovetail.agreement.policy import MOST_UNDECLARED
from dovetail.agreement.terms import Terms
from dovetail.crypto.canonical import digest
from dovetail.crypto.keyring import Keyring
from dovetail.crypto.prg import fresh_key
from dovetail.data.arrays import CustomerArrays
from dovetail.data.customers import prepare
from dovetail.errors import DovetailError, PolicyError, SettingError
from dovetail.flower.actions import Record
from dovetail.node.app import Arrays, Contributor, Node, declared_customers
from dovetail.node.gate import Clock
from dovetail.node.settings import NodeSettings, require_known_names
from dovetail.node.worker import Worker
from dovetail.privacy.sampler import SecureSampler
from dovetail.schema import Schema
from dovetail.store.admissions import Admissions
from dovetail.store.agreement import KeptTerms
from dovetail.store.card import card_from_record
from dovetail.store.desk import Desk
from dovetail.store.ledger import LedgerStore
from dovetail.store.model import require_no_other, save_received
from dovetail.store.private_file import make_private
from dovetail.store.whole_file import write_whole

_SECRET_BYTES = 32
_logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def kept_terms(settings: NodeSettings, keyring: Keyring) -> KeptTerms:
    """The terms that this node accepted before, checked anew.

    Raises:
        AgreementError: what lies there was not signed by all parties.
        SettingError: the file cannot be read.
    """
    return KeptTerms(settings.agreement, settings.name, keyring.signing.public)


def arrays_folder(settings: NodeSettings, schema: Schema) -> Path:
    """Where the customers lie that were prepared under a schema."""
    return settings.arrays / digest(schema.to_record())[:16]


def prepared_customers(settings: NodeSettings, schema: Schema, *, anew: bool) -> CustomerArrays:
    """The partner's customers, prepared where that was not done yet.

    Args:
        settings: the node's.
        schema: of the terms.
        anew: read the table again although it was read before.

    Raises:
        DovetailError: the table cannot be read or does not fit.
    """
    folder = arrays_folder(settings, schema)
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        settings.arrays.mkdir(mode=0o700, exist_ok=True)
        prepare(settings.source, schema, folder, _secret(settings.secret))
    customers = CustomerArrays.open(folder)
    if customers.schema != schema:
        raise SettingError(f"{folder.name}: was prepared under another schema; delete the folder")
    return customers


def require_ledger(settings: NodeSettings) -> None:
    """Do nothing if this node has its ledger, or never had one.

    A ledger is begun before customers are prepared, so that whoever finds these without it knows
    that it was lost.

    Raises:
        SettingError: this node has run before, and its ledger is missing.
    """
    kept = settings.ledger.exists() and settings.ledger.stat().st_size > 0
    if settings.arrays.exists() and not kept:
        raise SettingError(
            f"{settings.ledger.name}: the ledger is missing, though this node has run before; put "
            f"its newest copy back (to begin anew on purpose, delete {settings.arrays.name!r} too)"
        )


class OpenNode:
    """A node and what it holds open; a context manager.

    Attributes:
        node: the node.
        terms: under which it works.
        ledger: its ledger.
    """

    def __init__(
        self,
        settings: NodeSettings,
        terms: Terms,
        keyring: Keyring,
        *,
        clock: Clock = utc_now,
        child: bool = True,
        anew: bool = False,
    ) -> None:
        """Opens it.

        Args:
            settings: the node's.
            terms: trusted and in force.
            keyring: the partner's keys.
            clock: the time.
            child: train in a process of its own, which can be killed.
            anew: read the table again although it was read before.

        Raises:
            DovetailError: terms, table or ledger do not allow it; the message says how to mend it.
        """
        self.terms, self._settings = terms, settings
        declared = declared_customers(terms, settings.name)
        desk = Desk(settings.desk)
        require_known_names(settings.policy, terms)
        with ExitStack() as stack:
            require_ledger(settings)
            self.ledger = stack.enter_context(LedgerStore(settings.ledger, terms.budget, clock))
            customers = prepared_customers(settings, terms.schema, anew=anew)
            _require_declared(len(customers), declared)
            contributor = self._contributor(stack, customers, declared, child=child)
            self.node = Node(
                terms,
                settings.name,
                keyring.signing,
                len(customers),
                contributor,
                self.ledger,
                clock,
                settings.policy,
                lambda signed: desk.decision(signed, clock()),
                self._keep,
                Admissions(settings.admitted),
            )
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Lets go of ledger and worker."""
        self._stack.close()

    def __enter__(self) -> OpenNode:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _contributor(
        self, stack: ExitStack, customers: CustomerArrays, declared: int, *, child: bool
    ) -> Contributor:
        if child:
            folder = arrays_folder(self._settings, self.terms.schema)
            worker = stack.enter_context(Worker(folder, declared, self._settings.limits))
            threading.Thread(target=_warm, args=(worker,), daemon=True).start()
            return worker
        from dovetail.node.runner import Runner  # brings torch, which only this needs
        from dovetail.training.threads import use_one_thread

        use_one_thread()
        return Runner(customers, self.terms.schema, declared, _fresh_dice)

    def _keep(self, record: Record, arrays: Arrays) -> None:
        """Keeps a released model of a job that this partner took part in."""
        card, _ = card_from_record(record)
        known = self.ledger.refresh().job(card.request.job)
        if known is None or known.request_digest != record.get("request_digest"):
            raise PolicyError("request", "this partner took part in no such job")
        folder = self._settings.models / card.request.job
        require_no_other(folder, record)
        save_received(folder, record, arrays)


def _require_declared(customers: int, declared: int) -> None:
    """The policy's rules rely on it; a threshold that no request can move."""
    if customers > MOST_UNDECLARED * declared:
        raise SettingError(
            f"the table holds more than {MOST_UNDECLARED} times the {declared} customers that the "
            "agreement declares: agree on the right number"
        )


def _warm(worker: Worker) -> None:
    """Starts the worker before the first round waits for it; a round meets its errors again."""
    try:
        worker.start()
    except DovetailError as error:
        _logger.warning("the worker could not start: %s", error)


def _fresh_dice(_job: str, _number: int) -> SecureSampler:
    return SecureSampler(fresh_key())


def _secret(path: Path) -> bytes:
    """The partner's secret for drawing rows, made on first use."""
    make_private(path, lambda file: write_whole(file, os.urandom(_SECRET_BYTES), mode=0o600))
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path.name}: cannot be read ({error.strerror})") from None
