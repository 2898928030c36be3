"""A node's settings, in one TOML file beside its data.

::

    partner = "retailer"
    terms = "terms.toml"
    ledger = "retailer.ledger"
    arrays = "arrays"                   # prepared customers; as private as the table

    [source]
    files = "customers/*.parquet"       # one file, a glob or a folder, of Parquet or CSV
    # query = "SELECT ... FROM visits"  # or SQL over named files ...
    # tables = { visits = "visits.csv" }

    [policy]                            # optional; can only tighten the terms
    max_epsilon_per_job = 2.0
    refused_purposes = ["resale"]

Paths are relative to the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.agreement.record import Fields
from dovetail.agreement.terms import Terms, load_terms
from dovetail.crypto.prg import fresh_key
from dovetail.data.arrays import CustomerArrays
from dovetail.data.customers import prepare
from dovetail.data.source import Source
from dovetail.errors import SettingError
from dovetail.node.app import Node
from dovetail.privacy.sampler import SecureSampler
from dovetail.store.ledger import LedgerStore
from dovetail.training.threads import use_one_thread

_SECRET_BYTES = 32


@dataclass(frozen=True)
class NodeSettings:
    """Everything a node is told by its own company.

    Attributes:
        partner: whose node it is, by the name in the terms.
        terms: what was agreed.
        source: the partner's table.
        ledger: the ledger's file; its parent must exist.
        arrays: folder of the prepared customers, made from ``source`` when missing.
        policy: the partner's own, stricter rules.
    """

    partner: str
    terms: Terms
    source: Source
    ledger: Path
    arrays: Path
    policy: NodePolicy


def load_settings(path: Path) -> NodeSettings:
    """The settings in a TOML file.

    Raises:
        SettingError: the file cannot be read, or a field is missing, unknown or of another type.
    """
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path.name}: cannot be read as TOML ({error})") from None
    policy = record.pop("policy", None)
    names = ("partner", "terms", "ledger", "arrays", "source")
    fields, beside = Fields(record, path.name, names), path.parent
    return NodeSettings(
        partner=fields.text("partner"),
        terms=load_terms(beside / fields.text("terms")),
        source=_source(fields.raw("source"), f"{path.name}: [source]", beside),
        ledger=beside / fields.text("ledger"),
        arrays=beside / fields.text("arrays"),
        policy=NOTHING_MORE if policy is None else _policy(policy, f"{path.name}: [policy]"),
    )


def start(settings: NodeSettings) -> Node:
    """The node of these settings; prepares its customers where that was not done yet.

    Its noise and samples come from a fresh key of the operating system for every round.

    Raises:
        DovetailError: terms, table or ledger do not allow it; the message says how to mend it.
    """
    use_one_thread()
    if not settings.arrays.exists():
        secret = _secret(settings.arrays.with_name(f"{settings.arrays.name}.secret"))
        prepare(settings.source, settings.terms.schema, settings.arrays, secret)
    elif not settings.ledger.exists():
        raise SettingError(
            f"{settings.ledger.name}: the ledger is missing, though this node has run before; put "
            f"its newest copy back (to begin anew on purpose, delete {settings.arrays.name!r} too)"
        )
    customers = CustomerArrays.open(settings.arrays)
    if customers.schema != settings.terms.schema:
        raise SettingError(
            f"{settings.arrays.name}: was prepared under another schema; delete the folder"
        )
    return Node(
        settings.terms,
        settings.partner,
        customers,
        LedgerStore(settings.ledger, settings.terms.budget, lambda: datetime.now(UTC)),
        lambda _job, _number: SecureSampler(fresh_key()),
        settings.policy,
    )


def _source(record: object, where: str, beside: Path) -> Source:
    if isinstance(record, Mapping) and "files" in record:
        return Source.files(beside / Fields(record, where, ("files",)).text("files"))
    fields = Fields(record, where, ("query", "tables"))
    tables = fields.raw("tables")
    if not isinstance(tables, Mapping) or not all(isinstance(v, str) for v in tables.values()):
        raise fields.error("tables", "must name a file for each table")
    paths = cast("Mapping[str, str]", tables)
    return Source.sql(fields.text("query"), {name: beside / path for name, path in paths.items()})


def _policy(record: object, where: str) -> NodePolicy:
    given = tuple(record) if isinstance(record, Mapping) else ()
    known = tuple(NodePolicy.__dataclass_fields__)
    fields = Fields(record, where, tuple(name for name in known if name in given) or known)
    return NodePolicy(
        max_epsilon_per_job=(
            fields.number("max_epsilon_per_job")
            if "max_epsilon_per_job" in given
            else NOTHING_MORE.max_epsilon_per_job
        ),
        refused_purposes=fields.texts("refused_purposes") if "refused_purposes" in given else (),
    )


def _secret(path: Path) -> bytes:
    """The partner's secret for drawing rows, made on first use."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        secret = os.urandom(_SECRET_BYTES)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        return secret
