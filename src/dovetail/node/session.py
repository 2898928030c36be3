"""What a node does with what its coordinator sends: trust terms, open under them, answer.

A session holds at most one open node. It opens one when it learns of terms that are trusted and in
force, and another when they are amended, whether its coordinator showed it the amendment or its own
people handed it over. Whatever stands in the way (no terms, a paused desk, a
wrong clock) refuses by its rule; the end of a job is always heard.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from threading import Lock

from dovetail.agreement import terms as agreed
from dovetail.agreement.signing import chain_from_record
from dovetail.agreement.terms import Terms
from dovetail.agreement.trusted import OLDER
from dovetail.errors import AgreementError, DovetailError, PolicyError, SettingError
from dovetail.flower.actions import AggregationStep, Contribution, Record, node_app
from dovetail.flower.client import answer, new_context
from dovetail.node.app import Arrays, Node, parsed
from dovetail.node.gate import Clock
from dovetail.node.opening import OpenNode
from dovetail.store.agreement import KeptTerms
from dovetail.store.desk import Desk

LARGEST_CLOCK_DIFFERENCE = timedelta(minutes=10)
"""Beyond it a node refuses: budgets refill, permits and terms end by its clock."""

_logger = logging.getLogger(__name__)


@contextmanager
def _refusals_logged(what: str) -> Iterator[None]:
    """Notes in the node's own log what it refuses, with the rule."""
    try:
        yield
    except DovetailError as error:
        _logger.warning("refused %s: %s", what, error)
        raise


