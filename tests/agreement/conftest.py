"""The vectors as records to start from, and what they parse to."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement import request as requests
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms, parse_terms

VECTORS = Path(__file__).parent.parent / "vectors"
Change = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def read(name: str) -> Any:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


@pytest.fixture
def request_record() -> dict[str, Any]:
    record: dict[str, Any] = read("request.json")["good"][0]["record"]
    return record


@pytest.fixture
def terms_record() -> dict[str, Any]:
    record: dict[str, Any] = read("terms.json")["good"][0]["record"]
    return record


@pytest.fixture
def asked(request_record: dict[str, Any]) -> Request:
    return requests.from_record(request_record)


@pytest.fixture
def terms(terms_record: dict[str, Any]) -> Terms:
    return parse_terms(terms_record)


@pytest.fixture
def changed() -> Change:
    """Set the fields of a record that a vector names by dotted paths; ``null`` stays ``null``."""

    def change(record: dict[str, Any], vector: dict[str, Any]) -> dict[str, Any]:
        made = copy.deepcopy(record)
        for path, value in vector.get("set", {}).items():
            place, last = _place(made, path)
            place[last] = value
        for path in vector.get("unset", []):
            place, last = _place(made, path)
            del place[last]
        return made

    return change


def _place(record: Any, path: str) -> tuple[Any, Any]:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        record = record[step]
    return record, last
