"""A study gives the same results however it is run: at once, in pieces, here or in workers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement.request import ModelSpec
from dovetail.data.tidy import read_parquet
from dovetail.errors import DataError, PolicyError, SettingError
from dovetail.simulation.cell_store import CellStore, only_run, write_whole
from dovetail.simulation.comparison import Cell, CellResult
from dovetail.simulation.results import ALL
from dovetail.simulation.running import Progress, run_study, worth_starting
from dovetail.simulation.study import (
    Evaluation,
    Partition,
    Study,
    StudyData,
    StudyPrivacy,
    Training,
)
from dovetail.simulation.study_file import read_study
from dovetail.simulation.study_result import StudyResult

STUDY = Study(
    name="Small study",
    data=StudyData("synthetic", customers=500),
    partition=Partition(kind="column"),
    training=Training(
        model=ModelSpec("logistic"),
        rounds=4,
        sampling_prob=0.2,
        l2_clip_norm=1.0,
        learning_rate=1.0,
    ),
    privacy=StudyPrivacy(epsilons=(1.0, 4.0), delta=1e-3),
    seeds=(0, 1),
    evaluation=Evaluation(every_rounds=2),
)
CELLS = 2 * (1 + 2 * 5)  # seeds x (pooled + ε x (joint, pooled_dp, three alone))
RESULTS = ("results.parquet", "results.json", "privacy-utility.svg", "privacy-utility.png")

STUDY_TOML = """
name = "Small study"
seeds = 2
data = { dataset = "synthetic", customers = 500 }
model = { family = "logistic" }
training = { rounds = 4, sampling_prob = 0.2, l2_clip_norm = 1.0, learning_rate = 1.0 }
privacy = { epsilons = [1, 4], delta = 1e-3 }
evaluation = { every_rounds = 2 }
"""

CHILD = """
import sys
from dovetail.simulation.running import run_study
from dovetail.simulation.study_file import read_study
tell = lambda progress: print(progress.done, flush=True)
run_study(read_study(sys.argv[1]), sys.argv[2], workers=1, on_progress=tell)
"""


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(whole_folder: Path) -> StudyResult:
    """The study, run at once in this process."""
    return run_study(STUDY, whole_folder, workers=1)


def assert_equal(result: StudyResult, other: StudyResult) -> None:
    """Equal bit for bit, measurements and scores."""
    assert result.measurements == other.measurements
    assert result.partners == other.partners
    for one, two in zip(result.predictions, other.predictions, strict=True):
        for field, value in asdict(one).items():
            np.testing.assert_array_equal(value, getattr(two, field))


def test_every_comparison_is_measured(whole: StudyResult) -> None:
    names = {partner.name for partner in whole.partners}
    assert len(names) == 3
    final = [m for m in whole.measurements if m.final and m.metric == "auc"]
    expected = {
        (comparison, trainer, tested, epsilon, seed)
        for seed in (0, 1)
        for tested in (*names, ALL)
        for comparison, trainer, epsilon in [
            ("pooled", ALL, None),
            *(
                (comparison, trainer, epsilon)
                for epsilon in (1.0, 4.0)
                for comparison, trainer in [
                    ("joint", ALL),
                    ("pooled_dp", ALL),
                    *(("alone", name) for name in names),
                ]
            ),
        ]
    }
    found = {(m.comparison, m.trained_by, m.tested_on, m.epsilon, m.seed) for m in final}
    assert found == expected
    assert len(final) == len(expected)
    assert all(0 <= m.value <= 1 for m in final)


def test_the_joint_model_has_a_learning_curve(whole: StudyResult) -> None:
    rounds = {m.round for m in whole.measurements if m.comparison == "joint" and not m.final}
    assert rounds == {2, 4}
    last = {
        m.value
        for m in whole.measurements
        if (m.comparison, m.round, m.seed, m.epsilon) == ("joint", 4, 0, 1.0)
        and (m.tested_on, m.metric) == (ALL, "auc")
    }
    assert len(last) == 1  # the curve ends in the final model


def test_without_privacy_is_better_than_little_noise_is_better_than_guessing(
    whole: StudyResult,
) -> None:
    row = next(r for r in whole.table().rows if r.partner == ALL and r.epsilon == 4.0)
    assert 0.55 < row.joint.mean < row.pooled.mean


def test_customers_are_declared_rounded_and_split_whole(whole: StudyResult) -> None:
    training = sum(partner.training_customers for partner in whole.partners)
    held_out = sum(partner.held_out_customers for partner in whole.partners)
    assert training + held_out == 500
    assert 60 < held_out < 140
    for partner in whole.partners:
        assert len(str(partner.declared_customers).rstrip("0")) <= 2
        assert abs(partner.declared_customers / partner.training_customers - 1) < 0.05
    tested = whole.predictions[0]
    assert len(np.unique(tested.customer)) == held_out
    assert len(tested.scores) == len(tested.labels) == len(tested.partner) > held_out


def test_results_are_written_tidy(whole: StudyResult, whole_folder: Path) -> None:
    assert read_parquet(whole_folder / "results.parquet") == [asdict(m) for m in whole.measurements]
    record = json.loads((whole_folder / "results.json").read_text())
    assert len(record["measurements"]) == len(whole.measurements)
    assert "not_private" in record
    assert (whole_folder / "privacy-utility.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (whole_folder / "privacy-utility.svg").read_text()


def test_prepared_rows_are_gone_afterwards(whole: StudyResult, whole_folder: Path) -> None:
    assert {p.name for p in whole_folder.iterdir()} == {"runs", ".lock", *RESULTS}


def test_the_table_prints_and_shows_in_a_notebook(whole: StudyResult) -> None:
    text = str(whole.table())
    assert all(partner.name in text for partner in whole.partners)
    assert "not private" in text
    html = whole.table()._repr_html_()
    assert html.count("<tr>") == 1 + 2 * 4


def test_a_second_run_reuses_every_cell(whole: StudyResult, whole_folder: Path) -> None:
    told: list[Progress] = []
    again = run_study(STUDY, whole_folder, on_progress=told.append)
    assert_equal(again, whole)
    assert [(p.done, p.total, p.reused) for p in told] == [(CELLS, CELLS, CELLS)]


def test_another_epsilon_runs_only_what_is_new(whole: StudyResult, whole_folder: Path) -> None:
    told: list[Progress] = []
    fewer = replace(STUDY, seeds=(0,), privacy=replace(STUDY.privacy, epsilons=(1.0, 2.0)))
    run_study(fewer, whole_folder, workers=1, on_progress=told.append)
    assert (told[-1].total, told[-1].reused) == (11, 6)
    assert (told[0].seconds_left, told[-1].seconds_left) == (None, 0)


def test_a_run_is_found_only_for_what_it_was_run_on(tmp_path: Path) -> None:
    cell = Cell("joint", ALL, 1.0, 2.0, seed=0)
    result = CellResult((), np.arange(3, dtype=np.float32))
    CellStore(tmp_path, STUDY, "data").save(cell, result)
    found = CellStore(tmp_path, replace(STUDY, name="Other", seeds=(0,)), "data").load(cell)
    assert found is not None
    np.testing.assert_array_equal(found.scores, result.scores)
    others = [
        (replace(STUDY, training=replace(STUDY.training, learning_rate=2.0)), "data", cell),
        (replace(STUDY, privacy=replace(STUDY.privacy, delta=1e-4)), "data", cell),
        (STUDY, "other data", cell),
        (STUDY, "data", replace(cell, seed=1)),
        (STUDY, "data", replace(cell, comparison="pooled_dp")),
        (STUDY, "data", replace(cell, noise_multiplier=2.1)),
    ]
    for study, data, other in others:
        assert CellStore(tmp_path, study, data).load(other) is None


def test_a_killed_run_goes_on_in_workers_and_ends_as_if_nothing_had_happened(
    whole: StudyResult, tmp_path: Path
) -> None:
    study, output = tmp_path / "study.toml", tmp_path / "output"
    study.write_text(STUDY_TOML)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(study), str(output)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout as progress:
        for line in progress:
            if int(line) == 5:
                os.kill(child.pid, signal.SIGKILL)
                break
    assert child.wait() == -signal.SIGKILL
    assert not (output / "results.json").exists()
    told: list[Progress] = []
    result = run_study(read_study(study), output, workers=2, on_progress=told.append)
    assert 5 <= told[0].reused < CELLS
    assert_equal(result, whole)


def test_a_damaged_file_is_run_again(tmp_path: Path) -> None:
    cell = Cell("joint", ALL, 1.0, 2.0, seed=0)
    store = CellStore(tmp_path, STUDY, "data")
    store.save(cell, CellResult((), np.arange(300, dtype=np.float32)))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for damaged in (b"", content[:100], content[:-1], content[:200] + b"?" + content[201:]):
        file.write_bytes(damaged)
        assert store.load(cell) is None
    file.write_bytes(content)
    assert store.load(cell) is not None


def test_a_full_disk_leaves_nothing_half(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match="'result' cannot be written: the disk is full"):
            write_whole(tmp_path / "result", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_a_study_wherever_it_strikes(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 200, 3000, 9000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(DataError, match=r"cannot be written|no disk space"):
                run_study(STUDY, tmp_path / "output", workers=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert list(tmp_path.iterdir()) == []


def test_one_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        only_run(tmp_path),
        pytest.raises(SettingError, match="another run"),
        only_run(tmp_path),
    ):
        pass
    with only_run(tmp_path):
        pass


def test_a_failed_run_leaves_what_was_finished_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"

    def fail(finished: tuple[str, ...]) -> None:
        with only_run(output):
            (output / "runs").mkdir()
            for name in finished:
                (output / "runs" / name).touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        fail(("finished.npz",))
    assert {path.name for path in output.iterdir()} == {".lock", "runs"}


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/output' cannot be made: not a directory"):
        run_study(STUDY, tmp_path / "file" / "output", workers=1)


def test_an_epsilon_that_no_noise_is_enough_for_is_a_wrong_setting(tmp_path: Path) -> None:
    study = replace(STUDY, privacy=replace(STUDY.privacy, epsilons=(1e-6,), delta=1e-12))
    with pytest.raises(SettingError, match=r"\[privacy\]: epsilons at delta = 1e-12: no noise"):
        run_study(study, tmp_path, workers=1)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (replace(STUDY, privacy=replace(STUDY.privacy, delta=0.01)), "delta"),
        (replace(STUDY, privacy=replace(STUDY.privacy, minimum_cohort=200)), "minimum_cohort"),
        (replace(STUDY, training=replace(STUDY.training, features=("numbr_0",))), "number_0"),
        (replace(STUDY, partition=Partition("column", column="regio")), "regio"),
        (
            replace(STUDY, partition=Partition("column", (("a", ("north",)),))),
            "no partner claims",
        ),
        (replace(STUDY, data=replace(STUDY.data, customers=10)), "partner"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    study: Study, message: str, tmp_path: Path
) -> None:
    told: list[Progress] = []
    with pytest.raises((SettingError, DataError, PolicyError), match=message):
        run_study(study, tmp_path, workers=1, on_progress=told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises((SettingError, DataError, PolicyError), match=message):
        run_study(study, tmp_path / "new" / "folder", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_workers_are_started_when_they_save_more_than_they_cost() -> None:
    assert worth_starting(100, 0.01, 8) == 1
    assert worth_starting(100, 10.0, 8) == 8
    assert worth_starting(3, 10.0, 8) == 3
    assert worth_starting(0, 10.0, 8) == 1
    assert worth_starting(100, 10.0, 1) == 1
