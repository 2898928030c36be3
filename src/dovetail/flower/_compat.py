"""The only module that touches what Flower does not promise to keep.

Importing :mod:`dovetail.flower` imports this first, so that Flower finds its environment set: it
sends no telemetry (nor where somebody imported it before us), asks nobody for updates, writes its
files where the user's caches lie, and is quiet. Pinned to ``flwr>=1.38,<1.42``; a test says which
private names must still exist.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
if "FLWR_HOME" not in os.environ:
    try:
        _caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        _caches = Path(tempfile.gettempdir(), f"caches-{os.getuid()}")
    os.environ["FLWR_HOME"] = str(_caches / "dovetail" / "flower")

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore import telemetry
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

_UNSET_IDENTITY = 1


def claim_identity() -> None:
    """Gives this process the task identity that ``Message(...)`` asks for, where it has none.

    A process that Flower itself started has one already, and keeps it.
    """
    for name in ("run_id", "node_id", "task_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, _UNSET_IDENTITY)


def stop_telemetry() -> None:
    """Turns telemetry off in a Flower that read the environment before this module set it."""
    telemetry.FLWR_TELEMETRY_ENABLED = "0"


def hush() -> None:
    """Keeps Flower's log out of the caller's terminal and log files."""
    for name in ("flwr", "flwr-telemetry"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.handlers[:] = [logging.NullHandler()]


def new_message(metadata: Metadata, body: RecordDict | Error) -> Message:
    """A message with just this metadata, message id and sender included."""
    build = cast("Callable[..., Message]", Message)
    return build(body, metadata=metadata)


def run_simulation(*args: Any, **options: Any) -> None:
    """Flower's simulation engine; deprecated there in favour of its command line."""
    from flwr.simulation import run_simulation as run

    run(*args, **options)


stop_telemetry()
claim_identity()
hush()
