"""Who takes part: parties with pinned keys, and partners, which bring customers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal

from dovetail.agreement.record import Fields, is_digest, require

Duty = Literal["coordinator", "analyst", "partner"]
"""What a party does: run jobs, ask for them, or bring customers."""

PARTY_FIELDS = ("name", "key", "certificate")
PARTNER_FIELDS = ("name", "role", "customers", "first_day", "last_day", "key", "certificate")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Party:
    """A company, or a person of one, and the keys by which all others know it.

    Attributes:
        name: by which it is known in requests, reports, certificates and errors; 1 to 64 letters,
            digits and ``._-``.
        key: its Ed25519 public key, with which it signs; 64 hexadecimal digits.
        certificate: pin of the certificate with which it connects
            (:func:`dovetail.crypto.certificates.pin_of`); 64 hexadecimal digits.

    Raises:
        SettingError: a field has another form.
    """

    name: str
    key: str
    certificate: str

    def __post_init__(self) -> None:
        require_name(self.name)
        for field, digits in (("key", self.key), ("certificate", self.certificate)):
            require(
                is_digest(digits),
                f"party {self.name!r}: {field} must be 64 hexadecimal digits in lower case",
            )


@dataclass(frozen=True)
class Partner(Party):
    """A company that brings customers.

    Attributes:
        role: what it is, for people ("retailer").
        customers: how many it *declares* to bring, to two significant digits. Public: weights and
            the expected batch size come from it, and never from the private count.
        first_day: of the data it brings.
        last_day: of the data it brings, not before ``first_day``.

    Raises:
        SettingError: no customers, a number that looks like an exact count, or days reversed.
    """

    role: str
    customers: int
    first_day: date
    last_day: date

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"partner {self.name!r}"
        require(self.customers >= 1, f"{where}: customers must be at least 1")
        require(
            self.customers == rounded(self.customers),
            f"{where}: customers is public; round it to two significant digits, such as 1200",
        )
        require(self.first_day <= self.last_day, f"{where}: last_day lies before first_day")

    @property
    def data_period(self) -> str:
        """The days its data covers, as reports show them."""
        return f"{self.first_day.isoformat()} to {self.last_day.isoformat()}"


def require_name(name: str) -> None:
    """Raise :class:`SettingError` unless ``name`` can name a party."""
    require(
        _NAME.fullmatch(name) is not None,
        "a party's name is 1 to 64 letters, digits and ._- and begins with a letter or digit",
    )


def rounded(customers: int) -> int:
    """A number of customers to two significant digits, halves upwards: fit to be declared."""
    unit: int = 10 ** max(len(str(abs(customers))) - 2, 0)
    return (customers + unit // 2) // unit * unit


def to_record(party: Party) -> dict[str, object]:
    """The party as JSON-able data."""
    names = PARTNER_FIELDS if isinstance(party, Partner) else PARTY_FIELDS
    values = {name: getattr(party, name) for name in names}
    return {n: v.isoformat() if isinstance(v, date) else v for n, v in values.items()}


def party_from_record(record: object, where: str) -> Party:
    """The coordinator or analyst that :func:`to_record` wrote.

    Raises:
        SettingError: a field is missing, unknown, of another type or form.
    """
    read = Fields(record, where, PARTY_FIELDS)
    return Party(read.text("name"), read.text("key"), read.text("certificate"))


def partner_from_record(record: object, where: str) -> Partner:
    """The partner that :func:`to_record` wrote.

    Raises:
        SettingError: a field is missing, unknown, of another type or out of range.
    """
    read = Fields(record, where, PARTNER_FIELDS)
    return Partner(
        name=read.text("name"),
        key=read.text("key"),
        certificate=read.text("certificate"),
        role=read.text("role"),
        customers=read.whole("customers"),
        first_day=read.day("first_day"),
        last_day=read.day("last_day"),
    )
