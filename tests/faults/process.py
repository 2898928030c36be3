"""A party's process: the command ``dovetail`` with points at which it can be killed.

Started by :mod:`tests.faults.host`, which forks it from a process that has imported everything, or
as a fresh interpreter by :func:`command`. Beyond the points a process can be given another clock
and other limits of the wire.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from dovetail.simulation.federation import COORDINATOR
from tests.faults.points import install

ROOT = Path(__file__).parents[2]
_START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.faults import process; "


@dataclass(frozen=True)
class Setting:
    """How a party's process differs from one in production.

    Attributes:
        notes: the party's folder for points and notes; empty for neither.
        clock_ahead: seconds by which its clock is ahead of the true time.
        limits: of the coordinator's wire that differ, by name.
        rounds_in_a_block: for whose secure sums keys are shared at once; 0 for as many as ever.
    """

    notes: str = ""
    clock_ahead: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)
    rounds_in_a_block: int = 0


def command(party: str, setting: Setting, arguments: Sequence[str]) -> list[str]:
    """How to start a party's process as a fresh interpreter."""
    told = json.dumps(asdict(setting))
    run = "process.run(sys.argv[1], process.Setting(**__import__('json').loads(sys.argv[2])), "
    return [sys.executable, "-c", f"{_START}{run}sys.argv[3:])", party, told, *arguments]


def run(party: str, setting: Setting, arguments: Sequence[str]) -> None:
    """Is the party's process, to its end."""
    _shift_clock(setting.clock_ahead)
    _limit(setting.limits)
    _shorten_blocks(setting.rounds_in_a_block)
    if setting.notes:
        install(Path(setting.notes), party, COORDINATOR)
    from dovetail.cli.main import app

    app(list(arguments), prog_name="dovetail")


def _limit(changed: dict[str, float]) -> None:
    from dovetail.coordinator import app
    from dovetail.wire.peers import Limits

    if changed:
        made = partial(Limits, **changed)  # type: ignore[arg-type]
        setattr(app, "Limits", made)  # noqa: B010 - it is a class there


def _shorten_blocks(rounds: int) -> None:
    from dovetail.coordinator import aggregating

    if rounds:
        setattr(aggregating, "ROUNDS_IN_A_BLOCK", rounds)  # noqa: B010 - it is final there


def _shift_clock(seconds: float) -> None:
    """Gives this process a clock that is wrong by so much, wherever it looks at one."""
    if not seconds:
        return
    from dovetail.coordinator import app
    from dovetail.node import attending
    from dovetail.wire.attendance import Attendance
    from dovetail.wire.server import FederationServer

    def now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)

    def timestamp() -> float:
        return time.time() + seconds

    app.Coordinator.__init__.__defaults__ = (now, None)
    attending.attend.__defaults__ = (now,)
    for end in (Attendance, FederationServer):
        end.__init__.__kwdefaults__["clock"] = timestamp  # type: ignore[index]
