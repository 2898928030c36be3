"""From a study's data to its ground: tables by partner, held-out customers apart, encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path

from dovetail.agreement.party import rounded
from dovetail.data.check import check
from dovetail.data.customers import prepare
from dovetail.data.engine import Limits
from dovetail.data.source import Source
from dovetail.errors import DataError, SchemaError, SettingError
from dovetail.schema import Schema, load_schema
from dovetail.simulation import complete_journey, datasets, hillstrom, identities, partition
from dovetail.simulation.cell_store import make_folder
from dovetail.simulation.ground import PartnerRows, Recipe
from dovetail.simulation.partition import PartnerFiles
from dovetail.simulation.study import DEFAULT_TEST_SHARE, Study, StudyData, require_partner_name


@dataclass(frozen=True)
class Origin:
    """A study's data before it is shared out.

    Attributes:
        schema: what the table holds.
        table: all rows; ``None`` where each partner brings its own file.
        features: the columns to train on unless the study says otherwise.
        column: the column that tells partners apart, where there is a natural one.
        partners: the values of that column that are each partner's.
        roles: what a partner is, for people, where its name does not say it.
        held_out: customers that the data set itself marks to be tested on.
        first_day: of the data.
        last_day: of the data.
    """

    schema: Schema
    table: Path | None
    features: tuple[str, ...]
    first_day: date
    last_day: date
    column: str | None = None
    partners: Mapping[str, tuple[str, ...]] | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    held_out: frozenset[str] | None = None


def prepare_ground(study: Study, folder: Path) -> Recipe:
    """Shares customers out, holds some back, and writes everyone's arrays below ``folder``.

    What a partner declares in its terms is the number of its training customers to two
    significant digits. In production a partner declares that number itself; a study takes it off
    the data, which is a release that nobody accounts for, and fine on data one may see.

    Raises:
        DovetailError: the data cannot be read, do not fit the schema, or cannot be split so.
    """
    origin = _origin(study.data, folder)
    schema = _selected(origin, study.training.features)
    _require_fit(study, origin, schema, folder)
    rows = []
    for number, (name, files) in enumerate(_shared_out(study, origin, folder).items()):
        rows.append(_prepared(name, files, origin, schema, folder / f"{number}"))
    return Recipe(schema, tuple(rows))


def _prepared(
    name: str, files: PartnerFiles, origin: Origin, schema: Schema, folder: Path
) -> PartnerRows:
    make_folder(folder)
    secret = sha256(b"dovetail study, rows kept of a customer").digest()
    with _naming(f"partner {name!r}, training customers"):
        prepare(Source.files(files.train), schema, folder / "training", secret)
    again = "; change [evaluation] test_share or seed"
    with _naming(f"partner {name!r}, held-out customers", mend=again):
        prepare(Source.files(files.test), schema, folder / "held out", secret)
    declared = rounded(files.train_customers)
    role = origin.roles.get(name, name)
    partner = identities.partner(name, role, declared, origin.first_day, origin.last_day)
    return PartnerRows(partner, files.train, folder / "training", folder / "held out")


def _shared_out(study: Study, origin: Origin, folder: Path) -> Mapping[str, PartnerFiles]:
    key, split = origin.schema.key, study.evaluation
    if origin.table is None:
        return _own_files(study, key, folder)
    assignment = _assignment(study, origin, origin.table)
    for name in dict.fromkeys(assignment.values()):
        require_partner_name(name)
    test = origin.held_out
    if test is None or split.test_share is not None:
        test = partition.held_out(assignment, split.test_share or DEFAULT_TEST_SHARE, split.seed)
    return partition.write(origin.table, key, assignment, test, folder)


def _require_fit(study: Study, origin: Origin, schema: Schema, folder: Path) -> None:
    """Holds the researcher's own files against the schema before a row of them is shared out."""
    if study.data.dataset != "own":
        return
    limits = Limits(work_folder=folder)
    if origin.table is not None:
        with _naming(f"[data] file {str(origin.table)!r}"):
            check(Source.files(origin.table), schema, limits).raise_if_bad()
    for name, file in _files(study) if origin.table is None else ():
        with _naming(f"partner {name!r}, {str(file)!r}"):
            check(Source.files(file), schema, limits).raise_if_bad()


def _files(study: Study) -> list[tuple[str, Path]]:
    return [(name, Path(file)) for name, (file,) in study.partition.partners]


