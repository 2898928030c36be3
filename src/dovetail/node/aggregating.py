"""A node's part in secure aggregation: its keys of each job, in memory only, and its masked input.

What a node knows of a job's keys is gone when it restarts; it then takes part again from the next
block of rounds on. Nothing here is ever on a disk, so that no mask is ever used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from threading import Lock

import numpy as np
import numpy.typing as npt

from dovetail.agreement.record import Fields
from dovetail.agreement.request import Request
from dovetail.agreement.sharing import Sharing, sharing_of, sum_digest
from dovetail.agreement.terms import Terms
from dovetail.crypto.keys import SigningKey
from dovetail.errors import LocalProtocolError, RemoteProtocolError, SettingError
from dovetail.flower.actions import AggregationStep, Record
from dovetail.privacy.discrete_gaussian import DiscreteSampler
from dovetail.privacy.mechanism import add_noise_share
from dovetail.secagg.client import Client
from dovetail.secagg.group import Block

Masked = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]


class Aggregating:
    """The jobs in which this node adds up with others.

    Guarantees:
        What leaves is a contribution with this node's whole share of the noise, under masks that
        only the other partners' shares can take away, and only together with everybody else's;
        :class:`~dovetail.secagg.client.Client` says when it answers.
    """

    def __init__(self, terms: Terms, partner: str, key: SigningKey) -> None:
        """Holds no keys yet.

        Args:
            terms: what the partners agreed.
            partner: whose node this is.
            key: with which it signs.
        """
        self._terms, self._partner, self._key = terms, partner, key
        self._clients: dict[str, Client] = {}
        self._sharings: dict[str, Sharing] = {}
        self._turn = Lock()
        self._steps: Mapping[AggregationStep, Callable[[Request, Record], Record]] = {
            "advertise_keys": self._advertise_keys,
            "share_keys": self._share_keys,
            "receive_shares": self._receive_shares,
            "check_consistency": self._check_consistency,
            "unmask": self._unmask,
        }

    def step(self, step: AggregationStep, request: Request, body: Record) -> Record:
        """Answers one step.

        Raises:
            RemoteProtocolError: it is not this step's turn, or its body is not as it should be.
            TooManyDropouts: fewer partners take part than the agreement asks for.
        """
        with self._turn:
            try:
                return self._steps[step](request, body)
            except SettingError as error:
                raise RemoteProtocolError(str(error)) from None

    def require_block(self, request: Request, number: int) -> None:
        """Do nothing if this node holds the keys of a round; asked before it is charged.

        Raises:
            LocalProtocolError: it does not: it was restarted, or was not asked for any.
        """
        with self._turn:
            client = self._clients.get(request.job)
            if client is None or not client.can_mask(number):
                raise LocalProtocolError("this node has no keys for this round of the job")

    def masked(
        self,
        request: Request,
        number: int,
        total: npt.NDArray[np.float64],
        sampler: DiscreteSampler,
    ) -> Masked:
        """The masked input of a round: encoded, with this node's share of the noise.

        Args:
            request: an admitted request.
            number: the round.
            total: this node's bounded contribution.
            sampler: source of the noise.
        """
        with self._turn:
            self._client(request)
            sharing = self._sharings[request.job]
        units = sharing.encoding.encode(total)
        add_noise_share(units, sharing.event, sampler)
        masked = sharing.encoding.wrap(units)
        with self._turn:
            self._client(request).mask(number, masked)
        return masked

    def forget_all_but(self, jobs: Collection[str]) -> None:
        """Drops the keys of jobs that are not among those that are open."""
        with self._turn:
            for job in self._clients.keys() - set(jobs):
                del self._clients[job], self._sharings[job]

    def _client(self, request: Request) -> Client:
        if request.job not in self._clients:
            raise LocalProtocolError("this node has no keys for this job")
        return self._clients[request.job]

    def _advertise_keys(self, request: Request, body: Record) -> Record:
        sharing = sharing_of(request.task, self._terms)
        block = _block(sum_digest(request, self._terms), request, sharing, body)
        client = Client(sharing.group, block, self._partner, self._key.sign)
        self._clients[request.job], self._sharings[request.job] = client, sharing
        return client.advertise_keys()

    def _share_keys(self, request: Request, body: Record) -> Record:
        adverts = Fields(body, "share_keys", ("adverts",)).items("adverts")
        records = [dict(advert) for advert in adverts if isinstance(advert, Mapping)]
        shares = self._client(request).share_keys(records)
        return {"shares": {name: share.hex() for name, share in shares.items()}}

    def _receive_shares(self, request: Request, body: Record) -> Record:
        shares = Fields(body, "receive_shares", ("shares",)).raw("shares")
        self._client(request).receive_shares(_bytes_of(shares))
        return {}

    def _check_consistency(self, request: Request, body: Record) -> Record:
        read = Fields(body, "check_consistency", ("round", "survivors"))
        client, survivors = self._client(request), read.texts("survivors")
        return {"signature": client.check_consistency(read.whole("round"), survivors)}

    def _unmask(self, request: Request, body: Record) -> Record:
        read = Fields(body, "unmask", ("round", "signatures"))
        signatures = read.raw("signatures")
        if not isinstance(signatures, Mapping):
            raise RemoteProtocolError("unmask: signatures must be a table")
        texts = {str(name): str(text) for name, text in signatures.items()}
        return dict(self._client(request).unmask(read.whole("round"), texts))


def _block(job: str, request: Request, sharing: Sharing, body: Record) -> Block:
    read = Fields(body, "advertise_keys", ("block", "first_round", "rounds"))
    encoding = sharing.encoding
    block = Block(
        job=job,
        number=read.whole("block"),
        first_round=read.whole("first_round"),
        rounds=read.whole("rounds"),
        size=encoding.size,
        bits=encoding.bits,
    )
    if block.first_round + block.rounds - 1 > request.task.rounds:
        raise RemoteProtocolError("the block has more rounds than the job")
    return block


def _bytes_of(shares: object) -> dict[str, bytes]:
    if not isinstance(shares, Mapping):
        raise RemoteProtocolError("receive_shares: shares must be a table")
    try:
        return {str(name): bytes.fromhex(share) for name, share in shares.items()}
    except (TypeError, ValueError):
        raise RemoteProtocolError("receive_shares: a share must be hexadecimal") from None
