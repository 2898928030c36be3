"""What the partners assume of each other under ``distributed`` protection: terms of the agreement.

Each partner adds only a share of the noise, and the coordinator sees nothing but the sum of all
(:mod:`dovetail.secagg`). So a customer's protection rests on some of the other partners: that
enough of them stay until the end of a round, and that not too many of them pool what they know.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.agreement.record import Fields, require
from dovetail.secagg.group import MOST_MEMBERS


@dataclass(frozen=True)
class SecureAggregation:
    """How many partners may fail the others.

    Attributes:
        dropouts: how many may leave a round before its end; with fewer than all others it is lost.
        colluders: how many may tell the coordinator, or each other, what they know; at least 1.
            Every partner reads the model and knows its own share of the noise, which it can take
            away: it alone is one.

    Raises:
        SettingError: ``dropouts`` is below 0, or ``colluders`` below 1.

    Guarantees:
        What a sum is charged holds against any one partner by itself.
    """

    dropouts: int
    colluders: int

    def __post_init__(self) -> None:
        require(self.dropouts >= 0, "secure_aggregation: dropouts must not be below 0")
        require(self.colluders >= 1, _NOBODY)

    @property
    def tolerated(self) -> int:
        """``t``: partners without whose noise the rest is still enough."""
        return self.dropouts + self.colluders

    def check(self, partners: int) -> None:
        """Do nothing if so many partners can form a group with these assumptions.

        ``n - t >= 2``: somebody has to share the noise, hence at least 3 partners.
        ``n > 2 * dropouts + colluders``: with a threshold of ``n - dropouts`` signatures, a
        coordinator and its colluders cannot collect enough of them for two different lists of
        survivors (Bonawitz et al. 2017, section 6.2: ``2 * threshold > n + colluders``).

        Raises:
            SettingError: names the limit.
        """
        require(
            partners <= MOST_MEMBERS,
            f"secure_aggregation: at most {MOST_MEMBERS} partners can form a group",
        )
        require(partners != 2, _TWO)
        require(
            partners - self.tolerated >= 2,
            f"secure_aggregation: of {partners} partners at most {max(partners - 2, 0)} may drop "
            "out or collude, or nobody is left to share the noise with; use protection 'local'",
        )
        require(
            partners > 2 * self.dropouts + self.colluders,
            f"secure_aggregation: {partners} partners cannot tolerate {self.dropouts} dropouts and "
            f"{self.colluders} colluders: partners must be more than twice the dropouts plus the "
            "colluders, or the coordinator could tell them apart which of them dropped out",
        )


_TWO = (
    "secure_aggregation: with 2 partners the sum shows each of them the other's update, under the "
    "other's share of the noise alone; use protection 'local'"
)
_NOBODY = (
    "secure_aggregation: colluders must be at least 1: every partner reads the model and can take "
    "its own share of the noise away, so that with 0 it would see the others under less noise than "
    "is charged"
)


def secure_aggregation_from_record(record: object) -> SecureAggregation:
    """The assumptions in a table of the terms.

    Raises:
        SettingError: a field is missing, unknown or out of range.
    """
    read = Fields(record, "terms.secure_aggregation", ("dropouts", "colluders"))
    return SecureAggregation(read.whole("dropouts"), read.whole("colluders"))