def _own_files(study: Study, key: str, folder: Path) -> Mapping[str, PartnerFiles]:
    split = study.evaluation
    written: dict[str, PartnerFiles] = {}
    keys = {name: partition.customers(file, key) for name, file in _files(study)}
    if not study.privacy.customers_overlap:
        _require_apart(keys)
    for number, (name, file) in enumerate(_files(study)):
        mine = folder / f"files-{number}"
        make_folder(mine)
        assignment = dict.fromkeys(keys[name], name)
        share = split.test_share or DEFAULT_TEST_SHARE
        test = partition.held_out(assignment, share, split.seed)
        written |= partition.write(file, key, assignment, test, mine)
    return written


def _require_apart(keys: Mapping[str, tuple[str, ...]]) -> None:
    owner: dict[str, str] = {}
    for name, mine in keys.items():
        for key in mine:
            if (other := owner.setdefault(key, name)) != name:
                raise SettingError(
                    f"[privacy]: partners {other!r} and {name!r} have customers of the same key: "
                    "if they are the same people, set customers_overlap = true; if not, write "
                    "their keys differently"
                )


@contextmanager
def _naming(where: str, mend: str = "") -> Iterator[None]:
    """Says in an error about a table whose it is."""
    try:
        yield
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}{mend}") from None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _assignment(study: Study, origin: Origin, table: Path) -> dict[str, str]:
    asked, key = study.partition, origin.schema.key
    names = [name for name, _ in asked.partners]
    if asked.kind == "size":
        keys = partition.customers(table, key)
        return partition.by_size(keys, names, asked.skew, asked.seed)
    column = asked.column or origin.column
    if column is None:
        raise SettingError(
            "[partition]: 'column' must name the column that tells partners apart, "
            "or kind = 'size' share customers out at random"
        )
    natural = origin.partners if column == origin.column else None
    try:
        return partition.by_column(table, key, column, dict(asked.partners) or natural)
    except (SettingError, DataError) as error:
        raise SettingError(f"[partition]: {error}") from None


def _selected(origin: Origin, features: tuple[str, ...]) -> Schema:
    try:
        return origin.schema.select(features or origin.features)
    except SchemaError as error:
        raise SettingError(f"[training]: features: {error}") from None


def _origin(data: StudyData, folder: Path) -> Origin:
    """The study's data, written below ``folder`` where it must be built first."""
    table = folder / "table.parquet"
    if data.dataset == "complete_journey":
        return _complete_journey(data, table)
    if data.dataset == "hillstrom":
        return _hillstrom(data, table)
    return _synthetic(data, table) if data.dataset == "synthetic" else _own(data)


def _complete_journey(data: StudyData, table: Path) -> Origin:
    if data.file is None:
        complete_journey.build(table)
    return Origin(
        schema=complete_journey.schema(),
        table=data.file or table,
        features=complete_journey.features(),
        first_day=complete_journey.FIRST_DAY,
        last_day=complete_journey.LAST_DAY,
        column=complete_journey.PARTNER_COLUMN,
        partners=complete_journey.PARTNERS,
        roles=complete_journey.ROLES,
    )


def _hillstrom(data: StudyData, table: Path) -> Origin:
    assert data.file is not None  # noqa: S101 - StudyData checked it
    hillstrom.build(data.file, table)
    return Origin(
        schema=hillstrom.SCHEMA,
        table=table,
        features=_columns(hillstrom.SCHEMA),
        first_day=hillstrom.FIRST_DAY,
        last_day=hillstrom.LAST_DAY,
        column=hillstrom.PARTNER_COLUMN,
        partners=hillstrom.PARTNERS,
        held_out=hillstrom.held_out(table),
    )


def _synthetic(data: StudyData, table: Path) -> Origin:
    schema = datasets.synthetic(table, customers=data.customers, seed=data.seed)
    return Origin(
        schema=schema,
        table=table,
        features=_columns(schema),
        first_day=datasets.FIRST_DAY,
        last_day=datasets.LAST_DAY,
        column=datasets.PARTNER_COLUMN,
    )


def _own(data: StudyData) -> Origin:
    assert data.schema is not None  # noqa: S101 - StudyData checked it
    assert data.first_day is not None  # noqa: S101 - likewise
    assert data.last_day is not None  # noqa: S101 - likewise
    try:
        schema = load_schema(data.schema)
    except SchemaError as error:
        raise SettingError(str(error)) from None
    return Origin(schema, data.file, _columns(schema), data.first_day, data.last_day)


def _columns(schema: Schema) -> tuple[str, ...]:
    return tuple(column.name for column in schema.columns)
