"""What happens to a job, for people who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EventKind = Literal[
    "submitted",
    "awaiting",
    "permitted",
    "refused",
    "resumed",
    "round",
    "dropped",
    "lost",
    "released",
    "failed",
    "cancelled",
]


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        job: its name.
        kind: what happened.
        round: finished rounds by then.
        rounds: of the whole job.
        partner: whom it concerns; empty where all.
        text: why, where there is a reason; safe to show to every partner.
    """

    job: str
    kind: EventKind
    round: int
    rounds: int
    partner: str = ""
    text: str = ""
