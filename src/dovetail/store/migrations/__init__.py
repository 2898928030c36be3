"""Brings a coordinator's database to the layout of this version.

Each step is one file in ``versions``; its ``revision`` is the number of the layout and its
``down_revision`` the one before. A step that was released is never changed. There is no way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dovetail.errors import SettingError

VERSION_TABLE = "dovetail_layout"
HERE = Path(__file__).parent
STEPS = HERE / "versions"

_ONE_AT_A_TIME = Lock()  # alembic keeps the migration in progress in a global


def migrate(connection: sa.Connection, name: str, steps: Sequence[Path] = (STEPS,)) -> None:
    """Run the steps that a database lacks, inside the caller's transaction.

    Args:
        connection: in a transaction that keeps other processes from migrating at once.
        name: what to call the database in messages.
        steps: folders with the steps.

    Raises:
        SettingError: the database was written by a later version.
    """
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", _escaped(HERE))
    config.set_main_option("version_locations", ":".join(map(_escaped, steps)))
    settings = {"version_table": VERSION_TABLE}
    config.attributes["configure"] = {"connection": connection, **settings}
    script = ScriptDirectory.from_config(config)
    found = MigrationContext.configure(connection, opts=settings).get_current_revision()
    if found == script.get_current_head():
        return
    if found is not None and found not in {step.revision for step in script.walk_revisions()}:
        raise SettingError(f"{name} was written by a later version of Dovetail: use that version")
    with _ONE_AT_A_TIME:
        command.upgrade(config, "head")


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")
