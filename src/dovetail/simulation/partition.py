"""Who has which customers, and which of them are held out.

Everything goes by customer and never by row, and depends on the customer's key and a seed alone:
not on the order of the rows, nor on which other customers there are.
"""

from __future__ import annotations

import csv
import hashlib
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dovetail.data.engine import ROWS, Limits, literal, quote
from dovetail.data.source import Source, materialise, run_query
from dovetail.errors import DataError, SettingError
from dovetail.schema import did_you_mean

Assignment = Mapping[str, str]
"""The partner of each customer, by the customer's key as text."""

_TABLE = "rows_to_share"
_HOLD_OUT, _DEAL = b"", b"deal"
MOST_PARTNERS = 100
"""Most partners that are named after a column's values; more than that is no column of owners."""


@dataclass(frozen=True)
class PartnerFiles:
    """One partner's rows, as the node will read them and as the researcher will test on.

    Attributes:
        train: Parquet file of the customers that train.
        test: Parquet file of the customers held out.
        train_customers: how many train, exactly. The researcher's own view, not private: what the
            partner declares is a rounded figure.
        test_customers: how many are held out, likewise.
    """

    train: Path
    test: Path
    train_customers: int
    test_customers: int


def customers(table: Path, key: str) -> tuple[str, ...]:
    """The keys of all customers in a file, as text, sorted.

    Raises:
        DataError: the file cannot be read or has no such column.
    """
    query = f"SELECT DISTINCT {_text(key)} AS k FROM {_TABLE} WHERE k IS NOT NULL ORDER BY k"  # noqa: S608 - quoted
    return tuple(found for (found,) in run_query(query, {_TABLE: table}, as_text=True))


