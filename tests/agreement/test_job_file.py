"""Jobs as analysts write them, in TOML: good ones, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement.draft import fill_in
from dovetail.agreement.files import terms_of_toml
from dovetail.agreement.job_file import read_job
from dovetail.errors import SettingError
from dovetail.privacy import accountant
from tests.agreement.conftest import parties
from tests.samples import terms

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "job_file.json").read_text())
EXAMPLES = Path(__file__).parents[2] / "examples"


def written(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda v: v["why"])
def test_good_vectors(vector: dict[str, Any], tmp_path: Path) -> None:
    job = read_job(written(tmp_path, vector["toml"]), terms())
    assert (job.quorum, job.deadline) == (vector["quorum"], vector["deadline"])
    task = job.request.task
    for name, value in vector["task"].items():
        assert getattr(task, name) == value
    if "epsilon" in vector:
        epsilon, delta = vector["epsilon"]
        spent = accountant.epsilon({task.event: task.steps}, delta)
        assert 0.95 * epsilon < spent <= epsilon


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda v: v["why"])
def test_bad_vectors(vector: dict[str, Any], tmp_path: Path) -> None:
    old, new = vector["replace"]
    path = written(tmp_path, VECTORS["good"][0]["toml"].replace(old, new, 1))
    with pytest.raises(SettingError) as caught:
        read_job(path, terms())
    assert vector["message"] in str(caught.value)
    assert str(caught.value).startswith("job.toml: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"job\.toml: cannot be read"):
        read_job(tmp_path / "job.toml", terms())
    (tmp_path / "job.toml").write_bytes(b'job = "\xff"')
    with pytest.raises(SettingError, match="is not TOML"):
        read_job(tmp_path / "job.toml", terms())


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("job*.toml")), ids=lambda p: p.name)
def test_the_examples_are_jobs(path: Path) -> None:
    names = ("retailer", "platform", "brand")
    agreement = path.with_name("agreement.toml")
    agreed = terms_of_toml(fill_in(agreement.read_text(), parties(names)), agreement)
    assert read_job(path, agreed).request.task.protection == "distributed"
