"""What a server says while it runs: one line an event."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from dovetail.cli.logs import JsonLines, Readable

PROGRAM = """
import logging
from dovetail.cli.logs import log_to_stderr
log_to_stderr(as_json={as_json})
logging.getLogger("flwr").info("noise")
logging.getLogger("dovetail.node").info("job", extra={{"fields": {{"job": "a", "n": 1}}}})
"""


def record(level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("dovetail.node", level, "x.py", 1, "said %s", ("this",), None)
    made.fields = fields
    return made


def test_a_line_for_people_leaves_out_what_is_empty() -> None:
    line = Readable().format(record(job="spring", partner=""))
    assert line[8:] == "  said this  job=spring"
    assert "warning: said this" in Readable().format(record(logging.WARNING))


def test_a_line_for_machines_holds_everything() -> None:
    line = json.loads(JsonLines().format(record(job="spring", partner="")))
    assert line["message"] == "said this"
    assert (line["level"], line["logger"]) == ("info", "dovetail.node")
    assert (line["job"], line["partner"]) == ("spring", "")
    assert line["time"].endswith("+00:00")


def test_an_exception_is_told_with_its_trace() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(JsonLines().format(made))["trace"]
    assert "ValueError: why" in Readable().format(made)


@pytest.mark.parametrize("as_json", [True, False])
def test_only_what_dovetail_says_goes_to_stderr(as_json: bool) -> None:
    program = PROGRAM.format(as_json=as_json)
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    (line,) = child.stderr.splitlines()
    assert child.stdout == ""
    assert ('"job": "a"' in line) if as_json else ("job=a  n=1" in line)
