"""The product's own client app and job on Flower's simulation engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flower.test_ray import ALONE, LOOPBACK_UP


@pytest.mark.ray
def test_a_job_runs_on_ray_and_charges_every_ledger() -> None:
    pytest.importorskip("ray")
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare and ip, to keep Ray off the network")
    script = Path(__file__).with_name("ray_job.py")
    command = f"{LOOPBACK_UP} exec '{sys.executable}' '{script}'"
    done = subprocess.run(
        [*ALONE, command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "every ledger was charged" in done.stdout
