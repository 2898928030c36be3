"""What the documentation and the examples say still holds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from dovetail.agreement.draft import fill_in
from dovetail.agreement.files import terms_of_toml
from dovetail.agreement.job_file import JobFile
from dovetail.agreement.policy import RULES, NodePolicy
from dovetail.agreement.request import ModelSpec, TrainingTask
from dovetail.cli.main import app
from dovetail.coordinator.settings import CoordinatorSettings
from dovetail.node.settings import NodeSettings
from dovetail.node.worker import WorkerLimits
from dovetail.schema import load_schema
from dovetail.simulation.study_file import read_study
from tests.agreement.conftest import parties

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FROM_FILES = ("partners", "analysts")
README = (ROOT / "README.md").read_text()


def test_the_readme_names_every_command() -> None:
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"dovetail {name}" in README or f"scripts/{name}" in README


def commands(group: Any, *words: str) -> Iterator[tuple[str, str]]:
    """Every command with the first sentence of its help."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)
        else:
            sentence = re.sub(r"\[/?bold\]", "", command.help.partition("\n")[0])
            yield " ".join([*words, name]), sentence


def test_the_reference_holds_every_command_and_what_it_does() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    rows = re.findall(r"^\| `(dovetail [^`]+)` \| (.*) \|$", text, re.MULTILINE)
    assert rows == list(commands(get_command(app), "dovetail"))


@pytest.mark.parametrize(
    ("settings", "document"),
    [
        (CoordinatorSettings, "docs/commands.md"),
        (NodeSettings, "examples/node.toml"),
        (NodePolicy, "examples/node.toml"),
        (WorkerLimits, "examples/node.toml"),
        (TrainingTask, "docs/jobs.md"),
        (ModelSpec, "docs/jobs.md"),
        (JobFile, "docs/jobs.md"),
    ],
)
def test_every_setting_is_explained(settings: Any, document: str) -> None:
    text = (ROOT / document).read_text()
    implied = {"folder", "request"}
    names = [name for name in settings.__dataclass_fields__ if name not in implied]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_every_link_and_script_exists(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert all((document.parent / link).exists() for link in links)
    for script in re.findall(r"scripts/([a-z]+)", text):
        assert (ROOT / "scripts" / script).exists()


def test_every_benchmark_that_is_quoted_exists() -> None:
    quoted = re.findall(r"scripts/bench ([a-z_]+)", (ROOT / "docs" / "benchmarks.md").read_text())
    assert quoted
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in quoted)


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("agreement.toml")))
def test_the_agreements_are_valid_once_keys_are_filled_in(path: Path) -> None:
    text = path.read_text()
    names = {field: [p["name"] for p in tomllib.loads(text)[field]] for field in FROM_FILES}
    terms = terms_of_toml(fill_in(text, parties(*names.values())), path)
    assert terms.schema == load_schema(path.parent / "schema.toml")


def test_the_examples_are_valid() -> None:
    for study in sorted(EXAMPLES.rglob("study.toml")):
        assert read_study(study).seeds


def test_every_rule_has_one_name() -> None:
    assert len(set(RULES)) == len(RULES)
