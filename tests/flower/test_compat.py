import importlib
import logging
import os
import subprocess
import sys

import pytest

import dovetail.flower


def test_environment_is_set() -> None:
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert os.environ["FLWR_HOME"]


@pytest.mark.parametrize("first", ["flwr.app, flwr.serverapp", "json"])
def test_no_telemetry_whoever_imports_flower_first(first: str) -> None:
    code = f"""
import {first}
import dovetail.flower
from flwr.supercore import telemetry
assert telemetry.event(telemetry.EventType.PING).result() == "disabled"
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("flwr.supercore.task_identity", "TaskIdentity"),
        ("flwr.supercore.run", "Run"),
        ("flwr.supercore.telemetry", "FLWR_TELEMETRY_ENABLED"),
        ("flwr.supercore.telemetry", "event"),
        ("flwr.simulation", "run_simulation"),
    ],
)
def test_names_that_flower_does_not_promise_still_exist(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_messages_can_be_made_and_an_identity_given_by_flower_is_kept() -> None:
    from flwr.app import Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    assert Message(RecordDict(), 7, "train").metadata.dst_node_id == 7
    before = TaskIdentity.node_id
    try:
        TaskIdentity.node_id = 99
        dovetail.flower._compat.claim_identity()
        assert TaskIdentity.node_id == 99
    finally:
        TaskIdentity.node_id = before


def test_flower_logs_nothing_to_anyone(capfd: pytest.CaptureFixture[str]) -> None:
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Collector()
    logging.getLogger().addHandler(handler)
    try:
        logging.getLogger("flwr").warning("noise")
    finally:
        logging.getLogger().removeHandler(handler)
    assert not records
    assert capfd.readouterr() == ("", "")
