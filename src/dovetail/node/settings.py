"""A node's settings, in one TOML file beside its data.

::

    name = "retailer"                   # as the agreement names this partner

    [source]
    files = "customers/*.parquet"       # one file, a glob or a folder, of Parquet or CSV
    # query = "SELECT ... FROM visits"  # or SQL over named files ...
    # tables = { visits = "visits.csv" }
    # database = "postgresql://reader@db.example/shop"   # or SQL over a PostgreSQL database
    # query = "SELECT ... FROM visits"

    [columns]                           # optional: the agreement's name = this table's name
    household_id = "hh_key"

    [policy]                            # optional; can only tighten the agreement
    max_epsilon_per_job = 2.0
    max_concurrent_jobs = 1
    refused_purposes = ["resale"]
    refused_columns = ["income"]
    approval = "manual"

    [limits]                            # optional: of one round of training
    seconds = 600
    memory_mb = 4000
    threads = 1

Paths are relative to the file. Everything else lies beside it under fixed names: ``keys/`` (with
the coordinator's address), ``agreement.json``, ``NAME.ledger``, ``arrays/``, ``desk/``,
``admitted/`` and ``models/``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from dovetail.agreement.party import require_name
from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.agreement.record import Fields
from dovetail.agreement.terms import Approval, Terms
from dovetail.data.source import Source
from dovetail.errors import SettingError
from dovetail.node.worker import WorkerLimits
from dovetail.schema import did_you_mean
from dovetail.store.agreement import AGREEMENT_FILE


@dataclass(frozen=True)
class NodeSettings:
    """Everything a node is told by its own company.

    Attributes:
        name: whose node it is, by the name in the terms.
        source: the partner's table, in the terms' column names.
        policy: the partner's own, stricter rules.
        limits: of one round of training.
        folder: where everything else lies.
    """

    name: str
    source: Source
    policy: NodePolicy
    limits: WorkerLimits
    folder: Path

    @property
    def keys(self) -> Path:
        """Folder of this partner's keys, and of how it reaches the coordinator."""
        return self.folder / "keys"

    @property
    def agreement(self) -> Path:
        """All versions of the signed terms that this node has accepted."""
        return self.folder / AGREEMENT_FILE

    @property
    def ledger(self) -> Path:
        """The ledger."""
        return self.folder / f"{self.name}.ledger"

    @property
    def arrays(self) -> Path:
        """Folder of the prepared customers, as private as the table; one folder in it a schema."""
        return self.folder / "arrays"

    @property
    def secret(self) -> Path:
        """The partner's secret for drawing rows."""
        return self.folder / "arrays.secret"

    @property
    def desk(self) -> Path:
        """Folder of what people decide."""
        return self.folder / "desk"

    @property
    def admitted(self) -> Path:
        """Folder of who asked for the jobs that are admitted."""
        return self.folder / "admitted"

    @property
    def models(self) -> Path:
        """Folder of the models that were released to this partner."""
        return self.folder / "models"


def load_settings(path: Path) -> NodeSettings:
    """The settings in a TOML file.

    Raises:
        SettingError: the file cannot be read, or a field is missing, unknown or of another type.
    """
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path.name}: is not TOML: {error}") from None
    optional = {name: record.pop(name, {}) for name in ("columns", "policy", "limits")}
    fields = Fields(record, path.name, ("name", "source"))
    require_name(fields.text("name"))
    return NodeSettings(
        name=fields.text("name"),
        source=_columns(
            optional["columns"],
            _source(fields.raw("source"), f"{path.name}: [source]", path.parent),
            f"{path.name}: [columns]",
        ),
        policy=_policy(optional["policy"], f"{path.name}: [policy]"),
        limits=_limits(optional["limits"], f"{path.name}: [limits]"),
        folder=path.parent,
    )


def require_known_names(own: NodePolicy, terms: Terms) -> None:
    """Do nothing if the terms know every name that a partner's own policy refuses.

    A misspelt name would refuse nothing, and nobody would notice.

    Raises:
        SettingError: they do not know one; names it, and the one that was probably meant.
    """
    schema = terms.schema
    columns = [*(column.name for column in schema.columns), schema.label.name]
    lists = {
        "refused_purposes": (own.refused_purposes, terms.purposes),
        "refused_columns": (own.refused_columns, columns),
    }
    for setting, (refused, known) in lists.items():
        for name in refused:
            if name not in known:
                hint = did_you_mean(name, known)
                raise SettingError(
                    f"[policy]: {setting} names {name!r}, which the agreement does not know{hint}"
                )


def _source(record: object, where: str, beside: Path) -> Source:
    given = record if isinstance(record, Mapping) else {}
    if "files" in given:
        return Source.files(beside / Fields(record, where, ("files",)).text("files"))
    if "database" in given:
        fields = Fields(record, where, ("database", "query"))
        return Source.database(fields.text("database"), fields.text("query"))
    fields = Fields(record, where, ("query", "tables"))
    paths = _texts(fields.raw("tables"), f"{where}: tables")
    return Source.sql(fields.text("query"), {name: beside / path for name, path in paths.items()})


def _columns(record: object, source: Source, where: str) -> Source:
    renamed = _texts(record, where)
    return source.renamed(renamed) if renamed else source


def _texts(record: object, where: str) -> Mapping[str, str]:
    if not isinstance(record, Mapping) or not all(isinstance(v, str) for v in record.values()):
        raise SettingError(f"{where} must be a table of texts")
    return cast("Mapping[str, str]", record)


def _policy(record: object, where: str) -> NodePolicy:
    fields = _given(record, where, tuple(NodePolicy.__dataclass_fields__))
    own = NOTHING_MORE
    return NodePolicy(
        max_epsilon_per_job=(
            fields.number("max_epsilon_per_job")
            if fields.has("max_epsilon_per_job")
            else own.max_epsilon_per_job
        ),
        max_concurrent_jobs=(
            fields.whole("max_concurrent_jobs") if fields.has("max_concurrent_jobs") else None
        ),
        refused_purposes=(
            fields.texts("refused_purposes") if fields.has("refused_purposes") else ()
        ),
        refused_columns=fields.texts("refused_columns") if fields.has("refused_columns") else (),
        approval=(
            fields.choice("approval", get_args(Approval))
            if fields.has("approval")
            else own.approval
        ),
    )


def _limits(record: object, where: str) -> WorkerLimits:
    fields, usual = _given(record, where, tuple(WorkerLimits.__dataclass_fields__)), WorkerLimits()
    return WorkerLimits(
        seconds=fields.number("seconds") if fields.has("seconds") else usual.seconds,
        memory_mb=fields.whole("memory_mb") if fields.has("memory_mb") else usual.memory_mb,
        threads=fields.whole("threads") if fields.has("threads") else usual.threads,
    )


def _given(record: object, where: str, names: tuple[str, ...]) -> Fields:
    """The fields of a record that may leave any of ``names`` out."""
    given = tuple(record) if isinstance(record, Mapping) else ()
    known = tuple(name for name in names if name in given)
    return Fields(record, where, known if len(known) == len(given) else names)
