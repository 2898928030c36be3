import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_committed_stubs_match_the_protos() -> None:
    pytest.importorskip("grpc_tools")
    done = subprocess.run(
        [ROOT / "scripts" / "protos", "--check"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
