"""A whole job over real nodes on Flower's Ray engine; run by ``test_ray.py`` beside it."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from flwr.app import Context

from dovetail.coordinator.run import Run
from dovetail.flower.engine import run_on_ray
from dovetail.node.flower_app import VARIABLE, app
from dovetail.store.ledger import LedgerStore
from dovetail.wire.channel import Channel

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.node.homes import SIZES, asked, terms_of, write_homes
from tests.samples import TASK


def coordinate(channel: Channel, _context: Context) -> None:
    terms = terms_of(Path(os.environ[VARIABLE]) / "retailer")
    partners = dict(zip(channel.nodes(), sorted(SIZES), strict=True))
    run = Run(asked(terms), terms, channel, partners, deadline=120)
    release = run.run()
    assert run.job.rounds_done == TASK.rounds
    assert all(np.isfinite(array).all() for array in release.value.values())


def check_ledgers(homes: Path) -> None:
    budget = terms_of(homes / "retailer").budget
    for name in SIZES:
        with LedgerStore(homes / name / f"{name}.ledger", budget, lambda: datetime.now(UTC)) as one:
            assert one.refresh().spending() == {TASK.event: TASK.steps}


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        os.environ[VARIABLE] = str(write_homes(Path(folder)))
        run_on_ray(coordinate, app, len(SIZES))
        check_ledgers(Path(folder))
    print("the job ran on Ray and every ledger was charged")
