"""``dovetail.node.flower_app:app``, the node under Flower's own engines.

Flower's simulation engine and its SuperNode import a client app by this name. Which node it is
comes from the partner's own machine and never from a message: the environment variable
``DOVETAIL_NODE`` names its ``node.toml``. On the simulation engine, where one process plays many
nodes, it names a folder of them, in ascending order of their names.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from dovetail.errors import DovetailError, SettingError
from dovetail.flower.actions import node_app
from dovetail.node.app import Node
from dovetail.node.settings import load_settings, start

VARIABLE = "DOVETAIL_NODE"
_logger = logging.getLogger(__name__)


def _node_of(context: Any) -> Node:
    place = os.environ.get(VARIABLE)
    if not place:
        raise SettingError(f"set {VARIABLE} to this partner's node.toml")
    path = Path(place)
    if path.is_dir():
        path = sorted(path.glob("*/node.toml"))[int(context.node_config["partition-id"])]
    return _started(path)


@cache
def _started(path: Path) -> Node:
    try:
        return start(load_settings(path))
    except DovetailError:
        _logger.exception("the node cannot start")
        raise SettingError("the node cannot start; its own log says why") from None


app = node_app(_node_of)