class Session:
    """A node's side of its collaboration, whatever carries the messages.

    Guarantees:
        Nothing is answered but under the newest terms held, which every party signed and which are
        in force; an older agreement is refused, whoever shows it or asks under it. One round is in
        flight at a time: another that is asked meanwhile costs nothing until its turn.
    """

    def __init__(
        self,
        kept: KeptTerms,
        open_node: Callable[[Terms], OpenNode],
        desk: Desk,
        clock: Clock,
    ) -> None:
        """Begins with what is trusted already.

        Args:
            kept: the terms that were accepted before, if any, and keeps what comes.
            open_node: opens the node under terms.
            desk: what people decide.
            clock: the time.
        """
        self._kept, self._open = kept, open_node
        self._desk, self._clock = desk, clock
        self._lock = Lock()
        self._round = Lock()
        """Held through a round, so that one that waits is judged, and charged, only in its turn."""
        self._opened: OpenNode | None = None
        self._why_closed: DovetailError | None = None
        self._clock_difference = timedelta(0)
        self._prepared: Terms | None = None
        context = new_context(0, {}, {})
        self.handle = partial(answer, node_app(lambda _: self), lambda _: context)
        """Answers one request; for a channel."""

    def welcome(self, document: bytes, coordinator_time: datetime) -> None:
        """Learns the coordinator's clock and agreement; called at each connection.

        Args:
            document: all versions of the signed terms, as JSON.
            coordinator_time: the coordinator's clock.

        Raises:
            AgreementError: the agreement cannot be trusted; what was trusted before stays.
            SettingError: it cannot be kept; the same.
        """
        self._clock_difference = abs(self._clock() - coordinator_time)
        try:
            chain = chain_from_record(json.loads(document))
        except (ValueError, RecursionError, SettingError) as error:
            raise AgreementError(f"the agreement that was shown cannot be read: {error}") from None
        try:
            if chain and self._kept.follow(chain):
                self._say_newest()
        finally:
            self.prepare()

    def look(self) -> bool:
        """Learns of terms that people here handed to the node, and opens under them.

        Returns:
            Whether there were any.
        """
        new = False
        try:
            new = self._kept.look()
        except DovetailError as error:
            _logger.error("what is kept of the agreement cannot be used: %s", error)
        if new:
            self._say_newest()
        if self._kept.trusted.newest is not self._prepared:
            self.prepare()
        return new

    def _say_newest(self) -> None:
        newest = self._kept.trusted.newest
        if newest is not None:
            _logger.info("trusts version %d, %s", newest.version, agreed.digest(newest))

    def prepare(self) -> None:
        """Opens the node under the terms in force, if it is not open under them.

        What stands in the way is kept, to be told to whoever asks.
        """
        with self._lock:
            trusted = self._kept.trusted
            self._prepared = trusted.newest
            try:
                terms = trusted.in_force(self._clock().date())
                if self._opened is None or self._opened.terms != terms:
                    self._let_go()
                    self._opened = self._open(terms)
                    _logger.info("open under version %d", terms.version)
                self._why_closed = None
            except DovetailError as error:
                _logger.error("cannot open: %s", error)
                self._why_closed = error

    def shut(self) -> None:
        """Lets go of the node."""
        with self._lock:
            self._let_go()

    @property
    def problem(self) -> DovetailError | None:
        """Why the node is not open; ``None`` where it is."""
        return self._why_closed

    def preview(self, signed: Record) -> Record:
        """See :class:`dovetail.flower.actions.Actions`."""
        with _refusals_logged("a preview"):
            return self._ready(signed).preview(signed)

    def propose(self, signed: Record) -> Record:
        """See :class:`dovetail.flower.actions.Actions`; one that waits for a person goes there."""
        with _refusals_logged("a proposal"):
            node = self._ready(signed)
            try:
                return node.propose(signed)
            except PolicyError as error:
                if error.rule == "approval":
                    self._desk.wait_for_decision(parsed(signed), self._clock())
                raise

    def train(self, request: Record, number: int, arrays: Arrays, state: Arrays) -> Contribution:
        """See :class:`dovetail.flower.actions.Actions`; one round at a time."""
        with _refusals_logged(f"round {number}"), self._round:
            return self._ready().train(request, number, arrays, state)

    def aggregate(self, step: AggregationStep, request: Record, body: Record) -> Record:
        """See :class:`dovetail.flower.actions.Actions`."""
        with _refusals_logged(f"a step of secure aggregation, {step}"):
            return self._ready().aggregate(step, request, body)

    def close(self, job: str) -> None:
        """See :class:`dovetail.flower.actions.Actions`; heard whatever else stands in the way."""
        with _refusals_logged("the end of a job"):
            self._node(whatever_day=True).close(job)

    def keep(self, card: Record, arrays: Arrays) -> None:
        """See :class:`dovetail.flower.actions.Actions`; as :meth:`close`."""
        with _refusals_logged("a released model"):
            if card.get("terms_digest") not in self._digests():
                raise PolicyError("terms", "the model's card names terms that nobody signed here")
            self._node(whatever_day=True).keep(card, arrays)

    def _ready(self, signed: Record | None = None) -> Node:
        """The node, to be asked for something; under the newest terms that this side knows."""
        self.look()
        if self._desk.paused:
            raise PolicyError("paused", "this partner has paused its node")
        if self._clock_difference > LARGEST_CLOCK_DIFFERENCE:
            raise PolicyError("clock", "the clocks of node and coordinator differ by too much")
        if signed is not None and signed.get("terms_digest") in self._digests()[:-1]:
            raise PolicyError("terms", OLDER)
        return self._node()

    def _digests(self) -> list[str]:
        """Which terms are known here, oldest first."""
        return [agreed.digest(signed.terms) for signed in self._kept.trusted.chain]

    def _node(self, *, whatever_day: bool = False) -> Node:
        today = self._clock().date()
        with self._lock:
            opened, why = self._opened, self._why_closed
        ready = why is None and opened is not None and opened.terms.in_force(today)
        if opened is not None and (whatever_day or ready):
            return opened.node
        if isinstance(why, AgreementError) or opened is not None or why is None:
            raise PolicyError("terms", str(why or "no terms are in force here"))
        raise PolicyError("paused", "this partner's node cannot open; its own log says why")

    def _let_go(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