def by_column(
    table: Path, key: str, column: str, partners: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """Share customers out by the value of a column.

    Args:
        table: the file that holds all rows.
        key: the column that identifies a customer.
        column: the column to go by; one value per customer.
        partners: the values of each partner, as text; by default every value is a partner of its
            own name.

    Returns:
        The partner of each customer.

    Raises:
        SettingError: the column is the key or has too many values to name partners after, a
            customer has several values or none, a value is claimed by no partner or by two, or a
            partner gets no customer.
        DataError: the file cannot be read or lacks a column.
    """
    _require_column(table, key, column)
    if column.lower() == key.lower():
        raise SettingError(f"column {column!r} is the key: name the column that says whose each is")
    query = f"SELECT DISTINCT {_text(key)}, {_text(column)} FROM {_TABLE} ORDER BY ALL"  # noqa: S608 - quoted
    rows = run_query(query, {_TABLE: table}, as_text=True)
    pairs = [pair for pair in rows if pair[0] is not None]
    values = dict(pairs)
    if None in {value for _, value in pairs}:
        raise SettingError(f"column {column!r} is NULL for some customers: fill it in")
    if len(values) < len(pairs):
        raise SettingError(
            f"column {column!r} has several values for one customer; it must say for each customer "
            "whose it is, the same in all its rows"
        )
    if partners is None and len({*values.values()}) > MOST_PARTNERS:
        raise SettingError(
            f"column {column!r} has more than {MOST_PARTNERS} values: name the partners and the "
            "values that are theirs"
        )
    claimed = partners if partners is not None else {v: (v,) for v in sorted({*values.values()})}
    owner = _owners(claimed)
    if not set(values.values()) <= set(owner):
        raise SettingError(f"column {column!r} has values that no partner claims; claim them all")
    return _checked({customer: owner[value] for customer, value in values.items()}, claimed)


def by_size(
    keys: Collection[str], partners: Sequence[str], skew: float, seed: int
) -> dict[str, str]:
    """Share customers out at random, to partners of unequal size.

    Shares are drawn from a symmetric Dirichlet distribution, as Hsu et al. (2019),
    https://arxiv.org/abs/1909.06335, draw shares of classes.

    Args:
        keys: the customers.
        partners: names of the partners.
        skew: concentration of the Dirichlet, > 0: 100 gives almost equal partners, 1 unequal ones.
        seed: of shares and draw, >= 0.

    Raises:
        SettingError: a partner gets no customer; fewer partners, a larger ``skew`` or another
            seed mend that.
    """
    _require_skew(skew)
    shares = np.random.default_rng(seed).dirichlet(np.full(len(partners), skew))
    return _checked(_dealt(keys, partners, shares, seed), partners)


def by_label(
    positive: Mapping[str, bool], partners: Sequence[str], skew: float, seed: int
) -> dict[str, str]:
    """Share customers out so that partners differ in how many of theirs are positive.

    The positive customers and the others are dealt separately, each by shares of their own
    (Hsu et al. 2019, section 3).

    Args:
        positive: for each customer, whether any row is labelled 1.
        partners: names of the partners.
        skew: concentration of the Dirichlet, > 0; smaller is more different.
        seed: of shares and draw, >= 0.

    Raises:
        SettingError: as :func:`by_size`.
    """
    _require_skew(skew)
    random = np.random.default_rng(seed)
    assignment: dict[str, str] = {}
    for kind in (False, True):
        keys = [customer for customer, is_positive in positive.items() if is_positive is kind]
        shares = random.dirichlet(np.full(len(partners), skew))
        assignment |= _dealt(keys, partners, shares, seed)
    return _checked(assignment, partners)


def positives(table: Path, key: str, label: str) -> dict[str, bool]:
    """For each customer, whether any row is labelled 1: what :func:`by_label` goes by.

    Raises:
        DataError: the file cannot be read or lacks a column.
    """
    flag = f"TRY_CAST(TRY_CAST({quote(label)} AS BOOLEAN) AS DOUBLE)"
    is_one = f"coalesce(max(coalesce(TRY_CAST({quote(label)} AS DOUBLE), {flag})), 0) > 0"
    query = f"SELECT {_text(key)} AS k, {is_one} FROM {_TABLE} WHERE k IS NOT NULL GROUP BY k"  # noqa: S608 - quoted
    return dict(run_query(query, {_TABLE: table}, as_text=True))


def held_out(keys: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """The customers to test on.

    A customer is held out if a hash of its key under ``seed``, read as a number in [0, 1), lies
    below ``share``; so a customer stays where it is when others come or go.

    Args:
        keys: the customers.
        share: about which share to hold out, in (0, 1).
        seed: of the hash, >= 0.
    """
    if not 0 < share < 1:
        raise SettingError("the share of customers held out must lie in (0, 1)")
    return frozenset(customer for customer in keys if _position(customer, seed, _HOLD_OUT) < share)


def write(
    table: Path, key: str, assignment: Assignment, test: Collection[str], folder: Path
) -> dict[str, PartnerFiles]:
    """Write each partner's rows to two files in ``folder``, one to train and one to test on.

    Args:
        table: the file that holds all rows.
        key: the column that identifies a customer.
        assignment: the partner of each customer; rows of other customers are left out.
        test: the customers held out.
        folder: where to write; must exist.

    Returns:
        The files of each partner, in the order of first appearance in ``assignment``.

    Raises:
        SettingError: a partner has no customer to train or none to test on.
        DataError: the table cannot be read or the folder cannot be written.
    """
    names = list(dict.fromkeys(assignment.values()))
    written = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        places = Path(scratch) / "places.csv"
        _write_places(places, assignment, test)
        for number, name in enumerate(names):
            mine = [customer for customer, partner in assignment.items() if partner == name]
            tested = sum(customer in test for customer in mine)
            if not 0 < tested < len(mine):
                missing = "to test on" if tested == 0 else "to train"
                raise SettingError(
                    f"partner {name!r} has no customers {missing}: give it more, or change "
                    "[evaluation] test_share"
                )
            train_file = folder / f"partner-{number}-train.parquet"
            test_file = folder / f"partner-{number}-test.parquet"
            for path, is_test in ((train_file, False), (test_file, True)):
                tables = {_TABLE: table, "places": places}
                materialise(_rows_of(name, key, is_test=is_test), tables, path, as_text=True)
            written[name] = PartnerFiles(train_file, test_file, len(mine) - tested, tested)
    return written


def _rows_of(partner: str, key: str, *, is_test: bool) -> str:
    # The prefix keeps a CSV reader from taking keys for numbers.
    return (
        f"SELECT {_TABLE}.* FROM {_TABLE} JOIN places "  # noqa: S608 - quoted
        f"ON 'key ' || {_text(key)} = places.place_key "
        f"WHERE place_partner = {literal('of ' + partner)} AND place_test = {int(is_test)}"
    )


def _write_places(path: Path, assignment: Assignment, test: Collection[str]) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened, quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(("place_key", "place_partner", "place_test"))
            writer.writerows((f"key {k}", f"of {p}", int(k in test)) for k, p in assignment.items())
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise DataError(f"who is whose cannot be written: {reason}; is the disk full?") from None


def _dealt(
    keys: Collection[str], partners: Sequence[str], shares: Iterable[float], seed: int
) -> dict[str, str]:
    """Customers in the order of their hash, cut into runs of the given shares."""
    shuffled = sorted(keys, key=lambda customer: _position(customer, seed, _DEAL))
    cuts = np.round(np.cumsum(np.asarray(list(shares))) * len(shuffled)).astype(int)[:-1]
    owners = np.searchsorted(cuts, np.arange(len(shuffled)), side="right")
    return {customer: partners[i] for customer, i in zip(shuffled, owners, strict=True)}


def _position(customer: str, seed: int, purpose: bytes) -> float:
    """A number in [0, 1); independent between purposes, so that one seed may serve both."""
    if seed < 0:
        raise SettingError("a seed must not be negative")
    key = seed.to_bytes(8, "big")
    digest = hashlib.blake2b(customer.encode(), key=key, person=purpose, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _require_column(table: Path, key: str, column: str) -> None:
    with Source.files(table).open(Limits()) as opened:
        names = list(opened.columns(ROWS))
    found = [name.lower() for name in names]
    if column.lower() not in found:
        # Without the key among them the names may be values: a CSV that lacks its header.
        hint = did_you_mean(column, names) if key.lower() in found else ""
        raise SettingError(f"there is no column {column!r} in the data{hint}")


def _owners(claimed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    owner: dict[str, str] = {}
    for partner, values in claimed.items():
        for value in values:
            if owner.setdefault(value, partner) != partner:
                raise SettingError(f"two partners claim the value {value!r}")
    return owner


def _checked(assignment: dict[str, str], partners: Iterable[str]) -> dict[str, str]:
    order = {partner: position for position, partner in enumerate(partners)}
    for partner in order:
        if partner not in assignment.values():
            raise SettingError(
                f"partner {partner!r} would have no customers: check its values; for kind 'size', "
                "name fewer partners, a larger skew or another seed"
            )
    return dict(sorted(assignment.items(), key=lambda item: (order[item[1]], item[0])))


def _require_skew(skew: float) -> None:
    if not 0 < skew < float("inf"):
        raise SettingError("skew must be above 0 and finite")


def _text(column: str) -> str:
    return f"CAST({quote(column)} AS VARCHAR)"
