"""``dovetail.node.flower_app:app``, the node under Flower's own engines.

Flower's simulation engine and its SuperNode import a client app by this name. Which node it is
comes from the partner's own machine and never from a message: the environment variable
``DOVETAIL_NODE`` names its ``node.toml``. On the simulation engine, where one process plays many
nodes, it names a folder of them, in ascending order of their names.

The terms must lie beside it already (``agreement.json``), since these engines bring none, and
private keys that are encrypted need ``DOVETAIL_PASSPHRASE``. Rows are read in this very process.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from dovetail.crypto.keyring import load_keyring
from dovetail.errors import DovetailError, SettingError
from dovetail.flower.actions import node_app
from dovetail.node.app import Node
from dovetail.node.opening import OpenNode, kept_terms, utc_now
from dovetail.node.settings import load_settings

VARIABLE = "DOVETAIL_NODE"
PASSPHRASE = "DOVETAIL_PASSPHRASE"  # noqa: S105 - the name of a variable
_logger = logging.getLogger(__name__)


def _node_of(context: Any) -> Node:
    place = os.environ.get(VARIABLE)
    if not place:
        raise SettingError(f"set {VARIABLE} to this partner's node.toml")
    path = Path(place)
    if path.is_dir():
        path = sorted(path.glob("*/node.toml"))[int(context.node_config["partition-id"])]
    return _opened(path).node


@cache
def _opened(path: Path) -> OpenNode:
    try:
        settings = load_settings(path)
        keyring = load_keyring(settings.keys, os.environ.get(PASSPHRASE, "").encode() or None)
        terms = kept_terms(settings, keyring).trusted.in_force(utc_now().date())
        return OpenNode(settings, terms, keyring, child=False)
    except DovetailError:
        _logger.exception("the node cannot start")
        raise SettingError("the node cannot start; its own log says why") from None


app = node_app(_node_of)
