"""Who is protected: the privacy unit, as plain data and in words."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.errors import PrivacyError

NEIGHBOURING_RELATION = "adding or removing one {name} with all of its rows, at one partner"
"""What two neighbouring tables differ in; ``privacy.accountant`` computes for this relation."""


@dataclass(frozen=True)
class PrivacyUnit:
    """One customer at one partner: all rows that carry one key.

    Attributes:
        name: what one customer is called ("household").
        max_rows_per_customer: how many rows of one customer count, >= 1; more are sampled down
            before anything is computed.

    Raises:
        PrivacyError: the name is empty, or the bound is no whole number >= 1.
    """

    name: str
    max_rows_per_customer: int

    def __post_init__(self) -> None:
        rows = self.max_rows_per_customer
        if not self.name.strip():
            raise PrivacyError("a privacy unit needs a name")
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise PrivacyError("max_rows_per_customer must be a whole number of at least 1")

    @property
    def neighbouring(self) -> str:
        """What one ε speaks about, for reports and model cards."""
        return NEIGHBOURING_RELATION.format(name=self.name)

    def describe(self) -> str:
        """One sentence for people."""
        rows = self.max_rows_per_customer
        return (
            f"The privacy unit is one {self.name} at one partner, with at most {rows} "
            f"row{'s' if rows > 1 else ''}; ε bounds what {self.neighbouring} can change."
        )
