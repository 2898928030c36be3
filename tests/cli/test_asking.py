from __future__ import annotations

import io
from pathlib import Path

import pytest

from dovetail.cli.outcome import Code
from tests.cli.conftest import call


class Leaving(io.BytesIO):
    """A terminal at which Ctrl-C is pressed instead of an answer."""

    def read1(self, size: int | None = -1, /) -> bytes:
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["sign", "new"])
def test_ctrl_c_at_a_question_stops(command: str, made: Path, file: Path) -> None:
    arguments = {
        "sign": (file, "--keys", made / "brand" / "keys"),
        "new": (file.with_name("autumn.toml"), "--parties", made / "parties"),
    }
    before = sorted(file.parent.iterdir())
    result = call(command, *arguments[command], typed=Leaving())
    assert result.exit_code == Code.STOPPED
    assert result.stderr.endswith("error: stopped\n")
    assert sorted(file.parent.iterdir()) == before
