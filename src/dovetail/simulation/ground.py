"""The ground that all runs of a study share: partners, their customers, and who is held out.

A worker process opens it from a :class:`Recipe`, which is small: the rows themselves stay in
memory-mapped files that all workers share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovetail.agreement.party import Partner
from dovetail.agreement.record import require
from dovetail.crypto import canonical
from dovetail.data.customers import CustomerArrays
from dovetail.errors import SettingError
from dovetail.schema import Schema
from dovetail.simulation.study import Study
from dovetail.training.batch import Batch, Customers

_CHUNK = 4096  # customers hashed at a time


@dataclass(frozen=True)
class PartnerRows:
    """Where one partner's customers lie.

    Attributes:
        partner: as the terms know it.
        table: Parquet file of its training customers' rows.
        training: folder of its training customers' prepared arrays.
        held_out: folder of those that are never trained on.
    """

    partner: Partner
    table: Path
    training: Path
    held_out: Path


@dataclass(frozen=True)
class Recipe:
    """What a process needs to open the ground: the study's columns, and each partner's rows."""

    schema: Schema
    rows: tuple[PartnerRows, ...]


class Together:
    """Several parties' customers one after the other, as if one company had them all."""

    def __init__(self, parts: Sequence[Customers]) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        """Number of customers of all parties."""
        return int(self._starts[-1])

    def batch(self, customers: npt.NDArray[np.int64]) -> Batch:
        """Rows of these customers, in this order, padded to the longest of them."""
        owner = np.searchsorted(self._starts, customers, side="right") - 1
        places = [np.flatnonzero(owner == i) for i in range(len(self._parts))]
        batches = [
            part.batch(customers[place] - start)
            for part, place, start in zip(self._parts, places, self._starts[:-1], strict=True)
        ]
        order = np.argsort(np.concatenate(places), kind="stable")
        rows = max(batch.mask.shape[1] for batch in batches)
        return Batch(
            *(
                np.concatenate([_padded(getattr(batch, name), rows) for batch in batches])[order]
                for name in ("numbers", "codes", "labels", "mask")
            )
        )


@dataclass(frozen=True)
class Ground:
    """Everything a run reads.

    Attributes:
        schema: exactly the columns that are trained on.
        partners: who takes part, as the terms know them.
        training: each partner's training customers, by name.
        held_out: customers never trained on, of all partners, in the partners' order.
        held_out_partner: ``(held-out customers,)``, the index of each one's partner.
    """

    schema: Schema
    partners: tuple[Partner, ...]
    training: Mapping[str, Customers]
    held_out: Customers
    held_out_partner: npt.NDArray[np.int64]


def open_ground(recipe: Recipe) -> Ground:
    """Opens the prepared arrays.

    Raises:
        DataError: a folder is missing or damaged.
    """
    held_out = [CustomerArrays.open(rows.held_out) for rows in recipe.rows]
    return Ground(
        schema=recipe.schema,
        partners=tuple(rows.partner for rows in recipe.rows),
        training={rows.partner.name: CustomerArrays.open(rows.training) for rows in recipe.rows},
        held_out=Together(held_out),
        held_out_partner=np.repeat(np.arange(len(held_out)), [len(part) for part in held_out]),
    )


def check_ground(study: Study, ground: Ground) -> None:
    """Refuses what could not run or not be promised, before anything runs.

    Raises:
        SettingError: a partner is too small for the cohort or for δ, or the held-out customers of
            all partners together have one class only.
    """
    privacy = study.privacy
    split = study.partition.kind != "files"
    mend = "lower it, or split less" if split else "bring more customers, or lower it"
    for partner in ground.partners:
        customers = len(ground.training[partner.name])
        smaller = min(customers, partner.customers)
        require(
            smaller >= privacy.minimum_cohort,
            f"partner {partner.name!r} has fewer than [privacy] minimum_cohort = "
            f"{privacy.minimum_cohort} training customers: {mend}",
        )
        larger = max(customers, partner.customers)
        require(
            privacy.delta * larger < 1,
            f"[privacy]: delta = {privacy.delta:g} is not below one in the {larger} training "
            f"customers of partner {partner.name!r}: lower it",
        )
    positive = _positive_rows(ground.held_out)
    if not 0 < positive < 1:
        raise SettingError(
            "[evaluation]: the label of the held-out customers has one class only, so nothing can "
            "be measured: hold out more"
        )


def digest(ground: Ground) -> str:
    """SHA-256 over the columns and every partner's rows, in hex: which data a result is about."""
    sum_of_all = hashlib.sha256(canonical.digest(ground.schema.to_record()).encode())
    parts = [(p.name, p.customers, ground.training[p.name]) for p in ground.partners]
    for name, declared, customers in [*parts, ("held out", 0, ground.held_out)]:
        sum_of_all.update(f"{name!r} {declared} {len(customers)}".encode())
        for batch in _batches(customers):
            for array in (batch.mask, batch.labels, batch.numbers, batch.codes):
                sum_of_all.update(np.ascontiguousarray(array).data)
    sum_of_all.update(ground.held_out_partner.tobytes())
    return sum_of_all.hexdigest()


def _positive_rows(customers: Customers) -> float:
    """Share of ones among all rows."""
    ones = rows = 0.0
    for batch in _batches(customers):
        ones += float((batch.labels * batch.mask).sum())
        rows += float(batch.mask.sum())
    return ones / rows if rows else 0.0


def _batches(customers: Customers) -> Iterator[Batch]:
    everyone = np.arange(len(customers), dtype=np.int64)
    starts = range(0, len(everyone), _CHUNK)
    return (customers.batch(everyone[start : start + _CHUNK]) for start in starts)


def _padded(array: npt.NDArray[np.float32], rows: int) -> npt.NDArray[np.float32]:
    """``array`` with zeros appended along its second axis up to ``rows``."""
    missing = rows - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)])
