"""Who asked for the jobs that run at a partner, in files that outlive its node."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.agreement.request import Request
from dovetail.errors import DataError, SchemaError, SettingError
from dovetail.simulation.identities import asked
from dovetail.store.admissions import Admissions, Admitted, schema_digest
from tests.samples import SCHEMA, TASK, terms

REQUEST = Request("job-1", TASK)
ADMITTED = Admitted(asked(REQUEST, terms()), schema_digest(REQUEST, terms()))


@pytest.fixture(params=["disk", "memory"])
def admissions(request: pytest.FixtureRequest, tmp_path: Path) -> Admissions:
    return Admissions(tmp_path / "admitted" if request.param == "disk" else None)


def test_a_job_is_kept_until_it_ends(admissions: Admissions) -> None:
    assert admissions.admitted("job-1") is None
    admissions.note(ADMITTED)
    assert admissions.admitted("job-1") == ADMITTED
    assert admissions.admitted("job-2") is None
    admissions.forget("job-1")
    admissions.forget("job-1")
    assert admissions.admitted("job-1") is None


def test_who_asks_again_takes_the_place_of_who_asked_before(admissions: Admissions) -> None:
    admissions.note(ADMITTED)
    again = replace(ADMITTED, signed=asked(REQUEST, terms(max_rounds=40)))
    admissions.note(again)
    assert admissions.admitted("job-1") == again


def test_it_outlives_the_node_and_is_private(tmp_path: Path) -> None:
    Admissions(tmp_path / "admitted").note(ADMITTED)
    assert Admissions(tmp_path / "admitted").admitted("job-1") == ADMITTED
    modes = [p.stat().st_mode for p in (tmp_path / "admitted", tmp_path / "admitted/job-1.json")]
    assert [stat.S_IMODE(mode) for mode in modes] == [0o700, 0o600]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"signed": {}, "schema_digest": ""}'])
def test_a_damaged_file_says_nothing(content: str, tmp_path: Path) -> None:
    admissions = Admissions(tmp_path / "admitted")
    admissions.note(ADMITTED)
    (tmp_path / "admitted" / "job-1.json").write_text(content)
    with pytest.raises((DataError, SettingError)):
        admissions.admitted("job-1")


@pytest.mark.parametrize("job", ["../job-1", "", "a/b", "a" * 65])
def test_a_name_that_no_job_has_is_no_file(job: str, admissions: Admissions) -> None:
    for call in (admissions.admitted, admissions.forget):
        with pytest.raises(SettingError):
            call(job)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "admitted").write_text("a file")
    with pytest.raises(DataError, match="admitted"):
        Admissions(tmp_path / "admitted")


def test_only_what_is_declared_of_the_columns_in_use_counts() -> None:
    young = Request("job-1", replace(TASK, features=("age",)))
    age, spend, region = SCHEMA.columns
    other = terms(schema=replace(SCHEMA, columns=(age, replace(spend, name="turnover"), region)))
    assert schema_digest(young, terms()) == schema_digest(young, other)
    with pytest.raises(SchemaError):
        schema_digest(REQUEST, other)
