"""A job in a TOML file, as an analyst writes it.

::

    job = "spring-coupons"
    quorum = 2                          # optional: partners without which a round does not count
    deadline = 600                      # optional: seconds that a partner has for a round

    [task]
    purpose = "coupon propensity"
    features = ["spend", "region"]
    ...                                 # every field of a training task, as in request.TrainingTask

    [task.model]
    family = "logistic"

``noise_multiplier`` may be replaced by ``epsilon`` and ``delta``: then the least noise is taken
with which the whole job stays within them.
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from dovetail.agreement import request as requests
from dovetail.agreement.calibration import enough_noise
from dovetail.agreement.record import Fields, require
from dovetail.agreement.request import ModelSpec, Request, TrainingTask
from dovetail.agreement.terms import Terms
from dovetail.errors import PrivacyError, SettingError

DEADLINE = 600.0


@dataclass(frozen=True)
class JobFile:
    """A job and how it is to be run.

    Attributes:
        request: what is asked.
        quorum: partners without which a round does not count; 0 for more than half.
        deadline: seconds that a partner has for a round.
    """

    request: Request
    quorum: int
    deadline: float


def read_job(path: Path, terms: Terms) -> JobFile:
    """The job in a TOML file.

    Args:
        path: the file.
        terms: under which it is to be asked: how much noise an ε needs depends on them.

    Raises:
        SettingError: the file cannot be read, a field is missing, unknown, of another type or out
            of range, or no noise is enough for the ε that it names.
    """
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path.name}: is not TOML: {error}") from None
    how = {"quorum": record.pop("quorum", 0), "deadline": record.pop("deadline", DEADLINE)}
    read = Fields(how, path.name, tuple(how))
    quorum, deadline = read.whole("quorum"), read.number("deadline")
    require(quorum >= 0, f"{path.name}: quorum must not be negative")
    require(deadline > 0, f"{path.name}: deadline must be above 0 s")
    try:
        task = record.get("task")
        if isinstance(task, dict):
            record["task"] = _completed(task, terms)
        return JobFile(requests.from_record({"kind": "training", **record}), quorum, deadline)
    except (SettingError, PrivacyError) as error:
        raise SettingError(f"{path.name}: {error}") from None


def _completed(task: dict[str, Any], terms: Terms) -> dict[str, Any]:
    """The task with what may be left out, and with the noise that its ε asks for."""
    model = task.get("model")
    filled = {**_defaults(TrainingTask), **task}
    if isinstance(model, dict):
        filled["model"] = {**_defaults(ModelSpec), **model}
    if "epsilon" in filled and "delta" in filled and "noise_multiplier" not in filled:
        filled["noise_multiplier"] = _noise(filled, terms)
    return filled


def _defaults(kind: type[Any]) -> dict[str, Any]:
    usual = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in usual.items()}


def _noise(task: dict[str, Any], terms: Terms) -> float:
    epsilon, delta = task.pop("epsilon"), task.pop("delta")
    if not (_is_number(epsilon) and _is_number(delta)):
        raise SettingError("task: epsilon needs delta, sampling_prob and rounds as numbers")
    asked = {"kind": "training", "job": "job", "task": {**task, "noise_multiplier": 1.0}}
    return enough_noise(requests.from_record(asked).task, terms, epsilon, delta)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
