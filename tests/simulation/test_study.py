"""A study file says what it means, or says which key is wrong before anything runs."""

from __future__ import annotations

import copy
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dovetail.errors import SettingError
from dovetail.simulation.study_file import parse_study, read_study

ROOT = Path(__file__).parents[2]

RECORD: dict[str, Any] = {
    "name": "A study",
    "seeds": 2,
    "data": {"dataset": "synthetic"},
    "model": {"family": "mlp", "hidden": [8]},
    "training": {
        "rounds": 3,
        "sampling_prob": 0.1,
        "l2_clip_norm": 1,
        "learning_rate": 0.5,
    },
    "privacy": {"epsilons": [1, 3], "delta": 1e-4},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The record with one key set; ``path`` is ``section.key`` or ``key``."""
    record = copy.deepcopy(RECORD)
    *sections, key = path.split(".")
    table = record
    for section in sections:
        table = table.setdefault(section, {})
    table[key] = value
    return record


def without(path: str) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    *sections, key = path.split(".")
    table = record
    for section in sections:
        table = table[section]
    del table[key]
    return record


def test_what_is_left_out_has_its_default() -> None:
    study = parse_study(RECORD, Path())
    assert study.seeds == (0, 1)
    assert study.partition.kind == "column"
    assert study.training.server_optimizer == "fedavg"
    assert study.training.model.hidden == (8,)
    assert study.privacy.epsilons == (1.0, 3.0)
    assert study.evaluation.test_share is None


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    own = {
        "dataset": "own",
        "file": "rows/*.csv",
        "schema": "/etc/schema.toml",
        "first_day": date(2024, 1, 1),
        "last_day": "2024-12-31",
    }
    study = parse_study(changed("data", own), tmp_path)
    assert study.data.file == tmp_path / "rows/*.csv"
    assert study.data.schema == Path("/etc/schema.toml")
    assert study.data.last_day == date(2024, 12, 31)


def test_one_file_per_partner(tmp_path: Path) -> None:
    record = changed(
        "data", {"schema": "s.toml", "first_day": "2024-01-01", "last_day": "2024-02-01"}
    )
    record["partition"] = {"partners": {"shop": "shop.csv", "brand": "brand.csv"}}
    study = parse_study(record, tmp_path)
    assert study.partition.kind == "files"
    assert dict(study.partition.partners)["shop"] == (str(tmp_path / "shop.csv"),)


def test_the_examples_are_studies() -> None:
    found = sorted((ROOT / "examples").glob("study*.toml"))
    assert found
    for path in found:
        assert read_study(path).seeds


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("seed", "seeds"),
        ("modle", "model"),
        ("data.datset", "dataset"),
        ("partition.colum", "column"),
        ("model.famly", "family"),
        ("training.round", "rounds"),
        ("training.learning_rte", "learning_rate"),
        ("privacy.epsilon", "epsilons"),
        ("privacy.minimal_cohort", "minimum_cohort"),
        ("evaluation.test_shre", "test_share"),
    ],
)
def test_a_typo_names_the_key_that_was_meant(path: str, meant: str) -> None:
    *sections, key = path.split(".")
    with pytest.raises(SettingError) as caught:
        parse_study(changed(path, 1), Path())
    assert repr(key) in str(caught.value)
    assert f"did you mean {meant!r}?" in str(caught.value)
    assert all(f"[{section}]" in str(caught.value) for section in sections)


@pytest.mark.parametrize(
    "path", ["name", "seeds", "data", "model.family", "training.rounds", "privacy.delta"]
)
def test_a_missing_key_is_named(path: str) -> None:
    with pytest.raises(SettingError, match=path.split(".")[-1] + "' is missing"):
        parse_study(without(path), Path())


BAD = [
    ("seeds", 0, "seeds"),
    ("seeds", [1, 1], "seeds"),
    ("seeds", [-1], "seed"),
    ("seeds", [], "seeds"),
    ("seeds", "three", r"seeds must be a whole number, or a list such as \[1, 2, 3\]"),
    ("seeds", True, "whole number, or a list"),
    ("seeds", 1.5, "whole number, or a list"),
    ("data", "synthetic", r"\[data\]"),
    ("data.dataset", "sythetic", "did you mean 'synthetic'"),
    ("data.dataset", "own", "schema"),
    ("data.dataset", "hillstrom", "hillstrom.csv.gz"),
    ("data.customers", 1, "customers"),
    ("data.seed", -1, "seed"),
    ("data.schema", "schema.toml", "schema"),
    ("partition.kind", "colum", "did you mean 'column'"),
    ("partition", {"kind": "size"}, "partners"),
    ("partition", {"kind": "size", "partners": {"a": "b"}}, "partners"),
    ("partition", {"kind": "size", "partners": "a"}, r"partners must be a list such as \["),
    ("partition", {"kind": "column", "partners": {"a": 1}}, r"a must be a list such as \["),
    ("partition", {"kind": "size", "partners": ["a", "all"]}, "all"),
    ("partition", {"kind": "size", "partners": ["a", "b"], "skew": 0}, "skew"),
    ("partition", {"kind": "column", "partners": ["a"]}, "NAME ="),
    ("partition", {"kind": "files", "partners": {"a": "a.csv"}}, "your own data"),
    ("model.family", "mpl", "did you mean 'mlp'"),
    ("model.hidden", [], r"\[model\]"),
    ("model.hidden", ["8"], "hidden"),
    ("model.hidden", 64, r"hidden must be a list such as \[64, 32\]"),
    ("training.features", "age", r"features must be a list such as \[\"age\", \"spend\"\]"),
    ("training.noise_multiplier", 1.0, "follows from"),
    ("training.rounds", 0, r"\[training\]: rounds"),
    ("training.rounds", 1.5, "whole number"),
    ("training.sampling_prob", 0, "sampling_prob"),
    ("training.sampling_prob", 1.1, "sampling_prob"),
    ("training.l2_clip_norm", float("nan"), "l2_clip_norm"),
    ("training.learning_rate", float("inf"), "learning_rate"),
    ("training.server_optimizer", "fedadm", "did you mean 'fedadam'"),
    ("training.proximal_mu", 0.1, "fedprox"),
    ("training.momentum", 1, "momentum"),
    ("privacy.epsilons", [], "epsilons"),
    ("privacy.epsilons", 1, r"epsilons must be a list such as \[1, 4\]"),
    ("privacy.epsilons", [0], "epsilon"),
    ("privacy.epsilons", [-1, 1], "epsilon"),
    ("privacy.epsilons", [3, 1], "ascend"),
    ("privacy.epsilons", [1, 1], "ascend"),
    ("privacy.epsilons", ["1"], "number"),
    ("privacy.colluders", 0, "colluders must be at least 1"),
    ("privacy.delta", 0, "delta"),
    ("privacy.delta", 1, "delta"),
    ("privacy.minimum_cohort", 0, "minimum_cohort"),
    ("evaluation.test_share", 0, "test_share"),
    ("evaluation.test_share", 1, "test_share"),
    ("evaluation.every_rounds", 0, "every_rounds"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_a_bad_value_is_refused_by_name(path: str, value: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_study(changed(path, value), Path())


def test_an_error_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for path in (missing, broken, binary, tmp_path):
        with pytest.raises(SettingError, match=path.name):
            read_study(path)


OWN: dict[str, Any] = {"schema": "s.toml", "first_day": "2024-01-01", "last_day": "2024-06-30"}


@pytest.mark.parametrize("name", ["", " ", "a b", "a\nb", "x" * 65, "all", "All"])
def test_a_partners_name_is_one_that_an_agreement_can_hold(name: str) -> None:
    record = changed("partition", {"partners": {name: ["north"]}})
    with pytest.raises(SettingError, match=r"\[partition\]"):
        parse_study(record, Path())


def test_days_in_the_wrong_order_are_refused_before_any_row_is_read() -> None:
    record = changed("data", {**OWN, "file": "a.csv", "last_day": "2023-01-01"})
    with pytest.raises(SettingError, match=r"\[data\]: last_day lies before first_day"):
        parse_study(record, Path())


def test_files_per_partner_beside_one_file_are_told_apart() -> None:
    record = changed("data", {**OWN, "file": "a.csv"})
    record["partition"] = {"partners": {"north": "north.csv"}}
    with pytest.raises(SettingError, match="lists of the column's values, or with kind = 'files'"):
        parse_study(record, Path())


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Made-up purchases", "made-up-purchases-results"),
        ("../../etc/passwd", "etc-passwd-results"),
        ("..", "study-results"),
        ("<b> & [red]", "b-red-results"),
        ("Café 店", "café-店-results"),
        ("店" * 400, "店" * 33 + "-results"),
    ],
)
def test_results_go_into_a_folder_right_here(name: str, folder: str) -> None:
    assert parse_study(changed("name", name), Path()).default_output == Path(folder)
