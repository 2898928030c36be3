"""Reads a study from TOML, strictly: a key that nobody knows is an error, not a comment.

See ``examples/study.toml`` for a file with every section explained.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import date
from pathlib import Path
from typing import Any, get_args

from dovetail.agreement.record import Fields, require
from dovetail.agreement.request import Family, LocalOptimizer, ModelSpec, ServerOptimizer
from dovetail.errors import SettingError
from dovetail.simulation.study import (
    DataName,
    Evaluation,
    Partition,
    PartitionKind,
    Study,
    StudyData,
    StudyPrivacy,
    StudyProtection,
    Training,
)

_SECTIONS = ("data", "partition", "model", "training", "privacy", "evaluation")
_MOST_SEEDS = 10_000


def read_study(path: str | Path) -> Study:
    """The study in a TOML file; paths in it are relative to the file's folder.

    Raises:
        SettingError: the file cannot be read, or a key is unknown, missing or out of range; the
            message names the file, the section and the key, and the key that was probably meant.
    """
    path = Path(path)
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingError(f"{path}: must be a UTF-8 text file") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path}: not valid TOML: {error}") from None
    try:
        return parse_study(record, path.parent)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None


def parse_study(record: Mapping[str, Any], folder: Path) -> Study:
    """The study that a parsed TOML file describes.

    Args:
        record: the file's content.
        folder: what relative paths in it are relative to.

    Raises:
        SettingError: as :func:`read_study`, without the file's name.
    """
    if "columns" in record and "label" in record:
        raise SettingError("this is a schema; a study names it in [data] schema = …")
    defaults: dict[str, object] = {"partition": {}, "evaluation": {}}
    read = Fields({**defaults, **record}, "study", ("name", "seeds", *_SECTIONS))
    data = _data(read.raw("data"), folder)
    return Study(
        name=read.text("name"),
        data=data,
        partition=_partition(read.raw("partition"), folder, data),
        training=_training(read.raw("training"), _model(read.raw("model"))),
        privacy=_privacy(read.raw("privacy")),
        seeds=_seeds(read),
        evaluation=_evaluation(read.raw("evaluation")),
    )


def _seeds(read: Fields) -> tuple[int, ...]:
    value = read.raw("seeds")
    if isinstance(value, list):
        return read.wholes("seeds")
    if isinstance(value, bool) or not isinstance(value, int):
        raise read.error("seeds", "must be a whole number, or a list such as [1, 2, 3]")
    count = read.whole("seeds")
    require(
        1 <= count <= _MOST_SEEDS,
        f"study: seeds is a list, or how many, from 1 to {_MOST_SEEDS}",
    )
    return tuple(range(count))


def _data(record: object, folder: Path) -> StudyData:
    read, given = _section(record, "[data]", StudyData, {"dataset": "own"})
    return StudyData(
        dataset=read.choice("dataset", get_args(DataName)),
        file=folder / read.text("file") if "file" in given else None,
        schema=folder / read.text("schema") if "schema" in given else None,
        customers=read.whole("customers"),
        seed=read.whole("seed"),
        first_day=_day(read, given, "first_day"),
        last_day=_day(read, given, "last_day"),
    )


def _partition(record: object, folder: Path, data: StudyData) -> Partition:
    default = "files" if data.dataset == "own" and data.file is None else "column"
    read, given = _section(record, "[partition]", Partition, {"kind": default})
    kind = read.choice("kind", get_args(PartitionKind))
    return Partition(
        kind=kind,
        partners=_partners(read, given, kind, folder) if "partners" in given else (),
        column=read.text("column") if "column" in given else None,
        skew=read.number("skew"),
        seed=read.whole("seed"),
    )


def _partners(
    read: Fields, given: Mapping[str, object], kind: PartitionKind, folder: Path
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    value = given["partners"]
    if kind == "size":
        _require_list(read, "partners", value, '["retailer", "brand"]')
        return tuple((name, ()) for name in read.texts("partners"))
    if not isinstance(value, Mapping):
        what = "its file" if kind == "files" else "a list of the column's values"
        raise read.error("partners", f"must be a table [partition.partners]: NAME = {what}")
    named = Fields(value, "[partition.partners]", tuple(value))
    if kind == "column" and any(isinstance(item, str) for item in value.values()):
        raise read.error(
            "partners", "must be lists of the column's values, or with kind = 'files' one file each"
        )
    if kind == "files":
        return tuple((name, (str(folder / named.text(name)),)) for name in value)
    for name, item in value.items():
        _require_list(named, name, item, '["north", "south"]')
    return tuple((name, named.texts(name)) for name in value)


def _model(record: object) -> ModelSpec:
    read, _ = _section(record, "[model]", ModelSpec, {"hidden": []})
    _require_list(read, "hidden", read.raw("hidden"), "[64, 32]")
    try:
        return ModelSpec(
            family=read.choice("family", get_args(Family)),
            hidden=read.wholes("hidden"),
            embedding_dim=read.whole("embedding_dim"),
        )
    except SettingError as error:
        raise SettingError(str(error).replace("model: ", "[model]: ", 1)) from None


def _training(record: object, model: ModelSpec) -> Training:
    if isinstance(record, Mapping) and "noise_multiplier" in record:
        raise SettingError(
            "[training]: noise_multiplier follows from [privacy] epsilons and delta; leave it out"
        )
    read, _ = _section(record, "[training]", Training, {"features": []}, without=("model",))
    _require_list(read, "features", read.raw("features"), '["age", "spend"]')
    return Training(
        model=model,
        features=read.texts("features"),
        rounds=read.whole("rounds"),
        local_steps=read.whole("local_steps"),
        sampling_prob=read.number("sampling_prob"),
        l2_clip_norm=read.number("l2_clip_norm"),
        local_optimizer=read.choice("local_optimizer", get_args(LocalOptimizer)),
        learning_rate=read.number("learning_rate"),
        momentum=read.number("momentum"),
        server_optimizer=read.choice("server_optimizer", get_args(ServerOptimizer)),
        server_learning_rate=read.number("server_learning_rate"),
        proximal_mu=read.number("proximal_mu"),
        positive_weight=read.number("positive_weight"),
    )


def _privacy(record: object) -> StudyPrivacy:
    read, _ = _section(record, "[privacy]", StudyPrivacy, {})
    _require_list(read, "epsilons", read.raw("epsilons"), "[1, 4]")
    epsilons = [
        Fields({"epsilons": item}, "[privacy]", ("epsilons",)).number("epsilons")
        for item in read.items("epsilons")
    ]
    return StudyPrivacy(
        epsilons=tuple(epsilons),
        delta=read.number("delta"),
        protection=read.choice("protection", get_args(StudyProtection)),
        dropouts=read.whole("dropouts"),
        colluders=read.whole("colluders"),
        minimum_cohort=read.whole("minimum_cohort"),
        customers_overlap=read.flag("customers_overlap"),
    )


def _evaluation(record: object) -> Evaluation:
    read, given = _section(record, "[evaluation]", Evaluation, {})
    return Evaluation(
        test_share=read.number("test_share") if "test_share" in given else None,
        seed=read.whole("seed"),
        every_rounds=read.whole("every_rounds"),
    )


def _section(
    record: object,
    where: str,
    kind: type[Any],
    defaults: Mapping[str, object],
    without: Sequence[str] = (),
) -> tuple[Fields, Mapping[str, object]]:
    """A section whose keys are ``kind``'s fields, and the part of it that the file gives."""
    known = [field for field in fields(kind) if field.name not in without]
    filled = {f.name: f.default for f in known if f.default is not MISSING} | dict(defaults)
    given = record if isinstance(record, Mapping) else {}
    merged = {**filled, **given} if isinstance(record, Mapping) else record
    return Fields(merged, where, [field.name for field in known]), given


def _require_list(read: Fields, name: str, value: object, example: str) -> None:
    if not isinstance(value, list | tuple):
        raise read.error(name, f"must be a list such as {example}")


def _day(read: Fields, given: Mapping[str, object], name: str) -> date | None:
    return read.day(name) if name in given else None
