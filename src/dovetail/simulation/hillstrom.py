"""Hillstrom's e-mail test: does a customer visit the shop within two weeks?

64,000 customers of a shop, mailed at random about men's or women's merchandise or not at all
(Kevin Hillstrom, the MineThatData E-Mail Analytics and Data Mining Challenge, 2008). The file
does not come with Dovetail: ``hillstrom.csv.gz`` has one row per customer and the columns of
:data:`COLUMNS`; ``_split`` says ``train`` or ``test``.

Three partners by the channel through which a customer bought before. Because customers were mailed
at random, ``segment`` (which mail, if any) is a cause of the visit and must be a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from dovetail.data.source import materialise, run_query
from dovetail.schema import Category, Label, Number, Schema

KEY = "customer_id"
PARTNER_COLUMN = "channel"
"""The column that says whose customer one is."""

PARTNERS: Mapping[str, tuple[str, ...]] = {
    "web": ("Web",),
    "phone": ("Phone",),
    "multichannel": ("Multichannel",),
}
"""Values of :data:`PARTNER_COLUMN` of each partner."""

COLUMNS = (
    "customer_id",
    "recency",
    "history_segment",
    "history",
    "mens",
    "womens",
    "zip_code",
    "newbie",
    "channel",
    "segment",
    "visit",
    "conversion",
    "spend",
    "_split",
)
"""What the file holds; a missing column is an error when it is read."""

FIRST_DAY = date(2007, 3, 1)
"""Start of a frame around the data: its exact days were never published."""
LAST_DAY = date(2008, 3, 20)
"""End of that frame: the day on which the challenge appeared."""

SCHEMA = Schema(
    name="e-mail test",
    key=KEY,
    unit="customer",
    columns=(
        Number("recency", 1, 12, "months since the last purchase"),
        Number("history", 0, 1000, "USD spent in the past year", "log"),
        Number("mens", 0, 1, "bought men's merchandise"),
        Number("womens", 0, 1, "bought women's merchandise"),
        Number("newbie", 0, 1, "became a customer in the past year"),
        # "Surburban" is how the file spells it.
        Category("zip_code", ("Urban", "Surburban", "Rural")),
        Category("segment", ("Mens E-Mail", "Womens E-Mail", "No E-Mail")),
    ),
    label=Label("visit", prior=0.15),
    max_rows_per_customer=1,
)
"""The label ``visit``, and what is known when mails go out. ``channel`` tells partners apart."""


def build(file: Path, destination: Path) -> None:
    """Write the customers to a Parquet file, in the order of their key.

    Args:
        file: ``hillstrom.csv.gz``, or a ``.csv`` with the same columns.
        destination: the file to write; its folder must exist.

    Raises:
        DataError: the file is missing, damaged or lacks a column, or the destination cannot be
            written.
    """
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    query = f"SELECT {names} FROM customers ORDER BY {KEY}"  # noqa: S608 - our own names
    materialise(query, {"customers": file}, destination)


def held_out(table: Path) -> frozenset[str]:
    """The customers whom the file itself marks to be tested on.

    Args:
        table: the Parquet file that :func:`build` wrote.

    Raises:
        DataError: it cannot be read.
    """
    query = f"SELECT CAST({KEY} AS VARCHAR) FROM customers WHERE \"_split\" = 'test'"  # noqa: S608
    return frozenset(key for (key,) in run_query(query, {"customers": table}))
