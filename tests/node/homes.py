"""Folders of three real partners: node.toml, terms, schema and a CSV file each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SCHEMA = """
name = "customers"
key = "id"
unit = "customer"
max_rows_per_customer = 3
[label]
name = "bought"
prior = 0.2
[columns.age]
type = "number"
low = 0
high = 100
nullable = true
[columns.spend]
type = "number"
low = 0
high = 1000
transform = "log"
[columns.region]
type = "category"
values = ["north", "south"]
"""

TERMS = """
name = "loyalty"
version = 1
purposes = ["propensity"]
customers_overlap = false
minimum_cohort = 50
schema = "schema.toml"
[budget]
epsilon = 8.0
delta = 1e-3
[allowed]
model_families = ["logistic"]
protections = ["local"]
max_parameters = 1000
max_rounds = 50
max_steps = 100
"""
PARTNER = """
[[partners]]
name = "{name}"
role = "shop"
customers = {customers}
first_day = 2024-01-01
last_day = 2024-12-31
"""
NODE = """
partner = "{name}"
terms = "../terms.toml"
ledger = "{name}.ledger"
arrays = "arrays"
[source]
files = "customers.csv"
"""
SIZES = {"brand": 100, "platform": 200, "retailer": 300}


def write_csv(path: Path, customers: int, seed: int) -> None:
    """A few rows per customer, some with an empty age."""
    dice = np.random.default_rng(seed)
    rows = ["id,age,spend,region,bought"]
    for customer in range(customers):
        for _ in range(dice.integers(1, 5)):
            age = "" if dice.random() < 0.1 else f"{dice.uniform(0, 110):.1f}"
            region = dice.choice(["north", "south", "abroad"])
            rows.append(f"{customer},{age},{dice.uniform(0, 900):.2f},{region},{dice.integers(2)}")
    path.write_text("\n".join(rows) + "\n")


def write_homes(folder: Path) -> Path:
    """Writes terms and one folder per partner; returns ``folder``."""
    (folder / "schema.toml").write_text(SCHEMA)
    partners = "".join(PARTNER.format(name=n, customers=c) for n, c in SIZES.items())
    (folder / "terms.toml").write_text(TERMS + partners)
    for seed, (name, customers) in enumerate(SIZES.items()):
        home = folder / name
        home.mkdir()
        (home / "node.toml").write_text(NODE.format(name=name))
        write_csv(home / "customers.csv", customers, seed)
    return folder
