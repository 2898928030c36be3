"""The client app on Flower's simulation engine, where nobody else can reach it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = ["unshare", "--net", "--map-root-user", "bash", "-c"]
"""Runs a command in a network namespace with nothing but loopback: Ray listens everywhere."""
LOOPBACK_UP = "ip link set lo up && "


@pytest.mark.ray
def test_the_same_app_and_coordinator_run_on_ray() -> None:
    pytest.importorskip("ray")
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare and ip, to keep Ray off the network")
    script = Path(__file__).with_name("ray_round.py")
    command = f"{LOOPBACK_UP} exec '{sys.executable}' '{script}'"
    done = subprocess.run(
        [*ALONE, command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ray and memory agree" in done.stdout
