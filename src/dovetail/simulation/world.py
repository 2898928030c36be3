"""Real nodes and the real coordinator in one process.

What differs from production: the channel is a function call, and the dice repeat themselves for a
seed. A simulated node's randomness is therefore no secret; its data must be the researcher's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.coordinator.app import JobEvent, Run
from dovetail.coordinator.round import Arrays
from dovetail.crypto.prg import derive_key
from dovetail.flower.actions import node_app
from dovetail.flower.client import answer, new_context
from dovetail.node.app import Node
from dovetail.node.runner import Dice
from dovetail.privacy.release import Release
from dovetail.privacy.sampler import SecureSampler
from dovetail.store.ledger import LedgerStore
from dovetail.training.batch import Customers
from dovetail.wire.memory import Handler, MemoryChannel


class World:
    """A coordinator and its partners' nodes; a context manager that closes their ledgers.

    Attributes:
        ledgers: each partner's ledger, by name.
        partners: the partner behind each node.
        channel: where the nodes are.
    """

    def __init__(
        self,
        terms: Terms,
        customers: Mapping[str, Customers],
        seed: int,
        ledger_folder: Path | None = None,
    ) -> None:
        """Starts one node for each entry of ``customers``.

        Args:
            terms: what they agreed; knows every partner.
            customers: each partner's rows, by partner name.
            seed: repeats every node's sampling and noise.
            ledger_folder: where to keep ledgers, as ``<partner>.ledger``; in memory by default.
        """
        self._terms = terms
        self.partners = dict(enumerate(customers))
        self.ledgers: dict[str, LedgerStore] = {}
        self._open = ExitStack()
        handlers = {}
        for number, partner in self.partners.items():
            path = ledger_folder / f"{partner}.ledger" if ledger_folder else None
            ledger = LedgerStore(path, terms.budget, _now)
            self.ledgers[partner] = self._open.enter_context(ledger)
            node = Node(terms, partner, customers[partner], ledger, _repeating_dice(seed, partner))
            handlers[number] = _handler(number, node)
        self.channel = MemoryChannel(handlers)

    def run(
        self,
        request: Request,
        on_event: Callable[[JobEvent], None] = lambda _: None,
        on_round: Callable[[int, Arrays], None] = lambda _number, _arrays: None,
    ) -> Release:
        """Runs one job to its release.

        Args:
            request: what is asked of every node.
            on_event: told what happens.
            on_round: given the model after each round.

        Raises:
            PolicyError: a node refused.
            DovetailError: the job failed.
        """
        return Run(
            request,
            self._terms,
            self.channel,
            self.partners,
            on_event=on_event,
            on_round=on_round,
        ).run()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()


def _handler(number: int, node: Node) -> Handler:
    context = new_context(number, {}, {})
    return partial(answer, node_app(lambda _: node), lambda _: context)


def _repeating_dice(seed: int, partner: str) -> Dice:
    root = sha256(f"dovetail simulation {seed}".encode()).digest()
    return lambda job, number: SecureSampler(derive_key(root, "round", partner, job, number))


def _now() -> datetime:
    return datetime.now(UTC)
