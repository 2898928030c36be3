from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from dovetail.errors import DataError, LocalProtocolError, SettingError
from dovetail.flower.strategies import apply_mean, restore_strategy_state, server_optimizer
from dovetail.flower.strategies import strategy_state as state_of
from dovetail.store import checkpoints

MODEL = {
    "hidden.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "output.bias": np.array([0.5], np.float32),
}
STATE: dict[str, npt.NDArray[np.generic]] = {
    "m_t/output.bias": np.array([1 / 3], np.float64),
    "v_t/output.bias": MODEL["output.bias"],
}


def same(found: Any, wanted: Any) -> bool:
    return list(found) == list(wanted) and all(
        found[k].dtype == wanted[k].dtype and np.array_equal(found[k], wanted[k], equal_nan=True)
        for k in wanted
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints" / "spring").iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    digest = checkpoints.save(tmp_path, "spring", 3, MODEL, STATE)
    loaded = checkpoints.load(tmp_path, "spring", 3, digest)
    assert same(loaded.model, MODEL)
    assert same(loaded.state, STATE)
    assert names(tmp_path) == ["3.safetensors"]
    assert (tmp_path / "checkpoints").stat().st_mode & 0o777 == 0o700


numbers = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
singles = arrays_of.arrays(np.float32, numbers)
doubles = arrays_of.arrays(np.float64, numbers)
keys = st.text(st.characters(codec="utf-8"), max_size=20)


@given(model=st.dictionaries(keys, singles), state=st.dictionaries(keys, singles | doubles))
def test_any_model_and_state_come_back(model: Any, state: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        digest = checkpoints.save(Path(folder), "spring", 1, model, state)
        loaded = checkpoints.load(Path(folder), "spring", 1, digest)
    assert same(loaded.model, model)
    assert same(loaded.state, state)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedprox"])
def test_every_server_optimiser_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    mean = {key: array + np.float32(0.25) for key, array in MODEL.items()}
    mu = {"proximal_mu": 0.1} if name == "fedprox" else {}
    first = server_optimizer(name, nodes=2, **mu)
    after = apply_mean(first, 1, MODEL, mean, 10.0)
    digest = checkpoints.save(tmp_path, "spring", 1, after, state_of(first))
    loaded = checkpoints.load(tmp_path, "spring", 1, digest)
    second = server_optimizer(name, nodes=2, **mu)
    restore_strategy_state(second, loaded.state)
    wanted = apply_mean(first, 2, after, mean, 10.0)
    assert same(apply_mean(second, 2, loaded.model, mean, 10.0), wanted)


def test_other_types_are_refused(tmp_path: Path) -> None:
    for model, state in (
        ({"weight": np.zeros(2)}, {}),
        (MODEL, {"step": np.zeros(2, np.int64)}),
    ):
        with pytest.raises(LocalProtocolError, match="float32"):
            checkpoints.save(tmp_path, "spring", 1, model, state)  # type: ignore[arg-type]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("job", ["..", "../spring", "a/b", "", ".spring", "a" * 65, "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(job: str, tmp_path: Path) -> None:
    for act in (
        lambda: checkpoints.save(tmp_path, job, 1, MODEL, {}),
        lambda: checkpoints.load(tmp_path, job, 1, ""),
        lambda: checkpoints.keep(tmp_path, job, 1),
        lambda: checkpoints.forget(tmp_path, job),
    ):
        with pytest.raises(SettingError, match="job must be"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        checkpoints.save(tmp_path, "spring", number, MODEL, {})
    digest = checkpoints.save(tmp_path, "spring", 10, MODEL, STATE)
    (tmp_path / "checkpoints" / "spring" / ".11.safetensors.4711").touch()
    checkpoints.keep(tmp_path, "spring", 10)
    assert names(tmp_path) == ["10.safetensors"]
    assert same(checkpoints.load(tmp_path, "spring", 10, digest).model, MODEL)
    checkpoints.keep(tmp_path, "summer", 1)


def test_a_job_that_ended_leaves_no_checkpoint(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, "spring", 1, MODEL, {})
    checkpoints.save(tmp_path, "summer", 1, MODEL, {})
    for _ in range(2):
        checkpoints.forget(tmp_path, "spring")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["summer"]


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "of another round"])
def test_a_checkpoint_that_is_not_what_was_written_is_found(damage: str, tmp_path: Path) -> None:
    digest = checkpoints.save(tmp_path, "spring", 1, MODEL, STATE)
    path = tmp_path / "checkpoints" / "spring" / "1.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        checkpoints.save(tmp_path, "spring", 1, MODEL, {})
    with pytest.raises(DataError, match="the checkpoint of job 'spring' after round 1") as caught:
        checkpoints.load(tmp_path, "spring", 1, digest)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_full_disk_leaves_the_checkpoint_before(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = checkpoints.save(tmp_path, "spring", 1, MODEL, STATE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="cannot be written") as caught:
        checkpoints.save(tmp_path, "spring", 2, MODEL, STATE)
    assert "No space left on device" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert names(tmp_path) == ["1.safetensors"]
    assert same(checkpoints.load(tmp_path, "spring", 1, digest).model, MODEL)


def test_files_in_the_way_are_named_without_their_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    for act in (
        lambda: checkpoints.save(tmp_path, "spring", 1, MODEL, {}),
        lambda: checkpoints.load(tmp_path, "spring", 1, ""),
        lambda: checkpoints.forget(tmp_path, "spring"),
    ):
        with pytest.raises(DataError, match="job 'spring'") as caught:
            act()
        assert str(tmp_path) not in str(caught.value)


def test_jobs_that_have_checkpoints_are_listed(tmp_path: Path) -> None:
    assert checkpoints.kept(tmp_path) == ()
    for job in ("spring", "autumn"):
        checkpoints.save(tmp_path, job, 1, MODEL, {})
    assert checkpoints.kept(tmp_path) == ("autumn", "spring")
    checkpoints.forget(tmp_path, "spring")
    assert checkpoints.kept(tmp_path) == ("autumn",)
