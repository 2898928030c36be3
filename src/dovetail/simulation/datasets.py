"""Made-up customers with a known truth, for tests, benchmarks and a first look."""

from __future__ import annotations

import csv
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovetail.data.source import materialise
from dovetail.errors import DataError, SettingError
from dovetail.schema import Category, Column, Label, Number, Schema

Floats = npt.NDArray[np.float64]

KEY = "customer"
LABEL = "bought"
CHANCE = "chance"
"""Column with the true probability of each row's label; not in the schema."""
PARTNER_COLUMN = "region"
"""Column to share customers out by; not in the schema."""
REGIONS = ("north", "south", "east")
_REGION_SHARES = (0.5, 0.3, 0.2)
_COLOURS = ("red", "green", "blue")
_COLOUR_EFFECTS = (0.8, 0.0, -0.8)

FIRST_DAY = date(2024, 1, 1)
LAST_DAY = date(2024, 12, 31)


@dataclass(frozen=True)
class Truth:
    """The logistic model that the labels come from.

    Attributes:
        intercept: log-odds where all else is 0; such that about one row in seven is positive.
        weights: per number, of its value scaled to [-1, 1].
        colour_effects: per value of the column ``colour``; NULL and others count 0.
    """

    intercept: float
    weights: tuple[float, ...]
    colour_effects: tuple[float, ...]


def synthetic_truth(numbers: int = 6) -> Truth:
    """Weights that fall off and alternate in sign; the last number tells nothing."""
    weights = tuple((-1) ** i * 2.0 / (i + 1) if i < numbers - 1 else 0.0 for i in range(numbers))
    return Truth(-2.0, weights, _COLOUR_EFFECTS)


def synthetic_schema(numbers: int = 6, rows: int = 4) -> Schema:
    """Schema of what :func:`synthetic` writes.

    Args:
        numbers: how many number columns, >= 1. The last one may be NULL.
        rows: most rows of a customer, >= 1.
    """
    columns: list[Column] = [
        Number(f"number_{i}", 0, 100, "points", nullable=i == numbers - 1) for i in range(numbers)
    ]
    columns.append(Category("colour", _COLOURS))
    return Schema("made-up purchases", KEY, "customer", tuple(columns), Label(LABEL, 0.15), rows)


def synthetic(
    destination: Path, *, customers: int, seed: int, numbers: int = 6, rows: int = 4
) -> Schema:
    """Write made-up rows to a Parquet file.

    Each customer has 1 to ``rows`` rows that share half of their variance. Labels are drawn from
    :func:`synthetic_truth`. Three regions of unequal size differ in level; some values are NULL,
    some colours are not declared, and some numbers lie outside their bounds.

    Args:
        destination: the file; its folder must exist.
        customers: how many, >= 1.
        seed: of everything drawn; equal arguments write equal rows.
        numbers: how many number columns, >= 1.
        rows: most rows of a customer, >= 1.

    Returns:
        The schema that the file fits.

    Raises:
        SettingError: an argument is below 1, or the seed negative.
        DataError: the destination cannot be written.
    """
    if min(customers, numbers, rows) < 1 or seed < 0:
        raise SettingError("customers, numbers and rows must be at least 1, the seed at least 0")
    table = _drawn(customers, np.random.default_rng(seed), synthetic_truth(numbers), rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        try:
            with path.open("w", encoding="utf-8", newline="") as opened:
                writer = csv.writer(opened)
                writer.writerow(table)
                writer.writerows(zip(*table.values(), strict=True))
        except OSError as error:
            reason = (error.strerror or "input/output error").lower()
            raise DataError(f"made-up rows cannot be written: {reason}") from None
        materialise("FROM made_up", {"made_up": path}, destination)
    return synthetic_schema(numbers, rows)


def _drawn(
    customers: int, random: np.random.Generator, truth: Truth, rows: int
) -> dict[str, list[object]]:
    """Columns by name; an empty text is NULL."""
    region = random.choice(len(REGIONS), size=customers, p=_REGION_SHARES)
    owner = np.repeat(np.arange(customers), random.integers(1, rows + 1, size=customers))
    points = _points(random, owner, region, len(truth.weights))
    scaled = np.clip(points, 0, 100) / 50 - 1
    colour = random.choice(5, size=len(owner), p=(0.3, 0.3, 0.2, 0.1, 0.1))
    effects = np.array([*truth.colour_effects, 0.0, 0.0])
    log_odds = truth.intercept + scaled @ np.array(truth.weights) + effects[colour]
    chance = 1 / (1 + np.exp(-log_odds))
    label = random.random(len(owner)) < chance
    columns: dict[str, list[object]] = {KEY: [f"c{i:07d}" for i in owner]}
    columns[PARTNER_COLUMN] = [REGIONS[region[i]] for i in owner]
    for i, values in enumerate(np.round(points, 2).T):
        columns[f"number_{i}"] = values.tolist()
    unknown = random.random(len(owner)) < 0.1
    last = f"number_{points.shape[1] - 1}"
    columns[last] = ["" if gone else v for gone, v in zip(unknown, columns[last], strict=True)]
    columns["colour"] = [(*_COLOURS, "mauve", "")[i] for i in colour]
    columns[CHANCE] = np.round(chance, 6).tolist()
    columns[LABEL] = label.astype(int).tolist()
    return columns


def _points(
    random: np.random.Generator,
    owner: npt.NDArray[np.int64],
    region: npt.NDArray[np.int64],
    width: int,
) -> Floats:
    """Normal around 50 with deviation 30, half of it the customer's, and a level per region."""
    habit = random.normal(size=(len(region), width))
    moment = random.normal(size=(len(owner), width))
    level = np.array([0.0, 10.0, -10.0])[region[owner]]
    points: Floats = 50 + 30 * (habit[owner] + moment) / np.sqrt(2) + level[:, None]
    return points
