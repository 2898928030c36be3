import stat
from pathlib import Path

import pytest

from dovetail.data.engine import Limits, literal, quote, session
from dovetail.errors import DataError

BIG = "SELECT md5(range::VARCHAR) AS h FROM range(1000000) ORDER BY h"


def test_names_and_texts_are_quoted() -> None:
    with session(Limits(), []) as opened:
        nasty = "a\"b'c; DROP"
        ((text,),) = opened.rows(f"SELECT {literal(nasty)} AS {quote(nasty)}")
        assert text == nasty


def test_results_stream_beyond_the_memory_limit(tmp_path: Path) -> None:
    seen = 0
    with session(Limits(memory_mb=60, work_folder=tmp_path), []) as opened:
        for batch in opened.batches(BIG):
            (spill,) = tmp_path.iterdir()
            assert stat.S_IMODE(spill.stat().st_mode) == 0o700
            seen += batch.num_rows
    assert seen == 1_000_000
    assert list(tmp_path.iterdir()) == []


def test_without_a_work_folder_nothing_is_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with session(Limits(memory_mb=20), []) as opened, pytest.raises(DataError, match="memory"):
        list(opened.batches(BIG))
    assert list(tmp_path.iterdir()) == []


def test_the_work_folder_must_exist(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="work folder 'absent'"),
        session(Limits(work_folder=tmp_path / "absent"), []),
    ):
        pass


def test_an_error_in_mid_stream_holds_no_value() -> None:
    risky = "CAST(CASE WHEN range = 900000 THEN 'canary' ELSE '1' END AS INT)"
    query = f"SELECT {risky} FROM range(1000000)"
    with session(Limits(), []) as opened, pytest.raises(DataError) as caught:
        list(opened.batches(query))
    assert "canary" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


def test_the_configuration_is_locked(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with session(Limits(), []) as opened:
        for statement in (
            "SET enable_external_access = true",
            "SET allowed_paths = ['/']",
            "LOAD httpfs",
            f"ATTACH {literal(str(tmp_path / 'new.db'))}",
            f"SELECT * FROM read_csv({literal(str(tmp_path / 'secret.csv'))})",
        ):
            with pytest.raises(DataError):
                opened.run(statement)
