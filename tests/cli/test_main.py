"""Commands parse, say what they do, and end with the exit code that they promise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from dovetail import __version__
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.errors import AgreementError, PolicyError, SettingError
from dovetail.simulation import running, study_file
from dovetail.simulation.study_file import read_study

SCHEMA = """
name = "customers"
key = "id"
unit = "customer"
max_rows_per_customer = 2
label = { name = "bought", prior = 0.2 }

[columns.age]
type = "number"
low = 0
high = 100
"""

STUDY = """
name = "Small study"
seeds = 1
data = { dataset = "synthetic", customers = 400 }
model = { family = "logistic" }
training = { rounds = 2, sampling_prob = 0.2, l2_clip_norm = 1.0, learning_rate = 1.0 }
privacy = { epsilons = [2], delta = 1e-3 }
"""

TELLING = """
from dovetail.cli.main import app
from dovetail.simulation.cell_store import CellStore
save = CellStore.save
def save_and_tell(*arguments):
    save(*arguments)
    print("saved", flush=True)
CellStore.save = save_and_tell
app()
"""
"""The command ``dovetail``, telling on stdout when a run was finished."""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dovetail", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.toml"
    path.write_text(SCHEMA)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("id,age,bought\n1,20,0\n2,130,1\n3,40,0\n")
    return path


def test_the_version() -> None:
    result = call("--version")
    assert result.exit_code == Code.DONE
    assert result.stdout == f"dovetail {__version__}\n"


@pytest.mark.parametrize("command", ["simulate", "check", "demo"])
def test_help_teaches_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == Code.DONE
    assert f"Example: dovetail {command}" in " ".join(result.stdout.split())
    assert "--json" in result.stdout


def test_all_commands_are_listed() -> None:
    result = call("--help")
    programs = ("simulate", "check", "demo", "agreement", "keys", "coordinator", "node", "job")
    for word in (*programs, "--version", "--install-completion", "Exit codes"):
        assert word in result.stdout


def every_command(group: Any, *words: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*words, name)
        if hasattr(command, "commands"):
            yield from every_command(command, *words, name)


@pytest.mark.parametrize("words", list(every_command(get_command(app))), ids=" ".join)
def test_every_command_explains_itself_and_every_option(words: tuple[str, ...]) -> None:
    result = call(*words, "--help")
    assert result.exit_code == Code.DONE
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    assert len(command.help) > 10
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help


def test_help_needs_no_heavy_library() -> None:
    heavy = ["torch", "opacus", "duckdb", "pyarrow", "flwr", "matplotlib", "sklearn", "sqlalchemy"]
    heavy += ["grpc", "alembic", "cryptography", "prometheus_client", "numpy", "dp_accounting"]
    program = f"import sys, dovetail.cli.main; print([n for n in {heavy} if n in sys.modules])"
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert child.stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingError("mend it"), Code.USAGE),
        (AgreementError("mend it"), Code.USAGE),
        (PolicyError("budget", "mend it"), Code.BAD),
        (KeyboardInterrupt(), Code.STOPPED),
    ],
)
def test_an_error_is_one_message_and_a_code(
    error: BaseException, code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(running, "run_study", fail)
    result = call("simulate", study, "--quiet")
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert ("mend it" if code != Code.STOPPED else "to go on") in result.stderr


def test_a_table_that_fits(schema: Path, table: Path) -> None:
    result = call("check", schema, table)
    assert result.exit_code == Code.DONE
    assert "warning: column 'age': outside the declared bounds" in result.stdout
    assert result.stdout.endswith("The table fits, with 1 warning.\n")
    assert "130" not in result.output
    table.write_text("id,age,bought\n1,130,0\n1,30,1\n1,30,1\n")
    assert call("check", schema, table).stdout.endswith("The table fits, with 2 warnings.\n")
    table.write_text("id,age,bought\n1,20,0\n2,30,1\n")
    assert call("check", schema, table).stdout == "The table fits the schema.\n"


def test_a_table_that_does_not_fit(schema: Path, table: Path) -> None:
    table.write_text("id,age,bought\n1,twenty,0\n2,30,2\n")
    result = call("check", schema, table, "--json")
    assert result.exit_code == Code.BAD
    found = json.loads(result.stdout)
    assert not found["usable"]
    assert {finding["column"] for finding in found["errors"]} == {"age", "bought"}
    assert "twenty" not in result.output


def test_check_in_a_process(schema: Path, table: Path) -> None:
    good = process("check", schema, table)
    assert (good.returncode, good.stderr) == (Code.DONE, "")
    missing = process("check", schema, table.with_name("missing.csv"))
    assert missing.returncode == Code.BAD
    assert missing.stderr.startswith("error: ")
    assert "missing.csv" in missing.stderr
    assert missing.stderr.count("\n") == 1
    schema.write_text(SCHEMA.replace("prior", "piror"))
    typo = process("check", schema, table)
    assert typo.returncode == Code.USAGE
    assert "did you mean 'prior'?" in typo.stderr
    assert typo.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate"],
        ["simulate", "missing.toml"],
        ["simulate", "study.toml", "--workers", "0"],
        ["simulate", "study.toml", "--wrkers", "1"],
        ["simluate", "study.toml"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == Code.USAGE
    assert result.stdout == ""
    assert result.stderr != ""


def test_a_study_with_a_typo(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY.replace("epsilons", "epsilon"))
    result = call("simulate", study)
    assert result.exit_code == Code.USAGE
    assert result.stderr.count("error: ") == 1
    assert (
        "study.toml: [privacy]: unknown field 'epsilon'; did you mean 'epsilons'?" in result.stderr
    )
    assert list(tmp_path.iterdir()) == [study]


def test_simulate_shows_a_table_and_where_things_are(tmp_path: Path) -> None:
    study, output = tmp_path / "study.toml", tmp_path / "output"
    study.write_text(STUDY)
    result = call("simulate", study, "--output", output, "--workers", 1)
    assert result.exit_code == Code.DONE, result.output
    assert "trained on" in result.stdout
    assert "one company, no privacy" in result.stdout
    assert str(output) in result.stdout
    assert "6/6" in result.stderr
    again = call("simulate", study, "-o", output, "--json", "--quiet")
    assert again.stderr == ""
    record = json.loads(again.stdout)
    assert record["output"] == str(output)
    assert {row["partner"] for row in record["table"]} == {"north", "south", "east", "all"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_obeyed(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(study_file, "read_study", lambda path: signal.raise_signal(number))
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    try:
        result = call("simulate", study)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    assert result.exit_code == Code.STOPPED
    assert result.stderr == "error: stopped\n"


def test_a_schema_that_does_not_hold_is_a_wrong_setting(tmp_path: Path, schema: Path) -> None:
    study = tmp_path / "study.toml"
    own = (
        '{ schema = "schema.toml", file = "a.csv", first_day = 2024-01-01, last_day = 2024-02-01 }'
    )
    study.write_text(STUDY.replace('{ dataset = "synthetic", customers = 400 }', own))
    schema.write_text(SCHEMA.replace("high = 100", "high = -1"))
    before = set(tmp_path.iterdir())
    result = call("simulate", study, "-o", tmp_path / "out")
    assert result.exit_code == Code.USAGE
    assert "schema.toml: column 'age': bounds reversed" in result.stderr
    assert set(tmp_path.iterdir()) == before
    swapped = call("simulate", schema)
    assert swapped.exit_code == Code.USAGE
    assert "this is a schema" in swapped.stderr


def test_every_argument_says_what_it_is() -> None:
    for command in ("simulate", "check"):
        text = call(command, "--help").output
        assert "TOML" in text[text.index("Arguments") :]


def test_the_shell_completes_commands_and_options() -> None:
    for words, expected in (("dovetail s", "simulate"), ("dovetail check --j", "--json")):
        completing = {
            "_DOVETAIL_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        result = CliRunner().invoke(app, [], env=completing, prog_name="dovetail")
        assert result.stdout.split() == [expected]


def test_the_example_of_own_data_fits_its_schema() -> None:
    example = Path(__file__).parents[2] / "examples" / "own-data"
    study = read_study(example / "study.toml")
    for _, (file,) in study.partition.partners:
        assert call("check", example / "schema.toml", file).exit_code == Code.DONE


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    study, output = tmp_path / "study.toml", tmp_path / "output"
    study.write_text(STUDY.replace("seeds = 1", "seeds = 2000"))
    child = subprocess.Popen(
        [sys.executable, "-c", TELLING, "simulate", str(study), "-o", str(output), "-w", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "saved\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == Code.STOPPED
    assert err.strip().endswith("finished runs are kept: give the same command again to go on")
    assert "Traceback" not in err
    names = {path.name for path in (output / "runs").iterdir()}
    assert names
    assert all(name.endswith(".npz") for name in names)
    assert not (output / ".prepared").exists()
