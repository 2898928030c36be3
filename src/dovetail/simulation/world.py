"""Real nodes and the real coordinator in one process, or the nodes in a few worker processes.

What differs from production: the channel is a function call or a pipe, and the dice repeat
themselves for a seed. A simulated node's randomness is therefore no secret; its data must be the
researcher's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.round import Arrays
from dovetail.coordinator.run import Run
from dovetail.crypto.prg import derive_key
from dovetail.flower.actions import node_app
from dovetail.flower.client import answer, new_context
from dovetail.node.app import Node, NoiseOf, declared_customers
from dovetail.node.runner import Dice, Runner
from dovetail.privacy.discrete_gaussian import DiscreteSampler
from dovetail.privacy.release import Release
from dovetail.privacy.sampler import SecureSampler
from dovetail.simulation.identities import asked, signing_key
from dovetail.store.ledger import LedgerStore
from dovetail.training.batch import Customers
from dovetail.training.threads import use_one_thread
from dovetail.wire.channel import Answer, Channel
from dovetail.wire.memory import Handler, MemoryChannel
from dovetail.wire.payload import Payload
from dovetail.wire.processes import ProcessChannel

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it


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
        workers: int = 1,
    ) -> None:
        """Starts one node for each entry of ``customers``.

        Results do not depend on ``workers``, down to the last bit where this process runs torch
        on one thread, as workers do. A worker takes some seconds to start; it pays for long jobs
        and for many nodes.

        Args:
            terms: what they agreed; knows every partner.
            customers: each partner's rows, by partner name.
            seed: repeats every node's sampling and noise.
            ledger_folder: where to keep ledgers, as ``<partner>.ledger``; in memory by default.
            workers: 1 runs the nodes here, one after the other; more, side by side in as many
                processes, to which ``customers`` are pickled.
        """
        self._terms = terms
        self.partners = dict(enumerate(customers))
        self.ledgers: dict[str, LedgerStore] = {}
        self._open = ExitStack()
        with ExitStack() as unless_started:
            unless_started.enter_context(self._open)
            if workers > 1 and ledger_folder is None:
                ledger_folder = self._open.enter_context(_memory_folder())
            sites = {
                number: _Site(terms, partner, customers[partner], seed, ledger_folder)
                for number, partner in self.partners.items()
            }
            self.ledgers = {
                site.partner: self._open.enter_context(site.ledger()) for site in sites.values()
            }
            self.channel = self._channel(sites, workers)
            unless_started.pop_all()

    def _channel(self, sites: Mapping[int, _Site], workers: int) -> Channel:
        if workers == 1:
            handlers = {n: _handler(n, s.node(self.ledgers[s.partner])) for n, s in sites.items()}
            return MemoryChannel(handlers)
        numbers = list(sites)
        shares = [numbers[first::workers] for first in range(workers)]
        groups = [(_Worker({n: sites[n] for n in share}), share) for share in shares if share]
        return _InOrder(self._open.enter_context(ProcessChannel(groups)))

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
            asked(request, self._terms),
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


@dataclass(frozen=True)
class _InOrder:
    """Answers in the order of the nodes, whichever came first: a sum of floats depends on it."""

    channel: Channel

    def nodes(self) -> Sequence[int]:
        return self.channel.nodes()

    def exchange(
        self, requests: Mapping[int, Payload], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        answers = dict(self.channel.exchange(requests, deadline))
        for node in requests:
            yield node, answers.pop(node)


@dataclass(frozen=True)
class _Site:
    """What one node is made of, wherever it runs."""

    terms: Terms
    partner: str
    customers: Customers
    seed: int
    ledger_folder: Path | None

    def ledger(self) -> LedgerStore:
        folder, name = self.ledger_folder, f"{self.partner}.ledger"
        return LedgerStore(folder / name if folder else None, self.terms.budget, _now)

    def node(self, ledger: LedgerStore) -> Node:
        declared = declared_customers(self.terms, self.partner)
        dice = _repeating_dice(self.seed, self.partner)
        return Node(
            self.terms,
            self.partner,
            signing_key(self.partner),
            len(self.customers),
            Runner(self.customers, self.terms.schema, declared, dice),
            ledger,
            _now,
            noise=_repeating_noise(self.seed, self.partner),
        )


@dataclass(frozen=True)
class _Worker:
    """The sites of one worker process."""

    sites: Mapping[int, _Site]

    def __call__(self, numbers: Sequence[int]) -> dict[int, Handler]:
        """The handlers; called in the worker."""
        use_one_thread()
        return {n: _handler(n, self.sites[n].node(self.sites[n].ledger())) for n in numbers}


@contextmanager
def _memory_folder() -> Iterator[Path]:
    """A folder that several processes can open and no disk slows down, where there is such."""
    with TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def _handler(number: int, node: Node) -> Handler:
    context = new_context(number, {}, {})
    return partial(answer, node_app(lambda _: node), lambda _: context)


def _repeating_dice(seed: int, partner: str) -> Dice:
    root = sha256(f"dovetail simulation {seed}".encode()).digest()
    return lambda job, number: SecureSampler(derive_key(root, "round", partner, job, number))


def _repeating_noise(seed: int, partner: str) -> NoiseOf:
    root = sha256(f"dovetail simulation {seed}".encode()).digest()
    return lambda job, number: DiscreteSampler(derive_key(root, "share", partner, job, number))


def _now() -> datetime:
    return datetime.now(UTC)
