"""A study's customers: shared out, held out whole, rounded in the terms, and checked first."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement.request import ModelSpec
from dovetail.errors import DataError, SchemaError, SettingError
from dovetail.simulation.ground import Ground, Together, check_ground, digest, open_ground
from dovetail.simulation.preparing import prepare_ground
from dovetail.simulation.study import Partition, Study, StudyData, StudyPrivacy, Training
from dovetail.training.batch import Customers

SCHEMA = """
name = "customers"
key = "id"
unit = "customer"
max_rows_per_customer = 2
label = { name = "bought", prior = 0.3 }

[columns.age]
type = "number"
low = 0
high = 100

[columns.spend]
type = "number"
low = 0
high = 10
"""


def rows(first: int, customers: int, shop: str, bought: str = "") -> list[str]:
    """Customers of which every second has two rows; the label alternates unless given."""
    return [
        f"{shop}{i},{i % 100},{i % 10},{bought or (i // 2) % 2},{shop}"
        for i in range(first, first + customers)
        for _ in range(1 + i % 2)
    ]


def write(path: Path, *parts: list[str]) -> Path:
    lines = ["id,age,spend,bought,shop", *(row for part in parts for row in part)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two shops of 150 and 100 customers in one file."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    file = write(tmp_path / "rows.csv", rows(0, 150, "a"), rows(0, 100, "b"))
    return Study(
        name="Shops",
        data=StudyData(
            "own",
            file,
            tmp_path / "schema.toml",
            first_day=date(2024, 1, 1),
            last_day=date(2024, 6, 30),
        ),
        partition=Partition("column", column="shop"),
        training=Training(ModelSpec("logistic"), 2, 0.1, 1.0, 1.0),
        privacy=StudyPrivacy((1.0,), 1e-3),
        seeds=(0,),
    )


def ground_of(study: Study, folder: Path) -> Ground:
    folder.mkdir()
    return open_ground(prepare_ground(study, folder))


def sizes(ground: Ground) -> dict[str, int]:
    """Customers of each partner, those held out too."""
    held_out = np.bincount(ground.held_out_partner)
    return {
        partner.name: len(ground.training[partner.name]) + int(held_out[i])
        for i, partner in enumerate(ground.partners)
    }


def test_by_column(study: Study, tmp_path: Path) -> None:
    ground = ground_of(study, tmp_path / "ground")
    assert sizes(ground) == {"a": 150, "b": 100}
    assert ground.partners[0].data_period == "2024-01-01 to 2024-06-30"
    assert len(ground.held_out) == len(ground.held_out_partner)
    check_ground(study, ground)


def test_by_size(study: Study, tmp_path: Path) -> None:
    partition = Partition("size", (("big", ()), ("small", ())), skew=1.0, seed=3)
    ground = ground_of(replace(study, partition=partition), tmp_path / "ground")
    assert sum(sizes(ground).values()) == 250
    assert set(sizes(ground)) == {"big", "small"}


def test_files_share_keys_only_where_customers_may_overlap(study: Study, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.csv", rows(0, 80, "same")) for name in ("x", "y")]
    partners = tuple((file.stem, (str(file),)) for file in files)
    own = replace(
        study, data=replace(study.data, file=None), partition=Partition("files", partners)
    )
    with pytest.raises(SettingError, match=r"'x' and 'y' .* customers_overlap = true") as caught:
        ground_of(own, tmp_path / "refused")
    assert not re.search(r"same\d", str(caught.value))
    overlapping = replace(own, privacy=replace(own.privacy, customers_overlap=True))
    assert sizes(ground_of(overlapping, tmp_path / "ground")) == {"x": 80, "y": 80}


def test_keys_of_a_csv_are_text(study: Study, tmp_path: Path) -> None:
    padded = [f"00{row[1:]}" if i % 2 else row[1:] for i, row in enumerate(rows(100, 99, "a"))]
    assert study.data.file is not None
    write(study.data.file, padded, rows(0, 100, "b"))
    keys = {row.split(",")[0] for row in padded}
    assert sizes(ground_of(study, tmp_path / "ground"))["a"] == len(keys) > 99


def test_only_the_chosen_features_are_read(study: Study, tmp_path: Path) -> None:
    chosen = replace(study, training=replace(study.training, features=("spend",)))
    ground = ground_of(chosen, tmp_path / "ground")
    assert ground.schema.number_features == ("spend",)
    assert ground.training["a"].batch(np.arange(3)).numbers.shape[2] == 1


def test_together_is_one_after_the_other(study: Study, tmp_path: Path) -> None:
    ground = ground_of(study, tmp_path / "ground")
    parts = list(ground.training.values())
    together = Together(parts)
    assert len(together) == sum(map(len, parts))
    every = np.arange(len(together))
    mixed = together.batch(every[::-1])
    for name in ("numbers", "codes", "labels", "mask"):
        there = np.concatenate([getattr(p.batch(np.arange(len(p))), name) for p in parts])
        np.testing.assert_array_equal(getattr(mixed, name)[::-1], there)
    assert together.batch(every[:0]).mask.shape[0] == 0


def test_together_pads_to_the_longest(study: Study, tmp_path: Path) -> None:
    ground = ground_of(study, tmp_path / "ground")
    one = ground.training["a"]
    counts = one.batch(np.arange(len(one))).mask.sum(axis=1)
    short = np.flatnonzero(counts == 1)[:1]
    long = np.flatnonzero(counts == 2)[:1] + len(one)
    batch = Together([one, one]).batch(np.concatenate([short, long]))
    assert batch.mask.tolist() == [[1, 0], [1, 1]]
    assert batch.numbers[0, 1].tolist() == [0, 0]


def test_the_digest_knows_every_row_and_whose_it_is(study: Study, tmp_path: Path) -> None:
    first = digest(ground_of(study, tmp_path / "1"))
    assert digest(ground_of(study, tmp_path / "2")) == first
    named = (("c", ("a",)), ("b", ("b",)))
    renamed = replace(study, partition=Partition("column", named, column="shop"))
    assert digest(ground_of(renamed, tmp_path / "3")) != first
    changed = rows(0, 100, "b")
    changed[50] = changed[50].replace(",33,", ",34,")
    assert study.data.file is not None
    write(study.data.file, rows(0, 150, "a"), changed)
    assert digest(ground_of(study, tmp_path / "4")) != first


def test_a_partner_below_the_cohort_is_told_what_mends_it(study: Study, tmp_path: Path) -> None:
    ground = ground_of(study, tmp_path / "ground")
    strict = replace(study, privacy=replace(study.privacy, minimum_cohort=100))
    with pytest.raises(SettingError, match=r"'b' .*: lower it, or split less"):
        check_ground(strict, ground)
    files = tuple((name, (f"{name}.csv",)) for name in ("a", "b"))
    own = replace(strict, data=replace(study.data, file=None), partition=Partition("files", files))
    with pytest.raises(SettingError, match=r"'b' .*: bring more customers, or lower it"):
        check_ground(own, ground)


def test_held_out_customers_of_one_class_are_refused(study: Study, tmp_path: Path) -> None:
    ground = ground_of(study, tmp_path / "ground")

    class OneClass:
        def __len__(self) -> int:
            return len(ground.held_out)

        def batch(self, customers: np.ndarray) -> object:
            batch = ground.held_out.batch(customers)
            return replace(batch, labels=np.zeros_like(batch.labels))

    held_out: Customers = OneClass()  # type: ignore[assignment]
    with pytest.raises(SettingError, match="one class only"):
        check_ground(study, replace(ground, held_out=held_out))


def test_bad_data_is_refused_by_name(study: Study, tmp_path: Path) -> None:
    assert study.data.file is not None
    one_class = rows(0, 100, "b", bought="0")
    write(study.data.file, rows(0, 150, "a"), one_class)
    with pytest.raises(
        SchemaError, match=r"partner 'b', training customers: column 'bought': .*one class"
    ):
        ground_of(study, tmp_path / "1")
    write(study.data.file, rows(0, 150, "a"), [",1,1,1,b"])
    with pytest.raises(SchemaError, match=r"rows\.csv.* column 'id': the key is NULL"):
        ground_of(study, tmp_path / "no key")
    study.data.file.unlink()
    with pytest.raises(DataError, match=r"rows\.csv"):
        ground_of(study, tmp_path / "2")
