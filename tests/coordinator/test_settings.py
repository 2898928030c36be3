from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dovetail.coordinator.settings import host_and_port, load_settings, write_settings
from dovetail.errors import SettingError

GOOD = """
name = "coop"
listen = "0.0.0.0:7433"
address = "coop.example:7433"
"""


def written(folder: Path, text: str) -> Path:
    (folder / "coordinator.toml").write_text(text)
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "coop"
    write_settings(folder, "coop", "127.0.0.1:7433", "localhost:7433")
    settings = load_settings(folder)
    assert (settings.name, settings.listen) == ("coop", "127.0.0.1:7433")
    assert settings.address == "localhost:7433"
    assert settings.database == str(folder / "jobs.sqlite")
    assert settings.metrics == ""
    places = (settings.keys, settings.parties, settings.agreement)
    assert [place.relative_to(folder).as_posix() for place in places] == [
        "keys",
        "parties",
        "agreement.toml",
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_settings_are_never_replaced(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    with pytest.raises(SettingError, match="there is a coordinator already"):
        write_settings(tmp_path, "other", "127.0.0.1:1", "localhost:1")
    assert load_settings(tmp_path).name == "coop"


def test_database_and_metrics_may_be_named(tmp_path: Path) -> None:
    more = 'database = "postgresql://coop@/jobs"\nmetrics = "127.0.0.1:9464"\n'
    settings = load_settings(written(tmp_path, GOOD + more))
    assert settings.database == "postgresql://coop@/jobs"
    assert settings.metrics == "127.0.0.1:9464"
    elsewhere = load_settings(written(tmp_path, f'{GOOD}database = "data/coop.sqlite"\n'))
    assert elsewhere.database == str(tmp_path / "data" / "coop.sqlite"), "beside the file"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name", "nmae", "did you mean 'name'"),
        ('"coop"', '"co op"', "a party's name"),
        ('"coop"', "7", "name must be text"),
        ('listen = "0.0.0.0:7433"\n', "", "'listen' is missing"),
        ('"0.0.0.0:7433"', '"7433"', "listen must be host:port"),
        ('"0.0.0.0:7433"', '"0.0.0.0:"', "listen must be host:port"),
        ('"0.0.0.0:7433"', '"0.0.0.0:70000"', "listen must be host:port"),
        ('"coop.example:7433"', '"coop.example"', "address must be host:port"),
        ("\nname", "\nmetrics = 9464\nname", "metrics must be text"),
        ("\nname", '\nmetrics = "0.0.0.0:9464"\nname', "stay on this machine"),
        ("\nname", '\nmetrics = "coop.example:9464"\nname', "stay on this machine"),
        ("\nname", "\ndatabase = 7\nname", "database must be text"),
        ("\nname", "\nname", ""),
        ("name =", "name", "is not TOML"),
    ],
)
def test_mistakes_are_named(old: str, new: str, named: str, tmp_path: Path) -> None:
    written(tmp_path, GOOD.replace(old, new, 1))
    if not named:
        assert load_settings(tmp_path)
        return
    with pytest.raises(SettingError, match=named) as caught:
        load_settings(tmp_path)
    assert str(caught.value).startswith("coordinator.toml: ") or "party's name" in named


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"coordinator\.toml: cannot be read"):
        load_settings(tmp_path)
    (tmp_path / "coordinator.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(SettingError, match="is not TOML"):
        load_settings(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SettingError, match="cannot be written"):
        write_settings(tmp_path / "taken", "coop", "127.0.0.1:1", "localhost:1")


@pytest.mark.parametrize(
    ("name", "listen", "address"),
    [
        ('co"op', "127.0.0.1:1", "localhost:1"),
        ("coop", '127"0:1', "localhost:1"),
        ("coop", "[::1:1", "localhost:1"),
        ("coop", "127.0.0.1:1", "localhost"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    name: str, listen: str, address: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError):
        write_settings(tmp_path / "new", name, listen, address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:7433", ("localhost", 7433)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert host_and_port(text, "x") == expected
